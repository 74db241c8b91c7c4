"""Contrasts named in advance: what they estimate, how sure that is, and the verdict."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ._aliases import aliases
from ._fit import NONE, Array, Estimate, paired, welch
from ._grid import QUALITY, Frame, Grid, columns, confounded, is_ratio
from .rank import holm
from .record import METRICS

ALPHA = 0.05
COLUMNS = """
    metric scale factor level against estimate low high p p_holm family n unit df margin p_equivalence verdict within_margin tuned
    correlation smallest_effect diverged diverged_against aliases untestable
""".split()
CONTROL, BASELINE = "(control)", "baseline"


@dataclass(frozen=True)
class Compared:
    """Two arms on one metric. `diverged` counts the seeds in which the arm, and that which it is held against, diverged in every run,
    out of `seeds`; `more` is +1 where runs of the arm diverged more often, -1 where less often."""

    factor: str
    level: str
    against: str
    estimate: Estimate = NONE
    unit: str = "seeds"
    correlation: float = math.nan
    diverged: tuple[int, int] = (0, 0)
    seeds: tuple[int, int] = (0, 0)
    more: int = 0
    tuned: tuple[bool, bool] = (True, True)
    aliases: str = ""
    reason: str = ""
    within: Mapping[str, str] = field(default_factory=dict)


def declared(grid: Grid, metric: str) -> list[Compared]:
    """The contrasts that the design declares, in its order."""
    return [compare(grid, metric, item["factor"], item["level"], item["against"]) for item in contrasts_of(grid.design)]


def contrasts_of(design: Any) -> list[dict[str, str]]:
    """Those declared, else each level against the baseline's."""
    return design.contrasts or [
        {"factor": factor, "level": level, "against": design.baseline[factor]}
        for factor, labels in design.factors.items() for level in labels if level != design.baseline[factor]
    ]  # fmt: skip


def compare(
    grid: Grid, metric: str, factor: str, level: str, against: str, within: Mapping[str, str] | None = None
) -> Compared:
    """One level against another over the cells that both have, in all cells or only `within` levels of other factors."""
    place, labels = grid.factors.index(factor), grid.design.factors[factor]
    cube = grid.cube(place)[[labels.index(level), labels.index(against)]]
    if within:
        inside = np.append(_inside(grid, within), False)
        cube = np.where(inside[cube], cube, -1)
    made = Compared(
        factor, level, against, aliases=aliases(grid.design, [factor]), within=within or {},
        tuned=(_tuned(grid, cube[0]), _tuned(grid, cube[1])),
    )  # fmt: skip
    measured = grid.measured(metric)
    if measured is not None:
        return replace(made, unit="rounds", **_by_rounds(grid, measured, place, cube))
    y = grid.values(metric)
    if confounded(grid.design):
        made = replace(made, **_modelled(grid, metric, y, place, labels.index(level), labels.index(against)))
    else:
        both = np.append(y, np.nan)[cube]
        estimate = paired(both[0] - both[1])
        reason = "" if estimate.df > 0.0 else _why(metric, y, cube, estimate)
        made = replace(made, estimate=estimate, correlation=_correlation(both), reason=reason)
    return _with_divergence(grid, cube, made) if metric in QUALITY else made


def _inside(grid: Grid, within: Mapping[str, str]) -> Array:
    kept = np.ones(len(grid.frame), dtype=bool)
    for factor, label in within.items():
        kept &= grid.codes[:, grid.factors.index(factor)] == grid.design.factors[factor].index(label)
    return kept


def _why(metric: str, y: Array, cube: Array, estimate: Estimate) -> str:
    """Why there is no interval."""
    if estimate.n:
        return "one seed" if estimate.n == 1 else "no cell has two seeds in common"
    for arm, name in zip(cube, ("it", "what it is held against"), strict=True):
        if not np.isfinite(np.append(y, np.nan)[arm]).any():
            return _none(metric, name)
    return "no cell and seed in common"


def _none(metric: str, name: str) -> str:
    return f"no finished run of {name}" if metric in QUALITY else f"no run of {name} had the device to itself"


def _correlation(both: Array) -> float:
    """Over seeds, of the means of two arms [arm, context, seed] over the cells that have all of them."""
    seeds = np.isfinite(both).all(0).any(0)
    whole = both[:, np.isfinite(both[:, :, seeds]).all((0, 2))][:, :, seeds]
    if not whole.size or seeds.sum() < 3:
        return math.nan
    first, second = whole.mean(1)
    first, second = first - first.mean(), second - second.mean()
    size = math.sqrt((first @ first) * (second @ second))
    return float(first @ second / size) if size > 1e-12 else math.nan


def _modelled(grid: Grid, metric: str, y: Array, place: int, level: int, against: int) -> dict[str, Any]:
    """The difference of two levels in a model of main effects, where no two cells differ in the factor alone."""
    there = np.isfinite(y)
    made, model = grid.model(np.flatnonzero(there), ())
    if not {level, against} <= set(made.levels[place].tolist()):
        return {"reason": _none(metric, "one of the two")}
    contrast = made.contrast((place,), [level]) - made.contrast((place,), [against])
    estimate = model.fit(y[there]).estimates(contrast[None])[0]
    reason = "" if estimate.df > 0.0 else "one seed" if estimate.n == 1 else "the runs cannot tell it"
    return {"estimate": estimate, "reason": reason}


