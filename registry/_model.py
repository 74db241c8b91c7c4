"""The blocked linear model of a metric: main effects, interactions of pairs, and the shares of its variance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import fdtrc

from ._aliases import aliases, effect_name
from ._fit import NONE, Array, Estimate, Fit, Model
from ._grid import Columns, Grid, Measured, columns, confounded, is_ratio
from .rank import holm
from .record import ALONE

ALPHA = 0.05
MISSTATED = 0.1
"""An interaction is material where a pooled effect misstates some simple effect by more than the margin or, without one, by more than
this share of the larger of the two factors' effects."""
MAIN = "metric scale factor level estimate low high p n unit df aliases".split()
PAIRS = "metric factors p p_holm family f df share material misstated estimate low high aliases".split()
VARIANCE = "metric source share".split()


@dataclass(frozen=True)
class Linear:
    """The model of one metric of a design.

    Of a full factorial it has all interactions of pairs of factors all of whose combinations have runs; of other designs, main effects.
    What the pass for speed measured takes its errors from the rounds, anything else from the seeds.
    """

    grid: Grid
    metric: str

    @cached_property
    def measured(self) -> Measured | None:
        return self.grid.measured(self.metric)

    @cached_property
    def rows(self) -> Array:
        """The rows of the grid that it is fitted to."""
        if self.measured is not None:
            return self.measured.rows
        return np.flatnonzero(np.isfinite(self.grid.values(self.metric)))

    @cached_property
    def y(self) -> Array:
        return self.measured.log if self.measured is not None else self.grid.values(self.metric)[self.rows]

    @cached_property
    def codes(self) -> Array:
        return self.grid.codes[self.rows]

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of factors, of at least two levels each, all of whose combinations have runs."""
        if self.grid.design.kind in ALONE:
            return []
        levels = [len(np.unique(column)) for column in self.codes.T]
        return [
            (a, b) for a, b in itertools.combinations(range(len(levels)), 2)
            if min(levels[a], levels[b]) > 1 and self._combinations(a, b) == levels[a] * levels[b]
        ]  # fmt: skip

    def _combinations(self, a: int, b: int) -> int:
        """How many combinations of levels of two factors have runs."""
        return len(set(zip(self.codes[:, a].tolist(), self.codes[:, b].tolist(), strict=True)))

    @cached_property
    def columns(self) -> Columns:
        return self._fit(() if confounded(self.grid.design) else self.pairs)[0]

    @cached_property
    def fitted(self) -> Fit:
        return self._fit(() if confounded(self.grid.design) else self.pairs)[1]

    def _fit(self, pairs: Sequence[tuple[int, int]]) -> tuple[Columns, Fit]:
        """What was measured once is one block."""
        if self.measured is None:
            made, model = self.grid.model(self.rows, pairs)
        else:
            made = columns(self.codes, pairs)
            model = Model(made.x, np.zeros(len(self.rows)))
        return made, model.fit(self.y)

    def estimates(self, contrasts: Array, fit: Fit) -> list[Estimate]:
        """Of contrasts of the coefficients of `fit`."""
        if self.measured is None:
            return fit.estimates(contrasts)
        directions, known = fit.model.directions(contrasts)
        weights = directions @ fit.model.basis.T
        return [self.measured.estimate(one) if there else NONE for one, there in zip(weights, known, strict=True)]

    def main_effects(self) -> list[dict[str, Any]]:
        """Of each level, its departure from the grand mean over the grid, all other factors' levels weighted alike."""
        ratio, made, levels = is_ratio(self.metric), [], self.columns.levels
        known = [(place, code) for place, seen in enumerate(levels) if len(seen) > 1 for code in seen.tolist()]
        contrasts = np.array([self.columns.contrast((place,), [code]) for place, code in known])
        contrasts = contrasts.reshape(len(known), self.columns.x.shape[1])
        estimates = dict(zip(known, self.estimates(contrasts, self.fitted), strict=True))
        for place, factor in enumerate(self.grid.factors):
            for code, level in enumerate(self.grid.design.factors[factor]):
                found = estimates.get((place, code), NONE)
                shown = [math.exp(v) if ratio else v for v in (found.value, *found.interval())]
                made.append({
                    "metric": self.metric, "scale": "ratio" if ratio else "difference", "factor": factor, "level": level,
                    "estimate": shown[0], "low": shown[1], "high": shown[2], "p": found.p(), "n": found.n,
                    "unit": "seeds" if self.measured is None else "rounds",
                    "df": found.df if found.df > 0.0 else math.nan, "aliases": aliases(self.grid.design, [factor]),
                })  # fmt: skip
        return made

    def interactions(self, margin: float | None) -> list[dict[str, Any]]:
        """Of each pair that can be told, the test that it has none. Holm-corrected over the pairs."""
        if not self.pairs or len(self.rows) < 2:
            return []
        tested = [self._pair(pair) for pair in self.pairs]
        found = _distinct([one for one in tested if one is not None])
        ps = holm([1.0 if math.isnan(one.p) else one.p for one in found])
        ratio, margin = is_ratio(self.metric), margin if self.metric == "val_loss" else None
        made = []
        for one, p_holm in zip(found, ps, strict=True):
            names = tuple(self.grid.factors[place] for place in one.pair)
            least = margin if margin is not None else MISSTATED * one.largest
            estimate = one.estimate
            shown = [math.exp(v) if ratio else v for v in (estimate.value, *estimate.interval())]
            made.append({
                "metric": self.metric, "factors": names, "p": one.p, "p_holm": math.nan if math.isnan(one.p) else p_holm,
                "family": len(found), "f": one.f, "df": one.df, "share": one.share,
                "material": bool(not math.isnan(one.p) and p_holm < ALPHA and one.misstated > least),
                "misstated": math.exp(one.misstated) if ratio else one.misstated,
                "estimate": shown[0], "low": shown[1], "high": shown[2], "aliases": aliases(self.grid.design, names),
            })  # fmt: skip
        return made

    def _pair(self, pair: tuple[int, int]) -> Pair | None:
        """None where the runs cannot tell it from main effects (or, in a full factorial, from other pairs)."""
        if confounded(self.grid.design):
            made, fit = self._fit([pair])
        else:
            made, fit = self.columns, self.fitted
        model, block = fit.model, made.effects[pair]
        # the part of the block that nothing else fits: what of the basis is orthogonal to the other columns
        others = model.basis.T @ np.delete(made.x, np.r_[block], axis=1)
        left, sizes, _ = np.linalg.svd(others, full_matrices=True)
        rank = int((sizes > 1e-8 * max(sizes.max(initial=0.0), 1.0)).sum())
        directions = left[:, rank:].T
        if len(directions) < block.stop - block.start:
            return None
        if self.measured is None:
            f, df, p = fit.block_test(directions)
        else:
            f, df, p = _known_error_test(directions @ model.basis.T, self.measured)
        size, largest = self._misstated(made, fit, pair)
        estimate = NONE
        if len(directions) == 1:
            contrast = made.contrast(pair, [made.levels[pair[0]][0], made.levels[pair[1]][0]])
            estimate = self.estimates(contrast[None], fit)[0]
        share = float(((directions @ fit.gamma) ** 2).sum()) / fit.total if fit.total > 0.0 else 0.0
        return Pair(pair, f, df, p, share, size, largest, estimate, model.basis @ directions.T)

    def _misstated(self, made: Columns, fit: Fit, pair: tuple[int, int]) -> tuple[float, float]:
        """By how much the pooled effects of the two factors misstate some simple effect against the baseline's level at
        most, and the largest of these pooled effects."""
        beta = fit.coefficients
        base = [labels.index(self.grid.design.baseline[factor]) for factor, labels in self.grid.design.factors.items()]
        first, second = (made.levels[place] for place in pair)
        table = np.array([[made.contrast(pair, [a, b]) @ beta for b in second] for a in first])
        wrong, largest = 0.0, 0.0
        for place, known, departures in ((pair[0], first, table), (pair[1], second, table.T)):
            main = np.array([made.contrast((place,), [code]) @ beta for code in known])
            against = int(np.flatnonzero(known == base[place])[0]) if base[place] in known else 0
            wrong = max(wrong, float(np.abs(departures - departures[against]).max()))
            largest = max(largest, float(np.abs(main - main[against]).max()))
        return wrong, largest

    def variance(self) -> list[dict[str, Any]]:
        """Shares of the sum of squares: of seeds, of factors, of pairs, of higher interactions where all cells have all seeds, and the
        rest. In that order where the table is not balanced, so that each has what those before it leave."""
        if self.measured is not None or len(self.rows) < 2:
            return []
        fit, made = self.fitted, self.columns
        if fit.total <= 1e-24:
            return []
        within = fit.model.basis.T @ made.x
        shares = {"seed": (fit.total - fit.within) / fit.total}
        spent = np.zeros((fit.model.rank, 0))
        for effect, block in made.effects.items():
            extra = _basis(within[:, block] - spent @ (spent.T @ within[:, block]))
            spent = np.hstack([spent, extra])
            name = effect_name(self.grid.design, [self.grid.factors[place] for place in effect])
            shares[name] = float(((extra.T @ fit.gamma) ** 2).sum()) / fit.total
        left = max(0.0, 1.0 - sum(shares.values()))
        shares |= self._higher(left)
        return [{"metric": self.metric, "source": source, "share": share} for source, share in shares.items()]

    def _higher(self, left: float) -> dict[str, float]:
        """What is left, in interactions of three factors and more and the residual where they can be told apart."""
        cells = np.unique(self.grid.cells[self.rows], return_inverse=True)[1]
        counts = np.bincount(cells)
        whole = len(set(counts)) == 1 and counts[0] == self.fitted.model.n_seeds > 1
        if not whole or len(counts) <= self.fitted.model.rank + 1:
            return {"residual": left}
        means = np.bincount(cells, self.y) / counts
        between = float(((means - means.mean()) ** 2).sum()) * counts[0] / self.fitted.total
        higher = max(0.0, between - float((self.fitted.gamma**2).sum()) / self.fitted.total)
        return {"higher interactions": min(higher, left), "residual": max(0.0, left - higher)}


