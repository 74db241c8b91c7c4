"""The cells of a suite and the recipe of each; what cannot be resolved is blamed on the line that causes it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from ablate._words import alternatives
from ablate._yaml import Path as Place
from ablate._yaml import SuiteError, printable
from ablate.errors import UserError
from ablate.fractional import Fractional
from ablate.optimal import Optimal, choose
from ablate.recipe import Recipe, RecipeError, canonical_json
from ablate.spec import Spec
from ablate.variants import load_factors

if TYPE_CHECKING:
    from ablate.suite import Suite

Levels = Mapping[str, str]
"""Label of the level by factor."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
MAX_CELLS = 10_000


def cells(suite: Suite) -> list[dict[str, str]]:
    """The cells that the design asks for, without the excluded ones, in the order of the levels.

    Raises:
        SuiteError: too many, none, without the baseline, or without some level.
    """
    labels = {factor: [level.label for level in levels] for factor, levels in suite.factors.items()}
    alone = suite.design in ("one_at_a_time", "leave_one_out")
    size = 1 + sum(len(known) - 1 for known in labels.values()) if alone else prod(map(len, labels.values()))
    if isinstance(suite.selection, Fractional):
        size >>= len(suite.selection.generators)
    if size > MAX_CELLS:
        raise suite.document.error(("factors",), f"make {size} cells; {MAX_CELLS} is the most")
    if isinstance(suite.selection, Fractional):
        candidates = suite.selection.cells(labels, suite.baseline)
    elif not alone:
        candidates = [dict(zip(labels, row, strict=True)) for row in itertools.product(*labels.values())]
    else:
        changes = [{factor: label} for factor in labels for label in labels[factor] if label != suite.baseline[factor]]
        candidates = [{**suite.baseline, **change} for change in ({}, *changes)]
    kept = [cell for cell in candidates if not any(_matches(cell, rule) for rule in suite.exclude)]
    if not kept:
        raise suite.document.error(("exclude",), "leaves no cell")
    if dict(suite.baseline) not in kept:
        raise suite.document.error(("exclude",), f"takes out the baseline ({', '.join(suite.baseline.values())})")
    for factor, known in labels.items():
        for i, label in enumerate(known):
            if not any(cell[factor] == label for cell in kept):
                raise suite.document.error(
                    ("factors", factor, i), f"level {label} is in no cell; exclude takes out all of its cells"
                )
    if not isinstance(suite.selection, Optimal):
        return kept
    if len(kept) < suite.selection.cells:
        message = f"must be up to {len(kept)}, the cells that exclude leaves, not {suite.selection.cells}"
        raise suite.document.error(("design", "optimal", "cells"), message)
    try:
        return [dict(cell) for cell in choose(labels, kept, suite.baseline, suite.selection)]
    except ValueError as error:
        raise suite.document.error(("design", "optimal"), str(error)) from None


def _matches(cell: Levels, rule: Mapping[str, tuple[str, ...]]) -> bool:
    return all(cell[factor] in labels for factor, labels in rule.items())


def recipes(
    suite: Suite, scale: str | None = None, overrides: Mapping[str, Any] = NOTHING
) -> list[tuple[dict[str, str], Recipe]]:
    """Each cell and its recipe, with seed 0.

    What comes later wins: the scale's preset, base, `overrides`, then the levels from outer fields to inner ones.

    Raises:
        SuiteError: at the line of the base key or level at fault.
        UserError: an override at fault.
    """
    scale = scale or suite.scale
    resolver = Resolver(suite, scale, overrides)
    found: dict[str, dict[str, str]] = {}
    resolved = []
    for cell in cells(suite):
        recipe = resolver.recipe(cell)
        key = canonical_json(recipe.to_dict())
        if key in found:
            raise resolver.same(found[key], cell)
        found[key] = cell
        resolved.append((cell, recipe))
        resolver.check_tune(cell)
    return resolved


def known_bad(
    suite: Suite,
    resolved: list[tuple[dict[str, str], Recipe]],
    scale: str | None = None,
    overrides: Mapping[str, Any] = NOTHING,
) -> Recipe | None:
    """The recipe of the known-bad control, with seed 0: the baseline with the control's overrides, beside the `resolved` cells.

    Raises:
        SuiteError: overrides without a recipe, or with that of a cell.
    """
    if not suite.controls.bad:
        return None
    recipe = Resolver(suite, scale or suite.scale, overrides).known_bad()
    same = canonical_json(recipe.to_dict())
    for cell, other in resolved:
        if canonical_json(other.to_dict()) == same:
            what = ", ".join(f"{factor} {label}" for factor, label in cell.items()) or "the baseline"
            raise suite.document.error(("controls", "bad"), f"is the same recipe as the cell of {what}")
    return recipe


