"""The runs of a suite as arrays: factors as codes, seeds, and for each metric the scale that it is analysed on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from ._fit import Array, Estimate, Model, together
from .record import ALONE, METRICS, DesignRecord

Frame = Any
"""A `pandas.DataFrame`; what pandas declares of selections from one is too wide for a type checker."""
QUALITY = ("val_loss", "val_bpb")
ANALYSED = (*QUALITY, "tokens_per_second", "peak_memory_gib")
PASS = "pass_"
"""Prefix of what the pass for speed measured against the baseline: `pass_<metric>`, a ratio, its `_low`, `_high`, and `pass_rounds`."""


def is_ratio(metric: str) -> bool:
    """Whether a metric is analysed in logarithms, so that its effects are ratios."""
    return METRICS[metric].kind in ("speed", "memory")


def confounded(design: DesignRecord) -> bool:
    """Whether the design runs a chosen part of the grid, so that its estimates have aliases."""
    return design.kind not in ("full", *ALONE)


def sum_code(levels: int) -> Array:
    """A row for each level, [levels, levels - 1]: the columns sum to zero over the levels; of two the first is +1."""
    return np.vstack([np.eye(levels - 1), np.full(levels - 1, -1.0)]) if levels else np.zeros((0, 0))


@dataclass(frozen=True)
class Grid:
    """The ordinary trials of a design: a row of `frame` each, and its levels as places in `design.factors`."""

    design: DesignRecord
    frame: Frame

    @cached_property
    def factors(self) -> list[str]:
        return list(self.design.factors)

    @cached_property
    def codes(self) -> Array:
        """[run, factor]"""
        columns = [
            pd.Categorical(self.frame[factor], categories=labels).codes
            for factor, labels in self.design.factors.items()
        ]
        return np.array(columns, dtype=np.int64).reshape(len(columns), len(self.frame)).T

    @cached_property
    def seeds(self) -> Array:
        """The place of each run's seed."""
        return np.unique(self.frame["seed"].to_numpy(), return_inverse=True)[1]

    @cached_property
    def cells(self) -> Array:
        """The place of each run's cell."""
        return self._joint(range(len(self.factors)))

    @cached_property
    def baseline(self) -> Array:
        """Whether a run is one of the baseline."""
        places = [labels.index(self.design.baseline[factor]) for factor, labels in self.design.factors.items()]
        return (self.codes == np.array(places, dtype=np.int64)).all(1)

    @cached_property
    def finished(self) -> Array:
        return (self.frame["status"] == "finished").to_numpy()

    @cached_property
    def diverged(self) -> Array:
        return (self.frame["status"] == "diverged").to_numpy()

    def values(self, metric: str) -> Array:
        """Of finished runs, of speed and memory in logarithms and only where the device was theirs alone; else NaN."""
        if metric not in self._values:
            self._values[metric] = self._read(metric)
        return self._values[metric]

    def _read(self, metric: str) -> Array:
        kept = self.finished
        y = self.frame[metric].to_numpy(float)
        if not is_ratio(metric):
            return np.where(kept & np.isfinite(y), y, np.nan)
        kept = kept & self.frame["exclusive"].to_numpy(bool) & (y > 0.0)
        return np.where(kept, np.log(np.where(kept, y, 1.0)), np.nan)

    def measured(self, metric: str) -> Measured | None:
        """What the pass for speed measured of the metric, if it is to be told by that: with intervals, or for want of
        trials that had the device to themselves."""
        column = PASS + metric
        if column not in self.frame:
            return None
        frame, rows = self.frame, np.flatnonzero(self.frame[column].notna())
        if self.baseline[rows].all() or (f"{column}_low" not in frame and np.isfinite(self.values(metric)).any()):
            return None
        log = np.log(frame[column].to_numpy(float)[rows])
        rounds = frame[f"{PASS}rounds"].to_numpy(float)[rows]
        error = np.full(len(rows), np.nan)
        if f"{column}_low" in frame:
            low, high = (np.log(frame[f"{column}_{end}"].to_numpy(float)[rows]) for end in ("low", "high"))
            error = (high - low) / 2.0 / stdtrit(rounds - 1.0, 0.975)
        own = self.baseline[rows]  # the unit of all the ratios
        return Measured(rows, np.where(own, 0.0, log), np.where(own, 0.0, error), rounds)

    def _joint(self, places: Sequence[int]) -> Array:
        """One number for each combination of the levels of some factors."""
        joint = np.zeros(len(self.frame), dtype=np.int64)
        for place in places:
            joint = joint * len(self.design.factors[self.factors[place]]) + self.codes[:, place]
            joint = np.unique(joint, return_inverse=True)[1]  # small numbers again
        return joint

    def model(self, rows: Array, pairs: Sequence[tuple[int, int]]) -> tuple[Columns, Model]:
        """Of main effects and the interactions of `pairs`, with the seeds of these rows as blocks. Metrics share it."""
        key = rows.tobytes(), tuple(pairs)
        if key not in self._models:
            made = columns(self.codes[rows], pairs)
            self._models[key] = made, Model(made.x, self.seeds[rows])
        return self._models[key]

    @cached_property
    def _models(self) -> dict[tuple[bytes, tuple[tuple[int, int], ...]], tuple[Columns, Model]]:
        return {}

    @cached_property
    def _values(self) -> dict[str, Array]:
        return {}

    @cached_property
    def _cubes(self) -> dict[int, Array]:
        return {}

    def cube(self, factor: int) -> Array:
        """Rows by [level of the factor, levels of all others together, seed]; -1 where there is no run."""
        if factor not in self._cubes:
            contexts = self._joint([place for place in range(len(self.factors)) if place != factor])
            shape = (
                len(self.design.factors[self.factors[factor]]),
                contexts.max(initial=-1) + 1,
                self.seeds.max(initial=-1) + 1,
            )
            cube = np.full(shape, -1)
            cube[self.codes[:, factor], contexts, self.seeds] = np.arange(len(self.frame))
            self._cubes[factor] = cube
        return self._cubes[factor]


