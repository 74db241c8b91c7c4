"""Rows reach workers, records reach the store, and Ray is not heard."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_training
import pytest

from ablate import environment, scheduler
from ablate.rows import Rows
from ablate.status import Finished, Pace, Snapshot, TrialStatus
from ablate.timeline import Timeline
from ablate.writer import Writer
from registry.record import attempt_key
from registry.spool import Spool
from registry.store import Store, StoreUnavailable


def test_time_left_follows_the_pace_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace = Pace({"a": 10.0, "b": 30.0})
    status = TrialStatus(trial_id="a", label="", suite="", phase="train", pid=1, host="", started_at=0, updated_at=0)
    assert pace.seconds_left([], [status]) is None
    now[0] += 20
    assert pace.seconds_left(["a"], []) == pytest.approx(60.0)


class FlakyStore:
    """Away at first."""

    def __init__(self) -> None:
        self.calls = 0
        self.stored = threading.Event()

    def ingest(self, spool: Spool) -> int:
        self.calls += 1
        if self.calls == 1:
            raise StoreUnavailable("it is away")
        self.stored.set()
        return 0


def test_the_writer_tries_again_and_answers_after_storing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablate.writer.RETRY_SECONDS", 0.01)
    store: Any = FlakyStore()
    asked: list[bool] = []
    writer = Writer(lambda: store, Spool(home))
    writer.ask(lambda: asked.append(store.stored.is_set()))
    writer.start()
    assert store.stored.wait(10)
    writer.finish(10)
    assert not writer.is_alive()
    assert asked == [True]
    assert writer.trouble == ""


@pytest.mark.filterwarnings("ignore")
def test_ray_trains_everything_quietly(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    jobs = [fake_training.job(0), fake_training.job(1, raises="ValueError"), fake_training.job(2, seconds=20.0)]
    store = Store.open(home)
    events: list[Any] = []
    outcome = scheduler.run(
        jobs,
        home=home,
        open_store=lambda: store,
        workers_per_device=1,
        timeout=5.0,
        on_event=events.append,
        trainer="fake_training:train",
    )
    assert [record.status for record in outcome.records] == ["finished", "crashed", "timeout"]
    assert all(record.exclusive for record in outcome.records)
    threads, first = environment.cores(), outcome.records[0]
    assert (first.environment["threads"], first.context["torch_threads"]) == (threads, threads)
    assert first.context["variables"] == {
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(home / "cache" / "inductor"),
    }  # fmt: skip
    assert len({record.context["worker"] for record in outcome.records}) == 1
    assert Timeline.of(("", record.context, record.environment) for record in outcome.records) is not None
    assert (outcome.missing, outcome.elsewhere, outcome.interrupted, outcome.waiting_in_spool) == ((), (), None, 0)
    place = environment.environment_id(environment.expected(workers=1))
    assert store.statuses(place) == {record.trial_id: record.status for record in outcome.records}
    assert attempt_key(jobs[0].trial_id, place) == outcome.records[0].attempt_key
    assert [event.done for event in events if isinstance(event, Finished)] == [1, 2, 3]
    last = [event for event in events if isinstance(event, Snapshot)][-1]
    assert (last.done, last.failed, last.running) == (3, 2, ())
    assert capfd.readouterr() == ("", "")


def test_tune_keeps_nothing_of_what_a_worker_said() -> None:
    mail = scheduler._Mail(Rows([], queue.Queue()))
    result = {"done": True, "said": {"record": "{}"}, "trial_id": "a", "time_total_s": 1.0, "config": {"index": 0}}
    mail.on_trial_result(1, [], SimpleNamespace(trial_id="a"), result)
    assert result == {"done": True, "trial_id": "a"}
    assert mail.said == {"a": {"record": "{}"}}


class Broken(scheduler.Worker):
    """A worker that cannot start."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:  # type: ignore[override]
        raise RuntimeError("no device here")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_why_no_worker_could_start_is_recorded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "Worker", Broken)
    (record,) = scheduler.run(
        [fake_training.job(0)], home=home, open_store=lambda: Store.open(home), workers_per_device=1
    ).records
    assert record.status == "killed"
    assert record.cause.startswith(f"its worker died {scheduler.TRIES} times (RuntimeError: no device here); see ")


@pytest.mark.fire
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_trained_where_no_store_can_be_opened(home: Path) -> None:
    def open_store() -> Store:
        raise StoreUnavailable("it is away")

    with pytest.raises(StoreUnavailable, match="it is away"):
        scheduler.run(
            [fake_training.job(0)], home=home, open_store=open_store, workers_per_device=1, trainer="fake_training:train"
        )  # fmt: skip
    assert not list(Spool(home).records())
