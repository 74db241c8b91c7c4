"""One attempt: whatever happens in training becomes a record, which is on disk before anybody is told."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_training
import pytest
import torch
from tiny import ArrayCorpus, tiny

from ablate import data, environment, memory, process, worker
from ablate.lease import Lease
from ablate.recipe import Recipe
from ablate.status import StatusFile, log_path, running
from ablate.train import Result
from ablate.worker import Contended, Crowded, Hooks, Job, Place, execute
from registry.locks import TrialLock
from registry.record import TrialRecord
from registry.spool import Spool


@pytest.fixture
def place(home: Path) -> Place:
    home.mkdir()
    return Place(home=home, device="cpu", threads=1, lease=None, trainer="fake_training:train")


def attempt(place: Place, job: Job) -> TrialRecord:
    record = execute(job, place)
    assert isinstance(record, TrialRecord)
    return record


def lock_of(record: TrialRecord, place: Place) -> TrialLock:
    return TrialLock(place.home, record.attempt_key)


def test_a_finished_trial_is_spooled_counted_and_leaves_no_status(place: Place) -> None:
    record = attempt(place, fake_training.job(3, prints="hello"))
    assert (record.status, record.seed, record.exclusive) == ("finished", 3, False)
    assert record.metrics["val_loss"] == 2.03
    assert record.metrics["total_seconds"] > 0
    assert record.context["levels"] == {"model.norm": "fake"}
    assert record.environment_id == environment.environment_id(environment.describe("cpu", 1))
    assert Spool(place.home).records() == [record]
    assert lock_of(record, place).finished() == 1
    assert running(place.home) == []
    assert log_path(place.home, record.trial_id).read_text().startswith("hello")


@pytest.mark.parametrize(
    ("raises", "status", "cause"),
    [
        ("ValueError", "crashed", "ValueError: as asked"),
        ("MemoryError", "out_of_memory", "MemoryError: as asked"),
        ("SystemExit", "crashed", "SystemExit: as asked"),
    ],
)
def test_what_training_raises_is_a_result(place: Place, raises: str, status: str, cause: str) -> None:
    record = attempt(place, fake_training.job(raises=raises))
    assert (record.status, record.cause) == (status, cause)
    assert Spool(place.home).records() == [record]
    assert "Traceback" in log_path(place.home, record.trial_id).read_text()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_runs_out_in_several_ways(error: Exception) -> None:
    assert worker._failure(error)[0] == "out_of_memory"


def test_a_cause_is_one_short_line() -> None:
    status, cause = worker._failure(RuntimeError("first\n\n  second " + "x" * 5000))
    assert status == "crashed"
    assert "\n" not in cause
    assert len(cause) == 500


def test_a_trial_that_takes_too_long_is_a_timeout(place: Place) -> None:
    record = attempt(replace(place, timeout=0.05), fake_training.job(seconds=1.0))
    assert record.status == "timeout"
    assert record.cause.startswith("not done after 0.05 s, at step 1 of 10")


def test_a_cause_that_is_no_text_can_be_written() -> None:
    assert worker._failure(ValueError("\ud800")) == ("crashed", r"ValueError: \ud800")


def test_the_record_says_whether_the_device_was_its_own(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert attempt(replace(place, lease="cpu"), fake_training.job()).exclusive
    assert not attempt(replace(place, lease="cpu", shared=True), fake_training.job(1)).exclusive


def test_a_trial_that_somebody_finished_meanwhile_is_not_trained(place: Place) -> None:
    first = attempt(place, fake_training.job())
    assert execute(fake_training.job(finished_before=0), place) == Contended(1, first.environment_id)
    assert len(fake_training.notes(place.home, "begin")) == 1
    again = attempt(place, fake_training.job(finished_before=1))
    assert again.record_id != first.record_id
    assert lock_of(first, place).finished() == 2


def test_a_record_that_was_spooled_by_a_worker_that_died_then_counts(place: Place) -> None:
    record = attempt(place, fake_training.job())
    (place.home / "locks" / f"{record.attempt_key}.count").unlink()
    assert execute(fake_training.job(), place) == Contended(0, record.environment_id)


def test_a_trial_in_training_elsewhere_is_waited_for(place: Place) -> None:
    record = attempt(place, fake_training.job())
    lock, got = lock_of(record, place), []
    lock.acquire()
    thread = threading.Thread(target=lambda: got.append(execute(fake_training.job(finished_before=0), place)))
    thread.start()
    while [status.phase for status in running(place.home)] != ["wait"]:
        assert thread.is_alive()
    lock.release()
    thread.join()
    assert isinstance(got[0], Contended)


def test_status_of_a_dead_worker_is_cleared(home: Path) -> None:
    alive = StatusFile(home, trial_id="a", label="x seed 0", suite="s")
    alive.phase("train")
    alive.progress(step=10, steps=10, loss=1.5, tokens_per_second=7.0)
    dead = alive.path.with_name("b.4194305.json")
    dead.write_text(alive.path.read_text().replace(f'"pid": {running(home)[0].pid}', '"pid": 4194305'))
    (found,) = running(home)
    assert (found.trial_id, found.phase, found.step, found.loss) == ("a", "train", 10, 1.5)
    assert not dead.exists()


def test_reset_undoes_what_a_trial_left_behind() -> None:
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(7)
    process.reset("cpu", 1)
    first = torch.rand(3)
    process.reset("cpu", threads)
    assert torch.equal(first, torch.rand(3))
    assert first.dtype == torch.float32
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads


def test_the_record_says_what_its_worker_did_when(place: Place) -> None:
    began = time.time()
    context = attempt(replace(place, device_uuid="cpu", run_started=5.0, deaths=1), fake_training.job()).context
    phases, starts, ends = zip(*context["timeline"], strict=True)
    assert phases == ("prepare", "prepare", "compile", "train")
    assert began <= starts[0] and ends[-1] <= time.time()
    assert list(starts[1:]) == pytest.approx(ends[:-1], abs=0.2)
    assert (context["worker"], context["device_uuid"], context["run_started"]) == (os.getpid(), "cpu", 5.0)
    assert context["worker_deaths"] == 1


class Crowd:
    """A trainer that runs out of memory so many times, on a device of which others hold 5 GiB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.times, self.held, self.forgotten = times, [], 0
        monkeypatch.setattr(worker, "_resolve", lambda path: self.train)
        monkeypatch.setattr(memory, "held_by_others", lambda device: 5.0)
        monkeypatch.setattr(process, "forget", self.forget)

    def forget(self) -> None:
        self.forgotten += 1

    def train(self, job: Job, place: Place, hooks: Hooks) -> Result:
        lease: Any = hooks.exclusive
        self.held.append(lease.held)
        if len(self.held) <= self.times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        with hooks.exclusive:
            return Result(status="finished", metrics={}, curves={}, step_mode="fake")


