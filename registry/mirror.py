"""A copy of the store as Parquet files, for reading fast: SQL over 50,000 runs takes MLflow minutes and this
milliseconds.

It can be thrown away at any time: what is missing, of another version or unreadable is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pyarrow as pa

from .layout import Kind, flatten, load
from .locks import FileLock
from .record import METRICS, DesignRecord, MarkRecord, TrialRecord
from .segments import Segments
from .store import Store

VERSION = "4"
FULL_SYNC = timedelta(days=1)
"""How often a store that cannot list its run ids cheaply is read as a whole, which is how deletions there are
noticed."""
BATCH = 5000
"""Records that are turned into rows together, which bounds the memory that takes."""

_TRIAL_TEXT = (
    *("record_id", "trial_id", "cell_id", "environment_id", "purpose", "status", "cause", "suite", "scale"),
    *(
        "corpus_fingerprint",
        "evaluation_fingerprint",
        "text_fingerprint",
        "code_fingerprint",
        "git_revision",
        "ablate_version",
        "started_at",
        "finished_at",
        "step_mode",
    ),
)
TRIALS = pa.schema(
    [("run_id", pa.string()), *((name, pa.string()) for name in _TRIAL_TEXT)]
    + [("seed", pa.int64()), ("exclusive", pa.bool_()), ("git_dirty", pa.bool_()), ("device", pa.string())]
    + [(name, pa.string()) for name in ("recipe", "environment", "context")]
    + [(f"metrics.{name}", pa.float64()) for name in METRICS]
)
DESIGNS = pa.schema([(name, pa.string()) for name in ("run_id", "design_id", "suite", "scale", "created_at", "design")])
MARKS = pa.schema(
    [
        (name, pa.string())
        for name in ("run_id", "mark_id", "kind", "record_id", "trial_id", "why", "author", "created_at", "mark")
    ]
)


@dataclass(frozen=True, slots=True)
class Mirror:
    """The copy's tables, one row per record, and the (run id, reason) of runs left out as damaged.

    `trials` has the columns of `TRIALS`, and for each setting found in a recipe `recipe.<path>` and for each variant
    chosen `options.<path>`; `designs` has those of `DESIGNS`, `marks` those of `MARKS`.
    """

    trials: pa.Table
    designs: pa.Table
    damaged: list[tuple[str, str]]
    marks: pa.Table = field(default_factory=MARKS.empty_table)


def sync(store: Store, *, offline: bool = False, resync: bool = False) -> Mirror:
    """The mirror of `store`, brought up to date first unless `offline`; `resync` makes it anew. Any number of processes
    may do so at once."""
    folder = store.home / "mirror" / hashlib.sha256(store.name.encode()).hexdigest()[:16]
    if not offline and store.missing:
        return _loaded(Segments(folder, VERSION))
    found = Segments.open(folder, VERSION)
    if offline or (found and not resync and _unchanged(store, found)):
        return _loaded(found or Segments(folder, VERSION))
    with FileLock(folder / "lock"):
        found = None if resync else Segments.open(folder, VERSION)  # another process may just have been here
        if found is None or not _unchanged(store, found):
            found = found or Segments(folder, VERSION)
            state, old = store.state(), found.described()
            damaged = [run for kind in _TABLES for run in _update(store, kind, found)]
            found.facts = found.facts | {"state": state, "damaged": damaged}
            if found.described() != old:
                found.commit()
        return _loaded(found)


def nothing_yet(store: Store, *, offline: bool = False) -> str:
    """What to tell who finds the mirror empty."""
    if offline:
        return f"nothing of {store.name} is mirrored here yet: ask once without --offline"
    return "no results yet: run `ablate run quickstart`"


def _loaded(found: Segments) -> Mirror:
    tables = {}
    for kind, (schema, _, _) in _TABLES.items():
        name = f"{kind}s"
        tables[name] = found.read(name) if name in found.tables else schema.empty_table()
    return Mirror(**tables, damaged=[(run_id, reason) for run_id, reason in found.facts.get("damaged", ())])


def _unchanged(store: Store, found: Segments) -> bool:
    state = store.state()
    return state is not None and found.facts.get("state") == state


def _update(store: Store, kind: Kind, found: Segments) -> list[tuple[str, str]]:
    """Take over what is new of one kind, and drop what is gone; returns what is damaged."""
    schema, record_type, row_of = _TABLES[kind]
    name, key, now = f"{kind}s", record_type.KEY, datetime.now(UTC)
    old = found.read(name, ["run_id", key]) if name in found.tables else schema.empty_table()
    known = dict(zip(old["run_id"].to_pylist(), old[key].to_pylist(), strict=True))
    synced = found.facts.get(f"full_sync {kind}")
    last_full = datetime.fromisoformat(synced) if synced else None
    recent = store.path is None and last_full is not None and timedelta(0) <= now - last_full < FULL_SYNC
    changes = store.changes(kind, set(known), last_full if recent else None)
    gone = set() if changes.present is None else known.keys() - changes.present
    if gone:
        found.drop(name, "run_id", gone, [key])
    there = {record_id for run_id, record_id in known.items() if run_id not in gone}
    damaged, made, runs = [], [], iter(changes.new)
    while some := list(islice(runs, BATCH)):
        loaded = load(some, record_type)
        damaged += loaded.damaged
        records = {run_id: one for run_id, one in loaded.records.items() if getattr(one, key) not in there}
        there.update(getattr(one, key) for one in records.values())
        made.append(_table([row_of(run_id, record) for run_id, record in records.items()], schema))
    if any(part.num_rows for part in made):
        found.append(name, made, [key])
    if not recent:
        found.facts = found.facts | ({f"full_sync {kind}": now.isoformat()} if store.path is None else {})
    return damaged


def _trial_row(run_id: str, record: TrialRecord) -> dict[str, Any]:
    row = {"run_id": run_id, **{name: getattr(record, name) for name in _TRIAL_TEXT}}
    row |= {name: getattr(record, name) for name in ("seed", "exclusive", "git_dirty")}
    row["device"] = str(record.environment.get("device", ""))
    row |= {name: json.dumps(getattr(record, name), sort_keys=True) for name in ("recipe", "environment", "context")}
    row |= {f"metrics.{name}": float(value) for name, value in record.metrics.items()}
    for path, value, options in flatten(record.recipe):
        row[f"recipe.{path}"] = json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value
        if options is not None:
            row[f"options.{path}"] = json.dumps(options, sort_keys=True)
    return row


def _design_row(run_id: str, record: DesignRecord) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in ("design_id", "suite", "scale", "created_at")}
    return {"run_id": run_id, **row, "design": record.to_json()}


def _mark_row(run_id: str, mark: MarkRecord) -> dict[str, Any]:
    row = {name: getattr(mark, name) for name in MARKS.names[1:-1]}
    return {"run_id": run_id, **row, "mark": mark.to_json()}


_TABLES: dict[Kind, tuple[pa.Schema, Any, Callable[[str, Any], dict[str, Any]]]] = {
    "trial": (TRIALS, TrialRecord, _trial_row),
    "design": (DESIGNS, DesignRecord, _design_row),
    "mark": (MARKS, MarkRecord, _mark_row),
}
"""Of each kind of record its table's schema, its type and how it becomes a row."""


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    names = dict.fromkeys([*schema.names, *(name for row in rows for name in row)])
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kind = schema.field(name).type if name in schema.names else _type_of(values)
        if kind == pa.string():
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        columns[name] = pa.array(values, kind)
    return pa.table(columns)


def _type_of(values: Iterable[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.null()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()
