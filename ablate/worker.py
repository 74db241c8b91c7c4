"""One attempt at a trial, from its lock to its record in the spool. It knows neither Ray nor MLflow."""

from __future__ import annotations

import importlib
import io
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import checkpoints, memory, process
from ablate.environment import describe, environment_id
from ablate.errors import UserError, of_the_disk
from ablate.lease import Lease
from ablate.status import StatusFile, log_path
from ablate.watchdog import Watchdog
from registry.locks import TrialLock
from registry.record import TrialRecord, attempt_key, new_record_id
from registry.spool import Spool
from registry.verification import with_verdict

if TYPE_CHECKING:
    from ablate.train import OnStep, Progress, Result

LONG_SECONDS, CHECKPOINT_SECONDS = 600.0, 300.0
"""A trial that may take longer keeps its state this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker needs to make one attempt; plain data.

    `recipe` is `Recipe.to_dict()`; `shape` is equal for trials that can share a compiled step; `finished_before` is what the
    trial's lock had counted before the driver listed what is done.
    """

    trial_id: str
    cell_id: str
    label: str
    suite: str
    scale: str
    seed: int
    recipe: dict[str, Any]
    levels: dict[str, str]
    corpus_fingerprint: str
    evaluation_fingerprint: str
    text_fingerprint: str
    code_fingerprint: str
    shape: str
    estimated_seconds: float | None
    purpose: str
    git_revision: str
    git_dirty: bool
    finished_before: int
    ablate_version: str
    memory_gib: float = 0.0
    """Forecast of what it takes of its device."""
    verifies: dict[str, Any] | None = None
    """The claim that it puts to the test (a `registry.verification.Claim`, plain)."""


@dataclass(frozen=True, slots=True)
class Contended:
    """Somebody else finished the trial, in this environment, since the driver looked; `finished` is what its lock counts now."""

    finished: int
    environment_id: str


@dataclass(frozen=True, slots=True)
class Crowded:
    """The trial ran out of a device's memory that other workers hold a part of, and is to be tried where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where attempts are made: the registry's home, `cuda` or `cpu`, torch threads, and the lease's name, if there is one."""

    home: Path
    device: str
    threads: int
    lease: str | None
    shared: bool = False
    """Whether other workers may train on the device at the same time."""
    alone: bool = True
    """Whether no other worker of this run holds memory of the device."""
    device_uuid: str = ""
    run_started: float = 0.0
    """When the run began, in seconds since the epoch."""
    deaths: int = 0
    """How many workers of this run died over the trial before."""
    timeout: float | None = None
    """Seconds that a trial may take, waiting for the device apart."""
    trainer: str = "ablate.worker:train_job"
    """Import path of a `Trainer`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What a trainer calls: `exclusive` is entered for the measured window, `phase` and `on_step` report."""

    exclusive: AbstractContextManager[Any]
    on_step: OnStep
    phase: Callable[[Any], None]


Trainer = Callable[[Job, Place, Hooks], "Result"]


class TrialTimeout(Exception):
    """A trial took longer than it may."""


def execute(job: Job, place: Place) -> TrialRecord | Contended | Crowded:
    """Make one attempt at `job`. When this returns a record, the spool has it.

    Waits while another process trains the same trial. What goes wrong in training is a status of the record.

    Raises:
        OSError: the disk takes nothing; there is no record then, and the trial is to be trained again.
    """
    environment = describe(place.device, place.threads)
    key = attempt_key(job.trial_id, environment_id(environment), job.purpose)
    lock, spool = TrialLock(place.home, key), Spool(place.home)
    status = StatusFile(place.home, trial_id=job.trial_id, label=f"{job.label} seed {job.seed}", suite=job.suite)
    try:
        if not lock.try_acquire():
            status.phase("wait")
            lock.acquire()
        try:
            finished = lock.finished()
            # the holder before us may have died after it spooled its record and before it counted it
            if finished > job.finished_before or (not finished and spool.find(key)):
                return Contended(finished, environment_id(environment))
            status.phase("prepare")

            def keep(record: TrialRecord) -> None:
                spool.put(record)
                lock.mark_finished()

            record = _attempt(job, place, environment, status, keep)
            if isinstance(record, TrialRecord) and record.status in ("finished", "diverged"):
                checkpoints.path(place.home, key).unlink(missing_ok=True)
            return record
        finally:
            lock.release()
    finally:
        status.close()


