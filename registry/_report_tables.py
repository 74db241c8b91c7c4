"""The tables of a report, from the frames of effects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pandas as pd

from . import _wording as w
from ._blocks import Answer, Answers, Cell, Table, Texts, named, number, table, told
from .record import METRICS

if TYPE_CHECKING:
    from .analysis import Effects

CONTROL = "(control)"
QUALITY = ("val_loss", "val_bpb")
MOST_ANSWERS = 40
"""Sentences that are shown at once."""
MOST_FOLDED = 400
"""Further ones that a page holds; beyond, the table of effects tells."""
_BOLD = "Bold: a difference at 5 %, Holm-corrected over the contrasts of its family."


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def ordinary(found: Effects) -> list[dict[str, Any]]:
    """The cells that are no controls."""
    return [row for row in rows_of(found.cells) if row["control"] == ""]


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


def judged(found: Effects, metric: str) -> dict[tuple[str, str, str], list[w.Row]]:
    """What is said of each contrast in a metric: where an interaction is material the effects within the levels of the other factor,
    for a pooled effect would mislead, and else the pooled one."""
    simple: dict[tuple[str, str, str], list[w.Row]] = {}
    for row in rows_of(found.simple_effects):
        if row["metric"] == metric:
            simple.setdefault((row["factor"], row["level"], row["against"]), []).append(row)
    pooled = {key: [some[metric]] for key, some in by_contrast(found).items() if metric in some}
    return {key: simple.get(key, rows) for key, rows in pooled.items()}


def within(row: w.Row, names: w.Names) -> str:
    """`norm = rmsnorm`, of an effect that holds within levels of other factors; else nothing."""
    return ", ".join(
        f"{names.factor(factor).text} = {names.bare(level).text}" for factor, level in (row.get("within") or {}).items()
    )


def answers(found: Effects, names: w.Names) -> list[Answers | Texts]:
    """A sentence for each declared contrast; of more than `MOST_ANSWERS` those without a difference are folded away."""
    metric = primary(found.metrics)
    quality = judged(found, metric) if metric else {}
    told: list[tuple[w.Label, Answer]] = []
    for key, by_metric in by_contrast(found).items():
        factor, level, against = key
        costs = [by_metric[one] for one in ("tokens_per_second", "peak_memory_gib") if one in by_metric]
        labels = names.level(factor, level), names.level(factor, against)
        for row in quality.get(key) or [None]:
            where = within(row, names) if row else ""
            phrase = w.answer(row, costs, *labels, found.design.match, _doubt(found, row))
            verdict = row["verdict"] if row else "inconclusive"
            told.append((names.factor(factor), Answer(verdict, (f"Where {where}: ", *phrase) if where else phrase)))
            costs = costs if not where else []  # pooled over the other factor, and so said once
    if len(told) <= MOST_ANSWERS:
        return [_grouped(told, False)] if told else []
    first = [one for one in told if one[1].verdict in ("better", "worse")][:MOST_ANSWERS]
    shown = {id(one) for one in first}
    rest = [one for one in told if id(one) not in shown]
    parts: list[Answers | Texts] = [
        _grouped(some, folded) for some, folded in ((first, False), (rest[:MOST_FOLDED], True)) if some
    ]
    if len(rest) > MOST_FOLDED:
        parts.append(Texts((f"{len(told):,} contrasts in all: the table of effects has every one.",)))
    return parts


def _doubt(found: Effects, row: w.Row | None) -> str:
    """Why an arm that differs is neither better nor worse."""
    diverged = bool((found.trials["status"] == "diverged").any())
    more = "the arm that it favours diverged more often"
    if row is None or not found.design.tuning:
        return more
    if not row["tuned"]:
        return "its best rate was at the edge of what was searched: it is untuned"
    other = f"{row['against']} is untuned: its best rate was at the edge of what was searched"
    return f"{other}, or {more}" if diverged else other


def _grouped(told: list[tuple[w.Label, Answer]], folded: bool) -> Answers:
    groups = groupby(told, key=lambda one: one[0])
    return Answers(tuple((label, tuple(answer for _, answer in some)) for label, some in groups), folded)


def effect_cell(row: w.Row | None) -> Cell:
    if row is None:
        return Cell("")
    return number(w.effect(row)[0], w.interval(row), strong=w.significant(row))


def verdict_cell(row: w.Row) -> Cell:
    words = row["verdict"]
    if row["within_margin"] and words in ("better", "worse"):
        words += ", within the margin"
    if not row["tuned"]:
        words += ", untuned"
    return Cell(f"{w.SIGNS[row['verdict']]}\u00a0{words}", verdict=row["verdict"])


def contrasts(found: Effects, names: w.Names) -> Table:
    """A row for each contrast, a column for each metric."""
    metrics = [metric for metric in found.metrics if metric in set(found.contrasts["metric"])]
    main = primary(metrics)
    mixed = _mixed(found.contrasts)
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
        first = by_metric.get(main or "") or next(iter(by_metric.values()))
        rows.append([*cells, number(first["n"]), *_held(first, mixed)])
    columns += ["#n", *_HELD[:mixed]]
    pooled = ["Pooled over the other factors: where an interaction is material, the effects within its levels count."]
    notes = [_BOLD, *(pooled if len(found.simple_effects) else [])]
    return table("contrasts", "What each level does, with 95 % intervals", columns, rows, *notes)


def every_contrast(found: Effects, names: w.Names) -> Table:
    """All that was computed of each contrast, a row for each metric."""
    columns = ("metric", "factor", "level", "against", "#effect", "unit", "verdict", "#p", "#p (Holm)", "#p (equivalence)",
               "#n", "of", "#df", "#correlation", "why no interval")  # fmt: skip
    shown = [row for by_metric in by_contrast(found).values() for row in by_metric.values()]
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
            p_cell(row["p_equivalence"]),
            number(row["n"]),
            Cell(row["unit"]),
            number(row["df"]),
            number(row["correlation"], two(row["correlation"])),
            told(row["untestable"]) if row["untestable"] else Cell(""),
        ]
        for row in shown
    ]
    families = {w.name(row["metric"]): row["family"] for row in shown}
    notes = (
        f"Contrasts that Holm's correction is over: {', '.join(f'{size} of {name}' for name, size in families.items())}.",
        "Correlation: of the two levels over seeds; the higher it is, the more pairing by seed gains.",
    )
    return table("every-contrast", "Every contrast in every metric", columns, rows, *notes, folded=True)


def _levels(row: w.Row, shown: Callable[[str], w.Label]) -> tuple[Cell, Cell]:
    return named(shown(row["level"])), named(shown(row["against"]))


def p_cell(p: Any) -> Cell:
    return number(p, w.p_value(p))


def two(value: Any) -> str:
    """To two decimals."""
    return "" if w.missing(value) else f"{value:.2f}".replace("-", "−")


def per_cent(share: Any) -> str:
    return "" if w.missing(share) else f"{abs(100 * share):.1f} %"


_HELD = ("holds also",)


def _mixed(frame: pd.DataFrame) -> bool:
    """Whether some effects hold others: of a design that confounds."""
    return any(frame["aliases"])


def _held(row: w.Row, mixed: bool) -> list[Cell]:
    return [Cell(row["aliases"].removeprefix("+ ").replace("-", "−"))] if mixed else []


def simple_effects(found: Effects, names: w.Names) -> Table:
    rows = []
    for row in rows_of(found.simple_effects):
        levels = _levels(row, lambda level, factor=row["factor"]: names.level(factor, level))
        effect = [
            effect_cell(row),
            Cell(w.effect_unit(row)),
            verdict_cell(row),
            p_cell(row["p_holm"]),
            number(row["n"]),
        ]
        rows.append([Cell(w.name(row["metric"])), *levels, Cell(within(row, names)), *effect])
    columns = ("metric", "level", "against", "where", "#effect", "unit", "verdict", "#p (Holm)", "#n")
    return table("simple-effects", "Effects within the levels of the factor that they depend on", columns, rows, _BOLD)


def main_effects(found: Effects, names: w.Names) -> Table:
    mixed = _mixed(found.main_effects)
    rows = []
    for row in rows_of(found.main_effects):
        what = [Cell(w.name(row["metric"])), named(names.factor(row["factor"])), named(names.bare(row["level"]))]
        effect = [
            number(w.effect(row)[0], w.interval(row)),
            Cell(w.effect_unit(row)),
            p_cell(row["p"]),
            number(row["n"]),
        ]
        rows.append([*what, *effect, *_held(row, mixed)])
    columns = ("metric", "factor", "level", "#effect", "unit", "#p", "#n", *_HELD[:mixed])
    note = "How far a level is from the mean over all levels, the other factors averaged; p is not corrected."
    return table("main-effects", "Main effects", columns, rows, note, folded=True)


def interactions(found: Effects, names: w.Names) -> Table:
    mixed = _mixed(found.interactions)
    rows = []
    for row in rows_of(found.interactions):
        share = number(row["share"], per_cent(row["share"]), strong=w.significant(row))
        flag = Cell("material" if row["material"] else "", verdict="worse" if row["material"] else "")
        what = [Cell(w.name(row["metric"])), named(names.pair(row["factors"]))]
        rows.append([*what, share, p_cell(row["p"]), p_cell(row["p_holm"]), flag, *_held(row, mixed)])
    columns = ("metric", "interaction", "#explained", "#p", "#p (Holm)", "material", *_HELD[:mixed])
    note = "Explained: share of the sum of squares. Material: a pooled effect would mislead, so effects are shown within levels."
    return table("interactions", "Interactions", columns, rows, note)


def variance(found: Effects, names: w.Names) -> Table:
    shares: dict[str, dict[str, float]] = {}
    for row in rows_of(found.variance):
        shares.setdefault(row["source"], {})[row["metric"]] = row["share"]
    metrics = list(dict.fromkeys(found.variance["metric"]))
    rows = [
        [named(names.pair(source.split(" x "))), *(_share(by.get(metric)) for metric in metrics)]
        for source, by in shares.items()
    ]
    return table(
        "variance", "Where the variance comes from", ("source", *(f"#{w.name(metric)}" for metric in metrics)), rows
    )


def _share(share: float | None) -> Cell:
    return replace(number(share, per_cent(share)), bar=None if w.missing(share) else share)


def aliases(found: Effects, names: w.Names) -> Table:
    rows = [
        [named(names.pair(one["effect"])), Cell(" ".join(_term(other, names) for other in one["aliases"]))]
        for one in found.design.aliases
        if one["aliases"]
    ]
    note = f"The cells that are run stand for a full grid of {found.design.cells_stood_for}: an estimate holds these effects, too."
    return table("aliases", "What this design cannot tell apart", ("effect", "comes together with"), rows, note)


def _term(alias: dict[str, Any], names: w.Names) -> str:
    coefficient = float(alias["coefficient"])
    size = "" if math.isclose(abs(coefficient), 1, abs_tol=5e-4) else f"{abs(coefficient):.2g} "
    return f"{'−' if coefficient < 0 else '+'} {size}{names.pair(alias['effect']).text}"


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
    """Of a cell: `4.030 [3.910, 4.150]`."""
    return mean_of(row, metric, f"{metric}_low", f"{metric}_high")


def mean_of(row: w.Row, value: str, low: str, high: str) -> str:
    mean, *bounds = (math.nan if row.get(one) is None else float(row[one]) for one in (value, low, high))
    if w.missing(mean):
        return ""
    if any(map(w.missing, bounds)) or bounds[0] >= bounds[1]:
        return f"{mean:,.{max(0, 3 - math.floor(math.log10(mean)))}f}" if mean > 0 else w.number(mean)
    decimals = (
        w.places({"scale": "difference", "estimate": mean, "low": bounds[0], "high": bounds[1]}) if mean < 1000 else 0
    )
    return f"{mean:,.{decimals}f} [{bounds[0]:,.{decimals}f}, {bounds[1]:,.{decimals}f}]"
