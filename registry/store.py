"""The truth: records in MLflow. The only importer of mlflow, and only where its API is needed.

A local SQLite store is read through `sqlite_read`, which spares MLflow's import; writing, and any other store, goes
through MLflow.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import socket
import sqlite3
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from . import layout
from .layout import COMPLETE, CURVES, ID, KIND, WRITER, Kind, RunContent, TaggedRun
from .locks import FileLock
from .record import DesignRecord, MarkRecord, TrialRecord, retractions
from .spool import Spool
from .sqlite_read import FastReader, database_state, open_fast
from .sqlite_write import BulkWriter, open_bulk, plain
from .trouble import LOCKED, StoreError, StoreUnavailable, StoreWarning, explained, forbidden, one_line, unreadable

__all__ = ["Changes", "Store", "StoreError", "StoreUnavailable", "StoreWarning"]

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


BATCH = 2000
"""Records in a transaction of `Store.write_trials`."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reader that knows some runs has to take over: all run ids there are (None: not known), and the new
    runs."""

    present: set[str] | None
    new: Iterable[TaggedRun]


class Store:
    """Records in the MLflow store at `uri`; made by `Store.open`."""

    def __init__(self, home: Path, uri: str) -> None:
        self.home = home
        self.path = _sqlite_path(uri)
        # a path that counts from the current folder would mean another file once that changes
        self.uri = f"sqlite:///{self.path}" if self.path and "?" not in uri else uri
        self._artifacts = True
        folder, name = home / "locks", f"store-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
        self._lock = FileLock(self.path.with_name(f"{self.path.name}.lock") if self.path else folder / name)

    @classmethod
    def open(cls, home: Path, tracking_uri: str | None = None, *, create: bool = True) -> Store:
        """The store at `tracking_uri`, else `MLFLOW_TRACKING_URI`, else `home/mlflow.db`.

        With `create`, a SQLite database that is missing is made, and the one in `home` is migrated if it is from an
        older MLflow, once, however many processes ask. Without, a missing database reads as empty.
        """
        own = f"sqlite:///{home.absolute() / 'mlflow.db'}"
        if set("?%#") & set(own):
            raise StoreError(
                f"ABLATE_HOME {home}: a path with ?, % or # means something else to the database; choose another"
            )
        store = cls(home.absolute(), tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or own)
        if urlsplit(store.uri).scheme in ("", "file"):
            raise StoreError(
                f"tracking store {store.uri}: MLflow no longer keeps runs in folders; use sqlite:///PATH or a server"
            )
        if create and store.missing:
            with store._lock:
                store._create()
        return store

    @property
    def name(self) -> str:
        """The URI without user and password."""
        return re.sub(r"(?<=://)[^/]*@", "", self.uri)

    # Writing

    def write_trial(self, record: TrialRecord, factors: dict[str, str] | None = None) -> str:
        """Put `record` into the store unless it is there, and give its run id.

        `factors` maps a factor to the label of its level; by default `record.context["levels"]`.
        """
        return self._write(_trial_run(record, factors))[0]

    def write_trials(self, records: Iterable[TrialRecord]) -> int:
        """Put each of `records` into the store unless it is there; returns how many were not.

        The same as `write_trial` of each. Into a local database they go two thousand to a transaction, which is what makes
        it fast; each of these is there as a whole or not at all, and doing it again completes what was interrupted.
        """
        contents = map(_trial_run, records)
        if not self.path or self.missing:
            return sum(self._write(content)[1] for content in contents)
        count, _client = 0, self._client  # which sees to the schema
        try:
            with open_bulk(self.path) as writer:
                if writer is None:
                    return sum(self._write(content)[1] for content in contents)
                while some := list(islice(contents, BATCH)):
                    added, others = self._insert(writer, some)
                    count += added + sum(self._write(content)[1] for content in others)
        except sqlite3.Error as error:
            busy = isinstance(error, sqlite3.OperationalError)
            raise (StoreUnavailable if busy else StoreError)(
                f"tracking store {self.name} cannot be written: {one_line(error)}"
            ) from None
        return count

    def write_design(self, design: DesignRecord) -> str:
        """Put `design` into the store unless it is there, and give its run id."""
        return self._write(layout.design_run(design))[0]

    def write_mark(self, mark: MarkRecord) -> str:
        """Put `mark` into the store unless it is there, and give its run id."""
        return self._write(layout.mark_run(mark))[0]

    def delete(self, record_ids: Collection[str], *, dry_run: bool = False) -> int:
        """Delete the runs of these trial records, which MLflow keeps apart until `mlflow gc`; with `dry_run` only count them."""
        if self.missing or not record_ids:
            return 0
        runs = [run.info.run_id for record_id in record_ids for run in self._search("trial", {ID: record_id})]
        with self._answering():
            for run_id in runs if not dry_run else ():
                self._client.delete_run(run_id)
        return len(runs)

    def declare(self, design: DesignRecord) -> None:
        """Make `design` the newest of its suite and scale, unless the newest says the same."""
        known = [old for old in self.designs() if (old.suite, old.scale) == (design.suite, design.scale)]
        if known:
            newest = max(known, key=lambda old: old.created_at)
            if newest.says_the_same(design):
                return
            if design.created_at <= newest.created_at:  # the clock was set back
                later = datetime.fromisoformat(newest.created_at) + timedelta(milliseconds=1)
                design = replace(design, created_at=later.isoformat(timespec="milliseconds"))
        self.write_design(design)

    def ingest(self, spool: Spool) -> int:
        """Take over what is spooled, and clear it; returns how many. Raises `StoreUnavailable`, leaving the rest
        spooled."""
        count = 0
        for record in spool.records():
            try:
                self.write_trial(record)
            except StoreUnavailable:
                raise
            except Exception as error:
                # One record that the store refuses must not hold up the others: it stays in the spool, where it
                # counts as done.
                warnings.warn(
                    f"record {record.record_id} stays in the spool: {one_line(error)}", StoreWarning, stacklevel=2
                )
            else:
                spool.clear(record.record_id)
                count += 1
        return count

    # Reading

    def trials(self) -> list[TrialRecord]:
        """Every trial record, without curves."""
        return list(layout.load(self.changes("trial").new, TrialRecord).records.values())

    def trial(self, record_id: str) -> TrialRecord:
        """One record, without curves. Raises `StoreError` where there is none, or it is damaged."""
        if self._fast:
            ids = [run_id for run_id, found in self._fast.run_ids("trial").items() if found == record_id]
            runs = list(self._fast.runs(ids))
        else:
            runs = [TaggedRun(run.info.run_id, run.data.tags) for run in self._search("trial", {ID: record_id})]
        loaded = layout.load(runs, TrialRecord)
        for record in loaded.records.values():
            return record
        reason = "; ".join(reason for _, reason in loaded.damaged) or "it is not there"
        raise StoreError(f"record {record_id} cannot be read: {reason}")

    def designs(self) -> list[DesignRecord]:
        """Every design, oldest first."""
        found = layout.load(self.changes("design").new, DesignRecord).records.values()
        return sorted(found, key=lambda design: (design.created_at, design.design_id))

    def marks(self) -> list[MarkRecord]:
        """Every mark, oldest first."""
        found = layout.load(self.changes("mark").new, MarkRecord).records.values()
        return sorted(found, key=lambda mark: (mark.created_at, mark.mark_id))

    def retracted(self) -> dict[str, str]:
        """By record id, why it was retracted."""
        return retractions(self.marks())

    def damaged(self) -> list[tuple[str, str]]:
        """(run id, reason) of runs that were written by us and hold no record."""
        trials = layout.load(self.changes("trial").new, TrialRecord).damaged
        designs = layout.load(self.changes("design").new, DesignRecord).damaged
        return trials + designs + layout.load(self.changes("mark").new, MarkRecord).damaged

    def statuses(self, environment_id: str, purpose: str = "primary") -> dict[str, str]:
        """Status by trial id: `finished` or `diverged` if any attempt ended so, else that of the latest attempt.

        What was retracted is no attempt: a trial with nothing else is to be trained again.
        """
        if self.missing:
            return {}
        if self._fast:
            attempts = self._fast.attempts(environment_id, purpose)
        else:
            wanted = {"ablate.environment_id": environment_id, "ablate.purpose": purpose}
            names = (ID, "ablate.trial_id", "ablate.status", "ablate.finished_at")
            tags = [run.data.tags for run in self._search("trial", wanted)]
            attempts = [(t[names[0]], t[names[1]], t[names[2]], t[names[3]]) for t in tags]
        retracted = self.retracted()
        return layout.merge_statuses(rest for record_id, *rest in attempts if record_id not in retracted)

    def curves(self, record_id: str) -> dict[str, list[list[float]]]:
        """The curves of one record: metric to `[step, tokens, value]` points."""
        return self.all_curves([record_id]).get(record_id, {})

    def all_curves(self, record_ids: list[str] | None = None) -> dict[str, dict[str, list[list[float]]]]:
        """Curves by record id, of these records or of all. Without the fast path this takes a request for each curve."""
        points: dict[str, list[tuple[str, int, float]]] = {}
        if self.missing:
            return {}
        if self._fast:
            for found, key, step, value in self._fast.points(record_ids):
                points.setdefault(found, []).append((key, step, value))
        else:
            wanted = [{}] if record_ids is None else [{ID: record_id} for record_id in record_ids]
            for run in (run for tags in wanted for run in self._search("trial", tags)):
                with self._answering():
                    for key in filter(lambda key: key.startswith(CURVES), run.data.metrics):
                        history = self._client.get_metric_history(run.info.run_id, key)
                        points.setdefault(run.data.tags[ID], []).extend((key, m.step, m.value) for m in history)
        return {found: layout.curves(some) for found, some in sorted(points.items())}

    def changes(self, kind: Kind, known: set[str] | None = None, since: datetime | None = None) -> Changes:
        """The complete runs that are not `known`. With `since`, a store that cannot list run ids cheaply is only
        asked for what was written from the day before on (clocks differ); `present` is then None."""
        known = known or set()
        if self.missing:
            return Changes(set(), [])
        if self._fast:
            present = set(self._fast.run_ids(kind))
            return Changes(present, self._fast.runs(sorted(present - known)))  # read as they are taken
        days: list[str | None] = [None]
        if since:
            first, last = since.date() - timedelta(days=1), datetime.now(UTC).date() + timedelta(days=1)
            days = [str(first + timedelta(days=n)) for n in range((last - first).days + 1)]
        found = [run for day in days for run in self._search(kind, {COMPLETE: day} if day else {})]
        new = [TaggedRun(run.info.run_id, run.data.tags) for run in found if run.info.run_id not in known]
        return Changes(None if since else {run.info.run_id for run in found}, new)

    def state(self) -> str | None:
        """What differs once something was written into a local database; None where that cannot be told cheaply."""
        return database_state(self.path) if self.path and self._fast else None

    @property
    def missing(self) -> bool:
        """Whether this is a local database that was not made yet."""
        return self.path is not None and not self.path.exists()

    @cached_property
    def _fast(self) -> FastReader | None:
        return open_fast(self.path) if self.path and self.path.exists() else None

    # MLflow

    @cached_property
    def _client(self) -> MlflowClient:
        """MLflow's client. First asked for outside of the lock, which it takes to see to the schema."""
        _import_quietly()
        from mlflow.tracking import MlflowClient

        try:
            if self.path and self.path == self.home / "mlflow.db":
                with self._lock:
                    self._migrate(self.path)
            if self._is_database and not self.path:
                _reach(self.uri)
            return MlflowClient(tracking_uri=self.uri)
        except Exception as error:  # MLflow, SQLAlchemy, Alembic and the drivers raise their own
            if LOCKED in str(error):
                raise unreadable(sqlite3.OperationalError(LOCKED), self.name) from None
            reason = one_line(error).replace(self.uri, self.name)  # which has the password
            raise StoreError(f"tracking store {self.name} cannot be used: {reason}") from None

    @property
    def _writer(self) -> str:
        """Who shares our lock. Others at work on the same machine, in a home of their own, do not."""
        return f"{socket.gethostname()} {hashlib.sha256(str(self._lock.path).encode()).hexdigest()[:16]}"

    @property
    def _is_database(self) -> bool:
        return urlsplit(self.uri).scheme.partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")

    def _search(self, kind: Kind | None, tags: dict[str, str], *, complete: bool = True) -> Iterator[Run]:
        wanted = {KIND: kind} | tags if kind else tags
        conditions = [f"tags.`{name}` = '{value}'" for name, value in wanted.items()]
        if complete and COMPLETE not in tags:
            conditions.append(f"tags.`{COMPLETE}` LIKE '%'")
        with self._answering():
            experiments = self._pages(self._client.search_experiments)
            ids = [experiment.experiment_id for experiment in experiments]
            yield from self._pages(self._client.search_runs, ids, " AND ".join(conditions)) if ids else ()

    @staticmethod
    def _pages(search: Any, *args: Any) -> Iterator[Any]:
        token = None
        while True:
            page = search(*args, max_results=1000, page_token=token)
            yield from page
            if not (token := page.token):
                return

    def _insert(self, writer: BulkWriter, contents: list[RunContent]) -> tuple[int, list[RunContent]]:
        """Write these in one transaction; returns how many were new, and those for MLflow itself to judge: what it may not
        take as it is, and what has a run that is not complete."""
        with self._lock:
            with self._answering():
                names = sorted({content.experiment for content in contents})
                experiments = {name: self._experiment(name) for name in names}
                places = {name: self._client.get_experiment(experiments[name]).artifact_location for name in names}
            with writer.transaction():
                known = writer.known()
                new = {content.record_id: content for content in contents if content.record_id not in known}
                others = [content for content in contents if known.get(content.record_id) is False]
                others += [content for content in new.values() if not plain(content, places[content.experiment])]
                odd = {content.record_id for content in others}
                runs = [
                    (content, int(experiments[content.experiment]), places[content.experiment])
                    for content in new.values() if content.record_id not in odd
                ]  # fmt: skip
                writer.insert(runs, {WRITER: self._writer, COMPLETE: str(datetime.now(UTC).date())})
        return len(runs), others

    def _write(self, content: RunContent) -> tuple[str, bool]:
        """The run id, and whether it is new."""
        client, writer, (start, end) = self._client, self._writer, content.span
        with self._lock, self._answering():
            for run in list(self._search(None, {ID: content.record_id}, complete=False)):
                if COMPLETE in run.data.tags:
                    if run.info.status == "RUNNING":
                        client.set_terminated(run.info.run_id, content.status, end)
                    return run.info.run_id, False
                if run.data.tags.get(WRITER) == writer:
                    client.delete_run(run.info.run_id)
            tags = content.tags | {WRITER: writer}
            experiment = self._experiment(content.experiment)
            run = client.create_run(experiment, start_time=start, run_name=content.name, tags=tags)
            self._log(run.info.run_id, content)
            self._attach(run, *content.artifact)
            client.set_tag(run.info.run_id, COMPLETE, str(datetime.now(UTC).date()))
            client.set_terminated(run.info.run_id, content.status, end)
            return run.info.run_id if self.path else self._smallest(content.record_id), True

    def _log(self, run_id: str, content: RunContent) -> None:
        from mlflow.entities import Metric, Param

        params = [Param(key, value) for key, value in content.params.items()]
        points = [Metric(key, value, content.span[1], step) for key, value, step in content.metrics]
        for first in range(0, len(params), 100):
            self._client.log_batch(run_id, params=params[first : first + 100])
        for first in range(0, len(points), 1000):
            self._client.log_batch(run_id, metrics=points[first : first + 1000])

    def _attach(self, run: Run, file_name: str, text: str) -> None:
        """The artifact is for a person in MLflow's UI; nothing of ours reads it."""
        root = urlsplit(run.info.artifact_uri)
        elsewhere = root.scheme in ("", "file") and not Path(unquote(root.path)).parents[2].is_dir()
        if elsewhere or not self._artifacts:
            return  # a folder of another machine, or a place that has refused
        try:
            self._client.log_text(run.info.run_id, text, file_name)
        except Exception as error:  # artifact stores raise what their libraries raise
            self._artifacts = False
            warnings.warn(f"{self.name}: artifacts cannot be written ({one_line(error)})", StoreWarning, stacklevel=4)

    def _smallest(self, record_id: str) -> str:
        """Machines share no lock: of the complete runs of one record all of them keep the same one. Where it is another
        user's to delete the others, they stay, and readers collapse them."""
        from mlflow.exceptions import MlflowException

        first, *others = sorted(run.info.run_id for run in self._search(None, {ID: record_id}))
        for run_id in others:
            try:
                self._client.delete_run(run_id)
            except MlflowException as error:
                if not forbidden(error):
                    raise
        return first

    def _experiment(self, suite: str) -> str:
        """The experiment named after the suite (or `MLFLOW_EXPERIMENT_NAME`); one that was deleted is left deleted."""
        from mlflow.exceptions import MlflowException

        wanted = name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or suite
        number = 1
        while True:
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                try:
                    return self._client.create_experiment(name, self._artifact_folder(name))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    continue  # another machine made it in between
            if experiment.lifecycle_stage == "active":
                return experiment.experiment_id
            number += 1
            name = f"{wanted} ({number})"

    def _artifact_folder(self, experiment: str) -> str | None:
        """Where the artifacts of a new experiment go; a server has its own place for them."""
        if urlsplit(self.uri).scheme in ("http", "https", "databricks"):
            return None
        (self.home / "artifacts").mkdir(parents=True, exist_ok=True)
        return f"{(self.home / 'artifacts').as_uri()}/{_slug(experiment)}"

    def _create(self) -> None:
        """A database appears whole or not at all: MLflow takes two seconds to make one, and half of one stays broken."""
        path = self.path
        if path is None or path.exists():
            return  # another process was first
        _import_quietly()
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.new")
        temporary.unlink(missing_ok=True)
        made = SqlAlchemyStore(f"sqlite:///{temporary}", (self.home / "artifacts").as_uri())
        made.engine.dispose()
        os.replace(temporary, path)

    def _migrate(self, path: Path) -> None:
        from mlflow.store.db import utils

        engine = utils.create_sqlalchemy_engine_with_retry(self.uri)
        try:
            if utils._get_schema_version(engine) != utils._get_latest_schema_revision():
                shutil.copy2(path, path.with_name(f"{path.name}.before-migration"))
                utils._upgrade_db(engine)
        finally:
            engine.dispose()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn "no answer" into `StoreUnavailable`."""
        _import_quietly()
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            raise explained(error, self.name, self.uri) from None


def _trial_run(record: TrialRecord, factors: dict[str, str] | None = None) -> RunContent:
    return layout.trial_run(record, record.context.get("levels", {}) if factors is None else factors)


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute() if uri.startswith("sqlite:///") else None


def _import_quietly() -> None:
    """Import MLflow with its messages, telemetry and minutes of retries off, unless the user has asked for them."""
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.store.tracking.sqlalchemy_store
        import mlflow.tracking  # noqa: F401

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _reach(uri: str) -> None:
    """See whether a database lets us in: MLflow would try for two minutes, and say nothing."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
