"""Estimates and how sure they are: pairs over seeds, linear models with seeds as blocks, ratios measured in rounds.

The unit of replication is the seed. Errors are clustered by seed with the bias-reduced correction CR2 and its degrees of freedom (Bell
and McCaffrey 2002; Pustejovsky and Tipton 2018, arXiv:1601.01981). Where no run is missing that is Student's t over one estimate per
seed, exactly, whatever the variances of the arms are and however the runs of one seed hang together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc, stdtr, stdtrit

Array = np.ndarray
CONFIDENCE = 0.95
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, its variance with `df` degrees of freedom, and from how many seeds (or rounds). No df: no interval."""

    value: float
    variance: float
    df: float
    n: int

    @property
    def error(self) -> float:
        return math.sqrt(self.variance)

    @property
    def exact(self) -> bool:
        """Whether it is the same in every seed, to rounding."""
        return self.df > 0.0 and self.error <= 1e-12 * max(1.0, abs(self.value))

    def interval(self) -> tuple[float, float]:
        """Of 95 %."""
        if not self.df > 0.0:
            return math.nan, math.nan
        half = 0.0 if self.exact else float(stdtrit(self.df, (1.0 + CONFIDENCE) / 2.0)) * self.error
        return self.value - half, self.value + half

    def p(self) -> float:
        """Two-sided, that the mean is zero."""
        if not self.df > 0.0:
            return math.nan
        if self.exact:
            return float(abs(self.value) <= 1e-12)
        return float(2.0 * stdtr(self.df, -abs(self.value / self.error)))

    def p_equivalence(self, margin: float | None) -> float:
        """Of two one-sided tests that the mean is at or beyond +-`margin`: the larger one. Schuirmann 1987."""
        if margin is None or not self.df > 0.0:
            return math.nan
        if self.exact:
            return float(abs(self.value) >= margin)
        return float(stdtr(self.df, (abs(self.value) - margin) / self.error))


NONE = Estimate(math.nan, math.nan, 0.0, 0)


def paired(differences: Array) -> Estimate:
    """The mean of `differences` [context, seed], each context with the same weight; NaN where a pair is missing.

    Contexts with one pair tell nothing of their error and are left out. A single seed gives a value alone.
    """
    there = np.isfinite(differences)
    counts = there.sum(1)
    if not counts.any():
        return NONE
    kept = counts >= 2
    if not kept.any():
        seeds = there.any(0)
        return Estimate(float(np.nanmean(differences[counts > 0], 1).mean()), math.nan, 0.0, int(seeds.sum()))
    there, counts = there[kept], counts[kept][:, None]
    n, filled = int(there.any(0).sum()), np.where(there, differences[kept], 0.0)
    means = filled.sum(1, keepdims=True) / counts
    weights = there / (len(counts) * counts * np.sqrt(1.0 - 1.0 / counts))
    scores = (weights * (filled - means)).sum(0)
    across = weights / np.sqrt(counts)
    omega = np.diag((weights**2).sum(0)) - across.T @ across
    whole = there[:, there.any(0)].all()
    df = n - 1.0 if whole else float(np.trace(omega) ** 2 / (omega**2).sum())
    return Estimate(float(means.mean()), float(scores @ scores), df, n)


def welch(first: Array, second: Array) -> Estimate:
    """The difference of the means of two independent samples. Welch 1947."""
    if not len(first) or not len(second):
        return NONE
    value, n = float(first.mean() - second.mean()), min(len(first), len(second))
    if n < 2:
        return Estimate(value, math.nan, 0.0, n)
    return together(
        value, [(float(sample.var(ddof=1)) / len(sample), len(sample) - 1.0) for sample in (first, second)], n
    )


def together(value: float, parts: list[tuple[float, float]], n: int) -> Estimate:
    """An estimate whose variance is the sum of independent `(variance, df)`. Satterthwaite 1946."""
    total = sum(variance for variance, _ in parts)
    weights = sum(variance**2 / df for variance, df in parts)
    return Estimate(value, total, total**2 / weights if weights else min(df for _, df in parts), n)


