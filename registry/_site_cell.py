"""The page of a cell: what came out, its curves, what it was made of, where it comes from, and how to run it again."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from . import _escape
from . import _report_checks as checks
from . import _site_curves as curves
from . import _site_index as index
from . import _wording as w
from ._blocks import Block, Code, Figure, Figures, Section, Table, Texts, table, told
from ._blocks import Cell as Entry
from ._curves import Curves
from ._site_data import Cell, Row
from .layout import flatten
from .record import METRICS, DesignRecord

MOST_RECORDS = 200
"""Attempts in a table."""


def page(cell: Cell, design: DesignRecord, points: Curves) -> index.Page:
    """`points` has the curves of the cell's records and of its baseline's."""
    labels = w.Labels()
    sections = (
        Section("curves", "Curves", _curves(cell, points)),
        Section("trials", "Trials", (_trials(cell),)),
        Section("configuration", "Configuration", _configuration(cell)),
        Section("provenance", "Provenance", _provenance(cell, design)),
    )
    sections = tuple(section for section in sections if section.blocks)
    kind = (
        "the baseline"
        if cell.is_baseline
        else {"aa": "a control: the baseline again", "bad": "a control: known to be bad"}.get(cell.control, "")
    )
    levels = [f"{w.short_factors(cell.levels)[factor]}: {level}" for factor, level in cell.levels.items()]
    context = [kind, *levels, cell.device, f"cell {cell.key[4]}"]
    return index.Page(
        kicker=f"Cell of {labels(cell.suite).text} at {labels(cell.scale).text}",
        title=labels(cell.name).text,
        sections=sections,
        context=tuple(index.cut(part, 120) for part in context if part),
        flags=tuple(_flags(cell)),
        figures=tuple(_numbers(cell)),
        footer="Made by ablate site from the registry's records alone.",
    )


def _flags(cell: Cell) -> list[str]:
    """What must be seen first."""
    reasons = [str(record["retracted"]) for record in cell.records if record.get("retracted")]
    flags = [f"Retracted: {index.cut(why, 300)}" for why in dict.fromkeys(reasons)]
    if n := cell.marked("refuted"):
        flags.append(
            f"Trained again, it did not reproduce: {n}×" + (f"; it did {m}×" if (m := cell.marked("verified")) else "")
        )
    return flags


def _numbers(cell: Cell) -> list[tuple[str, str, str, str]]:
    """The results at a glance."""
    found = []
    n = int((cell.board or {}).get("n") or 0)
    place = index.rank(cell).text
    if place:
        shared = "shared: a test cannot tell them apart" if cell.shared_rank else "within suite, scale and machine"
        found.append(("rank", place.rstrip("="), "", shared))
    seeds = f"{n} seeds" if n > 1 else "one seed" if n else ""
    for name, entry, note in (
        ("validation loss", index.loss(cell), f"nats/token, {seeds}"),
        (
            "against the baseline",
            index.difference(cell),
            ", ".join(filter(None, ["nats/token", index.verdict(cell).text])),
        ),
    ):
        value, _, half = entry.text.partition(" ± ")
        if value and value != "baseline":
            found.append((name, value, f"± {half}" if half else "", note))
    alone = "alone on the device" if (cell.board or {}).get("exclusive") else "while others shared the device"
    for name, entry, unit in (
        ("bits per byte", index.fixed(cell, "val_bpb", 4), ""),
        ("throughput", index.speed(cell, "tokens_per_second", 0), "tokens/s"),
        ("peak memory", index.memory(cell), "GiB"),
    ):
        if entry.text:
            found.append((name, entry.text, unit, "" if name == "bits per byte" else alone))
    if not math.isnan(size := cell.value("parameters")):
        found.append(("parameters", w.count(size), "", ""))
    return [one for one in found if one[1]]


def _curves(cell: Cell, points: Curves) -> tuple[Block, ...]:
    by_metric: dict[str, dict[str, Sequence[Sequence[float]]]] = {}
    for record in cell.records:
        if record["purpose"] == "primary":
            for metric, some in points.get(record["record_id"], {}).items():
                by_metric.setdefault(metric, {})[f"seed {record['seed']}, {record['record_id'][:6]}"] = some
    figures = []
    for metric in sorted(by_metric, key=lambda name: (name != "val_loss", name != "train_loss", name)):
        name = {"val_loss": "Validation loss", "train_loss": "Training loss"}.get(metric, metric)
        unit = METRICS[metric].unit if metric in METRICS else ""
        drawn = curves.svg(
            by_metric[metric],
            _reference(cell, points, metric),
            ", ".join(filter(None, [name.lower(), unit])),
            f"{name} over tokens",
        )
        dashed = " Dashed: the baseline, mean over its seeds." if not cell.is_baseline and cell.baseline else ""
        if drawn:
            figures.append(
                Figure(name, drawn, f"A line for each of {len(by_metric[metric])} runs.{dashed} Only the ends compare.")
            )
    return (Figures(tuple(figures)),) if figures else ()


def _reference(cell: Cell, points: Curves, metric: str) -> list[list[float]]:
    """The baseline's mean curve, over what all of its seeds have."""
    if cell.baseline is None or cell.is_baseline:
        return []
    runs = [
        points[r["record_id"]][metric]
        for r in cell.baseline.records
        if r["counts"] and metric in points.get(r["record_id"], {})
    ]
    by_tokens: dict[float, list[float]] = {}
    for _, tokens, value in (point for run in runs for point in run):
        by_tokens.setdefault(tokens, []).append(value)
    return [
        [0.0, tokens, sum(some) / len(some)] for tokens, some in sorted(by_tokens.items()) if len(some) == len(runs)
    ]


