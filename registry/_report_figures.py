"""The figures of a report: which rows go into which plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from . import _wording as w
from . import plots
from ._blocks import Figure
from ._report_tables import by_contrast, mean, primary, rows_of

if TYPE_CHECKING:
    from .effects import Effects

Curves = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
"""Points `[step, tokens, value]` by record id and metric."""
MOST_ROWS = 40
MOST_INTERACTIONS = 6
POINTS = 80
"""Points of a curve that are drawn; more cannot be seen."""


def effects(found: Effects, names: w.Names) -> list[Figure]:
    """A forest plot of the contrasts for each metric."""
    figures = []
    for metric in found.metrics:
        rows = [some[metric] for some in by_contrast(found).values() if metric in some]
        rows = [row for row in rows if not w.missing(row["estimate"])]
        shown = rows if len(rows) <= MOST_ROWS else sorted(rows, key=lambda row: -abs(math.log(row["estimate"]) if row["scale"] == "ratio" else row["estimate"]))[:MOST_ROWS]
        if not shown:
            continue
        better = "lower" if w.lower_is_better(metric) else "higher"
        what = "change" if shown[0]["scale"] == "ratio" else "difference"
        axis = f"{what} in {w.name(metric)}, {w.effect_unit(shown[0])} ({better} is better)"
        margin = shown[0]["margin"] if shown[0]["scale"] == "difference" and not w.missing(shown[0]["margin"]) else None
        caption = [f"95 % intervals, n = {w.number(min(row['n'] for row in shown))} or more." if _spread(shown) else f"95 % intervals, n = {w.number(shown[0]['n'])}."]
        if margin:
            caption.append(f"Grey band: the margin of ±{w.number(margin)} that counts as equal.")
        if len(shown) < len(rows):
            caption.append(f"The {len(shown)} largest of {len(rows)} effects; the table has all.")
        points = [_point(row, names.level(row["factor"], row["level"]), _against(row, names, found)) for row in shown]
        title = f"Effects on {w.name(metric)}"
        figures.append(Figure(title, plots.svg(plots.forest(points, axis, margin=margin), title), " ".join(caption)))
    return figures


def _spread(rows: list[w.Row]) -> bool:
    return len({row["n"] for row in rows}) > 1


def _against(row: w.Row, names: w.Names, found: Effects) -> str:
    """What a contrast is against, where that is not the baseline."""
    usual = found.design.baseline.get(row["factor"]) == row["against"]
    return "" if usual else f" vs {names.bare(row['against']).text}"


def _point(row: w.Row, label: w.Label, against: str) -> dict[str, Any]:
    estimate, low, high = (None if w.missing(value) else value for value in w.effect(row))
    shown = f"{label.text}{against}"
    told = f"{shown}: {w.interval(row)} {w.effect_unit(row)}, {row['verdict']}"
    return {"label": shown, "estimate": estimate, "low": low, "high": high, "verdict": row["verdict"], "told": told}


def interactions(found: Effects, names: w.Names) -> list[Figure]:
    """How the effect of a factor depends on another, material interactions first."""
    metric = primary(found.metrics)
    if metric is None or len(found.design.factors) < 2:
        return []
    pairs = [row for row in rows_of(found.interactions) if row["metric"] == metric and len(row["factors"]) == 2]
    pairs.sort(key=lambda row: (not row["material"], 1 if w.missing(row["p"]) else row["p"]))
    return [figure for row in pairs[:MOST_INTERACTIONS] if (figure := _interaction(found, names, metric, row))]


def _interaction(found: Effects, names: w.Names, metric: str, row: w.Row) -> Figure | None:
    factors = found.design.factors
    # the factor with more levels goes along the axis: there is room for any number of them
    across, by = sorted(row["factors"], key=lambda name: -len(factors[name]))
    ordinary = found.cells[found.cells[across].notna() & found.cells[metric].notna()]
    means = ordinary.groupby([across, by], observed=True)[metric].mean()
    lines = [level for level in factors[by] if level in set(ordinary[by])][: plots.MOST]
    if len(lines) < 2:
        return None
    points = [
        {"x": names.bare(at).text, "y": means[at, level], "series": names.level(by, level).text,
         "told": f"{names.level(across, at).text}, {names.level(by, level).text}: {w.number(means[at, level], 4)} {w.unit(metric)}"}
        for level in lines for at in factors[across] if (at, level) in means.index
    ]  # fmt: skip
    title = f"{names.pair((across, by)).text}"
    spec = plots.lines(points, names.factor(across).text, f"{w.name(metric)}, {w.unit(metric)}", names.factor(by).text,
                       names=[names.level(by, level).text for level in lines], kind="labels")  # fmt: skip
    pooled = "Means of cells." if len(factors) == 2 else "Means of cells, averaged over the other factors."
    p = f" Interaction: p {w.p_value(row['p_holm'])} (Holm)." if w.p_value(row["p_holm"]).startswith("<") else f" Interaction: p = {w.p_value(row['p_holm'])} (Holm)."
    caption = pooled + (p if not w.missing(row["p_holm"]) else "") + " Parallel lines: no interaction."
    return Figure(title, plots.svg(spec, f"Interaction of {title}"), caption, "material" if row["material"] else "")


def tradeoff(found: Effects, names: w.Names) -> list[Figure]:
    """Loss over speed with memory as size, where speed was measured alone."""
    metric = primary(found.metrics)
    if metric is None or "tokens_per_second" not in found.cells:
        return []
    cells = found.cells[found.cells[metric].notna() & found.cells["tokens_per_second"].notna()]
    if len(cells) < 2:
        return []
    labelled = cells["pareto"].astype(bool).sum() <= 8
    rows = []
    for row in rows_of(cells):
        text, pareto = names.bare(row["cell"]).text, bool(row["pareto"])
        memory = row.get("peak_memory_gib")
        size = None if memory is None or w.missing(memory) else memory
        parts = [f"{w.name(metric)} {mean(row, metric)}", f"{row['tokens_per_second']:,.0f} tokens/s", f"{w.number(size)} GiB" if size else ""]
        rows.append({
            "x": row["tokens_per_second"], "y": row[metric], "size": size, "pareto": pareto, "label": text if pareto and labelled else "", "told": f"{text}: {', '.join(filter(None, parts))}",
        })  # fmt: skip
    spec = plots.tradeoff(rows, "throughput, tokens/s (higher is better)", f"{w.name(metric)}, {w.unit(metric)} (lower is better)", "peak memory, GiB")
    caption = "Diamonds: no other cell is better in loss, speed and memory at once."
    return [Figure("Quality, speed, memory", plots.svg(spec, "Quality against speed and memory"), caption)]


def shown_cells(found: Effects) -> list[str]:
    """Cells whose curves are drawn: the baseline, what departs from it in one factor, then others, as many as can be told apart."""
    factors = list(found.design.factors)
    ordinary = found.cells[found.cells[factors].notna().all(axis=1)] if factors else found.cells
    away = [sum(row[name] != found.design.baseline[name] for name in factors) for row in rows_of(ordinary)]
    ranked = sorted(zip(away, ordinary["cell"], strict=True), key=lambda one: one[0])
    return [cell for _, cell in ranked[: plots.MOST]]


def curves(found: Effects, names: w.Names, points: Mapping[str, Curves]) -> list[Figure]:
    """Loss over tokens, mean and range over seeds. `points` holds the curves of each cell's records."""
    figures = []
    for metric, title in (("val_loss", "Validation loss"), ("train_loss", "Training loss")):
        rows: list[dict[str, Any]] = []
        for cell in points:
            rows += _band([some[metric] for some in points[cell].values() if metric in some], names.bare(cell).text)
        if len({row["x"] for row in rows}) < 3:
            continue
        highest = max(row["x"] for row in rows)
        early = [row["high"] for row in rows if row["x"] >= 0.2 * highest]
        spec = plots.lines(rows, "tokens", f"{title.lower()}, {w.unit(metric)}", "cell", names=[names.bare(cell).text for cell in points if any(row["series"] == names.bare(cell).text for row in rows)],
                           band=True, top=max(early))  # fmt: skip
        some = f" {len(points)} of {len(found.cells)} cells." if len(points) < len(found.cells) else ""
        caption = f"Mean over seeds; band: from the lowest to the highest seed.{some} Only the ends compare: ranks flip on the way."
        figures.append(Figure(title, plots.svg(spec, f"{title} over tokens"), caption))
    return figures


