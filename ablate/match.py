"""Matching: the recipe solver gives every arm as much as the baseline has, on the axis that a suite declares.

    axis        what is equal                                          what is adjusted for it
    tokens      tokens trained on                                      steps
    parameters  trainable parameters                                   hidden width of the feed-forward blocks, else depth
    flops       FLOP per token x tokens (arXiv:2203.15556, section 3)  steps; width or depth where a suite varies the tokens
    wall_clock  tokens / (tokens per second), seconds in steps         steps, by the rates of a pass for speed

Parameters are all that are trained, embeddings and head too (arXiv:2002.05202 and 2102.11972 count so): the number that tables show.
Schedules are shares of the steps, so each arm runs its own to the end. An arm that is off by `CLOSE` or less is left as it is, and
shares its trials with suites that match nothing. What a level sets, or `tune` searches, is never adjusted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ablate._cells import NOTHING, Levels, Resolver, decides, said_by
from ablate._resolve import read
from ablate._yaml import SuiteError
from ablate.recipe import Recipe, canonical_json
from ablate.spec import Spec

if TYPE_CHECKING:
    from ablate.suite import Suite

CLOSE = 0.01
"""The share by which an arm may be off without being adjusted."""
UNITS = (128, 64, 32, 16, 8)
"""Adjusted widths are multiples of the largest of these that comes within half of `CLOSE`."""
RANGE = 4
"""Width is changed by this factor at most, beyond which depth is; so is depth."""
WIDTH, DEPTH, STEPS = "model.ffn_dim", "model.n_layers", "train.steps"

Speeds = Callable[[Recipe, Recipe], float | None]
"""Tokens per second of the first recipe over the second's; None where no pass for speed has measured it."""


class _Unmatched(Exception):
    """An arm that cannot be matched; the message says by how much and why."""


class SpeedUnknown(SuiteError):
    """An arm that is to be matched in wall-clock time, and whose speed was not measured."""


class _Unmeasured(Exception):
    """No pass for speed has measured the arm."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a model counts: trainable parameters, and FLOP per token forward and backward."""

    parameters: int
    flops_per_token: int


_SIZES: dict[str, Size] = {}


def size(recipe: Recipe) -> Size:
    """The exact counts of the recipe's model, built on the meta device; kept by what decides them."""
    from ablate.measure import flops_per_token
    from ablate.model import build, parameter_count

    key = canonical_json([recipe.model.model_dump(mode="json"), recipe.data.seq_len])
    if key not in _SIZES:
        model = build(recipe, "meta")
        _SIZES[key] = Size(parameter_count(model), flops_per_token(model, recipe))
    return _SIZES[key]


def drift(recipe: Recipe, baseline: Recipe, speed: float | None = None) -> dict[str, float]:
    """How far an arm is from the baseline on every axis, as shares of the baseline's: 0.01 is 1 % more.

    `speed` is the arm's tokens per second over the baseline's; without it nothing is said of wall_clock.
    """
    own, other = size(recipe), size(baseline)
    tokens = recipe.tokens / baseline.tokens
    found = {
        "tokens": tokens,
        "parameters": own.parameters / other.parameters,
        "flops": tokens * own.flops_per_token / other.flops_per_token,
    }
    if speed is not None:
        found["wall_clock"] = tokens / speed
    return {axis: round(share - 1, 6) for axis, share in found.items()}


class Arms:
    """The recipes of a suite's cells at one scale, matched to the baseline's."""

    def __init__(
        self, suite: Suite, scale: str | None = None, overrides: Mapping[str, Any] = NOTHING, speeds: Speeds | None = None
    ) -> None:  # fmt: skip
        self.suite, self.speeds = suite, speeds
        self.resolver = Resolver(suite, scale or suite.scale, overrides)
        self.baseline = self.resolver.recipe(suite.baseline)

    def recipe(self, levels: Levels, label: str, tuned: Mapping[str, Any] = NOTHING) -> Recipe:
        """The recipe of the cell with these levels and `tuned` fields, with seed 0.

        Raises:
            SuiteError: a recipe that is off by more than the tolerance; `label` is what it calls the cell.
        SpeedUnknown: no `speeds` to match wall-clock time by.
        """
        suite, axis = self.suite, self.suite.match
        spec = self.resolver.spec(levels, tuned)
        recipe = spec.resolve()
        if axis == "none" or (levels == suite.baseline and not tuned):
            return recipe
        said = {*said_by(suite, levels), *tuned}
        try:
            return _Solver(axis, suite.tolerance, self.baseline, self.speeds, said).solve(spec, recipe)
        except _Unmatched as error:
            message = f"{label} cannot be matched in {axis}: {error}"
        except _Unmeasured:
            at = "" if self.resolver.scale == suite.scale else f" --scale {self.resolver.scale}"
            message = (
                f"the speed of {label} was not measured in this environment; run `ablate speed {suite.asked}{at}` first"
            )
            error = suite.document.error(("match",), message)
            raise SpeedUnknown(error.where, error.line, error.key, error.message) from None
        raise suite.document.error(("match",), message)

    def adjusted(self, levels: Levels, recipe: Recipe) -> dict[str, int]:
        """The fields of a matched recipe that the solver has set, and to what."""
        plain = self.resolver.recipe(levels)
        return {
            field: read(recipe, field) for field in (WIDTH, DEPTH, STEPS) if read(recipe, field) != read(plain, field)
        }

    def drift(self, recipe: Recipe) -> dict[str, float]:
        """`drift` of a recipe against the baseline's; of wall_clock too where the speed is known."""
        return drift(recipe, self.baseline, self.speeds(recipe, self.baseline) if self.speeds else None)