def _attempt(
    job: Job, place: Place, environment: dict[str, Any], status: StatusFile, keep: Callable[[TrialRecord], None]
) -> TrialRecord | Crowded:  # fmt: skip
    started, began = _now(), time.monotonic()
    lease = Lease(
        place.lease, shared=place.shared, on_wait=lambda: status.phase("wait"), on_start=lambda: status.phase("train"),
        on_end=status.rest,
    )  # fmt: skip
    notes: dict[str, Any] = {"worker_deaths": place.deaths} if place.deaths else {}

    def on_step(progress: Progress) -> None:
        status.progress(
            step=progress.step, steps=progress.steps, loss=progress.train_loss, tokens_per_second=progress.tokens_per_second
        )  # fmt: skip
        if place.timeout is not None and time.monotonic() - began - lease.waited > place.timeout:
            raise TrialTimeout(f"not done after {place.timeout:g} s, at step {progress.step} of {progress.steps}")

    def ended(how: str, cause: str) -> TrialRecord:
        status.rest()
        context = notes | {
            "waited_seconds": round(lease.waited, 3), "timeline": status.timeline, "worker": os.getpid(),
            "device_uuid": place.device_uuid, "run_started": place.run_started,
        }  # fmt: skip
        return make_record(
            job, environment, status=how, cause=cause, started=started, exclusive=lease.exclusive, context=context,
            metrics={"total_seconds": time.monotonic() - began - lease.waited},
        )  # fmt: skip

    def hangs() -> None:
        cause = f"not done after {place.timeout:g} s, and it did not answer: its worker was ended"
        keep(with_verdict(ended("timeout", cause), job.verifies))

    def train() -> Result:
        return _resolve(place.trainer)(job, place, Hooks(exclusive=lease, on_step=on_step, phase=status.phase))

    result = None
    watchdog = Watchdog(place.timeout, lambda: time.monotonic() - began - lease.waited, hangs)
    with _captured(log_path(place.home, job.trial_id)), watchdog:
        try:
            try:
                result = train()
            except Exception as error:
                if not (memory.is_exhausted(error) and (others := memory.held_by_others(place.device))):
                    raise
                traceback.print_exc()
                notes["first_attempt"] = f"out of memory, of which other processes held {others:.1f} GiB"
            if result is None:  # outside of the handler, whose error keeps tensors alive
                process.forget()
                lease.acquire()
                status.phase("prepare")
                result = train()
            how, cause = result.status, result.cause
        except (Exception, SystemExit) as error:  # whatever a variant does, the worker lives on
            if (refused := of_the_disk(error)) is not None:
                raise refused from None  # this is no result of the trial's
            traceback.print_exc()
            how, cause = _failure(error)
        finally:
            lease.release()
    if result is None:
        process.forget()
        if how == "out_of_memory" and not place.alone and "first_attempt" in notes:
            return Crowded()
    record = ended(how, cause)
    if result is not None:
        record = replace(
            record, step_mode=result.step_mode, metrics=result.metrics | record.metrics, curves=result.curves,
            context=result.context | record.context,
        )  # fmt: skip
    record = with_verdict(record, job.verifies)
    keep(record)
    return record


def make_record(
    job: Job, environment: dict[str, Any], *, status: str, cause: str, started: str | None = None, exclusive: bool = False,
    metrics: dict[str, float] | None = None, context: dict[str, Any] | None = None,
) -> TrialRecord:  # fmt: skip
    """The record of an attempt at `job` that ends now."""
    now = _now()
    return TrialRecord(
        record_id=new_record_id(), trial_id=job.trial_id, cell_id=job.cell_id, purpose=job.purpose, suite=job.suite,
        environment_id=environment_id(environment), environment=environment, status=status, cause=cause, scale=job.scale,
        seed=job.seed, recipe=job.recipe, corpus_fingerprint=job.corpus_fingerprint,
        evaluation_fingerprint=job.evaluation_fingerprint, text_fingerprint=job.text_fingerprint, code_fingerprint=job.code_fingerprint,
        git_revision=job.git_revision, git_dirty=job.git_dirty, ablate_version=job.ablate_version, exclusive=exclusive,
        started_at=started or now, finished_at=now, metrics=metrics or {},
        context={"levels": job.levels} | (context or {}),
    )  # fmt: skip


def train_job(job: Job, place: Place, hooks: Hooks) -> Result:
    """Train the recipe, with the corpus and the prepared step of the last trial where they are what it needs.

    Raises:
        UserError: the corpus is not the one that was planned with.
    """
    from ablate import data
    from ablate.recipe import Recipe
    from ablate.train import Checkpoint, train

    recipe = Recipe.from_dict(job.recipe)
    corpus = process.corpus(job.corpus_fingerprint, lambda: data.prepare(recipe.data, place.home / "cache"))
    if corpus.fingerprint != job.corpus_fingerprint:
        raise UserError(f"the corpus changed: {corpus.fingerprint} here, {job.corpus_fingerprint} when it was planned")
    hooks.phase("compile")
    long = job.estimated_seconds is not None and job.estimated_seconds > LONG_SECONDS
    key = attempt_key(job.trial_id, environment_id(describe(place.device, place.threads)), job.purpose)
    checkpoint = Checkpoint(checkpoints.usable(place.home, key), CHECKPOINT_SECONDS) if long else None
    return train(
        recipe, hooks.on_step, corpus=corpus, device=place.device, exclusive=hooks.exclusive, checkpoint=checkpoint,
        kept=process.steps(),
    )  # fmt: skip


def _failure(error: Exception | SystemExit) -> tuple[str, str]:
    """Status and cause, in one line, of what a trial raised."""
    text = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()
    cause = (text if isinstance(error, (UserError, TrialTimeout)) else f"{type(error).__name__}: {text}")[:500]
    if isinstance(error, TrialTimeout):
        return "timeout", cause
    return "out_of_memory" if memory.is_exhausted(error) else "crashed", cause


class _Log(io.TextIOWrapper):
    """A file that loses what a full disk does not take: no trial ends for want of its log."""

    class _Raw(io.FileIO):
        def write(self, data: Any) -> int:
            try:
                return super().write(data)
            except OSError:
                return len(data)

    def __init__(self, path: Path) -> None:
        super().__init__(io.BufferedWriter(self._Raw(path, "w")), encoding="utf-8", line_buffering=True)


@contextmanager
def _captured(path: Path) -> Iterator[None]:
    """Send what this process prints, from Python and from C, to a file that starts empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(1), os.dup(2)]
    try:
        with _Log(path) as file, redirect_stdout(file), redirect_stderr(file):
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield
    finally:
        for target, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, target)
            os.close(descriptor)


def _resolve(path: str) -> Trainer:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