class Model:
    """y = block + X b + e by least squares, with a block per seed and errors clustered by seed.

    `columns` is X [run, coefficient], `seeds` the seed of each run. X may lack rank: what the runs cannot tell has no estimate.
    """

    def __init__(self, columns: Array, seeds: Array) -> None:
        _, self._block = np.unique(seeds, return_inverse=True)
        self.n_seeds = int(self._block.max(initial=-1)) + 1
        self._runs = [np.flatnonzero(self._block == seed) for seed in range(self.n_seeds)]
        inside = self._within(columns)
        values, vectors = np.linalg.eigh(inside.T @ inside)
        kept = values > _TINY * max(values.max(initial=0.0), 1.0)
        self._space, self.root = vectors[:, kept], vectors[:, kept] / np.sqrt(values[kept])
        self.basis = inside @ self.root
        """An orthonormal basis of what X can fit within seeds [run, rank]."""
        per_seed = [self.basis[runs] for runs in self._runs]
        self._leverage = np.array([z.T @ z for z in per_seed]).reshape(self.n_seeds, *[self.rank] * 2)
        self._whole = (
            self.n_seeds > 1 and np.abs(self._leverage - np.eye(self.rank) / self.n_seeds).max(initial=0.0) < _TINY
        )
        if self._whole:  # every seed has the same runs
            self._bend = np.broadcast_to(np.eye(self.rank) / np.sqrt(1.0 - 1.0 / self.n_seeds), self._leverage.shape)
            return
        k, v = np.linalg.eigh(self._leverage)
        alone = k > 1.0 - 1e-7
        self._bend = (v * np.where(alone, 0.0, 1.0 / np.sqrt(np.where(alone, 1.0, 1.0 - k)))[:, None]) @ v.swapaxes(
            1, 2
        )
        self._alone = (v * alone[:, None]) @ v.swapaxes(1, 2)
        """Projections on what one seed alone decides: nothing tells its error."""

    @property
    def rank(self) -> int:
        return self.root.shape[1]

    def _within(self, values: Array) -> Array:
        """Less the mean of the seed."""
        left = np.array(values, dtype=float)
        for runs in self._runs:
            left[runs] -= left[runs].mean(0)
        return left

    def directions(self, contrasts: Array) -> tuple[Array, Array]:
        """Contrasts [q, coefficient] in the coordinates of the basis [q, rank], and which of them the runs can tell."""
        inside = contrasts @ self._space @ self._space.T
        return contrasts @ self.root, np.abs(contrasts - inside).max(1, initial=0.0) <= 1e-6

    def fit(self, y: Array) -> Fit:
        inside = self._within(y)
        products = np.array([self.basis[runs].T @ inside[runs] for runs in self._runs]).reshape(self.n_seeds, self.rank)
        gamma = products.sum(0)
        scores = (self._bend @ (products - self._leverage @ gamma)[:, :, None])[:, :, 0]
        return Fit(self, gamma, scores, float(y.var() * len(y)) if len(y) else 0.0, float((inside**2).sum()))

    def df(self, directions: Array) -> Array:
        """Bell and McCaffrey's, of each of `directions` [q, rank]; 0 where one seed alone decides it."""
        if self._whole:
            return np.full(len(directions), self.n_seeds - 1.0)
        bent = self._bend @ directions.T
        across = self._leverage @ bent
        omega = -np.einsum("giq,hiq->qgh", across, across, optimize=True)
        seeds = np.arange(self.n_seeds)
        omega[:, seeds, seeds] += (across * bent).sum(1).T
        squared, trace = (omega**2).sum((1, 2)), np.trace(omega, axis1=1, axis2=2)
        alone = np.abs(self._alone @ directions.T).max((0, 1), initial=0.0) > 1e-6 * np.abs(directions).max(
            1, initial=0.0
        )
        known = ~alone & (squared > 0.0)
        return np.where(known, trace**2 / np.where(known, squared, 1.0), 0.0)


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted `Model`: `gamma` in the coordinates of its basis, and what each seed departs by there [seed, rank]."""

    model: Model
    gamma: Array
    scores: Array
    total: float
    within: float

    @property
    def coefficients(self) -> Array:
        """The shortest of those that fit best."""
        return self.model.root @ self.gamma

    def estimates(self, contrasts: Array) -> list[Estimate]:
        """Of contrasts of the coefficients [q, coefficient]."""
        directions, known = self.model.directions(contrasts)
        values, variances = directions @ self.gamma, ((self.scores @ directions.T) ** 2).sum(0)
        dfs = self.model.df(directions)
        return [
            Estimate(float(value), float(variance), float(df), self.model.n_seeds) if there else NONE
            for value, variance, df, there in zip(values, variances, dfs, known, strict=True)
        ]

    def block_test(self, directions: Array) -> tuple[float, float, float]:
        """(F, df, p) that all `directions` [q, rank], orthonormal, are zero.

        The ANOVA-type statistic |W gamma|^2 / tr V with Box's degrees of freedom, from estimates of tr(V)^2 and tr(V^2) without
        bias: it needs no inverse of V, which five seeds cannot give (Brunner, Dette and Munk 1997; Huynh and Feldt 1976 as corrected
        by Lecoutre 1991). Where no run is missing it is the univariate test of repeated measures with the seed as subject.
        """
        nu = float(self.model.df(directions).mean())
        seeds = self.scores @ directions.T
        variance = seeds.T @ seeds
        trace, squared = float(np.trace(variance)), float((variance**2).sum())
        if nu < 1.0 - _TINY:
            return math.nan, math.nan, math.nan
        explained = float(((directions @ self.gamma) ** 2).sum())
        if trace <= 1e-24 * max(1.0, self.within):  # the same in every seed
            there = explained > 1e-24 * max(1.0, self.within)
            return (math.inf if there else 0.0), math.nan, float(not there)
        f = explained / trace
        theta = (squared - trace**2 / nu) / (1.0 + 1.0 / nu - 2.0 / nu**2) if nu > 1.0 + _TINY else trace**2
        box = (trace**2 - 2.0 * theta / nu) / theta if theta > 0.0 else len(directions)
        box = min(max(box, 1.0), float(len(directions)))
        return f, box * nu, float(fdtrc(box, box * nu, f))
