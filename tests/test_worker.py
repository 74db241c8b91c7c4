"""One attempt: whatever happens in training becomes a record, which is on disk before anybody is told."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_training
import pytest
import torch

from ablate import data, environment, process, worker
from ablate.lease import Lease
from ablate.recipe import Recipe
from ablate.status import StatusFile, log_path, running
from ablate.worker import Contended, Hooks, Job, Place, execute
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
    ],
)
def test_torch_runs_out_of_memory_in_two_ways(error: Exception) -> None:
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


def test_a_corpus_that_changed_since_the_plan_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Corpus:
        fingerprint = "f" * 16

    monkeypatch.setattr(data, "prepare", lambda *args: Corpus())
    monkeypatch.setattr(Recipe, "from_dict", lambda fields: type("Fake", (), {"data": None}))
    hooks: Any = Hooks(exclusive=Lease(None), on_step=lambda progress: None, phase=lambda phase: None)
    with pytest.raises(ValueError, match=r"the corpus changed: f{16} here, d{16}"):
        worker.train_job(fake_training.job(), place, hooks)