@pytest.fixture
def leased(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return replace(place, lease="gpu-x", alone=False)


def test_a_trial_that_others_leave_no_memory_tries_again_with_the_device(
    leased: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(monkeypatch, times=1)
    record = attempt(leased, fake_training.job())
    assert (record.status, record.exclusive) == ("finished", True)
    assert crowd.held == [False, True]
    assert crowd.forgotten == 1
    assert record.context["first_attempt"] == "out of memory, of which other processes held 5.0 GiB"
    with Lease("gpu-x", on_wait=lambda: pytest.fail("the lease was not given back")):
        pass


def test_a_trial_that_others_leave_no_memory_twice_is_not_out_of_memory_yet(
    leased: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(monkeypatch, times=4)
    assert execute(fake_training.job(), leased) == Crowded()
    assert Spool(leased.home).records() == []
    assert crowd.forgotten == 2
    record = attempt(replace(leased, alone=True), fake_training.job())
    assert record.status == "out_of_memory"
    assert len(crowd.held) == 4


def test_a_trial_that_has_the_memory_is_out_of_it_at_once(leased: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(monkeypatch, times=1)
    monkeypatch.setattr(memory, "held_by_others", lambda device: 0.0)
    assert attempt(leased, fake_training.job()).status == "out_of_memory"
    assert len(crowd.held) == 1


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Which corpora were prepared."""
    made: list[str] = []

    def prepare(given: Any, cache: Path) -> ArrayCorpus:
        made.append("array")
        return ArrayCorpus(vocabulary=257)

    monkeypatch.setattr(data, "prepare", prepare)
    process.forget()
    yield made
    process.forget()


def real(seed: int, **overrides: Any) -> Job:
    recipe = tiny(seed, **overrides)
    job = fake_training.job(seed, shape=recipe.shape())
    return replace(job, recipe=recipe.to_dict(), corpus_fingerprint=ArrayCorpus(vocabulary=257).fingerprint)


def test_the_next_trial_finds_what_is_expensive(place: Place, prepared: list[str]) -> None:
    place = replace(place, trainer="ablate.worker:train_job")
    assert attempt(place, real(0)).status == "finished"
    kept, step = process.steps(), process.steps()._step
    assert step is not None
    process.reset("cpu", 1)
    assert attempt(place, real(1)).status == "finished"
    assert (process.steps(), process.steps()._step) == (kept, step)
    assert prepared == ["array"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), ValueError("a bug")])
def test_what_is_kept_is_dropped_when_a_trial_fails(
    place: Place, prepared: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    place = replace(place, trainer="ablate.worker:train_job")
    attempt(place, real(0))
    kept = process.steps()

    def fails(*args: Any, **options: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("ablate.train.train", fails)
        assert attempt(place, real(1)).status in ("out_of_memory", "crashed")
    assert process.steps() is not kept
    attempt(place, real(2))
    assert prepared == ["array", "array"]


def test_a_corpus_that_changed_since_the_plan_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Corpus:
        fingerprint = "f" * 16

    process.forget()
    monkeypatch.setattr(data, "prepare", lambda *args: Corpus())
    monkeypatch.setattr(Recipe, "from_dict", lambda fields: type("Fake", (), {"data": None}))
    hooks: Any = Hooks(exclusive=Lease(None), on_step=lambda progress: None, phase=lambda phase: None)
    with pytest.raises(ValueError, match=r"the corpus changed: f{16} here, d{16}"):
        worker.train_job(fake_training.job(), place, hooks)