def _by_rounds(grid: Grid, measured: Any, place: int, cube: Array) -> dict[str, Any]:
    """From the pass for speed: the mean of the cells' ratios over the cells that both levels share."""
    at = np.full(len(grid.frame) + 1, -1)
    at[measured.rows] = np.arange(len(measured.rows))
    weights = np.zeros(len(measured.rows))
    if confounded(grid.design):
        levels = [grid.codes[cube[arm][cube[arm] >= 0][0], place] for arm in (0, 1)]
        made = columns(grid.codes[measured.rows], [])
        if not set(levels) <= set(made.levels[place].tolist()):
            return {"reason": "not measured in the pass for speed"}
        contrast = made.contrast((place,), [levels[0]]) - made.contrast((place,), [levels[1]])
        design = np.hstack([np.ones((len(made.x), 1)), made.x])
        weights = np.append(0.0, contrast) @ np.linalg.pinv(design)
    else:
        cells: Array = at[cube].max(2)
        shared = np.asarray((cells >= 0).all(0))
        if not shared.any():
            return {"reason": "not measured in the pass for speed"}
        weights[cells[0, shared]] += 1.0 / shared.sum()
        weights[cells[1, shared]] -= 1.0 / shared.sum()
    estimate = measured.estimate(weights)
    return {"estimate": estimate, "reason": "" if estimate.df > 0.0 else "measured once"}


def _with_divergence(grid: Grid, cube: Array, made: Compared) -> Compared:
    """With how often both arms diverged, over the cells that both are declared in."""
    both = (cube >= 0).any(axis=2, keepdims=True).all(axis=0)
    shared = cube if confounded(grid.design) else np.where(both, cube, -1)
    status = np.append(np.where(grid.diverged, 1.0, np.where(grid.finished, 0.0, np.nan)), np.nan)
    outcome = status[shared]
    known = np.asarray(np.isfinite(outcome))
    seeds = np.asarray(known.any(1))
    whole = np.asarray(np.where(known, outcome, 1.0).min(1) > 0.0) & seeds
    rates = [float(outcome[arm][known[arm]].mean()) if known[arm].any() else 0.0 for arm in (0, 1)]
    counted = replace(
        made, diverged=(int(whole[0].sum()), int(whole[1].sum())), seeds=(int(seeds[0].sum()), int(seeds[1].sum())),
        more=int(np.sign(rates[0] - rates[1])),
    )  # fmt: skip
    gone = [arm for arm in (0, 1) if counted.diverged[arm] and counted.diverged[arm] == counted.seeds[arm]]
    if gone:
        what = f"diverged in {counted.diverged[0]} of {counted.seeds[0]} seeds"
        other = f"{made.against} in {counted.diverged[1]} of {counted.seeds[1]}"
        return replace(counted, reason=f"{what}, {other} (Fisher's exact test)")
    return counted


def _tuned(grid: Grid, rows: Array) -> bool:
    """Whether the search bracketed the rate of every cell of an arm; true in a suite that does not tune."""
    if not grid.design.tuning:
        return True
    known = grid.frame.iloc[np.unique(rows[rows >= 0])][["cell", "cell_id"]].drop_duplicates()
    found = [
        grid.design.tuning.get(cell, grid.design.tuning.get(cell_id, {}))
        for cell, cell_id in known.itertuples(index=False)
    ]
    return all(one.get("bracketed", False) for one in found)


def controls(grid: Grid, trials: Frame, metric: str) -> list[Compared]:
    """Each control against the baseline: of other seeds by Welch's t, of the same by pairs. None where the pass for speed,
    which has no controls, tells the metric."""
    if grid.measured(metric) is not None:
        return []
    found = trials[(trials["control"] != "") & trials["status"].ne("missing")]
    y = grid.values(metric)
    base = grid.frame["seed"].to_numpy()[grid.baseline], y[grid.baseline], grid.diverged[grid.baseline]
    made = []
    for (kind, label), rows in found.groupby(["control", "cell"], sort=False):
        own = Grid(grid.design, rows)
        values, seeds = own.values(metric), rows["seed"].to_numpy()
        common = sorted(set(seeds) & set(base[0]))
        if common and kind != "aa":
            difference = [values[seeds == seed][0] - base[1][base[0] == seed][0] for seed in common]
            estimate = paired(np.array([difference]))
        else:
            estimate = welch(values[np.isfinite(values)], base[1][np.isfinite(base[1])])
        reason = "" if estimate.df > 0.0 else "one seed" if estimate.n == 1 else _none(metric, "one of the two")
        one = Compared(CONTROL, "A/A" if kind == "aa" else str(label), BASELINE, estimate, reason=reason)
        if metric in QUALITY:
            ends = [(int(d.sum()), int(((s == "finished") | (s == "diverged")).sum())) for d, s in
                    ((own.diverged, rows["status"]), (base[2], grid.frame["status"][grid.baseline]))]  # fmt: skip
            rates = [count / n if n else 0.0 for count, n in ends]
            one = replace(
                one, diverged=(ends[0][0], ends[1][0]), seeds=(ends[0][1], ends[1][1]), more=int(np.sign(rates[0] - rates[1]))
            )  # fmt: skip
            if any(count and count == n for count, n in ends):
                text = f"diverged in {ends[0][0]} of {ends[0][1]} seeds, {BASELINE} in {ends[1][0]} of {ends[1][1]}"
                one = replace(one, reason=f"{text} (Fisher's exact test)")
        made.append(one)
    return made


