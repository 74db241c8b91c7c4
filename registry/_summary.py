"""What came of each cell: means, divergence, the noise between runs of one cell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

from ._fit import Array
from ._grid import PASS, Frame, Grid, is_ratio
from ._pareto import front
from .noise import pooled
from .power import smallest_effect
from .record import STATUSES

SIZES = ("parameters", "tokens", "flops_per_token")
NOISE = "metric scale sd n df correlation sd_difference smallest_effect contrasts seeds".split()


def cells(grid: Grid, trials: Frame, metrics: tuple[str, ...]) -> Frame:
    """A row per cell, controls last: means of finished runs with 95 % intervals over its seeds; of speed and memory the
    geometric mean over runs that had the device to themselves, or what the pass for speed measured."""
    codes, frame = _cells(grid, trials)
    everything = Grid(grid.design, trials)
    frame["n"] = np.bincount(codes, everything.finished, len(frame)).astype(int)
    for metric in metrics:
        y = everything.values(metric) if metric in trials else np.full(len(trials), np.nan)
        shown = _means(y, codes, len(frame))
        shown = np.exp(shown) if is_ratio(metric) else shown
        once = _first(trials, codes, f"{PASS}{metric}_value")
        if once is not None:
            shown = np.where(
                once.notna().to_numpy()[:, None], np.column_stack([once, *[np.full(len(once), np.nan)] * 2]), shown
            )
        frame[[metric, f"{metric}_low", f"{metric}_high"]] = shown
    for name in SIZES:
        size = _first(trials, codes, name)
        frame[name] = math.nan if size is None else size.to_numpy(float)
    return frame.assign(
        pareto=front({name: frame[name].to_numpy(float) for name in metrics}, (frame["control"] == "").to_numpy())
    )


def _means(y: Array, codes: Array, n_cells: int) -> Array:
    """Of each cell the mean and its 95 % interval by Student's t over its runs [cell, 3]."""
    y, codes = y[np.isfinite(y)], codes[np.isfinite(y)]
    n = np.bincount(codes, minlength=n_cells).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(codes, y, n_cells) / n
        variance = np.bincount(codes, (y - mean[codes]) ** 2, n_cells) / (n - 1.0)
        half = np.where(n > 1.0, stdtrit(np.maximum(n - 1.0, 1.0), 0.975) * np.sqrt(variance / n), np.nan)
    return np.column_stack([mean, mean - half, mean + half])


def _cells(grid: Grid, trials: Frame) -> tuple[Array, Frame]:
    """The place of each trial's cell in a frame of the cells, ordinary ones first, in the order of the design."""
    names = ["cell", "cell_id", "control", *grid.factors]
    frame = (
        trials[names]
        .drop_duplicates(["cell_id", "control"])
        .sort_values("control", kind="stable", key=lambda c: c != "")
    )
    frame = frame.reset_index(drop=True)
    place = {key: number for number, key in enumerate(zip(frame["cell_id"], frame["control"], strict=True))}
    return np.array([place[key] for key in zip(trials["cell_id"], trials["control"], strict=True)], dtype=int), frame


def _first(trials: Frame, codes: Array, name: str) -> Any | None:
    """The first value that any trial of each cell has; None without such a column."""
    if name not in trials:
        return None
    return trials[name].groupby(codes).first().reindex(range(codes.max(initial=-1) + 1)).astype(float)


def divergence(grid: Grid, trials: Frame) -> Frame:
    """A row per cell: runs that finished or diverged, the share that diverged with its 95 % Wilson interval, and how
    the others ended."""
    codes, frame = _cells(grid, trials)
    status = trials["status"].to_numpy(str)
    count = {name: np.bincount(codes, status == name, len(frame)).astype(int) for name in (*STATUSES, "missing")}
    diverged, n = count["diverged"], count["diverged"] + count["finished"]
    with np.errstate(invalid="ignore"):
        rate = diverged / n
        # Wilson 1927
        z = float(ndtri(0.975))
        middle, half = (diverged + z**2 / 2) / (n + z**2), z * np.sqrt(n * rate * (1 - rate) + z**2 / 4) / (n + z**2)
    frame = frame.drop(columns="cell_id").assign(n=n, diverged=diverged, rate=rate)
    frame = frame.assign(low=np.clip(middle - half, 0.0, 1.0), high=np.clip(middle + half, 0.0, 1.0))
    return frame.assign(**{name: count[name] for name in (*STATUSES[2:], "missing")})


def noise(grid: Grid, contrasts: Frame, metric: str) -> dict[str, Any]:
    """The row of a metric: of one run within its cell; and the smallest effect that as many seeds, with the errors that
    the contrasts have, would show in one of them. Of speed and memory the deviation is in logarithms, the effect a ratio."""
    y = grid.values(metric)
    there = np.isfinite(y)
    found = pooled(metric, y[there], grid.cells[there], grid.seeds[there])
    own = contrasts[(contrasts["metric"] == metric) & (contrasts["unit"] == "seeds") & contrasts["df"].notna()]
    deviation, seeds = math.nan, int(own["n"].max()) if len(own) else 0
    if len(own):
        t = stdtrit(own["df"].to_numpy(), 0.975)
        width = np.log(own["high"] / own["low"]) if is_ratio(metric) else own["high"] - own["low"]
        variances = (width.to_numpy() / 2.0 / t) ** 2 * own["n"].to_numpy()
        deviation = math.sqrt(variances.mean())
    family = int(contrasts.loc[contrasts["metric"] == metric, "family"].max()) if len(contrasts) else 0
    smallest = math.nan if math.isnan(deviation) else smallest_effect(deviation, seeds, contrasts=max(1, family))
    return {
        "metric": metric, "scale": "ratio" if is_ratio(metric) else "difference",
        "sd": found.sd if found else math.nan, "n": int(there.sum()), "df": found.df if found else 0,
        "correlation": found.correlation if found else math.nan, "sd_difference": deviation,
        "smallest_effect": math.exp(smallest) if is_ratio(metric) else smallest, "contrasts": family, "seeds": seeds,
    }  # fmt: skip
