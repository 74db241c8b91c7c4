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
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .layout import Kind, flatten, load
from .locks import FileLock
from .record import METRICS, DesignRecord, MarkRecord, TrialRecord
from .store import Store

VERSION = "3"
FULL_SYNC = timedelta(days=1)
"""How often a store that cannot list its run ids cheaply is read as a whole, which is how deletions there are
noticed."""

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


def sync(store: Store, *, offline: bool = False) -> Mirror:
    """The mirror of `store`, brought up to date first unless `offline`. Any number of processes may do so at once."""
    folder = store.home / "mirror" / hashlib.sha256(store.name.encode()).hexdigest()[:16]
    if offline:
        kept = {f"{kind}s": _read(folder / f"{kind}s.parquet", schema) for kind, (schema, _, _) in _TABLES.items()}
        return Mirror(**kept, damaged=[])
    if store.missing:
        return Mirror(TRIALS.empty_table(), DESIGNS.empty_table(), [])
    with FileLock(folder / "lock"):
        found = {kind: _update(store, kind, folder / f"{kind}s.parquet") for kind in _TABLES}
    tables = {f"{kind}s": table for kind, (table, _) in found.items()}
    return Mirror(**tables, damaged=[run for _, damaged in found.values() for run in damaged])


def _update(store: Store, kind: Kind, path: Path) -> tuple[pa.Table, list[tuple[str, str]]]:
    schema, record_type, row_of = _TABLES[kind]
    old, now = _read(path, schema), datetime.now(UTC)
    known = old["run_id"].to_pylist()
    synced = (old.schema.metadata or {}).get(b"full_sync")
    last_full = datetime.fromisoformat(synced.decode()) if synced else None
    recent = store.path is None and last_full is not None and now - last_full < FULL_SYNC
    changes = store.changes(kind, set(known), last_full if recent else None)
    loaded = load(changes.new, record_type)
    rows = [row_of(run_id, record) for run_id, record in loaded.records.items()]
    table = old
    if changes.present is not None and not changes.present.issuperset(known):
        table = table.filter(pa.array([run_id in changes.present for run_id in known], pa.bool_()))
    if rows:
        table = _join(table, _table(rows, schema), record_type.KEY)
    if table is not old or synced is None or (store.path is None and not recent):
        last_full = now if changes.present is not None or last_full is None else last_full
        table = table.replace_schema_metadata({"version": VERSION, "full_sync": last_full.isoformat()})
        _write(table, path)
    return table, loaded.damaged


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.ParquetFile(path).read()
        if (table.schema.metadata or {}).get(b"version") == VERSION.encode() and set(schema.names) <= set(
            table.column_names
        ):
            return table
    except (OSError, pa.ArrowException):
        pass
    return schema.empty_table()


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")  # one writer at a time: under the mirror's lock
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


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


def _join(old: pa.Table, new: pa.Table, key: str) -> pa.Table:
    """Both tables, one row for each value of `key`; a column whose type differs becomes the wider one."""
    known = set(old[key].to_pylist())
    new = new.filter(pa.array([value not in known for value in new[key].to_pylist()], pa.bool_()))
    for name in set(old.column_names) & set(new.column_names):
        first, second = old.schema.field(name).type, new.schema.field(name).type
        if first == second or pa.types.is_null(first) or pa.types.is_null(second):
            continue
        wide = pa.float64() if {first, second} == {pa.int64(), pa.float64()} else pa.string()
        old = old.set_column(old.column_names.index(name), name, old[name].cast(wide))
        new = new.set_column(new.column_names.index(name), name, new[name].cast(wide))
    return pa.concat_tables([old, new], promote_options="default")