def judged(family: Sequence[Compared], metric: str, margin: float | None) -> list[dict[str, Any]]:
    """Rows of the frame of contrasts, Holm-corrected over `family`: one that cannot be tested counts in it."""
    margin = margin if metric == "val_loss" else None
    return [
        _row(one, metric, margin, p, math.nan if math.isnan(p) else p_holm, len(family))
        for one, p, p_holm in _tested(family)
    ]


def verdicts(family: Sequence[Compared], metric: str, margin: float | None) -> list[str]:
    """The verdicts alone of what `judged` says."""
    margin = margin if metric == "val_loss" else None
    return [
        _verdict(one, metric, math.nan if math.isnan(p) else p_holm, one.estimate.p_equivalence(margin))
        for one, p, p_holm in _tested(family)
    ]


def _tested(family: Sequence[Compared]) -> list[tuple[Compared, float, float]]:
    """Each with its p-value and that corrected over the family."""
    ps = [_p(one) for one in family]
    adjusted = holm([1.0 if math.isnan(p) else p for p in ps])
    return list(zip(family, ps, adjusted, strict=True))


def _by_divergence(one: Compared) -> bool:
    return any(count and count == n for count, n in zip(one.diverged, one.seeds, strict=True))


def _p(one: Compared) -> float:
    """Of the difference of means; of that of divergence where nothing else is left of an arm."""
    if not _by_divergence(one):
        return one.estimate.p()
    from scipy import stats  # seconds to import, and rarely needed

    table = [[count, n - count] for count, n in zip(one.diverged, one.seeds, strict=True)]
    found: Any = stats.fisher_exact(table)
    return float(found.pvalue)


def _row(one: Compared, metric: str, margin: float | None, p: float, p_holm: float, family: int) -> dict[str, Any]:
    ratio, (low, high), p_equivalence = is_ratio(metric), one.estimate.interval(), one.estimate.p_equivalence(margin)
    shown = [math.exp(value) if ratio else value for value in (one.estimate.value, low, high)]
    return {
        "metric": metric, "scale": "ratio" if ratio else "difference", "factor": one.factor, "level": one.level,
        "against": one.against, "estimate": shown[0], "low": shown[1], "high": shown[2], "p": p, "p_holm": p_holm,
        "family": family, "n": one.estimate.n, "unit": one.unit,
        "df": one.estimate.df if one.estimate.df > 0.0 else math.nan,
        "margin": math.nan if margin is None else margin, "p_equivalence": p_equivalence,
        "verdict": _verdict(one, metric, p_holm, p_equivalence),
        "within_margin": bool(p_equivalence < ALPHA), "tuned": one.tuned[0], "correlation": one.correlation,
        "smallest_effect": _smallest(one.estimate, family, ratio),
        "diverged": one.diverged[0], "diverged_against": one.diverged[1], "aliases": one.aliases, "untestable": one.reason,
        "within": dict(one.within),
    }  # fmt: skip


def _smallest(estimate: Estimate, family: int, ratio: bool) -> float:
    """The effect that would show in four of five repetitions with this error, corrected for the family."""
    if not estimate.df > 0.0:
        return math.nan
    found = 0.0 if estimate.exact else _in_errors(estimate.n, family) * estimate.error
    return math.exp(found) if ratio else found


@functools.cache
def _in_errors(n: int, family: int) -> float:
    """`smallest_effect` in standard errors."""
    from .power import smallest_effect  # imports all of scipy.stats, which who only wants verdicts should not wait for

    return smallest_effect(math.sqrt(n), n, contrasts=family)


def _verdict(one: Compared, metric: str, p_holm: float, p_equivalence: float) -> str:
    """better, worse, equivalent or inconclusive.

    Nothing is said in favour of an arm that diverged more often: the runs that finished are not like the others. An untuned arm is not
    called worse, whichever side of the contrast it is on.
    """
    if p_holm < ALPHA:
        if _by_divergence(one):
            worse = one.diverged[0] * one.seeds[1] > one.diverged[1] * one.seeds[0]
        else:
            worse = (one.estimate.value > 0.0) == (METRICS[metric].better == "lower")
        untuned = not one.tuned[0 if worse else 1]
        favoured_diverges = not _by_divergence(one) and one.more == (-1 if worse else 1)
        if metric in QUALITY and (untuned or favoured_diverges):
            return "inconclusive"
        return "worse" if worse else "better"
    same = p_equivalence < ALPHA or (one.estimate.exact and one.estimate.value == 0.0)
    return "equivalent" if same and not one.more else "inconclusive"
