"""What the loss curves say of time: to a target, and at equal time. No verdict rests on them."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import pandas as pd

from ._fit import paired
from ._grid import Frame

CAVEAT = (
    "a point on the way, not a final one: schedules that would have been shorter decay earlier, and ranks flip before they "
    "end; compare arms by runs whose schedules end there"
)
SHARED = "; speed is of runs that shared the device"
Curves = dict[str, dict[str, list[list[float]]]]


class Source(Protocol):
    """What gives curves by record id, as `registry.Store` does."""

    def all_curves(self, record_ids: list[str] | None = None) -> Curves: ...


def _timed(trials: Frame, curves: Curves, factors: list[str]) -> list[dict[str, Any]]:
    """Each run's validation curve with the seconds of training at its points, at the cell's speed: of runs that had the
    device to themselves, where there are any."""
    made = []
    finished = trials[(trials["status"] == "finished") & (trials["control"] == "")]
    for _, rows in finished.groupby("cell_id", sort=False):
        value = "pass_tokens_per_second_value"
        alone = rows[value].dropna() if value in rows else rows.iloc[:0]["tokens_per_second"]
        exclusive = rows.loc[rows["exclusive"], "tokens_per_second"].dropna()
        speeds = alone if len(alone) else exclusive if len(exclusive) else rows["tokens_per_second"].dropna()
        if speeds.empty:
            continue
        speed, shared = float(np.exp(np.log(speeds).mean())), not len(alone) and not len(exclusive)
        for row in rows.to_dict("records"):
            points = np.array(curves.get(row["record_id"], {}).get("val_loss", []), dtype=float).reshape(-1, 3)
            if len(points):
                made.append({
                    "cell": row["cell"], **{factor: row[factor] for factor in factors}, "seed": row["seed"],
                    "seconds": points[:, 1] / speed, "loss": points[:, 2], "caveat": CAVEAT + (SHARED if shared else ""),
                })  # fmt: skip
    return made


def time_to_target(trials: Frame, curves: Curves, factors: list[str], target: float | None) -> Frame:
    """A row per cell: seconds of training (geometric mean over the seeds that get there, 95 % interval) until val_loss is at
    `target`, by linear interpolation between evaluations; `reached` of `n` seeds. By default the target is the mean final loss of the
    worst cell, which most runs reach."""
    runs = _timed(trials, curves, factors)
    final: dict[str, list[float]] = {}
    for run in runs:
        final.setdefault(run["cell"], []).append(float(run["loss"][-1]))
    if target is None:
        target = max((float(np.mean(losses)) for losses in final.values()), default=math.nan)
    made = []
    for cell in final:
        own = [run for run in runs if run["cell"] == cell]
        times = [seconds for run in own if (seconds := _crossing(run["seconds"], run["loss"], target)) is not None]
        found = paired(np.log([times])) if times else None
        ends = found.interval() if found else (math.nan, math.nan)
        mean = math.exp(found.value) if found else math.nan
        made.append({
            "cell": cell, **{factor: own[0][factor] for factor in factors}, "target": target, "n": len(own), "reached": len(times),
            "seconds": mean, "low": math.exp(ends[0]), "high": math.exp(ends[1]), "caveat": own[0]["caveat"],
        })  # fmt: skip
    return pd.DataFrame(made)


def _crossing(seconds: np.ndarray, loss: np.ndarray, target: float) -> float | None:
    """When the loss is first at the target; None if it never is. Before the first evaluation nothing is known."""
    below = np.flatnonzero(loss <= target)
    if not len(below):
        return None
    place = int(below[0])
    if place == 0:
        return float(seconds[0])
    share = (loss[place - 1] - target) / (loss[place - 1] - loss[place])
    return float(seconds[place - 1] + share * (seconds[place] - seconds[place - 1]))


def loss_at_equal_time(trials: Frame, curves: Curves, factors: list[str]) -> Frame:
    """A row per cell: val_loss, interpolated, after as many seconds of training as the fastest run took to its end; mean over
    seeds with its 95 % interval."""
    runs = _timed(trials, curves, factors)
    at = min((float(run["seconds"][-1]) for run in runs), default=math.nan)
    made = []
    for cell in dict.fromkeys(run["cell"] for run in runs):
        own = [run for run in runs if run["cell"] == cell]
        known = [run for run in own if run["seconds"][0] <= at]
        found = paired(np.array([[np.interp(at, run["seconds"], run["loss"]) for run in known]])) if known else None
        low, high = found.interval() if found else (math.nan, math.nan)
        made.append({
            "cell": cell, **{factor: own[0][factor] for factor in factors}, "seconds": at, "n": len(known),
            "val_loss": found.value if found else math.nan, "low": low, "high": high, "caveat": own[0]["caveat"],
        })  # fmt: skip
    return pd.DataFrame(made)
