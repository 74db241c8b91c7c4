"""A copy of the store as Parquet files, for reading fast: SQL over 50,000 runs takes MLflow minutes and this
milliseconds.

It can be thrown away at any time: what is missing, of another version or unreadable is made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from ._derived import STANDING, Derived, derive
from ._rows import DECLARED, DESIGNS, MARKS, TRIALS, declared_rows, design_rows, mark_rows, trial_rows
from .home import mirrors
from .layout import Kind, load
from .locks import FileLock
from .record import DesignRecord, MarkRecord, TrialRecord
from .segments import Segments
from .store import Store

VERSION = "5"
FULL_SYNC = timedelta(days=1)
"""How often a store that cannot list its run ids cheaply is read as a whole, which is how deletions there are
noticed."""
BATCH = 5000
"""Records that are turned into rows together, which bounds the memory that takes."""


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Mirror:
    """The copy's tables, of which is read what is asked for, and the (run id, reason) of runs left out as damaged.

    `trials`, one row per record, has the columns of `TRIALS`, and for each setting found in a recipe `recipe.<path>` and for each
    variant chosen `options.<path>`; `designs` has those of `DESIGNS`, `declared`, one row per design and reported trial, those of
    `DECLARED`, `marks` those of `MARKS`. `derived` follows from them.
    """

    trials: ds.Dataset
    designs: ds.Dataset
    declared: ds.Dataset
    marks: pa.Table
    derived: Derived
    damaged: list[tuple[str, str]]
    _suites: dict[str, Mirror] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        trials: dict[str, TrialRecord],
        designs: dict[str, DesignRecord] | None = None,
        marks: dict[str, MarkRecord] | None = None,
    ) -> Mirror:
        """The mirror of a store with these records, by run id, in memory."""
        tables = {
            "trials": trial_rows(trials),
            "designs": design_rows(designs or {}),
            "declared": declared_rows(designs or {}),
        }
        data, marked = {name: ds.dataset(table) for name, table in tables.items()}, mark_rows(marks or {})
        return cls(**data, marks=marked, derived=derive(data["trials"], data["declared"], marked), damaged=[])

    @property
    def standing(self) -> pa.Table:
        """What there is to say of records; see `STANDING`."""
        return self.derived.standing

    def having(self, condition: pc.Expression) -> Mirror:
        """The mirror of a store that only has the trials for whose rows `condition` holds."""
        trials = self.trials.filter(condition)
        return replace(self, trials=trials, derived=derive(trials, self.declared, self.marks))

    def of_suite(self, suite: str) -> Mirror:
        """What belongs to the designs of one suite: the same answers about it from a fraction of the rows."""
        if suite not in self._suites:
            own = pc.field("suite") == suite
            recorded = pc.field("suite").isin(pa.array(self.derived.sources.get(suite, []), pa.string()))
            self._suites[suite] = replace(
                self,
                trials=self.trials.filter(recorded),
                designs=self.designs.filter(own),
                declared=self.declared.filter(own),
            )
        return self._suites[suite]


def sync(store: Store, *, offline: bool = False, resync: bool = False) -> Mirror:
    """The mirror of `store`, brought up to date first unless `offline`; `resync` makes it anew. Any number of processes
    may do so at once."""
    folder = mirrors(store.home) / hashlib.sha256(store.name.encode()).hexdigest()[:16]
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
            damaged = [run for kind in _TYPES for run in _update(store, kind, found)]
            if found.described() != old:
                _derive(found)
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
    return _mapped(found.folder, found.described())


@functools.lru_cache(maxsize=2)
def _mapped(folder: Path, state: str) -> Mirror:
    """The mirror in one state of its files. It is kept, with what is known of the files and what it was asked through."""
    found = Segments.of(folder, VERSION, json.loads(state))
    data = {name: found.dataset(name, schema) for name, (schema, _) in _TABLES.items()}
    small = {name: data.pop(name).to_table() for name in ("marks", "standing")}
    derived = Derived(small["standing"], found.facts.get("latest", []), found.facts.get("sources", {}))
    damaged = [(run_id, reason) for run_id, reason in found.facts.get("damaged", ())]
    return Mirror(**data, marks=small["marks"], derived=derived, damaged=damaged)


def _unchanged(store: Store, found: Segments) -> bool:
    state = store.state()
    return state is not None and found.facts.get("state") == state


def _update(store: Store, kind: Kind, found: Segments) -> list[tuple[str, str]]:
    """Take over what is new of one kind, and drop what is gone; returns what is damaged."""
    record_type, tables = _TYPES[kind], [name for name, (_, of) in _TABLES.items() if of == kind]
    name, key, now = f"{kind}s", record_type.KEY, datetime.now(UTC)
    old = found.dataset(name, _TABLES[name][0]).to_table(columns=["run_id", key])
    known = dict(zip(old["run_id"].to_pylist(), old[key].to_pylist(), strict=True))
    synced = found.facts.get(f"full_sync {kind}")
    last_full = datetime.fromisoformat(synced) if synced else None
    recent = store.path is None and last_full is not None and timedelta(0) <= now - last_full < FULL_SYNC
    changes = store.changes(kind, set(known), last_full if recent else None)
    gone = set() if changes.present is None else known.keys() - changes.present
    for table in tables if gone else ():
        found.drop(table, "run_id", gone)
    there = {record_id for run_id, record_id in known.items() if run_id not in gone}
    damaged, runs = [], iter(changes.new)
    made: dict[str, list[pa.Table]] = {table: [] for table in tables}
    while some := list(islice(runs, BATCH)):
        loaded = load(some, record_type)
        damaged += loaded.damaged
        records = {run_id: one for run_id, one in loaded.records.items() if getattr(one, key) not in there}
        there.update(getattr(one, key) for one in records.values())
        for table in tables:
            made[table].append(_ROWS[table](records))
    for table, parts in made.items():
        found.append(table, parts, [column for column in _SORTED if column in _TABLES[table][0].names])
    if not recent:
        found.facts = found.facts | ({f"full_sync {kind}": now.isoformat()} if store.path is None else {})
    return damaged


def _derive(found: Segments) -> None:
    """Work out what follows from the tables."""
    data = {name: found.dataset(name, schema) for name, (schema, _) in _TABLES.items()}
    derived = derive(data["trials"], data["declared"], data["marks"].to_table())
    if derived.standing != data["standing"].to_table():
        found.put("standing", derived.standing)
    found.facts = found.facts | {"latest": derived.latest, "sources": derived.sources}


_TABLES: dict[str, tuple[pa.Schema, Kind | None]] = {
    "trials": (TRIALS, "trial"),
    "designs": (DESIGNS, "design"),
    "declared": (DECLARED, "design"),
    "marks": (MARKS, "mark"),
    "standing": (STANDING, None),
}
"""The schema of each table, and the kind of record that its rows are of."""
_TYPES: dict[Kind, Any] = {"trial": TrialRecord, "design": DesignRecord, "mark": MarkRecord}
_ROWS: dict[str, Callable[[dict[str, Any]], pa.Table]] = {
    "trials": trial_rows, "designs": design_rows, "declared": declared_rows, "marks": mark_rows
}  # fmt: skip
_SORTED = ("suite", "scale", "design_id", "trial_id", "record_id")
"""What a file's rows are sorted by: a board reads those of a suite."""
