"""The tables of a report that say how far it can be trusted: controls, failures, noise, matching, tuning, provenance."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import pandas as pd

from . import _wording as w
from ._blocks import Cell, Table, named, number, table, told
from ._report_tables import by_contrast, effect_cell, p_cell, per_cent, primary, rows_of, two, verdict_cell

if TYPE_CHECKING:
    from .effects import Effects
    from .record import DesignRecord


def controls(found: Effects, names: w.Names) -> Table:
    """What was known beforehand, and whether the suite found it."""
    rows = []
    for (_, level, against), by_metric in by_contrast(found, controls=True).items():
        metric = primary(by_metric)
        for row in by_metric.values():
            bad = "known-bad" in level.lower() or level in _bad_labels(found.design)
            expected = "worse" if bad else "no difference"
            if row["metric"] != metric or row["untestable"]:
                remark = Cell("")
            elif bad:
                good = row["verdict"] == "worse"
                remark = Cell(
                    "as expected" if good else "not seen: this suite cannot see a bad arm",
                    verdict="" if good else "worse",
                )
            else:
                good = row["verdict"] in ("equivalent", "inconclusive")
                remark = Cell(
                    "as expected" if good else "a false alarm: distrust the rest", verdict="" if good else "worse"
                )
            rows.append([
                named(names.bare(level)), named(names.bare(against)), Cell(w.name(row["metric"])), effect_cell(row), Cell(w.effect_unit(row)),
                verdict_cell(row), p_cell(row["p_holm"]), Cell(expected if row["metric"] == metric else ""), remark,
            ])  # fmt: skip
    columns = ("control", "against", "metric", "#effect", "unit", "verdict", "#p (Holm)", "expected", "found")
    return table("controls", "Controls: what was known beforehand", columns, rows)


def _bad_labels(design: DesignRecord) -> set[str]:
    return {str(trial.get("label")) for trial in design.trials if trial.get("control") == "bad"}


def divergence(found: Effects, names: w.Names) -> Table:
    """How many trials of each cell diverged, with a 95 % interval; other failures beside it."""
    used = {"cell", "n", "diverged", "rate", "low", "high", *found.design.factors}
    others = [str(column) for column in found.divergence.columns if column not in used]
    others = [column for column in others if pd.to_numeric(found.divergence[column], errors="coerce").fillna(0).any()]
    rows = []
    for row in rows_of(found.divergence):
        rate = (
            f"{per_cent(row['rate'])} [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
            if not w.missing(row["rate"])
            else ""
        )
        failed = bool(row["diverged"])
        numbers = [number(row["n"]), number(row["diverged"]), number(row["rate"], rate, strong=False)]
        cell = Cell(
            named(names.bare(row["cell"])).text, full=names.bare(row["cell"]).full, verdict="worse" if failed else ""
        )
        rows.append([cell, *numbers, *(number(row[column]) for column in others)])
    columns = ("cell", "#trials", "#diverged", "#rate", *(f"#{column.replace('_', ' ')}" for column in others))
    return table(
        "divergence", "Divergence and other failures", columns, rows, folded=not _any_failed(found.divergence, others)
    )


def _any_failed(frame: pd.DataFrame, others: list[str]) -> bool:
    return bool(len(frame)) and (bool(frame["diverged"].fillna(0).any()) or bool(others))


def noise(found: Effects) -> Table:
    """What this design could show."""
    rows = []
    for row in rows_of(found.noise):
        metric = row["metric"]
        ratio = metric not in ("val_loss", "val_bpb")
        units = "log" if ratio else w.unit(metric)
        smallest = (
            f"{100 * row['smallest_effect']:.2g} %"
            if ratio and not w.missing(row["smallest_effect"])
            else w.number(row["smallest_effect"], 2)
        )
        rows.append([Cell(w.name(metric)), number(row["sd"], w.number(row["sd"], 2)), Cell(units), number(row["correlation"], two(row["correlation"])),
                     number(row["n"]), number(row["df"]), number(row["smallest_effect"], smallest)])  # fmt: skip
    columns = ("metric", "#sd of a run", "unit", "#correlation over seeds", "#runs", "#df", "#smallest effect")
    note = "Smallest effect: what this many seeds show in four of five repetitions, at 5 % over the family."
    return table("noise", "Noise, and what this design can show", columns, rows, note)


def drift(found: Effects, names: w.Names) -> Table:
    """How far cells are from the baseline on what they were, and were not, matched on."""
    axes = list(dict.fromkeys(axis for shares in found.design.drift.values() for axis in shares))
    rows = [
        [named(names.bare(cell)), *(number(shares.get(axis), _drift(shares.get(axis))) for axis in axes)]
        for cell, shares in found.design.drift.items()
    ]  # fmt: skip
    heads = [f"#{axis.replace('_', ' ')}{' (matched)' if axis == found.design.match else ''}" for axis in axes]
    return table("drift", "Drift from the baseline", ("cell", *heads), rows, folded=len(rows) > 12)


def _drift(share: float | None) -> str:
    return "" if share is None else f"{w.signed(100 * share, 2)} %"


def tuning(found: Effects, names: w.Names) -> Table:
    rows = []
    for cell, one in found.design.tuning.items():
        values = ", ".join(w.number(value) for value in one["values"])
        state = Cell("bracketed") if one["bracketed"] else Cell("untuned: the best is at the edge", verdict="worse")
        seeds = ", ".join(map(str, one["seeds"]))
        rows.append(
            [named(names.bare(cell)), told(one["field"]), Cell(values), number(one["chosen"]), state, Cell(seeds)]
        )
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
    for (identity, text), part in records.groupby(["environment_id", "environment"], sort=False):
        about = json.loads(str(text))
        rest = ", ".join(
            f"{key} {value}"
            for key, value in about.items()
            if key != "device" and isinstance(value, (str, int, float)) and value != ""
        )
        rows.append([told(about.get("device", "")), told(identity), Cell(rest[:600]), number(len(part))])
    return table("environments", "Environments", ("device", "environment", "about", "#trials"), rows)


def versions(records: pd.DataFrame) -> Table:
    """What the trials were run with and on: each value that occurs, and how often."""
    rows = []
    for column, what in (("git_revision", "revision"), ("ablate_version", "ablate"), ("code_fingerprint", "code of the trainer"),
                         ("corpus_fingerprint", "corpus and tokenizer"), ("evaluation_fingerprint", "held-out text and tokenizer"), ("step_mode", "steps")):  # fmt: skip
        shown = records[column].fillna("").astype(str)
        if column == "git_revision":
            shown = shown.where(~records["git_dirty"].astype(bool), shown + " with uncommitted changes")
        rows += [
            [Cell(what), told(value), number(float(count))]
            for value, count in shown[shown != ""].value_counts().items()
        ]
    span = f"{records['started_at'].min()} to {records['finished_at'].max()}" if len(records) else ""
    rows.append([Cell("recorded"), told(span) if len(span) <= w.LONG else Cell(span), number(float(len(records)))])
    return table("versions", "Versions and fingerprints", ("what", "value", "#trials"), rows)


def rerun(design: DesignRecord) -> str:
    """The command that does it all again."""
    return f"ablate run {shlex.quote(design.suite)} --scale {shlex.quote(design.scale)} --seeds {len(design.seeds)}"

