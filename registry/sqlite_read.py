"""Read a local MLflow database without importing MLflow, which takes two seconds. Standard library only.

Four tables of its schema are all that is used, and they are looked at before they are trusted: where they are not as
expected, `open_fast` gives None and MLflow's own API reads instead. Both give the same.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .layout import CHUNKS, COMPLETE, CURVES, ID, KIND, Kind, TaggedRun, chunk_names
from .trouble import StoreError, StoreUnavailable, unreadable

PATIENCE_SECONDS = 30.0
"""How long a reader waits for a writer."""
_COLUMNS = {
    "tags": {"key", "value", "run_uuid"},
    "runs": {"run_uuid", "lifecycle_stage", "experiment_id"},
    "experiments": {"experiment_id", "lifecycle_stage"},
    "metrics": {"key", "value", "step", "run_uuid"},
    "alembic_version": {"version_num"},
}
_COMPLETE = f"""
    SELECT id.run_uuid AS run_uuid, id.value AS record_id
    FROM tags AS done
    JOIN tags AS kind ON kind.run_uuid = done.run_uuid AND kind.key = '{KIND}' AND kind.value = :kind
    JOIN tags AS id ON id.run_uuid = done.run_uuid AND id.key = '{ID}'
    JOIN runs ON runs.run_uuid = done.run_uuid AND runs.lifecycle_stage = 'active'
    JOIN experiments USING (experiment_id)
    WHERE done.key = '{COMPLETE}' AND experiments.lifecycle_stage = 'active'
"""


@dataclass(frozen=True, slots=True)
class FastReader:
    """Complete runs of a SQLite database; made by `open_fast`."""

    path: Path

    def run_ids(self, kind: Kind) -> dict[str, str]:
        """Record id by run id."""
        with self._connect() as database:
            return dict(database.execute(_COMPLETE, {"kind": kind}))

    def runs(self, run_ids: list[str]) -> Iterator[TaggedRun]:
        """These runs with the tags that hold their records, in this order."""
        with self._connect() as database:
            most = "SELECT max(CAST(value AS INTEGER)) FROM tags WHERE key = ?"
            (count,) = database.execute(most, (CHUNKS,)).fetchone() if run_ids else (0,)
            for some in _batches(run_ids, 400):
                tags: dict[str, dict[str, str]] = {run_id: {} for run_id in some}
                for names in _batches([CHUNKS, *chunk_names(count or 1)], 100):
                    marks = ", ".join("?" * len(names)), ", ".join("?" * len(some))
                    sql = (
                        f"SELECT run_uuid, key, value FROM tags WHERE key IN ({marks[0]}) AND run_uuid IN ({marks[1]})"
                    )
                    for run_id, key, value in database.execute(sql, [*names, *some]):
                        tags[run_id][key] = value
                yield from (TaggedRun(run_id, found) for run_id, found in tags.items())

    def attempts(self, environment_id: str, purpose: str) -> list[tuple[str, str, str, str]]:
        """Of each trial's run: (record id, trial id, status, finished_at)."""
        names = ("trial_id", "status", "finished_at", "environment_id", "purpose")
        joins = "".join(f" JOIN tags AS {n} ON {n}.run_uuid = run.run_uuid AND {n}.key = 'ablate.{n}'" for n in names)
        sql = f"SELECT run.record_id, trial_id.value, status.value, finished_at.value FROM ({_COMPLETE}) AS run{joins}"
        where = " WHERE environment_id.value = :environment_id AND purpose.value = :purpose"
        values = {"kind": "trial", "environment_id": environment_id, "purpose": purpose}
        with self._connect() as database:
            return database.execute(sql + where, values).fetchall()

    def points(self, record_ids: list[str] | None = None) -> Iterator[tuple[str, str, int, float]]:
        """Of the curves of these records, or of all: (record id, key, step, value)."""
        wanted = None if record_ids is None else set(record_ids)
        runs = {run: found for run, found in self.run_ids("trial").items() if wanted is None or found in wanted}
        with self._connect() as database:
            for some in _batches(list(runs), 400):
                sql = f"""
                    SELECT run_uuid, key, step, value FROM metrics
                    WHERE run_uuid IN ({", ".join("?" * len(some))}) AND key >= ? AND key < ?
                """
                for run_id, key, step, value in database.execute(sql, [*some, CURVES, CURVES + "\U0010ffff"]):
                    yield runs[run_id], key, step, value

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        # Nothing is written here, but only a connection that may write can roll back what a killed writer left half done.
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE_SECONDS)) as connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise unreadable(error, f"sqlite:///{self.path}") from None


def open_fast(path: Path) -> FastReader | None:
    """A reader of this database, or None where its schema is not the one we know.

    Raises:
        StoreUnavailable: another process holds it locked.
    """
    reader = FastReader(path)
    try:
        with reader._connect() as database:
            for table, columns in _COLUMNS.items():
                if not columns <= {row[1] for row in database.execute(f"PRAGMA table_info({table})")}:
                    return None
    except StoreUnavailable:
        raise
    except StoreError:
        return None
    return reader


def database_state(path: Path) -> str | None:
    """What differs after every transaction: sizes and times of the database's files, and the counter in its header.
    None while a transaction is under way."""
    if path.with_name(f"{path.name}-journal").exists():
        return None
    parts = []
    for name in (path.name, f"{path.name}-wal"):
        try:
            stat = path.with_name(name).stat()
            parts.append(f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns}")
        except FileNotFoundError:
            parts.append("-")
    with path.open("rb") as file:
        return ", ".join([*parts, file.read(28)[24:].hex()])


def _batches(items: list[str], size: int) -> list[list[str]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
