"""Identity of code: a hash of what computes a trial's numbers, the same on every Python that we support.

Covered are the trainer's modules whole and, of the variants, the definitions that the recipe selects with all that they use.
Comments, docstrings, layout, decorators and type annotations of nothing selected do not count. `ast.dump` differs between Python
versions; the walk here leaves out what differs.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

CORE = (
    "ablate._loss", "ablate._preparation", "ablate.corpus", "ablate.data", "ablate.feed", "ablate.model", "ablate.scaling", "ablate.step",
    "ablate.tokens", "ablate.train", "ablate.variants._attend",
)  # fmt: skip
"""Modules that decide every trial's numbers; those that merely measure or describe are not among them."""

NOT_FOLLOWED = ("ablate.errors", "ablate.recipe", "ablate.variants._factor")
"""What these decide is in the resolved recipe, which is hashed itself."""


def code_fingerprint(selected: Iterable[tuple[str, str]], core: Iterable[str] = CORE) -> str:
    """16 hexadecimal digits over the core modules and the `(module, name)` definitions in `selected`.

    Raises:
        ValueError: a module without source or a name that it does not define.
    """
    parts = [f"{module}\n{_canonical(_module(module).tree)}" for module in sorted(core)]
    reached: set[tuple[str, str]] = set()
    for module, name in selected:
        _reach(module, name, reached)
    parts += [f"{module}:{name}\n{_module(module).text(name)}" for module, name in sorted(reached)]
    return hashlib.sha256("\n\n".join(parts).encode()).hexdigest()[:16]


class _Module:
    """A parsed module: what each of its top-level names is defined by, and what it imports."""

    def __init__(self, name: str) -> None:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ValueError(f"no source for module {name}")
        self.name = name
        self.is_package = spec.submodule_search_locations is not None
        self.tree = ast.parse(Path(spec.origin).read_bytes())
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(node)
        for node in self.tree.body:
            for target in _defined(node):
                self.definitions.setdefault(target, []).append(node)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                self.imports[alias.asname or alias.name.split(".")[0]] = (alias.name, None)
            return
        base = node.module or ""
        if node.level:
            package = self.name if self.is_package else self.name.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            base = f"{package}.{base}".rstrip(".")
        for alias in node.names:
            self.imports[alias.asname or alias.name] = (base, alias.name)

    def text(self, name: str) -> str:
        return "\n".join(_canonical(node) for node in self.definitions[name])


@functools.cache
def _module(name: str) -> _Module:
    return _Module(name)


def _reach(module: str, name: str, reached: set[tuple[str, str]]) -> None:
    """Add a definition and everything of its own package that it uses."""
    if (module, name) in reached or module in NOT_FOLLOWED:
        return
    found = _module(module)
    if name not in found.definitions:
        if name not in found.imports:
            raise ValueError(f"{module} does not define {name}")
        source, original = found.imports[name]
        _follow(module, source, original, [], reached)
        return
    reached.add((module, name))
    for node in found.definitions[name]:
        for used, attributes in _uses(node):
            if used in found.definitions:
                _reach(module, used, reached)
            elif used in found.imports:
                _follow(module, *found.imports[used], attributes, reached)


def _follow(user: str, source: str, name: str | None, attributes: list[str], reached: set[tuple[str, str]]) -> None:
    """Follow an import within the user's own distribution; other packages are the environment's."""
    if source.split(".")[0] != user.split(".")[0] or source in NOT_FOLLOWED:
        return
    if name is not None and importlib.util.find_spec(source) is not None:
        if name in _module(source).definitions or name in _module(source).imports:
            return _reach(source, name, reached)
        source = f"{source}.{name}"
    for attribute in attributes[:1]:
        if source not in NOT_FOLLOWED:
            _reach(source, attribute, reached)


def _uses(node: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Names that a definition reads, decorators apart, each with the attribute read from it."""
    stack: list[ast.AST] = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, ast.Attribute) and isinstance(current.value, ast.Name):
            yield current.value.id, [current.attr]
            continue
        if isinstance(current, ast.Name):
            yield current.id, []
        skipped = set(map(id, getattr(current, "decorator_list", ())))
        stack += [child for child in ast.iter_child_nodes(current) if id(child) not in skipped]


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
    elif isinstance(node, (ast.If, ast.Try, ast.With, ast.For)):
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.stmt):
                yield from _defined(inner)


_DROPPED = {"ctx", "kind", "type_comment", "decorator_list", "type_ignores"}


def _canonical(node: object) -> str:
    """A spelling of the tree that holds meaning only and does not depend on the Python version."""
    if isinstance(node, ast.JoinedStr):
        return f"JoinedStr({_joined(node)})"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = []
    for name in sorted(node._fields):
        value = getattr(node, name, None)
        if name in _DROPPED or value is None or value == []:
            continue
        if isinstance(value, list):
            if name == "body" and isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                value = [item for item in value if not _is_text(item)]
            spelled = "[" + ",".join(_canonical(item) for item in value) + "]"
        else:
            spelled = _canonical(value)
        parts.append(f"{name}={spelled}")
    constant = isinstance(node, ast.Constant) and node.value is None
    return f"{type(node).__name__}({'None' if constant else ','.join(parts)})"


def _joined(node: ast.JoinedStr) -> str:
    """The pieces of an f-string, neighbouring text merged and empty text left out."""
    pieces: list[str] = []
    text = ""
    for value in node.values:
        if isinstance(value, ast.Constant):
            text += str(value.value)
            continue
        if text:
            pieces.append(repr(text))
        text = ""
        pieces.append(_canonical(value))
    return ",".join(pieces + ([repr(text)] if text else []))


def _is_text(node: ast.stmt) -> bool:
    """A string that stands alone: a docstring, or one beside what it documents."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