def _band(runs: Sequence[Sequence[Sequence[float]]], series: str) -> list[dict[str, Any]]:
    by_tokens: dict[float, list[float]] = {}
    for run in runs:
        for _, tokens, value in run:
            by_tokens.setdefault(tokens, []).append(value)
    complete = sorted((tokens, values) for tokens, values in by_tokens.items() if len(values) == len(runs))
    step = max(1, math.ceil(len(complete) / POINTS))
    kept = complete[::-step][::-1]  # the end is the result, so it stays
    return [
        {"x": tokens, "y": sum(values) / len(values), "low": min(values), "high": max(values), "series": series, "mark": tokens == kept[-1][0],
         "told": f"{series}: {w.number(sum(values) / len(values), 4)} at the end"}
        for tokens, values in kept
    ]  # fmt: skip


def tuning(found: Effects, names: w.Names, losses: pd.DataFrame) -> list[Figure]:
    """The search of each arm: loss over the values tried. `losses` has cell, value and loss, a row for each tuning run."""
    figures = []
    fields = dict.fromkeys(str(one["field"]) for one in found.design.tuning.values())
    for field in fields:
        arms = [cell for cell, one in found.design.tuning.items() if one["field"] == field and cell in set(losses["cell"])]
        for some in (arms[first : first + plots.MOST] for first in range(0, len(arms), plots.MOST)):
            rows = []
            for cell in some:
                one, tried = found.design.tuning[cell], losses[losses["cell"] == cell]
                for value, loss in tried.groupby("value")["loss"].mean().items():
                    chosen = math.isclose(float(value), float(one["chosen"]), rel_tol=1e-9)  # type: ignore[arg-type]
                    mark = ("chosen" if one["bracketed"] else "ring") if chosen else True
                    label = names.bare(cell).text
                    rows.append({"x": value, "y": loss, "series": label, "mark": mark, "told": f"{label}: {w.number(loss, 4)} at {w.number(value)}{', chosen' if chosen else ''}"})
            if rows:
                spec = plots.lines(rows, field, f"validation loss, {w.unit('val_loss')}", "arm", names=[names.bare(cell).text for cell in some], kind="values")
                caption = "Mean over tuning seeds, which are not those reported. Large: the value chosen; hollow: chosen at the edge, so the arm is untuned."
                figures.append(Figure(f"Search over {names.bare(field).text}", plots.svg(spec, f"Tuning of {names.bare(field).text} {len(figures)}"), caption))
    return figures

