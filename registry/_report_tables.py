"""The tables of a report, from the frames of effects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pandas as pd

from . import _wording as w
from ._blocks import Answer, Answers, Cell, Table, named, number, table, told
from .record import METRICS

if TYPE_CHECKING:
    from .effects import Effects

CONTROL = "(control)"
QUALITY = ("val_loss", "val_bpb")
MOST_ANSWERS = 40
"""Sentences that are shown at once."""
_BOLD = "Bold: a difference at 5 %, Holm-corrected over the contrasts of its family."


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def by_contrast(found: Effects, *, controls: bool = False) -> dict[tuple[str, str, str], dict[str, w.Row]]:
    """Rows of contrasts by metric, for each (factor, level, against) in the design's order."""
    order = {name: place for place, name in enumerate(found.design.factors)}
    answers: dict[tuple[str, str, str], dict[str, w.Row]] = {}
    for row in rows_of(found.contrasts):
        if (row["factor"] == CONTROL) == controls:
            answers.setdefault((row["factor"], row["level"], row["against"]), {})[row["metric"]] = row
    return dict(sorted(answers.items(), key=lambda item: order.get(item[0][0], len(order))))


def primary(metrics: Iterable[str]) -> str | None:
    """The metric that the answers are about."""
    return next((metric for metric in QUALITY if metric in metrics), None)


def answers(found: Effects, names: w.Names) -> list[Answers]:
    """A sentence for each declared contrast; beyond `MOST_ANSWERS` of them those without a verdict are folded away."""
    smallest = {row["metric"]: row["smallest_effect"] for row in rows_of(found.noise)}
    searched = sorted({str(one["field"]) for one in found.design.tuning.values()})
    tuning = searched[0] if len(searched) == 1 else ""
    told: list[tuple[w.Label, Answer]] = []
    for (factor, level, against), by_metric in by_contrast(found).items():
        metric = primary(by_metric)
        row = by_metric.get(metric or "")
        costs = [by_metric[one] for one in ("tokens_per_second", "peak_memory_gib") if one in by_metric]
        label, other = names.level(factor, level), names.level(factor, against)
        phrase = w.answer(row, costs, label, other, found.design.match, smallest.get(metric, float("nan")), tuning)
        told.append((names.factor(factor), Answer(row["verdict"] if row else "inconclusive", phrase)))
    clear = [one for one in told if one[1].verdict in ("better", "worse")]
    first = told if len(told) <= MOST_ANSWERS else clear[:MOST_ANSWERS]
    shown = {id(one) for one in first}
    rest = [one for one in told if id(one) not in shown]
    return [_grouped(some, folded) for some, folded in ((first, False), (rest, True)) if some]


def _grouped(told: list[tuple[w.Label, Answer]], folded: bool) -> Answers:
    groups = groupby(told, key=lambda one: one[0])
    return Answers(tuple((label, tuple(answer for _, answer in some)) for label, some in groups), folded)


def effect_cell(row: w.Row | None) -> Cell:
    if row is None:
        return Cell("")
    return number(w.effect(row)[0], w.interval(row), strong=significant(row))


def significant(row: w.Row) -> bool:
    return not w.missing(row["p_holm"]) and row["p_holm"] < w.SIGNIFICANT


def verdict_cell(row: w.Row) -> Cell:
    words = row["verdict"]
    if row["within_margin"] and words != "equivalent":
        words += ", within the margin"
    if not row["tuned"]:
        words += ", untuned"
    return Cell(f"{w.SIGNS[row['verdict']]} {words}", verdict=row["verdict"])


def contrasts(found: Effects, names: w.Names) -> Table:
    """A row for each contrast, a column for each metric."""
    metrics = [metric for metric in found.metrics if metric in set(found.contrasts["metric"])]
    main = primary(metrics)
    columns = ["factor", "level", "against"]
    for metric in metrics:
        scale = next(row for row in rows_of(found.contrasts) if row["metric"] == metric)
        columns.append(f"#{w.name(metric)}, {w.effect_unit(scale)}")
        columns += ["verdict", "#p (Holm)"] if metric == main else []
    rows = []
    for (factor, level, against), by_metric in by_contrast(found).items():
        cells = [named(names.factor(factor)), named(names.bare(level)), named(names.bare(against))]
        for metric in metrics:
            row = by_metric.get(metric)
            cells.append(effect_cell(row))
            if metric == main:
                p = Cell("") if row is None else number(row["p_holm"], w.p_value(row["p_holm"]))
                cells += [verdict_cell(row) if row else Cell(""), p]
        n = [row["n"] for row in by_metric.values()]
        rows.append([*cells, number(n[0])])
    return table("contrasts", "What each level does, with 95 % intervals", [*columns, "#n"], rows, _BOLD)


def every_contrast(found: Effects, names: w.Names) -> Table:
    """All that was computed of each contrast, a row for each metric."""
    columns = ("metric", "factor", "level", "against", "#effect", "unit", "verdict", "#p", "#p (Holm)", "#family",
               "#p (equivalence)", "#margin", "#n", "#df", "#correlation", "why no interval")  # fmt: skip
    rows = [
        [
            Cell(w.name(row["metric"])),
            named(names.factor(row["factor"])),
            *_levels(row, names.bare),
            effect_cell(row),
            Cell(w.effect_unit(row)),
            verdict_cell(row),
            p_cell(row["p"]),
            p_cell(row["p_holm"]),
            number(row["family"]),
            p_cell(row["p_equivalence"]),
            *(number(row[name]) for name in ("margin", "n", "df")),
            number(row["correlation"], two(row["correlation"])),
            told(row["untestable"]) if row["untestable"] else Cell(""),
        ]
        for by_metric in by_contrast(found).values()
        for row in by_metric.values()
    ]
    note = "Correlation: of the two levels over seeds; the higher it is, the more pairing by seed gains."
    return table("every-contrast", "Every contrast in every metric", columns, rows, note, folded=True)


