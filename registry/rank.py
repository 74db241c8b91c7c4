"""Ranks in which cells that the data cannot separate share a place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from scipy.special import stdtr

Values = dict[int, float]
"""A metric's value by seed."""


def p_value(first: Values, second: Values) -> float:
    """Two-sided, that the means are equal: paired t over the seeds in common (common random numbers), Welch's t
    without two of those, 1 where either has one seed. Student 1908; Welch 1947."""
    common = sorted(first.keys() & second.keys())
    if len(common) >= 2:
        differences = [first[seed] - second[seed] for seed in common]
        estimate, error, df = fmean(differences), math.sqrt(_variance(differences) / len(common)), len(common) - 1.0
    elif min(len(first), len(second)) >= 2:
        parts = [_variance(list(values.values())) / len(values) for values in (first, second)]
        estimate, error = fmean(first.values()) - fmean(second.values()), math.sqrt(sum(parts))
        weights = (part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True))
        df = sum(parts) ** 2 / (sum(weights) or 1.0)
    else:
        return 1.0
    if estimate * (fmean(first.values()) - fmean(second.values())) <= 0.0:
        return 1.0  # the seeds in common contradict the means over all seeds: the data do not say which is better
    if error == 0.0:
        return 0.0
    return float(2.0 * stdtr(df, -abs(estimate / error)))


def _variance(values: list[float]) -> float:
    """What `statistics` computes in fractions, which takes a board of a hundred cells longer than all else."""
    mean = fmean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that keep the family's rate of false alarms. Holm 1979."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def ranks(cells: Sequence[Values], *, lower_is_better: bool = True, alpha: float = 0.05) -> list[int | None]:
    """The place of each cell, in the order given; None for a cell without values.

    From the best mean on, a cell shares the place of the best cell of the current place until one is separated from it
    (`p_value`, Holm-corrected over all cells still to be placed); that one opens the next place.
    """
    sign = 1.0 if lower_is_better else -1.0
    order = sorted((i for i, values in enumerate(cells) if values), key=lambda i: sign * fmean(cells[i].values()))
    placed: list[int | None] = [None] * len(cells)
    start = 0
    while start < len(order):
        leader, rest = order[start], order[start + 1 :]
        separated = [p < alpha for p in holm([p_value(cells[leader], cells[i]) for i in rest])]
        end = start + 1 + (separated.index(True) if True in separated else len(rest))
        for i in order[start:end]:
            placed[i] = start + 1
        start = end
    return placed
