"""Runs jobs with Ray Tune on whatever hardware there is. The only importer of ray.

Three threads. The main thread takes signals, keeps the books and reports. The Ray thread starts Ray, runs `fit` and shuts Ray down
(one thread from beginning to end: the kernel kills Ray's processes when the thread that started them ends). The writer thread takes
records from the spool to the store, which may be slow or away. Tune's own state is thrown away: records decide what is done.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ablate import environment
from ablate.ending import SIGNALS, end_ray, handle, signals
from ablate.errors import UserError, said
from ablate.mps import mps
from ablate.process import reset, usable
from ablate.rows import Answer, Row, Rows
from ablate.scratch import scratch
from ablate.status import Event, Finished, Message, Pace, Snapshot, log_path, running
from ablate.worker import Contended, Crowded, Job, Place, execute, make_record
from ablate.writer import Writer
from registry.locks import TrialLock
from registry.record import TrialRecord, attempt_key
from registry.spool import Spool
from registry.store import Store
from registry.verification import with_verdict

# read when Ray is imported, and inherited by its processes
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AIR_NEW_OUTPUT="0",
    RAY_ENABLE_AUTO_CONNECT="0",  # or a dying `fit` starts another Ray
    RAY_memory_monitor_refresh_ms="0",  # its kill crashes the whole `fit`
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_GLOBAL_CHECKPOINT_S="inf",  # its books on disk, which nobody reads, cost memory for every trial
)
import psutil
import ray
from ray import cloudpickle, tune
from ray.exceptions import RayActorError
from ray.tune.search import Searcher

logging.getLogger("ray").setLevel(logging.CRITICAL)

TRIES = 3
"""How often a trial is given to a worker, if workers die over it."""
REPORT_SECONDS = 0.5
TUNE_NEEDS = {"done", "training_iteration", "trial_id", "node_ip", "pid"}
"""Of the result of a trial, to end it."""
FAR = "on a cluster nobody starts NVIDIA's Multi-Process Service for them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run left: its records; trials that another run finished meanwhile; trials that nobody did; the signal that ended it."""

    records: tuple[TrialRecord, ...]
    elsewhere: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    interrupted: int | None = None
    waiting_in_spool: int = 0


def run(
    jobs: Sequence[Job], *, home: Path, open_store: Callable[[], Store], address: str | None = None, workers_per_device: int | None = None,
    timeout: float | None = None, on_event: Callable[[Event], None] = lambda event: None, trainer: str | None = None,
    pack: int | None = None, started: float | None = None,
) -> Outcome:  # fmt: skip
    """Train `jobs` and put their records into the store; blocks until that is done or SIGINT or SIGTERM came.

    `open_store` is called in another thread while Ray starts, and before anything is trained; what it raises is raised here.
    `address` is a Ray cluster's; without it Ray is started here, and nothing of it stays. `timeout` is in seconds per trial. `pack`
    trials train at once on each GPU, whose speed is then nobody's own. `on_event` is called in the calling thread, several times a
    second. Records say when the run `started`, in seconds since the epoch.

    Raises:
        UserError: the cluster does not answer, or has nothing to train on; the disk takes no record.
        StoreUnavailable: a tracking server that does not answer.
    """
    if not jobs:
        return Outcome(records=())
    share = environment.share(workers_per_device, pack=pack, memory_gib=max(job.memory_gib for job in jobs))
    place = Place(home=home, device="", threads=1, lease=None, timeout=timeout, run_started=started or time.time())
    if trainer is not None:
        place = replace(place, trainer=trainer)
    return _Run(list(jobs), open_store, address, share, pack is not None, place, on_event).run()