class Resolver:
    """Recipes of cells at one scale, and what to say of a cell that has none."""

    def __init__(self, suite: Suite, scale: str, overrides: Mapping[str, Any]) -> None:
        self.suite, self.scale, self.overrides = suite, scale, overrides
        self.start = Spec(scale)
        self.labels = {factor: [level.label for level in levels] for factor, levels in suite.factors.items()}
        for key in _outer_first(suite.base):
            self._set_base(key, suite.base[key])
        for key in _outer_first(overrides):
            self._set_override(key, overrides[key])

    def recipe(self, cell: Levels) -> Recipe:
        values = values_of(self.suite, cell)
        try:
            return self._resolve(values)
        except UserError:
            raise self._with_overrides(self._blame(cell, values), values) from None

    def spec(self, cell: Levels, tuned: Mapping[str, Any] = NOTHING) -> Spec:
        """What a cell says before it is resolved, with `tuned` fields set last."""
        spec = self.start.copy()
        for field, value in {**values_of(self.suite, cell), **tuned}.items():
            spec.set(field, value, self.suite.base_dir)
        return spec

    def check_tune(self, cell: Levels) -> None:
        """Refuse a value of `tune` that the cell cannot take, or a field of its own that it would undo."""
        tune = self.suite.tune
        if tune is None:
            return
        if not isinstance(tune.values[0], str):
            for place in self._said(cell, tune.field):
                message = "is tuned for every cell; leave it out here, or tune by multiples of it, such as x0.5"
                raise self.suite.document.error(place, message)
        for i, value in enumerate(tune.values):
            if error := _failure(lambda value=value: self.spec(cell, {tune.field: value}).resolve()):
                arm = f" (of {', '.join(cell.values())})" if cell else ""
                raise self._error((*tune.place, i), tune.field, UserError(_say(error, tune.field) + arm))

    def _said(self, cell: Levels, field: str) -> Iterator[Place]:
        """Where a cell's levels set a field or an option of a variant."""
        owner, _, option = field.rpartition(".")
        for factor, value in values_of(self.suite, cell).items():
            if field in _leaves(factor, value):
                yield self._place(factor, cell)
            if factor == owner and isinstance(value, dict):
                yield from (
                    (*self._place(factor, cell), name, option) for name in value if option in (value[name] or {})
                )

    def known_bad(self, tuned: Mapping[str, Any] = NOTHING) -> Recipe:
        """The baseline with the overrides of the control, on top of `tuned` fields."""
        spec = self.spec(self.suite.baseline, tuned)
        for key in _outer_first(self.suite.controls.bad):
            place: Place = ("controls", "bad", key)
            if error := _failure(spec.set, key, self.suite.controls.bad[key], self.suite.base_dir):
                raise self._error(place, key, error)
        try:
            return spec.resolve()
        except UserError as error:
            raise self._error(("controls", "bad"), "", error) from None

    def _with_overrides(self, error: UserError, values: Mapping[str, Any]) -> UserError:
        """The error, with the overrides without which there would be none, where it is said of a line of the suite."""
        if not isinstance(error, SuiteError):
            return error
        matter = [f"--set {key}" for key in self.overrides if self._cured_without("overrides", key, values)]
        message = f"{error.message} (with {', '.join(matter)})" if matter else error.message
        return SuiteError(error.where, error.line, error.key, message)

    def same(self, one: Levels, other: Levels) -> SuiteError:
        """The error for two cells with one recipe."""
        factors = [factor for factor in one if one[factor] != other[factor]]
        first, second = (" with ".join(f"{factor} {cell[factor]}" for factor in factors) for cell in (one, other))
        message = f"{second} is the same recipe as {first} at scale {self.scale}; a level must change something"
        return self.suite.document.error(self._place(factors[0], other), message)

    def _resolve(self, values: Mapping[str, Any]) -> Recipe:
        spec = self.start.copy()
        for factor, value in values.items():
            spec.set(factor, value, self.suite.base_dir)
        return spec.resolve()

    def _set_base(self, key: str, value: Any) -> None:
        place: Place = ("base", key)
        if key == "seed":
            raise self.suite.document.error(place, "does not belong here; seeds are a key of their own")

        def attempt(new: Any) -> None:
            self.start.copy().set(key, new, self.suite.base_dir)

        if error := _failure(attempt, value):
            raise self._error(_deepest(attempt, value, place), key, error)
        self.start.set(key, value, self.suite.base_dir)

    def _set_override(self, key: str, value: Any) -> None:
        if key == "seed":
            raise UserError("--set seed: seeds are chosen with --seeds")
        for factor in self.suite.factors:
            if any(decides(field, factor) for field in _leaves(key, value)):
                raise UserError(f"--set {key}: {factor} is a factor of this suite; pick its levels with --only")
        if error := _failure(self.start.set, key, value, Path.cwd()):
            raise UserError(printable(f"--set {key}: {_say(error, key)}"))

    def _blame(self, cell: Levels, values: Mapping[str, Any]) -> UserError:
        """An error for the levels that matter to a failure: the cell resolves with another level of the same factor."""
        error = _failure(self._resolve, values)
        assert error is not None
        matter = [factor for factor in values if self._cured(factor, values)]
        if len(matter) > 1:
            together = " with ".join(f"{factor} {cell[factor]}" for factor in matter)
            message = f"{together} is impossible: {_say(error, '')}; list it under exclude"
            return self.suite.document.error(self._place(matter[0], cell), message)
        start = _failure(self._resolve, {})
        if not matter and start and not any(_within(_path(start), factor) for factor in cell):
            return self._blame_start(start)
        alone = [factor for factor, value in values.items() if _failure(self._resolve, {factor: value})]
        factor = (matter or alone or list(values))[0]
        rest = {} if alone and not matter else {other: value for other, value in values.items() if other != factor}

        def attempt(new: Any) -> None:
            self._resolve({key: rest.get(key, new) for key in values if key in rest or key == factor})

        place = _deepest(attempt, values[factor], self._place(factor, cell))
        return self._error(place, factor, _failure(attempt, values[factor]) or error)

    def _cured(self, factor: str, values: Mapping[str, Any]) -> bool:
        return any(not _failure(self._resolve, {**values, factor: level.value}) for level in self.suite.factors[factor])

    def _blame_start(self, error: UserError) -> UserError:
        """An error for the override, or else the key of base, without which there would be none."""
        for key in self.overrides:
            if self._cured_without("overrides", key, {}):
                return UserError(printable(f"--set {key}: {_say(error, key)}"))
        for key in self.suite.base:
            if self._cured_without("base", key, {}):
                return self._error(("base", key), key, error)
        return self._error(("base",), "", error)

    def _cured_without(self, where: Literal["overrides", "base"], key: str, values: Mapping[str, Any]) -> bool:
        """Whether `values` resolve without one override or one key of base, where the others can do without it."""
        given = {"overrides": self.overrides, "base": self.suite.base}
        given[where] = {other: value for other, value in given[where].items() if other != key}
        suite = replace(self.suite, base=given["base"])
        return not _failure(lambda: Resolver(suite, self.scale, given["overrides"])._resolve(values))

    def _place(self, factor: str, cell: Levels) -> Place:
        return ("factors", factor, self.labels[factor].index(cell[factor]))

    def _error(self, place: Place, key: str, error: UserError) -> SuiteError:
        at = "" if self.scale == self.suite.scale else f" (at scale {self.scale})"
        return self.suite.document.error(place, _say(error, key) + at)


