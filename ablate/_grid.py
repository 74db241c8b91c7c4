"""A search over a grid of values, and when its best one is bracketed. Pure: it is told the losses, and says what to try next."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Value = float | str
"""A number, or a multiple of what an arm has of its own, such as `x0.5`."""
FEWEST = 3
"""Values that can bracket one."""
DIGITS = 4
"""Significant digits of a value by which a grid is extended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune:
    """The field of a recipe that every arm searches, on so many tuning `seeds`.

    Each arm tries all `values`, and at most `extend` more where its best one is at an end of them. `place` is where the values stand
    in the suite's file.
    """

    field: str
    values: tuple[Value, ...]
    seeds: int
    extend: int
    place: tuple[str, ...]

    @property
    def budget(self) -> int:
        """The most values that an arm may try."""
        return len(self.values) + self.extend


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Where a search stands: the values so far, ascending, and the loss of each (None: not known yet).

    `chosen` is the best value once all are known, unless there is none; it is `bracketed` where the next smaller and the next larger
    value were tried and are worse.
    """

    values: tuple[Value, ...]
    losses: tuple[float | None, ...]
    chosen: Value | None = None
    bracketed: bool = False

    @property
    def decided(self) -> bool:
        """Whether nothing is left to try."""
        return None not in self.losses

    @property
    def standing(self) -> str:
        """In words."""
        if not self.decided:
            return f"{sum(loss is None for loss in self.losses)} to try"
        return "bracketed" if self.bracketed else "untuned"


def search(tune: Tune, loss: Callable[[Value], float | None], possible: Callable[[Value], bool]) -> Search:
    """How far the search of one arm has come.

    `loss` is a value's mean over the tuning seeds: infinite where one diverged, NaN where one failed otherwise, None where one is yet
    to be trained. Of equal losses the smaller value is better, so where all diverged it goes on below. The grid is extended by the
    ratio of its last two values at that end, by values that are `possible`. A value without a loss brackets nothing.
    """
    values = sorted(tune.values, key=magnitude)
    while True:
        losses = [loss(value) for value in values]
        if None in losses:
            return Search(values=tuple(values), losses=tuple(losses))
        known = [value for value in losses if value is not None]
        best = min(range(len(values)), key=lambda i: (math.isnan(known[i]), known[i], i))
        if math.isnan(known[best]):
            return Search(values=tuple(values), losses=tuple(losses))
        if 0 < best < len(values) - 1:
            tried = not any(math.isnan(known[i]) for i in (best - 1, best + 1))
            return Search(
                values=tuple(values), losses=tuple(losses), chosen=values[best], bracketed=tried and math.isfinite(known[best])
            )  # fmt: skip
        beyond = _beyond(values[best], values[1] if best == 0 else values[-2])
        if len(values) == tune.budget or not possible(beyond):
            return Search(values=tuple(values), losses=tuple(losses), chosen=values[best])
        values.insert(0 if best == 0 else len(values), beyond)


def magnitude(value: Value) -> float:
    """The number, or by how much it multiplies."""
    return float(value[1:]) if isinstance(value, str) else float(value)


def _beyond(end: Value, before: Value) -> Value:
    """The value that is as far beyond the `end` of a grid as that is from the one `before` it, in logs."""
    number = float(f"{magnitude(end) ** 2 / magnitude(before):.{DIGITS}g}")
    if isinstance(end, str):
        return f"x{number:g}"
    return int(number) if isinstance(end, int) and isinstance(before, int) and number.is_integer() else number
