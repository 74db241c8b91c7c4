"""The tables of a report that say how far it can be trusted: controls, failures, noise, matching, tuning, provenance."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from . import _escape
from . import _wording as w
from ._blocks import Cell, Table, named, number, table, told
from ._report_tables import (
    by_contrast,
    effect_cell,
    mean_of,
    ordinary,
    p_cell,
    primary,
    rows_of,
    two,
    verdict_cell,
)
from .record import STATUSES

if TYPE_CHECKING:
    from .analysis import Effects
    from .record import DesignRecord


def controls(found: Effects, names: w.Names) -> Table:
    """What was known beforehand, and whether the suite found it."""
    rows = []
    for (_, level, against), by_metric in by_contrast(found, controls=True).items():
        for row in by_metric.values():
            effect = [effect_cell(row), Cell(w.effect_unit(row)), verdict_cell(row), p_cell(row["p_holm"])]
            known = level == "A/A" or row["metric"] == primary(by_metric)
            expected = _expected(row) if known else (Cell(""), Cell(""))
            rows.append(
                [named(names.bare(level)), named(names.bare(against)), Cell(w.name(row["metric"])), *effect, *expected]
            )
    columns = ("control", "against", "metric", "#effect", "unit", "verdict", "#p (Holm)", "expected", "found")
    return table("controls", "Controls: what was known beforehand", columns, rows)


def _expected(row: w.Row) -> tuple[Cell, Cell]:
    """What a control should show, and whether it does."""
    same = row["level"] == "A/A"
    expected = Cell("no difference" if same else "worse")
    if row["untestable"] and row["verdict"] == "inconclusive":
        return expected, Cell(row["untestable"])
    if (row["verdict"] in ("equivalent", "inconclusive")) if same else (row["verdict"] == "worse"):
        shown = not same or row["verdict"] == "equivalent" or w.missing(row["margin"])
        return expected, Cell("as expected" if shown else "no false alarm, but not shown equal")
    return expected, Cell("a false alarm" if same else "not seen: the suite may be blind", verdict="worse")


def divergence(found: Effects, names: w.Names) -> Table:
    """How many trials of each cell diverged, with a 95 % interval; other failures beside it."""
    others = [name for name in (*STATUSES[2:], "missing") if any(found.divergence[name])]
    rows = []
    for row in rows_of(found.divergence):
        rate = (
            ""
            if w.missing(row["rate"])
            else f"{100 * row['rate']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
        )
        cell = named(names.bare(row["cell"]))
        numbers = [
            number(row["n"]),
            number(row["diverged"]),
            number(row["rate"], rate),
            *(number(row[one]) for one in others),
        ]
        rows.append([replace(cell, verdict="worse") if row["diverged"] else cell, *numbers])
    columns = ("cell", "#finished or diverged", "#diverged", "#rate", *(f"#{one.replace('_', ' ')}" for one in others))
    failed = any(found.divergence["diverged"]) or bool(others)
    return table("divergence", "Divergence and other failures", columns, rows, folded=not failed)


def noise(found: Effects) -> Table:
    """What this design could show."""
    rows = []
    for row in rows_of(found.noise):
        ratio, least = row["scale"] == "ratio", row["smallest_effect"]
        smallest = f"{w.number(100 * (least - 1), 2)} %" if ratio and not w.missing(least) else w.number(least, 2)
        spread = f"{w.number(100 * row['sd'], 2)} %" if ratio and not w.missing(row["sd"]) else w.number(row["sd"], 2)
        unit = "" if ratio else w.unit(row["metric"])
        counts = [number(row[name]) for name in ("n", "df", "seeds", "contrasts")]
        cells = [
            number(row["sd"], spread),
            number(row["correlation"], two(row["correlation"])),
            *counts,
            number(least, smallest),
        ]
        rows.append([Cell(w.name(row["metric"])), Cell(unit), *cells])
    columns = (
        "metric",
        "unit",
        "#sd of a run",
        "#correlation",
        "#runs",
        "#df",
        "#seeds",
        "#contrasts",
        "#smallest effect, on average",
    )
    notes = (
        "Sd: between runs of one cell. Correlation: of two cells over the seeds that they share.",
        "Smallest effect: what so many seeds show in four of five repetitions, at 5 % over the family of contrasts; for each by its own "
        "error, see its answer.",
    )
    return table("noise", "Noise, and what this design can show", columns, rows, *notes)


def labels_of(found: Effects, keys: Iterable[str]) -> dict[str, str]:
    """The labels of cells that a design names by their labels or by their ids."""
    known = {row["cell_id"]: str(row["cell"]) for row in ordinary(found)}
    return {key: known.get(key, key) for key in keys}


def drift(found: Effects, names: w.Names) -> Table:
    """How far cells are from the baseline on what they were, and were not, matched on."""
    axes = list(dict.fromkeys(axis for shares in found.design.drift.values() for axis in shares))
    labels = labels_of(found, found.design.drift)
    rows = [
        [named(names.bare(labels[key])), *(number(shares.get(axis), _drift(shares.get(axis))) for axis in axes)]
        for key, shares in found.design.drift.items()
    ]
    heads = [f"#{axis.replace('_', ' ')}{' (matched)' if axis == found.design.match else ''}" for axis in axes]
    return table("drift", "Drift from the baseline", ("cell", *heads), rows, folded=len(rows) > 12)


def _drift(share: float | None) -> str:
    return "" if share is None else f"{w.signed(100 * share, 2)} %"


def tuning(found: Effects, names: w.Names) -> Table:
    rows, labels = [], labels_of(found, found.design.tuning)
    for key, one in found.design.tuning.items():
        values = ", ".join(w.number(value) for value in one["values"])
        state = (
            Cell("bracketed")
            if one["bracketed"]
            else Cell("untuned: no value is between two worse ones", verdict="worse")
        )
        seeds = ", ".join(map(str, one["seeds"]))
        cell = named(names.bare(labels[key]))
        rows.append([cell, told(one["field"]), Cell(values), number(one["chosen"]), state, Cell(seeds)])
    return table(
        "tuning", "What each arm was given", ("cell", "field", "tried", "#chosen", "state", "tuning seeds"), rows
    )


def levels(design: DesignRecord) -> Table:
    """The factors and levels in full, as they were declared."""
    rows = [
        [told(factor), told(level), Cell("baseline" if design.baseline.get(factor) == level else "")]
        for factor, some in design.factors.items() for level in some
    ]  # fmt: skip
    return table("levels", "Factors and levels", ("factor", "level", "role"), rows, folded=len(rows) > 12)


def environments(records: pd.DataFrame) -> Table:
    """On what the trials ran."""
    rows = []
    for (identity, text), n in Counter(zip(records["environment_id"], records["environment"], strict=True)).items():
        about = json.loads(text)
        plain = {key: value for key, value in about.items() if isinstance(value, (str, int, float)) and value != ""}
        rest = ", ".join(f"{key} {value}" for key, value in plain.items() if key not in ("device", "environment_id"))
        rows.append([told(about.get("device", "")), told(identity), Cell(_escape.seen(rest[:600])), number(n)])
    return table("environments", "Environments", ("device", "environment", "about", "#trials"), rows)


_VERSIONS = {
    "git_revision": "revision",
    "ablate_version": "ablate",
    "code_fingerprint": "code of the trainer",
    "corpus_fingerprint": "corpus and tokenizer",
    "evaluation_fingerprint": "held-out text and tokenizer",
    "step_mode": "steps",
}


RECORDED = (*_VERSIONS, "git_dirty", "environment_id", "environment", "started_at", "finished_at")
"""The columns of records that tell where they come from."""


def versions(records: pd.DataFrame) -> Table:
    """What the trials were run with and on: each value that occurs, and how often."""
    changed = [" with uncommitted changes" if dirty else "" for dirty in records["git_dirty"]]
    rows = []
    for column, what in _VERSIONS.items():
        suffixes = changed if column == "git_revision" else [""] * len(changed)
        counted = Counter(
            (value, suffix) for value, suffix in zip(records[column].fillna(""), suffixes, strict=True) if value
        )
        for (value, suffix), n in counted.most_common():
            shown = told(str(value)[:16])
            rows.append(
                [Cell(what), replace(shown, text=shown.text + suffix, full=_escape.seen(str(value))), number(n)]
            )
    span = f"{min(records['started_at'])} to {max(records['finished_at'])}"
    rows.append([Cell("recorded"), Cell(_escape.seen(span)), number(len(records))])
    return table("versions", "Versions and fingerprints", ("what", "value", "#trials"), rows)


def across_scales(frame: pd.DataFrame, names: w.Names) -> Table:
    """Whether what a level does depends on the scale."""
    rows = []
    for row in rows_of(frame):
        at, than = (w.effect(row | {"estimate": row[f"estimate_{end}"]})[0] for end in ("at", "than"))
        decimals = w.places(row)
        seen = Cell("differs" if row["differs"] else "", verdict="worse" if row["differs"] else "")
        label, other = (names.level(row["factor"], row[end]) for end in ("level", "against"))
        effects = [number(than, w.signed(than, decimals)), number(at, w.signed(at, decimals)), effect_cell(row)]
        what = [Cell(w.name(row["metric"])), named(label), named(other), told(row["than"]), told(row["at"])]
        rows.append([*what, *effects, Cell(w.effect_unit(row)), p_cell(row["p_holm"]), seen])
    columns = (
        "metric",
        "level",
        "against",
        "scale",
        "other scale",
        "#effect",
        "#at the other",
        "#difference",
        "unit",
        "#p (Holm)",
        "",
    )
    note = (
        "Where nothing differs, the scales are not shown to agree: no effect is claimed for a scale that was not run."
    )
    return table("scales", "The same contrasts at other scales", [*columns[:-1], "found"], rows, note)


def time(reached: pd.DataFrame, at_equal: pd.DataFrame, names: w.Names) -> Table:
    """Seconds to a common loss, and loss after common seconds."""
    equal = {row["cell"]: row for row in rows_of(at_equal)}
    rows = []
    for row in rows_of(reached):
        other = equal.get(row["cell"], {})
        loss = number(other.get("val_loss"), mean_of(other, "val_loss", "low", "high"))
        seconds = number(row["seconds"], mean_of(row, "seconds", "low", "high"))
        rows.append(
            [
                named(names.bare(row["cell"])),
                seconds,
                Cell(f"{row['reached']} of {row['n']}", float(row["reached"])),
                loss,
            ]
        )
    target, at = rows_of(reached)[0]["target"], next(iter(equal.values()))["seconds"]
    columns = (
        "cell",
        f"#seconds to a loss of {w.number(target, 4)}",
        "seeds that got there",
        f"#loss after {w.number(at)} s",
    )
    caveats = dict.fromkeys([*reached["caveat"], *at_equal["caveat"]])
    return table("time", "Loss and time", columns, rows, *(f"Note: {caveat}." for caveat in caveats), folded=True)


def rerun(design: DesignRecord) -> str:
    """The command that does it all again."""
    return (
        design.command
        or f"ablate run {shlex.quote(design.suite)} --scale {shlex.quote(design.scale)} --seeds {len(design.seeds)}"
    )