def values_of(suite: Suite, cell: Levels) -> dict[str, Any]:
    """The values of a cell's levels, outer fields before inner ones."""
    return {
        factor: next(level.value for level in suite.factors[factor] if level.label == cell[factor])
        for factor in _outer_first(cell)
    }


def said_by(suite: Suite, cell: Levels) -> set[str]:
    """The fields that the levels of a cell set, options of variants among them."""
    return {field for factor, value in values_of(suite, cell).items() for field in _leaves(factor, value)}


def _failure(attempt: Callable[..., Any], *given: Any) -> UserError | None:
    try:
        attempt(*given)
    except UserError as error:
        return error
    return None


def _deepest(attempt: Callable[[Any], Any], value: Any, place: Place) -> Place:
    """The innermost key in `value` without which `attempt` succeeds; the name of a lone variant is passed through."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        rest = {other: kept for other, kept in value.items() if other != key}
        cured = not _failure(attempt, rest)
        if cured or (not rest and isinstance(inner, dict)):
            return _deepest(lambda new, rest=rest, key=key: attempt({**rest, key: new}), inner, (*place, key))
    return place


def _path(error: UserError) -> str:
    return error.path if isinstance(error, RecipeError) else ""


def _say(error: UserError, key: str) -> str:
    """The message, with the field that it is about where that is not `key`."""
    return error.message if isinstance(error, RecipeError) and error.path == key else str(error)


def _within(path: str, field: str) -> bool:
    return path == field or path.startswith(field + ".")


def _leaves(key: str, value: Any) -> Iterator[str]:
    """The fields that an override of `key` sets; the options of a variant count as fields of its factor."""
    if not isinstance(value, dict) or not value:
        yield key
    elif any(factor.field == key for factor in load_factors().values()):
        for options in value.values():
            yield from _leaves(key, options)
    else:
        for inner, part in value.items():
            yield from _leaves(f"{key}.{inner}", part)


def decides(field: str, factor: str) -> bool:
    """Whether a level of `factor` would undo an override of `field`."""
    if any(known.field == factor for known in load_factors().values()):
        return field == factor
    return _within(field, factor) or field in alternatives(factor)


def _outer_first(fields: Mapping[str, Any]) -> list[str]:
    return sorted(fields, key=lambda field: field.count("."))
