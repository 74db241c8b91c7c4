"""Imports point down the list of design.md, and reading results loads no trainer."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGINE = """
    pytest_plugin foreign
    __main__ cli commands against side check session verify housekeeping doctor timeline render_outlook render __init__
    display scheduler ending rows scratch mps writer speed outlook plan known worker checkpoints watchdog status lease
    inference counts rounding turns process train feed step graph scaling memory convert environment
    tune design match measure suite _suite_arms _grid _cells _suite_design _checks _labels _suite_schema optimal fractional aliases
    spec _resolve _words presets
    operators
    model _loss data fingerprint _preparation corpus tokens
    recipe variants _yaml errors
""".split()
"""The engine from the top down: a module imports only what stands to its right."""

JOIN = set(
    "commands against check session verify housekeeping doctor timeline render display plan "
    "known scheduler scratch writer worker status lease speed outlook foreign".split()
)
"""The modules of the engine that may use the registry."""


def engine_module(path: Path) -> str:
    """`model` for ablate/model.py, `variants` for everything in ablate/variants."""
    return path.relative_to(ROOT / "ablate").parts[0].removesuffix(".py")


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from at_run_time(child)


def imports(path: Path) -> set[str]:
    """The absolute dotted names that a file imports, anywhere in it but for type checkers."""
    package = list(path.relative_to(ROOT).parent.parts)
    found: set[str] = set()
    for node in at_run_time(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.add(node.args[0].value)
    return found


def engine_files() -> list[Path]:
    return sorted((ROOT / "ablate").rglob("*.py"))


def registry_files() -> list[Path]:
    return sorted((ROOT / "registry").rglob("*.py"))


def uses(path: Path, package: str) -> bool:
    return any(name.split(".")[0] == package for name in imports(path))


def id_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", engine_files(), ids=id_of)
def test_engine_imports_point_down(path: Path) -> None:
    module = engine_module(path)
    assert module in ENGINE, f"{module} has no place in the list"
    below = ENGINE[ENGINE.index(module) :]
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ablate":
            inner = parts[1] if len(parts) > 1 and parts[1] in ENGINE else "__init__"
            assert inner in below or name == "ablate.__version__", (
                f"{id_of(path)} imports {name}, which stands above it"
            )


@pytest.mark.parametrize("path", engine_files(), ids=id_of)
def test_only_some_modules_join_engine_and_registry(path: Path) -> None:
    assert not uses(path, "registry") or engine_module(path) in JOIN


@pytest.mark.parametrize("path", registry_files(), ids=id_of)
def test_registry_stands_alone(path: Path) -> None:
    for package in ("ablate", "torch", "ray"):
        assert not uses(path, package)


@pytest.mark.parametrize("path", registry_files(), ids=id_of)
def test_registry_does_not_call_itself_by_name(path: Path) -> None:
    """The pytest plugin loads it under another: a project that is tested may have a `registry` of its own."""
    for node in at_run_time(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.split(".")[0] == "registry"]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] != "registry"


def test_ray_and_mlflow_are_imported_in_one_place_each() -> None:
    files = engine_files() + registry_files()
    assert [id_of(path) for path in files if uses(path, "ray")] == ["ablate/scheduler.py"]
    assert [id_of(path) for path in files if uses(path, "mlflow")] == ["registry/store.py"]


def loaded(code: str, home: Path) -> set[str]:
    """The top-level modules in `sys.modules` after `code` ran in a fresh interpreter."""
    report = "\nimport json, sys; print('\\n' + json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "ABLATE_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code + report], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(*argv: str) -> str:
    return f"from ablate.cli import main\nassert main({list(argv)!r}) == 0"


def test_registry_loads_no_trainer(home: Path) -> None:
    names = "\n".join(f"registry.{name}" for name in ("Leaderboard", "Store", "TrialRecord", "query"))
    assert not loaded(f"import registry\n{names}", home) & {"torch", "ray", "ablate"}
    assert not loaded("import registry", home) & {"torch", "ray", "ablate", "mlflow", "pandas", "duckdb"}


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "--help"],
        ["suites"],
        ["show", "quickstart"],
        ["status", "attention"],
        ["leaderboard"],
        ["report", "attention"],
        ["query", "SELECT * FROM trials"],
    ],
)
def test_reading_commands_load_no_trainer(argv: list[str], filled: Path) -> None:
    assert not loaded(command(*argv), filled) & {"torch", "ray"}


def test_help_loads_no_heavy_library(home: Path) -> None:
    assert not loaded(command("--help"), home) & {"torch", "ray", "mlflow", "pandas", "duckdb", "pydantic", "datasets"}


def test_plan_loads_no_ray(home: Path) -> None:
    found = loaded(command("plan", "quickstart", "--set", "data.source=synthetic"), home)
    assert "torch" in found
    assert "ray" not in found