@dataclass(frozen=True)
class Pair:
    """An interaction as tested; `space` is what it fits, an orthonormal basis [run, q]."""

    pair: tuple[int, int]
    f: float
    df: float
    p: float
    share: float
    misstated: float
    largest: float
    estimate: Estimate
    space: Array


def _distinct(found: Sequence[Pair]) -> list[Pair]:
    """Without those that the runs cannot tell from an earlier one: its aliases name them."""
    kept: list[Pair] = []
    for one in found:
        same = (
            other.space.shape == one.space.shape
            and np.linalg.norm(one.space - other.space @ (other.space.T @ one.space)) < 1e-6
            for other in kept
        )
        if not any(same):
            kept.append(one)
    return kept


def _basis(block: Array) -> Array:
    """Orthonormal, of the space of the columns of `block`."""
    left, sizes, _ = np.linalg.svd(block, full_matrices=False)
    return left[:, sizes > 1e-8 * max(sizes.max(initial=0.0), 1.0)]


def _known_error_test(weights: Array, measured: Measured) -> tuple[float, float, float]:
    """(F, df, p) that all weighted sums over the cells [q, cell] are zero; Box's approximation, as in `Fit.block_test`."""
    variances = measured.error**2
    if not np.isfinite(variances).all():
        return math.nan, math.nan, math.nan
    variance = (weights * variances) @ weights.T
    trace, squared = float(np.trace(variance)), float((variance**2).sum())
    parts = (weights**2).sum(0) * variances
    if trace <= 0.0:
        return math.nan, math.nan, math.nan
    f, df = (
        float(((weights @ measured.log) ** 2).sum()) / trace,
        trace**2 / float((parts**2 / (measured.rounds - 1)).sum()),
    )
    return f, df, float(fdtrc(trace**2 / squared, df, f))
