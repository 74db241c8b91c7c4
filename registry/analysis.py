"""What each choice of a suite does to quality, speed and memory, with how sure that is. From records alone.

The unit of replication is the seed. Contrasts are paired by seed and Holm-corrected; main effects and interactions come from a linear
model with the seeds as fixed blocks and sum-coded factors, with errors clustered by seed: the error term is factor x seed. Where no run
is missing these are Student's t over one estimate per seed, whatever the variances of the arms are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from . import _curves, _summary
from ._contrasts import ALPHA, COLUMNS, compare, contrasts_of, controls, declared, judged
from ._fit import together
from ._grid import ANALYSED, PASS, QUALITY, Frame, Grid
from ._model import MAIN, PAIRS, VARIANCE, Linear
from ._notes import caveats
from ._records import latest, read, trials_of
from .leaderboard import RegistryEmpty
from .mirror import Mirror
from .rank import holm
from .record import DesignRecord
from .store import Store

__all__ = ["Effects", "RegistryEmpty", "across_scales", "analyse", "effects", "scales"]


@dataclass(frozen=True)
class Effects:
    """The effects of one design in one environment, as tidy frames; a row per metric and thing, NaN where there is no number.

    `trials`: a row per trial of the design: trial_id, cell_id, cell, seed, status ("missing" without a record), exclusive, control ("",
    "aa" or "bad"), environment_id, a column per factor, metrics in their units, `pass_...` of the pass for speed.

    Losses are in their unit and effects on them differences (`scale` "difference"); speed and memory are analysed in logarithms, their
    effects are ratios, of which 1 is none. `low` and `high` bound the 95 % interval.

    `contrasts`: factor, level, against, estimate, low, high, p, p_holm over a `family` of so many, n of `unit` ("seeds", or "rounds" of
    the pass for speed), df, margin, p_equivalence (two one-sided tests), verdict (better, worse, equivalent, inconclusive), within_margin,
    tuned, correlation that the pairing achieved, in how many seeds the two arms `diverged` in all runs, aliases, and why there is no
    interval (`untestable`). Controls have factor "(control)" and a family of their own.
    `main_effects`: what a level departs by from the mean over the grid. `interactions`: of pairs of factors, with the share of the sum
    of squares, whether they are `material`, and by how much pooled effects misstate a simple one (`misstated`). `simple_effects`: contrasts
    `within` levels of the other factor of a material pair. `variance`: shares of the sum of squares. `noise`, `divergence`, `cells`: see
    `registry.noise` and the columns. `notes` is every caveat that applies.
    """

    design: DesignRecord
    trials: pd.DataFrame
    environment: dict[str, Any]
    metrics: tuple[str, ...]
    contrasts: pd.DataFrame
    main_effects: pd.DataFrame
    interactions: pd.DataFrame
    simple_effects: pd.DataFrame
    variance: pd.DataFrame
    noise: pd.DataFrame
    divergence: pd.DataFrame
    cells: pd.DataFrame
    notes: tuple[str, ...]
    store: _curves.Source | None = field(default=None, repr=False, compare=False)

    def time_to_target(self, target: float | None = None) -> pd.DataFrame:
        """Seconds of training until val_loss is at `target` (by default the final one of the worst cell), by cell. Needs
        the store."""
        return _curves.time_to_target(self.trials, self.curves, list(self.design.factors), target)

    def loss_at_equal_time(self) -> pd.DataFrame:
        """val_loss of each cell when the fastest run was done. Needs the store."""
        return _curves.loss_at_equal_time(self.trials, self.curves, list(self.design.factors))

    @cached_property
    def curves(self) -> dict[str, dict[str, list[list[float]]]]:
        """By record_id and metric, `[step, tokens, value]` points, of the trials; read from the store when first asked for."""
        if self.store is None:
            raise RegistryEmpty("curves are in the store alone: ask without offline")
        return self.store.all_curves(sorted(self.trials["record_id"].dropna()))


def effects(
    suite: str,
    scale: str | None = None,
    *,
    home: Path | None = None,
    tracking_uri: str | None = None,
    offline: bool = False,
    environment_id: str | None = None,
) -> Effects:
    """The effects of the newest design of `suite` that has results.

    Without `scale` the one with the newest design; without `environment_id` that with the most finished trials. Raises `RegistryEmpty`
    where there is nothing, with one line that says what there is.
    """
    mirror = read(home, tracking_uri, offline)
    found = latest(mirror, suite)
    if scale is not None and scale not in found:
        raise RegistryEmpty(f'no results for suite "{suite}" at scale "{scale}"; there are some at: {", ".join(found)}')
    design = found[scale] if scale is not None else max(found.values(), key=lambda one: (one.created_at, one.scale))
    others = [name for name in found if name != design.scale]
    unasked = [f"This is scale {design.scale}; there are results at {', '.join(others)}, too."]
    store = None if offline else Store.open(*_place(home, tracking_uri), create=False)
    return effects_of(mirror, design, environment_id, store, unasked if scale is None and others else [])


def effects_of(
    mirror: Mirror, design: DesignRecord, environment_id: str | None = None, store: _curves.Source | None = None,
    notes: Sequence[str] = (),
) -> Effects:  # fmt: skip
    """The effects of a design from a mirror that was read; `store` gives the curves."""
    trials, environment, found = trials_of(mirror, design, environment_id)
    damaged = [f"Left out, damaged: run {run_id} ({reason})." for run_id, reason in mirror.damaged]
    return _analysed(design, trials, environment, [*notes, *found, *damaged], store)


def scales(
    suite: str, *, home: Path | None = None, tracking_uri: str | None = None, offline: bool = False
) -> list[str]:
    """The scales at which a suite has results."""
    return list(latest(read(home, tracking_uri, offline), suite))


def analyse(design: DesignRecord, trials: pd.DataFrame) -> Effects:
    """The effects in a table of trials (see `Effects.trials`), which may lack metrics and the trials that were not run."""
    return _analysed(design, trials, {}, [], None)


def _place(home: Path | None, tracking_uri: str | None) -> tuple[Path, str | None]:
    from .home import home as default_home

    return home or default_home(), tracking_uri


def _analysed(
    design: DesignRecord, trials: Frame, environment: dict[str, Any], notes: Sequence[str], store: _curves.Source | None
) -> Effects:
    trials = trials.reset_index(drop=True)
    grid = Grid(design, trials[trials["control"] == ""].reset_index(drop=True))
    metrics = tuple(metric for metric in ANALYSED if _has(trials, metric))
    contrasts, main, pairs, simple, variance = [], [], [], [], []
    for metric in metrics:
        contrasts += judged(declared(grid, metric), metric, design.margin)
        contrasts += judged(controls(grid, trials, metric), metric, design.margin)
        model = Linear(grid, metric)
        main += model.main_effects()
        found = model.interactions(design.margin)
        pairs += found
        simple += _simple(grid, metric, [row["factors"] for row in found if row["material"]])
        variance += model.variance()
    frame = _frame(contrasts, COLUMNS)
    parts = {
        "contrasts": frame, "main_effects": _frame(main, MAIN), "interactions": _frame(pairs, PAIRS),
        "simple_effects": _frame(simple, [*COLUMNS, "within"]), "variance": _frame(variance, VARIANCE),
        "noise": _frame([_summary.noise(grid, frame[frame["factor"] != "(control)"], metric) for metric in metrics], _summary.NOISE),
        "divergence": _summary.divergence(grid, trials), "cells": _summary.cells(grid, trials, metrics),
    }  # fmt: skip
    notes = (*notes, *caveats(grid, trials, metrics, parts))
    return Effects(
        design=design, trials=trials, environment=environment, metrics=metrics, notes=notes, store=store, **parts
    )


def _has(trials: Frame, metric: str) -> bool:
    """Whether anything of it is known; of a table without val_loss because every run diverged, val_loss is what is missing."""
    if metric in QUALITY:
        other = "val_bpb" if metric == "val_loss" else "val_loss"
        own, rest = (name in trials and trials[name].notna().any() for name in (metric, other))
        return bool(own and (metric == "val_loss" or not rest)) or (
            metric == "val_loss"
            and not own
            and not rest
            and metric in trials
            and bool((trials["status"] == "diverged").any())
        )
    own = metric in trials and (trials[metric].notna() & trials["exclusive"] & trials["status"].eq("finished")).any()
    return bool(own) or (PASS + metric in trials and bool(trials[PASS + metric].notna().any()))


def _simple(grid: Grid, metric: str, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Contrasts of each factor of a pair within each level of the other; one family."""
    found = [
        compare(grid, metric, item["factor"], item["level"], item["against"], {other: label})
        for pair in pairs for factor, other in (pair, pair[::-1])
        for item in contrasts_of(grid.design) if item["factor"] == factor for label in grid.design.factors[other]
    ]  # fmt: skip
    return judged(found, metric, grid.design.margin)


