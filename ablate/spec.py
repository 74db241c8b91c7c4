"""Spec: a recipe as it is being written, in the words of a suite; `resolve` leaves nothing to be decided.

A spec also takes what is easier to say than what a recipe holds: the shorthands of `ablate._words`, `model.dropout: 0.1` for all four
places, and for any number `x2`, twice what was said before, by the scale's preset or since.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ablate import recipe as schema
from ablate._resolve import read, resolve
from ablate._words import SHORTHANDS, alternatives, is_multiple, multiply, number_type, words
from ablate.errors import UserError, near_miss
from ablate.presets import SCALES
from ablate.recipe import Recipe, RecipeError
from ablate.variants import Factor, load_factors


def fields() -> dict[str, str]:
    """Every dotted field that a suite may set and what it is: sections, leaves, factors and shorthands."""
    return dict(_fields(Recipe, "")) | {path: word.doc for path, word in SHORTHANDS.items()}


def _fields(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, info in section.model_fields.items():
        path = prefix + name
        yield path, info.description or ""
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _fields(info.annotation, path + ".")


class Spec:
    """Overrides applied one after another over a scale's preset.

    A factor keeps the options of each of its variants apart, so that selecting another variant does not inherit options that were
    meant for the first: `optimizer.lr` belongs to the optimizer selected at that moment.
    """

    def __init__(self, scale: str) -> None:
        if scale not in SCALES:
            raise UserError(f"unknown scale {scale!r}{near_miss(str(scale), SCALES)}")
        self.scale = scale
        self._values: dict[str, Any] = {}
        self._selected: dict[str, str] = {}
        self._options: dict[str, dict[str, dict[str, Any]]] = {}
        self._by_field = {factor.field: factor for factor in load_factors().values()}
        self._known = fields()
        preset = copy.deepcopy(SCALES[scale])
        for field in self._by_field:
            *outer, last = field.split(".")
            section = preset
            for part in outer:
                section = section[part]
            chosen = section.pop(last)
            self._options[field] = chosen if isinstance(chosen, dict) else {chosen: {}}
            self._selected[field] = next(iter(self._options[field]))
        self.set_all(preset)

    def copy(self) -> Spec:
        """An independent spec with the same overrides."""
        other = Spec.__new__(Spec)
        other.__dict__ = self.__dict__ | {
            name: copy.deepcopy(getattr(self, name)) for name in ("_values", "_selected", "_options")
        }
        return other

    def set_all(self, overrides: Mapping[str, Any], base_dir: Path | None = None) -> None:
        """Apply several overrides, outer fields before their inner ones."""
        for path in sorted(overrides, key=lambda p: (str(p).count("."), list(overrides).index(p))):
            self.set(path, overrides[path], base_dir)

    def set(self, path: str, value: Any, base_dir: Path | None = None) -> None:
        """Override one dotted field; relative paths among the options of a variant count from `base_dir`.

        Raises:
            RecipeError: an unknown field, variant or option, or a multiple of what is no number.
        """
        if not isinstance(path, str):
            raise RecipeError(str(path), "is not a field of a recipe")
        owner = next((f for f in self._by_field if path == f or path.startswith(f + ".")), None)
        if owner is not None:
            self._set_choice(self._by_field[owner], path, path[len(owner) + 1 :], value, base_dir)
        elif path not in self._known:
            raise RecipeError(path, f"is not a field of a recipe{near_miss(path, self._suggestions())}")
        elif path == "model.dropout" and (isinstance(value, int | float) or is_multiple(value)):
            self.set_all({f"model.dropout.{place}": value for place in schema.Dropout.model_fields})
        elif path in ("data.sources", "data.validation"):
            self._set_leaf(path, self._sources(path, value, base_dir))
        elif any(other.startswith(path + ".") for other in self._known):
            if not isinstance(value, Mapping):
                raise RecipeError(path, f"is a group of fields and must be a mapping, not {value!r}")
            self.set_all({f"{path}.{key}": inner for key, inner in value.items()}, base_dir)
        else:
            kind = words()[path].number if path in words() else None
            if is_multiple(value) and kind is not None:
                value = self._multiple(path, value, kind)
            self._set_leaf(path, value)

    def _set_leaf(self, path: str, value: Any) -> None:
        for other in alternatives(path):
            self._values.pop(other, None)
        self._values[path] = value

    def _multiple(self, path: str, text: str, kind: type) -> int | float:
        """The multiple of what the field holds, or would hold if the recipe were resolved now."""
        value = self._values.get(path)
        if value is None:
            value = read(self.resolve(), path)
        try:
            return multiply(text, value, kind)
        except UserError as error:
            raise RecipeError(path, str(error)) from None

    def _set_choice(self, factor: Factor, path: str, option: str, value: Any, base_dir: Path | None) -> None:
        field = factor.field
        if option:
            name = self._selected[field]
            value = {name: _nest(option, value)}
        try:
            value = self._multiplied(factor, value)
            choice = factor.choose(value, self._options.get(field))
        except UserError as error:
            raise RecipeError(path, str(error)) from None
        given = value[choice.name] if isinstance(value, Mapping) else None
        options = self._options.setdefault(field, {}).setdefault(choice.name, {})
        options.update(_absolute(choice, dict(given or {}), base_dir))
        self._selected[field] = choice.name
        if field == "data.source":
            self._values.pop("data.sources", None)

    def _multiplied(self, factor: Factor, value: Any) -> Any:
        """A choice in which multiples of options are numbers: of the variant's options so far, or their defaults."""
        if not isinstance(value, Mapping) or len(value) != 1:
            return value
        ((name, given),) = value.items()
        if name not in factor.variants or not isinstance(given, Mapping):
            return value
        so_far, known = self._options.get(factor.field, {}).get(name, {}), factor[name].options.model_fields
        found = dict(given)
        for option, text in given.items():
            kind = number_type(known[option].annotation) if option in known else None
            if is_multiple(text) and kind is not None:
                try:
                    found[option] = multiply(text, so_far.get(option, known[option].default), kind)
                except UserError as error:
                    raise UserError(f"{factor.name} {name!r}: {option}: {error}") from None
        return {name: found}

    def _sources(self, field: str, value: Any, base_dir: Path | None) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not value:
            raise RecipeError(field, f"must be a list of sources, not {value!r}")
        found = []
        for i, item in enumerate(value):
            path = f"{field}.{i}"
            entry = item if isinstance(item, Mapping) and "source" in item else {"source": item}
            extra = [key for key in entry if key not in ("source", "weight")]
            if extra:
                raise RecipeError(f"{path}.{extra[0]}", "is not a field of a source; known: source, weight")
            try:
                choice = load_factors()["source"].choose(entry["source"])
            except UserError as error:
                raise RecipeError(path, str(error)) from None
            options = _absolute(choice, dict(choice.options), base_dir)
            found.append({"source": {choice.name: options}, "weight": entry.get("weight", 1.0)})
        return found

    def _suggestions(self) -> set[str]:
        options = {
            f"{field}.{option}" for field, factor in self._by_field.items()
            for option in factor[self._selected[field]].options.model_fields
        }  # fmt: skip
        return set(self._known) | set(self._by_field) | options

    def resolve(self, seed: int = 0) -> Recipe:
        """The recipe, with every width, step and size decided.

        Raises:
            RecipeError: a value of the wrong type or range, or choices that cannot go together.
        """
        choices = {field: {name: self._options[field].get(name, {})} for field, name in self._selected.items()}
        return resolve(self._values, choices, seed)


def _nest(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def _absolute(choice: Any, options: dict[str, Any], base_dir: Path | None) -> dict[str, Any]:
    for name in choice.variant.trait("path_options", ()):
        if options.get(name):
            value = options[name]
            listed = [value] if isinstance(value, str) else value
            absolute = [os.path.abspath((base_dir or Path.cwd()) / Path(item).expanduser()) for item in listed]
            options[name] = absolute[0] if isinstance(value, str) else absolute
    return options
