"""Factor and @variant: the only dispatch code of the project.

A factor is a choice of the recipe; a variant is one class or function registered under it. Positional parameters
are what the model or trainer supplies, keyword-only ones are the options that a suite may set: they are read from the
signature into a strict schema.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ablate.errors import UserError, near_miss

ENTRY_POINT_GROUP = "ablate.variants"
T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to make a choice: `build` is the class or function, `options` the schema of its keyword-only parameters.

    Args:
        capturable: whether it may be part of a step that is captured in a CUDA graph and serves one trial after another: all that it
            keeps from step to step are tensors changed in place, and it reads none of them back.
        tensors: the options that reach such a step as values on the device, so that trials which differ in them share it.
    """

    factor: str
    name: str
    build: Callable[..., Any]
    reference: str
    options: type[BaseModel]
    capturable: bool = False
    tensors: tuple[str, ...] = ()

    @property
    def doc(self) -> str:
        """The first sentence of the docstring."""
        return " ".join((inspect.getdoc(self.build) or "").split("\n\n")[0].split())

    def trait(self, name: str, default: Any = None) -> Any:
        """A class attribute or function attribute that the variant declares, such as `gated`."""
        return getattr(self.build, name, default)


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant selected, its options complete. Written as in a suite: `{"gqa": {"n_kv_heads": 2}}`."""

    factor: str
    name: str
    options: Mapping[str, Any]

    @property
    def variant(self) -> Variant:
        return FACTORS[self.factor][self.name]

    def build(self, *args: Any) -> Any:
        """Call the variant with what the model supplies and the options."""
        return self.variant.build(*args, **self.options)

    def bind(self) -> Callable[..., Any]:
        """The variant with its options filled in, for what is called again and again."""
        return functools.partial(self.variant.build, **self.options)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return {self.name: dict(self.options)}


class Factor:
    """A choice of the recipe and the variants registered for it; `in_step` says whether they run in an optimizer step."""

    def __init__(self, name: str, field: str, doc: str, *, in_step: bool = True) -> None:
        if name in FACTORS:
            raise ValueError(f"factor {name!r} is defined twice")
        self.name, self.field, self.doc, self.in_step = name, field, doc, in_step
        self.variants: dict[str, Variant] = {}
        FACTORS[name] = self

    def variant(
        self, name: str, *, reference: str, capturable: bool = False, tensors: tuple[str, ...] = ()
    ) -> Callable[[T], T]:
        """Register the decorated class or function as `name`; `reference` is where it was published, the rest as in `Variant`."""

        def register(build: T) -> T:
            if name in self.variants:
                raise ValueError(f"{self.name} variant {name!r} is defined twice")
            options = _options(self.name, name, build)
            self.variants[name] = Variant(self.name, name, build, reference, options, capturable, tensors)
            return build

        return register

    def __getitem__(self, name: str) -> Variant:
        try:
            return self.variants[name]
        except KeyError:
            raise UserError(f"unknown {self.name} {name!r}{near_miss(str(name), self.variants)}") from None

    def __iter__(self) -> Iterator[Variant]:
        return iter(self.variants.values())

    def choose(self, value: Any, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> Choice:
        """The choice that a suite spells as `name` or `{name: {option: value}}`; `defaults` gives options by variant name.

        Raises:
            UserError: unknown variant or option, or a value of the wrong type.
        """
        if isinstance(value, Choice):
            return value
        if isinstance(value, str):
            name, given = value, {}
        elif isinstance(value, Mapping) and len(value) == 1:
            ((name, given),) = value.items()
            given = {} if given is None else given
        else:
            raise UserError(f"expected a variant of {self.name} ({', '.join(self.variants)}) "
                            f"or one with options, such as {{name: {{option: value}}}}, not {value!r}")  # fmt: skip
        if not isinstance(name, str):
            raise UserError(f"expected the name of a variant of {self.name}, not {name!r}")
        variant = self[name]
        if not isinstance(given, Mapping):
            raise UserError(f"options of {self.name} {name!r} must be a mapping, not {given!r}")
        known = variant.options.model_fields
        for option in given:
            if option not in known:
                hint = near_miss(str(option), known) if known else "; it has none"
                raise UserError(f"{self.name} {name!r} has no option {option!r}{hint}")
        merged = {**(defaults or {}).get(name, {}), **given}
        try:
            options = variant.options.model_validate(merged)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{self.name} {name!r}: {where}: {first['msg']}, not {first['input']!r}") from None
        return Choice(self.name, name, options.model_dump(mode="json"))


FACTORS: dict[str, Factor] = {}


def _options(factor: str, name: str, build: Callable[..., Any]) -> type[BaseModel]:
    target: Any = build.__init__ if inspect.isclass(build) else build
    options = [p for p in inspect.signature(target).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    # only the options' annotations: those of the positional parameters may name types that are imported for checking alone
    holder = types.SimpleNamespace(__annotations__={p.name: p.annotation for p in options})
    hints = typing.get_type_hints(holder, globalns=getattr(target, "__globals__", {}), include_extras=True)
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is inspect.Parameter.empty else p.default) for p in options
    }
    config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True)
    return create_model(f"{factor}_{name}", __config__=config, **fields)


@functools.cache
def load_factors() -> dict[str, Factor]:
    """All factors with all variants: this package's files, then other packages' entry points (`ablate.variants`)."""
    package = importlib.import_module("ablate.variants")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"ablate.variants.{module.name}")
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        entry.load()
    return dict(sorted(FACTORS.items()))