@dataclass(frozen=True)
class Measured:
    """Cells that took turns with the baseline: logarithms of ratios to it with their standard errors, over rounds.

    `rows` are the trials that stand for the cells.
    """

    rows: Array
    log: Array
    error: Array
    rounds: Array

    def estimate(self, weights: Array) -> Estimate:
        """Of the weighted sum over the cells."""
        used = np.abs(weights) > 1e-12
        value = float(weights @ self.log)
        others = used & (self.error != 0.0)
        n = int(self.rounds[others].min(initial=np.inf)) if others.any() else 0
        if not others.any() or not np.isfinite(self.error[used]).all():
            return Estimate(value, np.nan, 0.0, n)
        parts = zip((weights[others] * self.error[others]) ** 2, self.rounds[others] - 1.0, strict=True)
        return together(value, [(float(v), float(df)) for v, df in parts], n)


@dataclass(frozen=True)
class Columns:
    """The columns of a linear model in sum-coded factors: [run, coefficient], and those of each effect.

    An effect is the places of its factors. `levels` are those that have runs, of each factor, and `codes` their sum codes.
    """

    x: Array
    effects: dict[tuple[int, ...], slice]
    levels: list[Array]
    codes: list[Array]

    def contrast(self, effect: tuple[int, ...], codes: Sequence[int]) -> Array:
        """Coefficients of what levels `codes` of the factors of `effect` depart by from all of lower order."""
        row = np.ones(1)
        for place, code in zip(effect, codes, strict=True):
            row = np.multiply.outer(row, self.codes[place][np.searchsorted(self.levels[place], code)]).reshape(-1)
        contrast = np.zeros(self.x.shape[1])
        contrast[self.effects[effect]] = row
        return contrast


def columns(codes: Array, pairs: Sequence[tuple[int, int]]) -> Columns:
    """Main effects of all factors, and the interactions of `pairs`, of runs with these levels [run, factor]."""
    levels = [np.unique(codes[:, place]) for place in range(codes.shape[1])]
    coded = [sum_code(len(known)) for known in levels]
    main = [coded[p][np.searchsorted(known, codes[:, p])] for p, known in enumerate(levels)]
    blocks: dict[tuple[int, ...], Array] = {(place,): block for place, block in enumerate(main)}
    for one, other in pairs:
        blocks[one, other] = (main[one][:, :, None] * main[other][:, None, :]).reshape(len(codes), -1)
    ends = list(itertools.accumulate((block.shape[1] for block in blocks.values()), initial=0))
    effects = {effect: slice(*span) for effect, span in zip(blocks, itertools.pairwise(ends), strict=True)}
    return Columns(np.hstack([np.zeros((len(codes), 0)), *blocks.values()]), effects, levels, coded)