class _Solver:
    """Adjusts one arm; `said` are the fields that its levels and `tune` set."""

    def __init__(
        self, axis: str, tolerance: float, baseline: Recipe, speeds: Speeds | None, said: Collection[str]
    ) -> None:
        self.axis, self.tolerance, self.baseline, self.speeds = axis, tolerance, baseline, speeds
        traded = "model.depth_ratio" in said  # it decides both, to keep the parameters
        self.fixed = {
            field for field in (WIDTH, DEPTH, STEPS)
            if any(decides(field, other) for other in said) or (traded and field != STEPS)
        }  # fmt: skip

    def solve(self, spec: Spec, recipe: Recipe) -> Recipe:
        """`recipe`, which `spec` resolves to, or the same with as little adjusted as will do."""
        if abs(self.off(recipe)) <= min(CLOSE, self.tolerance):
            return recipe
        by_shape = self.axis == "parameters" or (self.axis == "flops" and STEPS in self.fixed)
        found = self._shape(spec, recipe) if by_shape else self._steps(spec, recipe)
        if abs(self.off(found)) > self.tolerance:
            raise _Unmatched(self._explain(found))
        return found

    def off(self, recipe: Recipe) -> float:
        """The arm's drift on the declared axis."""
        return self._amount(recipe) / self._amount(self.baseline) - 1

    def _amount(self, recipe: Recipe) -> float:
        """What is to be equal."""
        if self.axis == "parameters":
            return size(recipe).parameters
        return recipe.tokens * self._cost(recipe)

    def _cost(self, recipe: Recipe) -> float:
        """What is to be equal, per token."""
        if self.axis == "flops":
            return size(recipe).flops_per_token
        if self.axis == "wall_clock":
            speed = self.speeds(recipe, self.baseline) if self.speeds else None
            if speed is None:
                raise _Unmeasured
            return 1 / speed
        return 1

    def _steps(self, spec: Spec, recipe: Recipe) -> Recipe:
        if STEPS in self.fixed:
            return recipe
        steps = self._amount(self.baseline) / (self._cost(recipe) * recipe.batch_tokens)
        return _with(spec, STEPS, max(1, round(steps))).resolve()

    def _shape(self, spec: Spec, recipe: Recipe) -> Recipe:
        found = [recipe]
        if WIDTH not in self.fixed:
            found.append(self._width(spec, recipe))
        if DEPTH not in self.fixed and all(abs(self.off(one)) > self.tolerance for one in found):
            deeper = _with(spec, DEPTH, max(1, round(self._exact(spec, recipe, DEPTH, recipe.model.n_layers))))
            found.append(deeper.resolve())
            if WIDTH not in self.fixed:
                found.append(self._width(deeper, found[-1]))
        return min(found, key=lambda one: abs(self.off(one)))

    def _width(self, spec: Spec, recipe: Recipe) -> Recipe:
        """The recipe with the hidden width that comes closest, in the largest units that come close enough."""
        exact = self._exact(spec, recipe, WIDTH, recipe.model.ffn_dim)
        found = recipe
        for unit in UNITS:
            found = _with(spec, WIDTH, max(1, round(exact / unit)) * unit).resolve()
            if abs(self.off(found)) <= min(CLOSE / 2, self.tolerance):
                break
        return found

    def _exact(self, spec: Spec, recipe: Recipe, field: str, value: int) -> float:
        """The value of a field, of which the amount is an affine function, that would match to the last digit; within `RANGE`."""
        here = self._amount(recipe)
        slope = self._amount(_with(spec, field, 2 * value).resolve()) - here
        times = 1 + (self._amount(self.baseline) - here) / slope
        return value * min(max(times, 1 / RANGE), RANGE)

    def _explain(self, recipe: Recipe) -> str:
        off = self.off(recipe)
        what = {"flops": "FLOP of training", "wall_clock": "seconds of training"}.get(self.axis, self.axis)
        means = {"parameters": (WIDTH, DEPTH), "flops": (STEPS, WIDTH, DEPTH)}.get(self.axis, (STEPS,))
        held = ", ".join(field for field in means if field in self.fixed)
        return (
            f"{100 * abs(off):.1f} % {'more' if off > 0 else 'fewer'} {what} than the baseline, where "
            f"{100 * self.tolerance:g} % is tolerated{f'; its levels decide {held}' if held else ''}"
        )


def _with(spec: Spec, field: str, value: int) -> Spec:
    changed = spec.copy()
    changed.set(field, value)
    return changed