def _levels(row: w.Row, shown: Callable[[str], w.Label]) -> tuple[Cell, Cell]:
    return named(shown(row["level"])), named(shown(row["against"]))


def p_cell(p: Any) -> Cell:
    return number(p, w.p_value(p))


def two(value: Any) -> str:
    """To two decimals."""
    return "" if w.missing(value) else f"{value:.2f}".replace("-", "−")


def per_cent(share: Any) -> str:
    return "" if w.missing(share) else f"{100 * share:.1f} %"


def simple_effects(found: Effects, names: w.Names) -> Table:
    rows = []
    for row in rows_of(found.simple_effects):
        where = ", ".join(names.level(factor, level).text for factor, level in row["within"].items())
        levels = _levels(row, lambda level, factor=row["factor"]: names.level(factor, level))
        effect = [
            effect_cell(row),
            Cell(w.effect_unit(row)),
            verdict_cell(row),
            p_cell(row["p_holm"]),
            number(row["n"]),
        ]
        rows.append([Cell(w.name(row["metric"])), *levels, Cell(where), *effect])
    columns = ("metric", "level", "against", "where", "#effect", "unit", "verdict", "#p (Holm)", "#n")
    return table("simple-effects", "Effects within the levels of the factor that they depend on", columns, rows, _BOLD)


def main_effects(found: Effects, names: w.Names) -> Table:
    rows = []
    for row in rows_of(found.main_effects):
        what = [Cell(w.name(row["metric"])), named(names.factor(row["factor"])), named(names.bare(row["level"]))]
        effect = [
            number(w.effect(row)[0], w.interval(row)),
            Cell(w.effect_unit(row)),
            p_cell(row["p"]),
            number(row["n"]),
        ]
        rows.append([*what, *effect])
    columns = ("metric", "factor", "level", "#effect", "unit", "#p", "#n")
    note = "How far a level is from the mean over all levels, the other factors averaged; p is not corrected."
    return table("main-effects", "Main effects", columns, rows, note, folded=True)


def interactions(found: Effects, names: w.Names) -> Table:
    rows = []
    for row in rows_of(found.interactions):
        share = number(row["share"], per_cent(row["share"]), strong=significant(row))
        flag = Cell("material" if row["material"] else "", verdict="worse" if row["material"] else "")
        what = [Cell(w.name(row["metric"])), named(names.pair(row["factors"]))]
        rows.append([*what, share, p_cell(row["p"]), p_cell(row["p_holm"]), flag])
    columns = ("metric", "interaction", "#explained", "#p", "#p (Holm)", "material")
    note = "Explained: partial share of the variance. Material: a main effect would mislead, so effects are shown within levels."
    return table("interactions", "Interactions", columns, rows, note)


def variance(found: Effects, names: w.Names) -> Table:
    shares: dict[str, dict[str, float]] = {}
    for row in rows_of(found.variance):
        shares.setdefault(row["source"], {})[row["metric"]] = row["share"]
    metrics = list(dict.fromkeys(found.variance["metric"]))
    rows = [
        [named(names.pair(source.split(" x "))), *(replace(number(by.get(metric), per_cent(by.get(metric))), bar=by.get(metric)) for metric in metrics)]
        for source, by in shares.items()
    ]  # fmt: skip
    return table(
        "variance", "Where the variance comes from", ("source", *(f"#{w.name(metric)}" for metric in metrics)), rows
    )


def aliases(found: Effects, names: w.Names) -> Table:
    rows = []
    for one in found.design.aliases:
        others = (f"{other['coefficient']:+.2g} {names.pair(other['effect']).text}" for other in one["aliases"])
        if one["aliases"]:
            rows.append([named(names.pair(one["effect"])), Cell(" ".join(others).replace("-", "−"))])
    note = f"The cells run stand for a full grid of {found.design.cells_stood_for}: an estimate holds the effects beside it, too."
    return table("aliases", "What this design cannot tell apart", ("effect", "comes together with"), rows, note)


def cells(found: Effects, names: w.Names) -> Table:
    """All cells with their means."""
    metrics = [metric for metric in found.metrics if metric in found.cells]
    sizes = [column for column in ("parameters", "tokens", "flops_per_token") if column in found.cells]
    rows = []
    for row in rows_of(found.cells):
        values = [number(row[metric], mean(row, metric)) for metric in metrics]
        sized = [number(row[name], w.count(row[name])) for name in sizes]
        front = Cell("◆" if row["pareto"] else "", float(bool(row["pareto"])))
        rows.append([named(names.bare(row["cell"])), *values, *sized, front, number(row["n"])])
    heads = [f"#{w.name(metric)}, {w.unit(metric)}" for metric in metrics] + [
        f"#{METRICS[name].unit}" for name in sizes
    ]
    notes = (
        "Means with 95 % intervals over seeds. Differences are known better than these tell, for all cells share seeds.",
        "◆: no other cell is better in everything measured.",
    )
    return table("cells", "Every cell", ("cell", *heads, "front", "#n"), rows, *notes)


def mean(row: w.Row, metric: str) -> str:
    """`4.030 [3.910, 4.150]`."""
    value, low, high = (row.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None or w.missing(value):
        return ""
    if low is None or high is None or w.missing(low) or w.missing(high) or high <= low:
        return f"{value:,.{max(0, 3 - math.floor(math.log10(value)))}f}" if value > 0 else w.number(value)
    decimals = w.places({"scale": "difference", "estimate": value, "low": low, "high": high}) if value < 1000 else 0
    return f"{value:,.{decimals}f} [{low:,.{decimals}f}, {high:,.{decimals}f}]"
