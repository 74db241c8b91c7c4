"""Write many runs into a local MLflow database at once, as MLflow would have written them one by one. Standard library only.

MLflow takes a dozen transactions and 30 ms a run. Only a schema that is exactly the one known is written to; for any other,
`open_bulk` gives None, and a run that MLflow might refuse or change is not `plain`: both go through MLflow's API.
"""

from __future__ import annotations

import functools
import posixpath
import re
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .layout import COMPLETE, ID, RunContent

_COLUMNS = {
    "runs": (
        *("run_uuid", "name", "source_type", "source_name", "entry_point_name", "user_id", "status", "start_time"),
        *("end_time", "source_version", "lifecycle_stage", "artifact_uri", "experiment_id", "deleted_time"),
    ),
    "tags": ("key", "value", "run_uuid"),
    "params": ("key", "value", "run_uuid"),
    "metrics": ("key", "value", "timestamp", "step", "is_nan", "run_uuid"),
    "latest_metrics": ("key", "value", "timestamp", "step", "is_nan", "run_uuid"),
}
_KNOWN = f"""
    SELECT id.value, max(done.run_uuid IS NOT NULL AND runs.status <> 'RUNNING')
    FROM tags AS id
    JOIN runs ON runs.run_uuid = id.run_uuid AND runs.lifecycle_stage = 'active'
    JOIN experiments USING (experiment_id)
    LEFT JOIN tags AS done ON done.run_uuid = id.run_uuid AND done.key = '{COMPLETE}'
    WHERE id.key = '{ID}' AND experiments.lifecycle_stage = 'active'
    GROUP BY id.value
"""
_NAME = re.compile(r"[\w/.\- ]{1,250}")


@dataclass(slots=True)
class BulkWriter:
    """A connection that writes; made by `open_bulk`."""

    _database: sqlite3.Connection
    _version: int = -1
    _known: dict[str, bool] = field(default_factory=dict)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is written within appears at once, or, after an exception, not at all."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._known, self._version = {}, -1
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def known(self) -> dict[str, bool]:
        """The record ids in the database, and whether a run of theirs is complete and ended."""
        (version,) = self._database.execute("PRAGMA data_version").fetchone()
        if version != self._version:  # another connection has written
            self._known = {record_id: bool(done) for record_id, done in self._database.execute(_KNOWN)}
            self._version = version
        return self._known

    def insert(self, runs: Iterable[tuple[RunContent, int, str]], extra: dict[str, str]) -> None:
        """Insert complete runs, each with its experiment's id and artifact location, and the tags `extra`."""
        rows: dict[str, list[tuple[object, ...]]] = {table: [] for table in _COLUMNS}
        for content, experiment, location in runs:
            run_id = uuid.uuid4().hex
            artifacts = f"{location.rstrip('/')}/{run_id}/artifacts"
            _attach(artifacts, *content.artifact)
            (start, end), name = content.span, content.name
            rows["runs"].append(
                (run_id, name, "UNKNOWN", "", "", "unknown", content.status, start, end, "", "active", artifacts, experiment, None)
            )  # fmt: skip
            tags = content.tags | extra | {"mlflow.runName": name}
            rows["tags"] += [(key, value, run_id) for key, value in tags.items()]
            rows["params"] += [(key, value, run_id) for key, value in content.params.items()]
            latest: dict[str, tuple[int, float]] = {}
            for key, value, step in content.metrics:
                rows["metrics"].append((key, value, end, step, False, run_id))
                latest[key] = max(latest.get(key, (step, value)), (step, value))
            rows["latest_metrics"] += [
                (key, value, end, step, False, run_id) for key, (step, value) in latest.items()
            ]  # fmt: skip
            self._known[content.record_id] = True
        for table, columns in _COLUMNS.items():
            marks = ", ".join("?" * len(columns))
            some = sorted(rows[table], key=lambda row: (row[0], row[-1]))  # as in the index: neighbours share pages
            self._database.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", some)


@contextmanager
def open_bulk(path: Path) -> Iterator[BulkWriter | None]:
    """A writer into this database, or None where its schema is not exactly the one we know."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=60, isolation_level=None)) as database:
        database.execute("PRAGMA cache_size = -262144")  # 256 MiB: the indexes are inserted into all over
        yield BulkWriter(database) if _known_schema(database) else None


def _known_schema(database: sqlite3.Connection) -> bool:
    return all(
        {row[1] for row in database.execute(f"PRAGMA table_info({table})")} == set(columns)
        for table, columns in _COLUMNS.items()
    )


def plain(content: RunContent, location: str) -> bool:
    """Whether MLflow would take this run as it is, and keep its artifact in a folder."""
    names = [*content.tags, *content.params, *(key for key, _, _ in content.metrics)]
    return (
        urlsplit(location).scheme in ("", "file")
        and all(map(_plain_name, names))
        and all(len(value) <= 5000 for value in (content.name, *content.tags.values(), *content.params.values()))
        and all(abs(step) < 2**63 for _, _, step in content.metrics)
    )


@functools.cache
def _plain_name(name: str) -> bool:
    path = posixpath.normpath(name) == name and name != "." and not name.startswith(("..", "/"))
    return path and _NAME.fullmatch(name) is not None


def _attach(artifacts: str, file_name: str, text: str) -> None:
    folder = Path(unquote(urlsplit(artifacts).path))
    if folder.parents[2].is_dir():  # else a folder of another machine
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file_name).write_text(text, encoding="utf-8")
