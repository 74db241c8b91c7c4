"""The noise floor: how far runs of one cell that differ in their seed alone are from one another."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .mirror import Mirror
from .record import METRICS
from .sql import Sandbox

ENOUGH = 4
"""Degrees of freedom from which a deviation is trusted: fewer are off by a factor of two too often."""


@dataclass(frozen=True)
class Noise:
    """Of a metric, `sd` of one run over seeds within a cell, from `n_runs` in `n_cells`; of speed and memory, of its logarithm.

    `correlation` is that of two cells over the seeds that they share: 0 where it is not known. `like` says what was pooled.
    """

    metric: str
    sd: float
    correlation: float
    n_cells: int
    n_runs: int
    like: str = ""

    @property
    def df(self) -> int:
        return self.n_runs - self.n_cells

    @property
    def sd_difference(self) -> float:
        """Of the difference of two cells with one seed: sd sqrt(2 (1 - correlation))."""
        return self.sd * math.sqrt(2.0 * (1.0 - self.correlation))


def pooled(metric: str, y: np.ndarray, cells: np.ndarray, seeds: np.ndarray, like: str = "") -> Noise | None:
    """From the values of runs, the cell of each and its block of common random numbers; None without two in one cell.

    The variance within cells is pooled over their degrees of freedom. The correlation is the share of it that blocks explain, from
    y = cell + block + e by least squares: 1 - var(e) / sd^2.
    """
    cells, counts = np.unique(cells, return_inverse=True, return_counts=True)[1:]
    kept = counts[cells] >= 2
    if not kept.any():
        return None
    y = y[kept]
    cells, seeds = (np.unique(codes[kept], return_inverse=True)[1] for codes in (cells, seeds))
    n_cells, n_blocks = cells.max() + 1, seeds.max() + 1
    left = _less_means(y, cells)
    df = len(y) - n_cells
    variance = float(left @ left) / df
    graph = coo_array((np.ones(len(y)), (cells, n_cells + seeds)), shape=(n_cells + n_blocks,) * 2)
    correlation, spare = 0.0, df - (n_blocks - connected_components(graph, directed=False, return_labels=False))
    if spare >= 1 and variance > 0.0:
        for _ in range(100):  # the two projections in turn, until cells and blocks are both out (von Neumann 1949)
            before, left = left, _less_means(_less_means(left, seeds), cells)
            if np.abs(left - before).max() <= 1e-12 * math.sqrt(variance):
                break
        correlation = min(max(1.0 - float(left @ left) / float(spare) / variance, -1.0), 1.0)
    return Noise(metric, math.sqrt(variance), correlation, int(n_cells), len(y), like)


def _less_means(y: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return y - (np.bincount(groups, y) / np.bincount(groups))[groups]


def noise_floor(
    mirror: Mirror,
    metric: str,
    *,
    scale: str,
    environment_id: str | None = None,
    evaluation_fingerprint: str | None = None,
    cell_id: str | None = None,
) -> Noise | None:
    """From finished primary runs at this scale, those that are most alike: of this cell; else of cells evaluated on the same; else of
    all at the scale; never of what is known to be bad. The first with `ENOUGH` degrees of freedom, or else that with the most.

    Environments and what was evaluated on never mix: each cell in each of them has a mean of its own. The correlation comes from the
    first that has several cells. Speed and memory come from runs that had the device to themselves. None without repeats.
    """
    measured = metric in METRICS and METRICS[metric].kind in ("speed", "memory")
    with Sandbox(mirror) as sandbox:
        found: Any = sandbox.frame(
            f"""SELECT "{metric}" AS value, trial_id, cell_id, seed, scale, environment_id, evaluation_fingerprint FROM trials
            WHERE counts AND status = 'finished' AND "{metric}" IS NOT NULL {"AND exclusive AND value > 0" if measured else ""}"""
        )
    found = found[~found["trial_id"].isin(_bad(mirror))]
    found = found[(found["scale"] == scale) & (environment_id is None or found["environment_id"] == environment_id)]
    same = [("this cell", "cell_id", cell_id), ("cells evaluated on the same", "evaluation_fingerprint", evaluation_fingerprint),
            ("cells at this scale", "scale", scale)]  # fmt: skip
    pools = [
        _of(found[found[column] == value], metric, measured, like) for like, column, value in same if value is not None
    ]
    known = [noise for noise in pools if noise is not None]
    if not known:
        return None
    best = next((noise for noise in known if noise.df >= ENOUGH), max(known, key=lambda noise: noise.df))
    pairing = next((noise.correlation for noise in known[known.index(best) :] if noise.n_cells > 1), 0.0)
    return replace(best, correlation=pairing)


def _bad(mirror: Mirror) -> list[str]:
    """The trials that any design has as known-bad controls."""
    return mirror.declared.to_table(columns=["trial_id"], filter=pc.field("control") == "bad")["trial_id"].to_pylist()


def _of(rows: Any, metric: str, logarithm: bool, like: str) -> Noise | None:
    place = rows["environment_id"] + " " + rows["evaluation_fingerprint"] + " "
    y = rows["value"].to_numpy(float)
    cells, blocks = ((place + rows[name].astype(str)).to_numpy(str) for name in ("cell_id", "seed"))
    return pooled(metric, np.log(y) if logarithm else y, cells, blocks, like)
