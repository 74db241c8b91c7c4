"""Two results side by side: in what they differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from .home import home as default_home
from .layout import flatten
from .lookup import LookupFailed, find
from .mirror import Mirror, sync
from .record import METRICS
from .sql import Sandbox
from .standing import retracted
from .store import Store

COLUMNS = ("part", "what", "A", "B", "difference", "half_width", "A_sd", "B_sd", "A_n", "B_n", "note")
_ALWAYS = ("val_loss", "val_bpb", "tokens_per_second", "peak_memory_gib")
"""Results that are shown where they are the same, too."""
_PROVENANCE = ("suite", "scale", "purpose", "status", "cause", "step_mode", "exclusive", "environment_id", "corpus_fingerprint",
               "evaluation_fingerprint", "text_fingerprint", "code_fingerprint", "git_revision", "git_dirty", "ablate_version")  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Side:
    """What `A` or `B` names: a trial, a record or a cell, and the rows of the mirror that stand for it."""

    kind: str
    id: str
    rows: list[Row]

    def values(self, of: Callable[[Row], Any]) -> Any:
        """What the rows say, once if they agree."""
        found = list(dict.fromkeys(json.dumps(of(row)) for row in self.rows))
        return json.loads(found[0]) if len(found) == 1 else ", ".join(str(json.loads(one)) for one in found)

    def by_seed(self, metric: str) -> dict[int, float]:
        return {row["seed"]: value for row in self.rows if (value := row.get(f"metrics.{metric}")) is not None}


def compare(
    a: str, b: str, home: Path | None = None, tracking_uri: str | None = None, *, offline: bool = False
) -> pd.DataFrame:
    """Two trials, records or cells, by their ids or the first digits of them: what differs, a row each.

    `part` is "settings" (of the recipe), "environment", "provenance" (versions, code, corpus, how it was run) or "results": there A and B
    are means over so many (`_n`) seeds with standard deviation `_sd`, and `difference` is B - A, with the 95 % `half_width` where it is
    paired by two seeds or more. Numbers that do not compare have no difference: losses over different held-out text or tokenizers, speed
    and memory of different environments, or speed measured beside other trials; `note` says so. Raises `LookupFailed`.
    """
    mirror = sync(Store.open(home or default_home(), tracking_uri, create=False), offline=offline)
    first, second = _sides(mirror, a, b)
    rows = [
        *_settings(first, second),
        *_environment(first, second),
        *_provenance(first, second),
        *_results(first, second),
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"A": object, "B": object})
    reasons = retracted(mirror)
    notes = [f"{name}: {_named(side)}" for name, side in (("A", first), ("B", second))]
    notes += [
        f"record {row['record_id']} was retracted: {reasons[row['record_id']]}"
        for side in (first, second) for row in side.rows if row["record_id"] in reasons
    ]  # fmt: skip
    if not any(row["part"] == "settings" for row in rows):
        notes.append("no setting differs")
    frame.attrs["notes"] = notes
    return frame


def _sides(mirror: Mirror, a: str, b: str) -> tuple[_Side, _Side]:
    """Of a trial or a cell the records that leaderboards count, in one environment: one that both have, if there is one."""
    found = [(given, *find(mirror, given, ("trial", "record", "cell"))) for given in (a, b)]
    ids = pd.DataFrame({"record_id": [row["record_id"] for _, _, rows in found for row in rows]}, dtype=str)
    with Sandbox(mirror, wanted=ids.drop_duplicates()) as sandbox:
        counted = {
            row["record_id"]
            for row in sandbox.rows("SELECT record_id FROM trials JOIN wanted USING (record_id) WHERE counts")
        }
    sides = []
    for given, kind, rows in found:
        kept = rows if kind == "record" else [row for row in rows if row["record_id"] in counted]
        if not kept:
            raise LookupFailed(f"{kind} {given!r} has no result that counts: name one of its records to see it")
        sides.append(_Side(kind, rows[0][f"{kind}_id"], kept))
    both = set.intersection(*({row["environment_id"] for row in side.rows} for side in sides))
    return tuple(_Side(side.kind, side.id, _in_one(side.rows, both)) for side in sides)  # type: ignore[return-value]


def _in_one(rows: list[Row], preferred: set[str]) -> list[Row]:
    """The rows of one environment: that with the most, of those `preferred` if any is."""
    places: dict[str, list[Row]] = {}
    for row in rows:
        places.setdefault(row["environment_id"], []).append(row)
    return max(places.items(), key=lambda place: (place[0] in preferred, len(place[1]), place[0]))[1]


def _named(side: _Side) -> str:
    levels = json.loads(side.rows[0]["context"]).get("levels", {})
    what = " · ".join(map(str, levels.values())) if isinstance(levels, dict) else ""
    seeds = sorted(row["seed"] for row in side.rows)
    parts = [
        f"{side.kind} {side.id}",
        side.rows[0]["suite"],
        side.rows[0]["scale"],
        what,
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}",
    ]
    return " · ".join(filter(None, parts))


def _differing(part: str, first: dict[str, Any], second: dict[str, Any]) -> Iterator[Row]:
    for what in dict.fromkeys([*first, *second]):
        if first.get(what) != second.get(what):
            yield {
                "part": part,
                "what": what,
                "A": first.get(what),
                "B": second.get(what),
                "difference": None,
                "note": "",
            }


def _settings(first: _Side, second: _Side) -> Iterator[Row]:
    def flat(side: _Side) -> dict[str, Any]:
        found = {path: value for path, value, _ in flatten(json.loads(side.rows[0]["recipe"]))}
        if len(side.rows) > 1:
            found["seed"] = side.values(lambda row: row["seed"])
        return found

    return _differing("settings", flat(first), flat(second))


def _environment(first: _Side, second: _Side) -> Iterator[Row]:
    def of(side: _Side) -> dict[str, Any]:
        names = dict.fromkeys(name for row in side.rows for name in json.loads(row["environment"]))
        return {name: side.values(lambda row, name=name: json.loads(row["environment"]).get(name)) for name in names}

    return _differing("environment", of(first), of(second))


def _provenance(first: _Side, second: _Side) -> Iterator[Row]:
    def of(side: _Side) -> dict[str, Any]:
        return {name: side.values(lambda row, name=name: row[name]) for name in _PROVENANCE}

    return _differing("provenance", of(first), of(second))


def _results(first: _Side, second: _Side) -> Iterator[Row]:
    known = {
        name.removeprefix("metrics.")
        for row in (*first.rows, *second.rows)
        for name in row
        if name.startswith("metrics.")
    }
    for metric in [*(name for name in METRICS if name in known), *sorted(known - METRICS.keys())]:
        a, b = first.by_seed(metric), second.by_seed(metric)
        if (not a and not b) or (
            metric not in _ALWAYS and set(a.values()) == set(b.values()) and len({*a.values()}) == 1
        ):
            continue
        why = _incomparable(metric, first, second) if a and b else ""
        row: Row = {"part": "results", "what": metric, "note": why}
        for name, values in (("A", a), ("B", b)):
            row[name] = fmean(values.values()) if values else None
            row |= {f"{name}_n": len(values), f"{name}_sd": stdev(values.values()) if len(values) > 1 else None}
        if a and b and not why:
            row |= _difference(a, b)
        yield row


def _incomparable(metric: str, first: _Side, second: _Side) -> str:
    """Why no difference of a metric means anything."""
    rows = [*first.rows, *second.rows]
    kind = METRICS[metric].kind if metric in METRICS else "size"

    def differs(name: str) -> bool:
        return len({row[name] for row in rows}) > 1

    if kind in ("speed", "memory") and differs("environment_id"):
        return "other environment"
    if kind == "speed" and not all(row["exclusive"] for row in rows):
        return "measured beside other trials"
    if metric in ("val_bpb", "best_val_loss", "val_loss", "train_loss", "val_loss_se"):
        if metric == "val_bpb":
            return "other held-out text" if differs("text_fingerprint") else ""
        return "other held-out text or tokenizer" if differs("evaluation_fingerprint") else ""
    return ""


def _difference(a: dict[int, float], b: dict[int, float]) -> Row:
    """B - A: the mean of it over the seeds that both have, or else of the means."""
    apart = [b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())]
    if len(apart) < 2 or len(a) == len(b) == 1:
        return {"difference": apart[0] if len(apart) == 1 else fmean(b.values()) - fmean(a.values())}
    half = float(stdtrit(len(apart) - 1, 0.975)) * stdev(apart) / math.sqrt(len(apart))
    return {"difference": fmean(apart), "half_width": half}


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """The same for a reader: a number and how sure it is in one column, differences of speed, memory and size in per cent too."""
    rows = []
    for row in frame.to_dict("records"):
        shown = {name: row[name] for name in ("part", "what", "A", "B", "difference", "note")}
        if row["part"] == "results":
            shown |= {name: _number(row[name], row[f"{name}_sd"]) for name in ("A", "B")}
            shown["difference"] = _apart(row)
        rows.append({name: "" if value is None or value != value else str(value) for name, value in shown.items()})
    return pd.DataFrame(rows, columns=["part", "what", "A", "B", "difference", "note"])


def _number(value: float | None, spread: float | None = None) -> str:
    if value is None or value != value:
        return ""
    return (
        f"{value:,.5g}" + (f" ± {spread:.2g}" if spread and spread == spread else "")
        if abs(value) < 1e5
        else f"{value:,.0f}"
    )


def _apart(row: Row) -> str:
    """`-0.0021 ± 0.31`, or `+5,632 (+2.4 %)`."""
    difference = row["difference"]
    if difference is None or difference != difference:
        return ""
    known = METRICS.get(row["what"])
    share = f" ({difference / row['A']:+.1%})" if known and known.kind != "quality" and row["A"] else ""
    half = row["half_width"]
    return ("+" if difference > 0 else "") + _number(difference, half) + share