def _trials(cell: Cell) -> Table:
    rows = []
    for record in cell.records[:MOST_RECORDS]:
        end, good = str(record["status"]), record["status"] == "finished"
        why = str(record.get("retracted") or "")
        outcome = Entry("retracted" if why else end.replace("_", " "), verdict="" if good and not why else "worse",
                        note=index.cut(why or str(record["cause"] or ""), 200))  # fmt: skip
        role = str(record["purpose"]) + ("" if record["counts"] or record["purpose"] != "primary" else ", not counted")
        values = [_value(record, name, decimals) for name, decimals in
                  (("val_loss", 4), ("val_bpb", 4), ("tokens_per_second", 0), ("peak_memory_gib", 3), ("train_seconds", 0))]  # fmt: skip
        revision = told(str(record["git_revision"] or "")[:10])
        dirty = "uncommitted changes" if record["git_dirty"] else ""
        revision = Entry(
            revision.text if record["git_revision"] else "",
            note=dirty,
            full=_escape.seen(str(record["git_revision"] or "")),
        )
        said = ", ".join(f"{name} {n}×" for name in ("verified", "refuted") if (n := record.get(name)))
        identity = Entry(
            told(str(record["record_id"])[:12]).text, full=_escape.seen(str(record["record_id"])), note=said
        )
        rows.append([Entry(str(record["seed"]), float(record["seed"])), Entry(role), outcome, *values,
                     Entry(index.day(str(record["finished_at"]))), revision, told(str(record["trial_id"])), identity])  # fmt: skip
    columns = ("seed", "purpose", "outcome", "#loss, nats/token", "#bits/byte", "#tokens/s", "#peak memory, GiB", "#train, s", "finished",
               "revision", "trial", "record")  # fmt: skip
    more = [f"{MOST_RECORDS} of {len(cell.records):,} records."] if len(cell.records) > MOST_RECORDS else []
    return table("records", "Every attempt", columns, rows, *more)


def _value(record: Row, metric: str, decimals: int) -> Entry:
    value = record.get(metric)
    return Entry("") if value is None else Entry(f"{value:,.{decimals}f}", float(value))


def _configuration(cell: Cell) -> tuple[Block, ...]:
    own = json.loads(str(cell.records[0]["recipe"]))
    other = json.loads(str(cell.baseline.records[0]["recipe"])) if cell.baseline and not cell.is_baseline else None
    settings, usual = _settings(own), _settings(other) if other is not None else None
    blocks: list[Block] = []
    if usual is not None:
        names = [name for name in dict.fromkeys([*settings, *usual]) if settings.get(name) != usual.get(name)]
        rows = [[told(name), _shown(settings.get(name)), _shown(usual.get(name))] for name in names]
        if rows:
            blocks.append(table("differs", "What differs from the baseline", ("setting", "here", "baseline"), rows))
        else:
            blocks.append(Texts(("Its configuration is that of the baseline.",)))
    everything = [[told(name), _shown(value)] for name, value in settings.items()]
    blocks.append(table("settings", "Every setting, resolved", ("setting", "value"), everything))
    text = _escape.seen(json.dumps(own, indent=2, ensure_ascii=False))
    return (*blocks, Code("The same as JSON", text, folded=True))


def _settings(recipe: Mapping[str, Any]) -> dict[str, str]:
    return {
        path: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for path, value, _ in flatten(dict(recipe))
    }


def _shown(value: str | None) -> Entry:
    return Entry("–") if value is None else told(value) if value else Entry("(empty)")


def _provenance(cell: Cell, design: DesignRecord) -> tuple[Block, ...]:
    records = pd.DataFrame([{name: record[name] for name in checks.RECORDED} for record in cell.records])
    return (Code("Run it again", rerun(cell, design)), checks.environments(records), checks.versions(records))


def rerun(cell: Cell, design: DesignRecord) -> str:
    """The commands that train this cell, each on one line whatever the names hold."""
    command = checks.rerun(design)
    only = ",".join(f"{factor}={level}" for factor, level in cell.levels.items())
    whole = command if cell.control or not only else f"{command} --only {shlex.quote(only)}"
    again = f"ablate verify {shlex.quote(str(cell.records[0]['trial_id']))}"
    lines = (
        "# all of its trials, where they are not recorded yet",
        whole,
        "# one of them, again, and whether it reproduces",
        again,
    )
    return "\n".join(" ".join(_escape.seen(line).split()) for line in lines)
