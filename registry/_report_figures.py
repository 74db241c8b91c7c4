"""The figures of a report: which rows go into which plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _wording as w
from . import plots
from ._blocks import Figure
from ._report_checks import labels_of
from ._report_tables import judged, mean, ordinary, primary, rows_of

if TYPE_CHECKING:
    from .analysis import Effects

Curves = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
"""Points `[step, tokens, value]` by record id and metric."""
Losses = Mapping[str, Mapping[float, Sequence[float]]]
"""Of the runs of a search: their losses by arm (as the design's `tuning` names it) and value tried."""
MOST_ROWS = 40
MOST_INTERACTIONS = 6
POINTS = 80
"""Points of a curve that are drawn; more cannot be seen."""


def effects(found: Effects, names: w.Names) -> list[Figure]:
    """A forest plot of the contrasts for each metric."""
    figures = []
    for metric in found.metrics:
        rows = [row for some in judged(found, metric).values() for row in some if not w.missing(row["estimate"])]
        shown = rows if len(rows) <= MOST_ROWS else sorted(rows, key=lambda row: -abs(w.effect(row)[0]))[:MOST_ROWS]
        if shown:
            figures.append(_forest(found, names, metric, shown, len(rows)))
    return figures


def _forest(found: Effects, names: w.Names, metric: str, rows: list[w.Row], all_rows: int) -> Figure:
    first = rows[0]
    better = "lower" if w.lower_is_better(metric) else "higher"
    what = "change" if first["scale"] == "ratio" else "difference"
    margin = None if w.missing(first["margin"]) else first["margin"]
    least, most = (w.number(end(row["n"] for row in rows)) for end in (min, max))
    caption = f"95 % intervals over {least if least == most else f'{least} to {most}'} {first['unit']}."
    if any(row.get("within") for row in rows):
        caption += " After the bar: where the effect holds, for it depends on that factor."
    if margin:
        caption += f" Grey band: the margin of ±{w.number(margin)} that counts as equal."
    if len(rows) < all_rows:
        caption += f" The {len(rows)} largest of {all_rows} effects; the table has all."
    title = f"Effects on {w.name(metric)}"
    axis = f"{what}, {w.effect_unit(first)} ({better} is better)"
    points = [_point(found, names, row) for row in rows]
    return Figure(title, plots.svg(plots.forest(points, axis, margin=margin), title), caption)


def _point(found: Effects, names: w.Names, row: w.Row) -> dict[str, Any]:
    usual = found.design.baseline.get(row["factor"]) == row["against"]
    label = names.level(row["factor"], row["level"]).text + ("" if usual else f" vs {names.bare(row['against']).text}")
    where = [names.level(factor, level).text for factor, level in (row.get("within") or {}).items()]
    label = " | ".join([label, *where])
    estimate, low, high = (None if w.missing(value) else value for value in w.effect(row))
    told = f"{label}: {w.interval(row)} {w.effect_unit(row)}, {row['verdict']}"
    return {"label": label, "estimate": estimate, "low": low, "high": high, "verdict": row["verdict"], "told": told}


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
    means: dict[tuple[str, str], list[float]] = {}
    for cell in ordinary(found):
        if not w.missing(cell[metric]):
            means.setdefault((cell[across], cell[by]), []).append(cell[metric])
    lines = [level for level in factors[by] if any(level == other for _, other in means)][: plots.MOST]
    if len(lines) < 2:
        return None
    points = []
    for level, at in ((level, at) for level in lines for at in factors[across] if (at, level) in means):
        value, series = sum(means[at, level]) / len(means[at, level]), names.level(by, level).text
        told = f"{names.level(across, at).text}, {series}: {w.number(value, 4)} {w.unit(metric)}"
        points.append({"x": names.bare(at).text, "y": value, "series": series, "told": told})
    title = names.pair((across, by)).text
    titles = names.factor(across).text, f"{w.name(metric)}, {w.unit(metric)}", names.factor(by).text
    spec = plots.lines(points, *titles, names=[names.level(by, level).text for level in lines], kind="labels")
    p = w.p_value(row["p_holm"])
    caption = "Means of cells" + (". " if len(factors) == 2 else ", averaged over the other factors. ")
    caption += (
        f"Interaction: p {p if p.startswith('<') else f'= {p}'} (Holm). " if p else ""
    ) + "Parallel lines: no interaction."
    return Figure(title, plots.svg(spec, f"Interaction of {title}"), caption, "material" if row["material"] else "")


def tradeoff(found: Effects, names: w.Names) -> list[Figure]:
    """Loss over speed with memory as size, where speed was measured alone."""
    metric = primary(found.metrics)
    if metric is None or "tokens_per_second" not in found.cells:
        return []
    cells = [row for row in ordinary(found) if not w.missing(row[metric]) and not w.missing(row["tokens_per_second"])]
    if len(cells) < 2:
        return []
    labelled = sum(row["pareto"] for row in cells) <= 8
    rows = []
    for row in cells:
        text, pareto = names.bare(row["cell"]).text, bool(row["pareto"])
        memory = row.get("peak_memory_gib")
        size = None if memory is None or w.missing(memory) else memory
        parts = [f"{w.name(metric)} {mean(row, metric)}", f"{row['tokens_per_second']:,.0f} tokens/s"]
        parts += [f"{w.number(size)} GiB"] if size else []
        rows.append({
            "x": row["tokens_per_second"], "y": row[metric], "size": size, "pareto": pareto,
            "label": text if pareto and labelled else "", "told": f"{text}: {', '.join(parts)}",
        })  # fmt: skip
    spec = plots.tradeoff(
        rows,
        "throughput, tokens/s (higher is better)",
        f"{w.name(metric)}, {w.unit(metric)} (lower is better)",
        "peak memory, GiB",
    )
    caption = "Diamonds: no other cell is better in loss, speed and memory at once."
    return [Figure("Quality, speed, memory", plots.svg(spec, "Quality against speed and memory"), caption)]


def shown_cells(found: Effects) -> list[str]:
    """Cells whose curves are drawn: the baseline, what departs from it in one factor, then others, as many as can be told apart."""
    baseline = found.design.baseline
    ranked = sorted(ordinary(found), key=lambda row: sum(row[name] != level for name, level in baseline.items()))
    return [row["cell"] for row in ranked[: plots.MOST]]


def curves(found: Effects, names: w.Names, points: Mapping[str, Curves]) -> list[Figure]:
    """Loss over tokens, mean and range over seeds. `points` holds the curves of each cell's records."""
    figures = []
    for metric, title in (("val_loss", "Validation loss"), ("train_loss", "Training loss")):
        bands = {
            names.bare(cell).text: _band(
                [some[metric] for some in its.values() if metric in some], names.bare(cell).text
            )
            for cell, its in points.items()
        }
        bands = {name: band for name, band in bands.items() if band}
        rows = [row for band in bands.values() for row in band]
        if len({row["x"] for row in rows}) < 3:
            continue
        late = 0.3 * max(row["x"] for row in rows)
        top = max(row["high"] for row in rows if row["x"] >= late)
        titles = "tokens", f"{title.lower()}, {w.unit(metric)}", "cell"
        spec = plots.lines(rows, *titles, names=list(bands), band=True, top=top)
        cells = len(ordinary(found))
        some = f" {len(bands)} of {cells} cells." if len(bands) < cells else ""
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
    rows = []
    for tokens, values in complete[::-step][::-1]:  # the end is the result, so it stays
        y, end = sum(values) / len(values), tokens == complete[-1][0]
        told = f"{series}: {w.number(y, 4)} at the end"
        rows.append(
            {"x": tokens, "y": y, "low": min(values), "high": max(values), "series": series, "mark": end, "told": told}
        )
    return rows


def tuning(found: Effects, names: w.Names, losses: Losses) -> list[Figure]:
    """The search of each arm: loss over the values tried."""
    searched = [arm for arm in found.design.tuning if arm in losses]
    labels = labels_of(found, searched)
    figures = []
    for field in dict.fromkeys(str(found.design.tuning[arm]["field"]) for arm in searched):
        arms = [arm for arm in searched if found.design.tuning[arm]["field"] == field]
        for first in range(0, len(arms), plots.MOST):
            some = {arm: names.bare(labels[arm]).text for arm in arms[first : first + plots.MOST]}
            rows = [row for arm, label in some.items() for row in _search(found.design.tuning[arm], losses[arm], label)]
            titles = names.bare(field).text, f"validation loss, {w.unit('val_loss')}", "arm"
            spec = plots.lines(rows, *titles, names=list(some.values()), kind="values")
            part = f", arms {first + 1} to {first + len(some)}" if len(arms) > plots.MOST else ""
            title = f"Search over {names.bare(field).text}{part}"
            caption = "Mean over tuning seeds, which are not those reported. Large: chosen; hollow: chosen at the edge, so untuned."
            figures.append(Figure(title, plots.svg(spec, title), caption))
    return figures


def _search(one: Mapping[str, Any], tried: Mapping[float, Sequence[float]], label: str) -> list[dict[str, Any]]:
    rows = []
    for value, losses in sorted(tried.items()):
        loss = sum(losses) / len(losses)
        chosen = one["chosen"] is not None and math.isclose(value, one["chosen"], rel_tol=1e-9)
        mark = ("chosen" if one["bracketed"] else "ring") if chosen else True
        told = f"{label}: {w.number(loss, 4)} at {w.number(value)}{', chosen' if chosen else ''}"
        rows.append({"x": value, "y": loss, "series": label, "mark": mark, "told": told})
    return rows