class _Run:
    """The books of one run, kept by the main thread."""

    def __init__(
        self, jobs: list[Job], open_store: Callable[[], Store], address: str | None, share: environment.Share, packed: bool, place: Place,
        on_event: Callable[[Event], None],
    ) -> None:  # fmt: skip
        self.jobs, self.home, self.address, self.on_event = jobs, place.home, address, on_event
        self.share, self.packed, self.place = share, packed, place
        self.environment = environment.describe(share.device, share.threads)
        self.spool = Spool(self.home)
        self.spooled_before = {record.record_id for record in self.spool.records()}
        self.records: dict[str, TrialRecord] = {}
        self.elsewhere: set[str] = set()
        self.failure: Exception | None = None
        self.signal: int | None = None
        self.trouble = ""
        self.started, self.ended = threading.Event(), threading.Event()
        # not a SimpleQueue: in CPython 3.11 a signal can make its `get` forget the timeout and wait for ever
        self.answers: queue.Queue[Answer] = queue.Queue()
        self.rows = Rows(jobs, self.answers)
        self.writer = Writer(open_store, self.spool)
        self.pace = Pace({job.trial_id: job.estimated_seconds or 1.0 for job in jobs})

    def run(self) -> Outcome:
        self.writer.start()
        with signals(self._interrupt), scratch("ray") as self.scratch, self._multi_process_service():
            others = set(psutil.Process().children(recursive=True))
            ray_thread = threading.Thread(target=self._ray, name="ray", daemon=True)
            ray_thread.start()
            try:
                self._watch()
            finally:
                self.rows.stop()
                end_ray(ray_thread, others, started=self.started, closing=self.ended)
            while not self.answers.empty():
                self._take(0)
        if self.failure is not None and not self.records and not self.trouble and self.signal is None:
            raise self.failure
        self.writer.finish(30.0 if self.signal is None else 1.0)
        self._report()
        if self.trouble and self.signal is None:
            raise UserError(f"{self.trouble}; what is finished is kept")
        if self.failure is not None and self.signal is None:
            self.on_event(Message(f"Ray failed: {_one_line(self.failure)}"))
        ours = {record.record_id for record in self.records.values()}
        done = self.records.keys() | self.elsewhere
        return Outcome(
            records=tuple(self.records.values()),
            elsewhere=tuple(sorted(self.elsewhere)),
            missing=tuple(job.trial_id for job in self.jobs if job.trial_id not in done),
            interrupted=self.signal,
            waiting_in_spool=sum(record.record_id in ours for record in self.spool.records()),
        )

    @contextmanager
    def _multi_process_service(self) -> Iterator[None]:
        """What lets packed trials run at the same time, where it can be had."""
        service = (
            nullcontext("") if not self.packed else mps(self.scratch) if self.address is None else nullcontext(FAR)
        )
        with service as trouble:
            if trouble:
                self.on_event(Message(f"packed trials take turns on the GPU: {trouble}"))
            yield

    # The main thread

    def _interrupt(self, number: int, frame: object) -> None:
        self.signal = number

    def _watch(self) -> None:
        reported, trouble, taken = 0.0, "", False
        while self.signal is None and not self.trouble and not (self.ended.is_set() and self.answers.empty()):
            self._take(0.1)
            if self.started.is_set() and not taken:
                taken = True
                handle(dict.fromkeys(SIGNALS, self._interrupt))  # Ray's core put handlers of its own in their place
            if time.monotonic() - reported >= REPORT_SECONDS:
                self._report()
                reported = time.monotonic()
            if self.writer.trouble != trouble:
                trouble = self.writer.trouble
                self.on_event(
                    Message(f"{trouble}; records wait in the spool" if trouble else "the tracking store answers again")
                )

    def _report(self) -> None:
        mine = {job.trial_id for job in self.jobs} - self.records.keys()
        now = tuple(status for status in running(self.home) if status.trial_id in mine)
        failed = sum(record.status != "finished" for record in self.records.values())
        done = self.records.keys() | self.elsewhere
        self.on_event(
            Snapshot(
                total=len(self.jobs), done=len(done), failed=failed, running=now, seconds_left=self.pace.seconds_left(done, now)
            )
        )  # fmt: skip

    def _take(self, timeout: float) -> None:
        """Enter the next answer in the books."""
        try:
            answer = self.answers.get(timeout > 0, timeout)
        except queue.Empty:
            return
        job, contended = self.jobs[answer.index], answer.contended
        if answer.record is not None:
            self._finished(answer.index, TrialRecord.from_json(answer.record))
        elif answer.crowded:
            self.rows.aside(answer.index)
        elif answer.trouble:
            self.trouble = answer.trouble  # other trials would be trained for nothing, too
        elif contended is not None and self._spooled(job):
            self.elsewhere.add(job.trial_id)
            self.rows.settle(answer.index)
        elif contended is not None:
            self.writer.ask(lambda: self._contended(answer.index, contended))
        elif record := self._spooled(job):
            self._finished(answer.index, record)  # its worker died right after writing it
        elif self.rows.deaths[answer.index] < TRIES:
            self.rows.again(answer.index)
        elif self.signal is None:
            self._give_up(answer.index, answer.reason)

    def _contended(self, index: int, contended: Contended) -> None:
        """In the writer's thread: what a lock's counter says is looked up; the record may have gone to another store."""
        trial_id = self.jobs[index].trial_id
        if trial_id in self.writer.store.statuses(contended.environment_id, self.jobs[index].purpose):
            self.elsewhere.add(trial_id)
            self.rows.settle(index)
        else:
            self.rows.again(index, contended.finished)

    def _finished(self, index: int, record: TrialRecord) -> None:
        self.rows.settle(index)
        self.records[record.trial_id] = record
        if self.address is not None:
            self.spool.put(record)  # the worker's spool may lie on another machine's disk
        self.writer.wake()
        done = len(self.records) + len(self.elsewhere)
        self.on_event(Finished(record=record, label=self.jobs[index].label, done=done, total=len(self.jobs)))

    def _give_up(self, index: int, reason: str) -> None:
        job = self.jobs[index]
        lock = TrialLock(self.home, self._key(job))
        if not lock.try_acquire():  # another run is at it
            self.elsewhere.add(job.trial_id)
            self.rows.settle(index)
            return
        cause = f"its worker died {TRIES} times ({reason or 'killed'}); see {log_path(self.home, job.trial_id)}"
        record = with_verdict(make_record(job, self.environment, status="killed", cause=cause), job.verifies)
        self.spool.put(record)
        lock.mark_finished()
        lock.release()
        self._finished(index, record)

    def _spooled(self, job: Job) -> TrialRecord | None:
        """The record of an attempt that ended while this run lasts, where the store does not have it yet."""
        record = self.spool.find(self._key(job))
        return None if record is None or record.record_id in self.spooled_before else record

    def _key(self, job: Job) -> str:
        return attempt_key(job.trial_id, environment.environment_id(self.environment), job.purpose)

    # The Ray thread

    def _ray(self) -> None:
        try:
            workers, place = self._start()
            self.started.set()
            _ = self.writer.store  # nothing is trained before the design is on record
            for _ in range(TRIES):
                if not self.rows.over and self.signal is None:
                    self.failure = self._fit(workers, place)
            if (crowded := self.rows.resume()) and self.signal is None:
                self.share = replace(self.share, per_device=1)
                self.failure = self._fit(min(crowded, self.share.devices), replace(place, alone=True))
        except Exception as error:
            self.failure = error
        finally:
            self.ended.set()
            gc.collect()  # what refers to objects of Ray's must not be collected, by whatever thread, while Ray shuts down
            ray.shutdown()

    def _start(self) -> tuple[int, Place]:
        """Start Ray or join the cluster; how many workers there may be, and where they work."""
        share, variables = self.share, environment.for_workers(self.share, self.home)
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        # errors of Ray's own processes are printed by a listener that no option turns off
        ray._private.worker._worker_logs_enabled = False  # pyright: ignore
        if self.address is None:
            workers = share.workers(len(self.jobs))
            with _inherited(self.scratch, variables):
                ray.init(
                    address="local", include_dashboard=False, num_cpus=workers * share.threads,
                    num_gpus=share.devices if share.device == "cuda" else 0, object_store_memory=100 * 2**20,
                    _temp_dir=str(self.scratch), **quiet,
                )  # fmt: skip
        else:
            try:
                with _inherited(self.scratch, {}):
                    ray.init(address=self.address, runtime_env={"env_vars": variables}, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(f"Ray cluster {self.address}: {_one_line(error)}") from None
            resources = ray.cluster_resources()
            gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
            device = "cuda" if gpus else "cpu"
            per_device = share.per_device if device == share.device else environment.WORKERS_PER_GPU if gpus else 1
            self.share = share = replace(share, device=device, devices=gpus or 1, per_device=per_device)
            workers = min(gpus * per_device if gpus else cpus // share.threads, len(self.jobs))
            if not workers:
                raise UserError(f"Ray cluster {self.address}: it has no CPU to spare")
        # the CPUs of a cluster may be of several machines, with nobody to say which
        lease = "gpu" if share.device == "cuda" else "cpu" if self.address is None else None
        shared = self.packed or (share.device == "cpu" and workers > 1)
        place = replace(
            self.place, device=share.device, threads=share.threads, lease=lease, shared=shared,
            alone=min(workers, share.per_device) == 1, device_uuid="" if share.device == "cuda" else "cpu",
        )  # fmt: skip
        if self.address is not None:
            self._learn_environment()
        return workers, place

    def _learn_environment(self) -> None:
        """Ask the cluster what it is, and leave out what was done there: only this machine was looked at before."""
        known, share = environment.environment_id(self.environment), self.share
        ask = ray.remote(environment.describe).options(
            num_cpus=self._resources()["cpu"], num_gpus=self._resources().get("gpu", 0)
        )
        self.environment = ray.get(ask.remote(share.device, share.threads))
        here = environment.environment_id(self.environment)
        if here != known:
            done = self.writer.store.statuses(here)
            for index, job in enumerate(self.jobs):
                if job.trial_id in done:
                    self.elsewhere.add(job.trial_id)
                    self.rows.settle(index)

    def _resources(self) -> dict[str, float]:
        """What one worker takes."""
        gpu = {"gpu": 1 / self.share.per_device} if self.share.device == "cuda" else {}
        return {"cpu": self.share.threads} | gpu

    def _fit(self, workers: int, place: Place) -> Exception | None:
        """Give rows to workers until none is open, or Tune fails."""
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(workers)  # or they start one after the other
        self.rows.begin(workers, by_shape=place.device == "cuda")
        mail = _Mail(self.rows)
        trainable = tune.with_resources(tune.with_parameters(Worker, jobs=self.jobs, place=place), self._resources())
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(search_alg=_Search(self.rows, mail), num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name=f"ablate-{uuid.uuid4().hex}", storage_path=str(self.scratch), verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False), callbacks=[mail],
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        except Exception as error:
            return error
        return None


class Worker(tune.Trainable):
    """A process that makes one attempt per `step`, reused for many."""

    def setup(self, config: dict[str, Any], jobs: Sequence[Job], place: Place) -> None:  # type: ignore[override]
        self.jobs, self.place = jobs, place
        self.usable = True
        # Ray's own handler raises what a trial that calls `sys.exit` does, and a worker that is terminated is no result
        handle({signal.SIGTERM: signal.SIG_DFL})
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once a process, by deterministic trials
        if place.lease == "gpu":
            uuid = environment.device_uuid(place.device)
            self.place = replace(place, lease=uuid, device_uuid=uuid)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.config = new_config
        return True

    def step(self) -> dict[str, Any]:
        if not self.usable:
            raise RuntimeError("the last trial left this process unable to use its device")
        reset(self.place.device, self.place.threads)
        row = Row(**self.config)
        job = replace(self.jobs[row.index], finished_before=row.finished_before)
        try:
            got = execute(job, replace(self.place, deaths=row.deaths))
        except OSError as error:
            return {"done": True, "said": {"trouble": said(error, self.place.home)}}
        self.usable = usable(self.place.device)
        if isinstance(got, TrialRecord):
            return {"done": True, "said": {"record": got.to_json()}}
        return {"done": True, "said": {"crowded": True} if isinstance(got, Crowded) else {"contended": got}}


class _Mail(tune.Callback):
    """What workers said, by Tune's trial id; and why they failed, which goes to `rows` from here, for a searcher is told too early.

    What they said is taken out of Tune's results, with most of what Tune adds: it keeps those of all trials.
    """

    def __init__(self, rows: Rows) -> None:
        self.said: dict[str, dict[str, Any]] = {}
        self._rows = rows

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.said[trial.trial_id] = result["said"]
        for name in result.keys() - TUNE_NEEDS:
            del result[name]

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # `trial.get_pickled_error` looks where nothing was copied to yet
        file = trial.pickled_error_file
        error = cloudpickle.loads(Path(file).read_bytes()) if file and os.path.exists(file) else None
        killed = isinstance(error, RayActorError) and not error.actor_init_failed
        self._rows.lost(trial.trial_id, "" if error is None or killed else _one_line(error))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as that of the searcher


class _Search(Searcher):
    """Tune's way of asking for rows. It proposes nothing by itself."""

    def __init__(self, rows: Rows, mail: _Mail) -> None:
        super().__init__(metric="done", mode="max")
        self._rows, self._mail = rows, mail

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._rows.over:
            return Searcher.FINISHED
        row = self._rows.take(trial_id)
        return None if row is None else asdict(row)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error:
            return  # `on_trial_error` is called next
        got = self._mail.said.pop(trial_id, None)
        if got is None:
            self._rows.lost(trial_id, "")
        else:
            self._rows.answer(trial_id, **got)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps a copy to resume from, and records say what is done."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


@contextmanager
def _inherited(folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """Workers have these `variables`, and find the modules that this process finds, also in a checkout that is not installed.

    Ray would have them look in the current folder first, where a `registry` of the user's own may be: that is `folder` meanwhile.
    """
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    with environment.exported({**variables, "PYTHONPATH": path}), contextlib.chdir(folder):
        yield


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300]