def _frame(rows: list[dict[str, Any]], names: Sequence[str]) -> Frame:
    return pd.DataFrame(rows, columns=list(names))


def across_scales(found: Sequence[Effects]) -> pd.DataFrame:
    """What each contrast is at a scale less what it is at the first of `found`: the interaction of arm and scale.

    Of ratios, the ratio. By Welch's t from the errors at both scales, whose runs are independent; Holm-corrected over the
    rows of a metric. `differs` says whether the two scales differ; that they do not is no claim that they agree.
    """
    keys = ["metric", "scale", "factor", "level", "against"]
    made: list[dict[str, Any]] = []
    for first, other in zip(itertools.repeat(found[0] if found else None), found[1:], strict=False):
        assert first is not None
        joined: Frame = first.contrasts.merge(other.contrasts, on=keys, suffixes=("", "_other"))
        for row in joined[joined["factor"] != "(control)"].to_dict("records"):
            made.append(_interaction(row, first.design.scale, other.design.scale))
    for metric in dict.fromkeys(row["metric"] for row in made):
        rows = [row for row in made if row["metric"] == metric]
        adjusted = holm([1.0 if math.isnan(row["p"]) else row["p"] for row in rows])
        for row, p in zip(rows, adjusted, strict=True):
            row |= {"p_holm": math.nan if math.isnan(row["p"]) else p, "family": len(rows), "differs": p < ALPHA}
    names = [
        *keys,
        "at",
        "than",
        "estimate_at",
        "estimate_than",
        "estimate",
        "low",
        "high",
        "p",
        "p_holm",
        "family",
        "df",
        "differs",
    ]
    return _frame(made, names)


def _interaction(row: dict[str, Any], first: str, other: str) -> dict[str, Any]:
    ratio = row["scale"] == "ratio"
    sides = []
    for suffix in ("", "_other"):
        value, low, high = (row[name + suffix] for name in ("estimate", "low", "high"))
        sides.append(
            [math.log(v) if ratio else v for v in (value, low, high)] + [row["df" + suffix], row["n" + suffix]]
        )
    from scipy.stats import t

    value = sides[1][0] - sides[0][0]
    parts = [(((high - low) / 2.0 / t.isf(0.025, df)) ** 2, df) for _, low, high, df, _ in sides]
    known = not any(math.isnan(variance) for variance, _ in parts)
    found = together(value, parts, min(sides[0][4], sides[1][4])) if known else None
    shown = [value, *(found.interval() if found else (math.nan, math.nan))]
    return {name: row[name] for name in ("metric", "scale", "factor", "level", "against")} | {
        "at": other, "than": first, "estimate_at": row["estimate_other"], "estimate_than": row["estimate"],
        **dict(zip(("estimate", "low", "high"), [math.exp(v) if ratio else v for v in shown], strict=True)),
        "p": found.p() if found else math.nan, "df": found.df if found else math.nan,
    }  # fmt: skip
