"""What a board says of each cell against the baseline, and which cells are the best trade: with the rules of the analysis."""

from __future__ import annotations

import json
import math
from itertools import groupby
from typing import Any

import numpy as np
from scipy.special import stdtrit

from ._cells import Cell, by_seed, grouping, key_of
from ._contrasts import BASELINE, Compared, verdicts
from ._fit import NONE, Estimate, paired, welch
from ._grid import QUALITY, Measured, is_ratio
from ._pareto import front
from .record import METRICS

PASSED = ("tokens_per_second", "peak_memory_gib")
"""What the pass for speed measures against the baseline."""
_UNKNOWN = Compared("", "", BASELINE)


def with_verdicts(cells: list[Cell], metric: str, declared: dict[tuple[str, str], int]) -> None:
    """Set `verdict`: better, worse, equivalent or inconclusive than the baseline by `metric`, `baseline` of itself, empty without one.

    `cells` are all of their designs. Holm-corrected over the cells that the design of a suite and scale has beside the baseline, of
    which `declared` counts all: one without a result counts in it. Controls are a family of their own.
    """
    for cell in cells:
        cell["verdict"] = ""
    if metric not in METRICS or METRICS[metric].better == "none":
        return
    group = grouping(cells, metric)
    for key, same in groupby(sorted(cells, key=group), group):
        rows = list(same)
        base = next((cell for cell in rows if cell["baseline"]), None)
        if base is None:
            continue
        base["verdict"] = BASELINE
        ordinary = [cell for cell in rows if not cell["control"] and cell is not base]
        passes = _passes(ordinary, base, metric)
        missing = max(0, declared[key[0], key[1]] - 1 - len(ordinary))
        family = [_compared(cell, base, metric, passes) for cell in ordinary] + [_UNKNOWN] * missing
        _judge(ordinary, family, metric, base["margin"])
        others = [cell for cell in rows if cell["control"] and passes is None]
        _judge(others, [_compared(cell, base, metric, None) for cell in others], metric, base["margin"])


def _judge(cells: list[Cell], family: list[Compared], metric: str, margin: float | None) -> None:
    for cell, verdict in zip(
        cells, verdicts(family, metric, margin), strict=False
    ):  # the family goes on with what is missing
        cell["verdict"] = verdict


def _compared(cell: Cell, base: Cell, metric: str, passes: dict[str, dict[str, Any]] | None) -> Compared:
    if passes is not None:
        estimate = _by_rounds(passes.get(cell["cell_id"]), metric)
    else:
        estimate = _by_seeds(_values(cell, metric), _values(base, metric), cell["control"] == "aa")
    ends = (
        [(one["diverged"], one["n"] + one["diverged"]) for one in (cell, base)] if metric in QUALITY else [(0, 0)] * 2
    )
    rates = [count / n if n else 0.0 for count, n in ends]
    return Compared(
        "cell", cell["cell"], BASELINE, estimate, diverged=(ends[0][0], ends[1][0]), seeds=(ends[0][1], ends[1][1]),
        more=int(np.sign(rates[0] - rates[1])), tuned=(bool(cell["tuned"]), bool(base["tuned"])),
    )  # fmt: skip


def _values(cell: Cell, metric: str) -> dict[int, float]:
    """By seed, of speed and memory in logarithms."""
    found = by_seed(cell, metric)
    return {seed: math.log(value) for seed, value in found.items() if value > 0.0} if is_ratio(metric) else found


def _by_seeds(own: dict[int, float], base: dict[int, float], again: bool) -> Estimate:
    """Paired over the seeds in common; of a control without any, or of the baseline again, as independent samples."""
    common = sorted(own.keys() & base.keys())
    if again:
        return welch(np.array(list(own.values())), np.array(list(base.values())))
    return paired(np.array([[own[seed] - base[seed] for seed in common]])) if common else NONE


def _passes(cells: list[Cell], base: Cell, metric: str) -> dict[str, dict[str, Any]] | None:
    """By cell id, what the newest pass for speed measured against this baseline, if that is to tell the metric: see `Grid.measured`."""
    if metric not in PASSED:
        return None
    found = {}
    for cell in cells:
        speed = json.loads(cell["pass"] or "{}").get("speed", {})
        if speed.get("baseline_cell_id") == base["cell_id"] and metric in speed.get("ratios", {}):
            found[cell["cell_id"]] = {"rounds": speed["rounds"], **speed["ratios"][metric]}
    sure = any("low" in one for one in found.values())
    return found if found and (sure or not any(by_seed(cell, metric) for cell in cells)) else None


def _by_rounds(ratio: dict[str, Any] | None, metric: str) -> Estimate:
    if ratio is None:
        return NONE
    rounds, error = np.array([float(ratio["rounds"])]), np.full(1, np.nan)
    if "low" in ratio:
        error = np.log([ratio["high"] / ratio["low"]]) / 2.0 / stdtrit(rounds - 1.0, 0.975)
    return Measured(np.zeros(1, dtype=int), np.log([ratio["estimate"]]), error, rounds).estimate(np.ones(1))


def with_pareto(cells: list[Cell], metric: str) -> None:
    """Set `pareto`: no other cell that compares is as good in loss, speed and memory and better in one. By the means, of
    cells that have all of them, speed and memory measured alone on the device."""
    quality = "val_bpb" if metric == "val_bpb" else "val_loss"
    names, group = (quality, *PASSED), grouping(cells, metric)
    for _, same in groupby(sorted(cells, key=group), group):
        rows = list(same)
        means = {
            name: np.array([cell[name] if name == quality or cell["exclusive"] else None for cell in rows], float)
            for name in names
        }
        known = all(np.isfinite(values).any() for values in means.values())
        best = front(means, np.array([cell["control"] == "" for cell in rows])) if known else [False] * len(rows)
        for cell, on_it in zip(rows, best, strict=True):
            cell["pareto"] = bool(on_it)


def copy_to(cells: list[Cell], whole: list[Cell]) -> None:
    """Give each of `cells` what was said of it in the `whole` board."""
    said = {key_of(cell): {name: cell[name] for name in ("verdict", "pareto")} for cell in whole}
    for cell in cells:
        cell |= said[key_of(cell)]
