"""Every caveat that applies to the effects of a suite, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ._aliases import effect_name
from ._grid import Frame, Grid, confounded
from .record import ALONE, STATUSES


def caveats(grid: Grid, trials: Frame, metrics: tuple[str, ...], parts: Mapping[str, Frame]) -> Iterator[str]:
    """In the order of their weight: what is missing, what the design cannot tell, what was assumed."""
    contrasts, design = parts["contrasts"], grid.design
    ordinary = grid.frame
    if not metrics:
        yield "There is no finished run to compare."
    yield from _lost(grid)
    seeds = ordinary.loc[ordinary["status"] == "finished", "seed"].nunique()
    if seeds == 1:
        yield "One seed: nothing is claimed, for nothing tells how far runs of one cell are from one another."
    elif 1 < seeds <= 2:
        yield "Two seeds: intervals have one degree of freedom, and only the largest effects show."
    yield from _untuned(contrasts, design.tuning)
    yield from _of_design(grid, metrics, parts)
    yield from _controls(contrasts)
    exact = contrasts[contrasts["df"].notna() & (contrasts["low"] == contrasts["high"])]
    if len(exact):
        names = ", ".join(dict.fromkeys(exact["metric"]))
        yield f"Some differences in {names} are the same in every seed: they are exact, and their intervals have no width."
    if "val_loss" in metrics and design.margin is None:
        yield "The suite names no margin, so nothing can be called equivalent."
    measured = contrasts.loc[contrasts["unit"] == "rounds", "metric"]
    if len(measured):
        names = ", ".join(dict.fromkeys(measured))
        yield f"{names}: from the pass for speed, in turns with the baseline; n is rounds, not seeds."
    shared = [
        metric for metric in ("tokens_per_second", "peak_memory_gib")
        if metric in metrics and f"pass_{metric}" not in trials and not trials["exclusive"].all()
    ]  # fmt: skip
    lost = [
        metric for metric in ("tokens_per_second", "peak_memory_gib")
        if metric not in metrics and metric in trials and trials[metric].notna().any()
    ]  # fmt: skip
    if lost:
        yield (
            f"Nothing is said of {' and '.join(lost)}: no run had the device to itself. `ablate speed {design.suite}` measures both."
        )
    if shared:
        yield f"{', '.join(shared)}: only of runs that had the device to themselves."
    if design.scale and grid.finished.any():
        yield f"This holds at scale {design.scale}; that it holds at another takes runs there."


def _lost(grid: Grid) -> Iterator[str]:
    frame, n = grid.frame, len(grid.frame)
    diverged = frame[frame["status"] == "diverged"]
    if len(diverged):
        counts = diverged.groupby("cell", sort=False).size()
        listed = _listed([f"{cell} ({count})" for cell, count in counts.items()])
        yield (
            f"{len(diverged)} of {n} runs diverged: {listed}. Estimates are over the runs that finished, and say nothing "
            "in favour of an arm that diverges more often."
        )
    others = {status: int((frame["status"] == status).sum()) for status in (*STATUSES[2:], "missing")}
    words = [
        f"{count} {'without a result' if s == 'missing' else s.replace('_', ' ')}"
        for s, count in others.items()
        if count
    ]
    if words:
        yield f"Of {n} runs {', '.join(words)}: contrasts are over the cells and seeds that both sides have."
    for factor, labels in grid.design.factors.items():
        seen = set(frame.loc[frame["status"] == "finished", factor])
        if gone := [label for label in labels if label not in seen]:
            yield f"{effect_name(grid.design, [factor])}: no finished run of {', '.join(gone)}, which the model leaves out."


def _untuned(contrasts: Frame, tuning: Mapping[str, object]) -> Iterator[str]:
    untuned = contrasts[~contrasts["tuned"].astype(bool)]
    if tuning and len(untuned):
        names = dict.fromkeys(f"{row.factor.rpartition('.')[2]} {row.level}" for row in untuned.itertuples())
        yield f"Untuned, for the best rate lies at the edge of what was searched, and so not called worse: {_listed(list(names))}."


def _of_design(grid: Grid, metrics: tuple[str, ...], parts: Mapping[str, Frame]) -> Iterator[str]:
    design, pairs, main = grid.design, parts["interactions"], parts["main_effects"]
    several = len(design.factors) > 1
    if design.kind in ALONE and several:
        yield "Factors vary one at a time around the baseline: effects hold there, and interactions cannot be seen."
    if confounded(design):
        lost = (grid.frame["status"] != "finished").any()
        yield (
            "The design runs a part of the grid: each estimate holds its aliases too. Confirm what it flags on fresh seeds of "
            "the full cells." + (" Runs are missing, so the aliases differ from those printed." if lost else "")
        )
    elif design.kind == "full" and several:
        possible = len(design.factors) * (len(design.factors) - 1) // 2
        for metric in metrics:
            known = pairs.loc[pairs["metric"] == metric, "factors"]
            if len(known) < possible and metric == metrics[0]:
                yield (
                    f"{possible - len(known)} of {possible} interactions of pairs cannot be told, for combinations have no run; "
                    "main effects assume that these are none."
                )
    unknown = main[main["estimate"].isna() & (main["metric"] == (metrics[0] if metrics else ""))]
    if len(unknown):
        names = [f"{effect_name(design, [row.factor])} {row.level}" for row in unknown.itertuples()]
        yield f"Main effects that the runs cannot tell: {_listed(names)}."
    for row in pairs[pairs["material"].astype(bool)].itertuples():
        yield (
            f"{effect_name(design, row.factors)} interact in {row.metric}: read the simple effects, not the pooled ones."  # type: ignore[arg-type]
        )


def _controls(contrasts: Frame) -> Iterator[str]:
    for row in contrasts[contrasts["factor"] == "(control)"].itertuples():
        if row.level == "A/A" and row.verdict in ("better", "worse"):
            yield f"The A/A copy of the baseline is called {row.verdict} in {row.metric}: a false alarm, or a fault of the set-up."
        if row.level != "A/A" and row.metric in ("val_loss", "val_bpb") and row.verdict != "worse":
            yield f"The known-bad control ({row.level}) is not called worse in {row.metric}: the suite may be blind."


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
