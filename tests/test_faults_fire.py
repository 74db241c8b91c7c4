"""Faults of tests/FAULTS.md that take processes, Ray or a server: what was finished is kept once, and the next run completes the rest."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_training
import pytest
from faulty import CLOCK, PATIENCE, fill, held, small_disk, until
from test_fire import alive, driver, ended, finish, own_temporary_folder, recorded, trial_ids

from ablate.status import running
from registry.spool import Spool
from registry.store import Store

pytestmark = pytest.mark.fire
own_temporary_folder = own_temporary_folder  # every test of this file has it


def test_a_full_disk_ends_a_run_at_once_with_what_to_do(home: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with small_disk(home, 64):
        with driver(home, jobs=4, workers=1, recipe={"seconds": 0.5, "gate": str(gate)}) as run:
            run.until(lambda: fake_training.notes(home, "measure"))
            ballast = fill(home)
            gate.touch()
            said = run.wait(2)["error"]
        assert "no space left on device; make room and give the same command again" in said, said
        assert len(fake_training.notes(home, "begin")) == 1, "others were trained for nothing"
        ballast.unlink()
        assert finish(home, jobs=4, workers=1)["missing"] == []
        assert recorded(home) == trial_ids(4)


def test_a_second_signal_while_a_run_ends_changes_nothing(home: Path) -> None:
    with driver(home, jobs=6, recipe={"seconds": 1.5}) as run:
        run.until(ended(home, 1))
        run.until(lambda: len(Spool(home).records()) + len(recorded(home)) > 0)
        family = run.family()
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            run.process.send_signal(number)
            time.sleep(0.05)
        assert run.process.wait(PATIENCE) in (130, 143)
        assert "Traceback" not in run.output()
    until(lambda: not any(map(alive, family)))
    assert finish(home, jobs=6)["missing"] == []
    assert recorded(home) == trial_ids(6)


def test_a_driver_killed_twice_loses_nothing(home: Path) -> None:
    for count in (1, 3):
        with driver(home, jobs=5, recipe={"seconds": 0.5}) as run:
            run.until(ended(home, count))
            run.process.kill()
            run.process.wait()
    assert finish(home, jobs=5)["missing"] == []
    assert recorded(home) == trial_ids(5)


def test_workers_that_are_terminated_or_killed_in_any_phase_are_replaced(home: Path, tmp_path: Path) -> None:
    faults = {"prepare": signal.SIGTERM, "compile": signal.SIGKILL, "train": signal.SIGTERM}
    holds = {str(seed): phase for seed, phase in enumerate(faults)}
    with driver(home, jobs=3, workers=1, recipe={"holds": holds, "gates": str(tmp_path / "gate")}) as run:
        for seed, (phase, number) in enumerate(faults.items()):
            trial_id, pid = run.until(lambda phase=phase: fake_training.notes(home, f"holds-{phase}"))[0]
            assert trial_id == trial_ids(3)[seed]
            os.kill(pid, number)
            (tmp_path / f"gate-{seed}").touch()
        report = run.wait()
    assert report["status"] == ["finished"] * 3
    assert recorded(home) == trial_ids(3)
    assert all(record.context["worker_deaths"] == 1 for record in Store.open(home).trials())


def test_next_to_no_shared_memory(home: Path) -> None:
    """In a mount namespace of its own, for it is everybody's."""
    inside = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"', "sh")
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not mount in a namespace of its own")
    with driver(home, before=inside, jobs=2, workers=1) as run:
        assert run.wait()["status"] == ["finished"] * 2
    assert recorded(home) == trial_ids(2)


def test_the_clock_is_set_back_by_two_hours_while_a_trial_trains(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not sys.platform.startswith("linux") or shutil.which("cc") is None:
        pytest.skip("needs Linux and a C compiler")
    source, library, gate, back = (tmp_path / name for name in ("clock.c", "clock.so", "gate", "back"))
    source.write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CLOCK_IS_BACK", str(back))
    with driver(home, jobs=2, workers=1, recipe={"gate": str(gate), "seconds": 3.0}) as run:
        ((first, _),) = run.until(lambda: fake_training.notes(home, "measure"))
        back.touch()
        gate.touch()
        # progress is told all the same, by the trial that saw the clock go back, and not only at its end
        run.until(lambda: any(one.trial_id == first and 1 < one.step < one.steps for one in running(home)))
        report = run.wait()
        assert report["status"] == ["finished"] * 2
        assert finish(home, jobs=2, workers=1)["asked"] == 0
    assert recorded(home) == trial_ids(2)
    records = Store.open(home).trials()
    assert any(one.started_at > one.finished_at for one in records), "the clock was not set back"
    assert all(end >= start for one in records for _, start, end in one.context["timeline"])


def test_records_wait_while_another_process_has_locked_the_database(home: Path, tmp_path: Path) -> None:
    first, second, third = trial_ids(3)
    holds = {str(seed): "train" for seed in (1, 2)}
    with driver(home, jobs=3, workers=1, recipe={"holds": holds, "gates": str(tmp_path / "gate")}) as run:
        run.until(lambda: fake_training.notes(home, "holds-train") and recorded(home) == [first])
        with held(home / "mlflow.db") as holder:
            (tmp_path / "gate-1").touch()
            said = run.until(lambda: fake_training.messages(home))  # after as long as MLflow waits
            assert "database is locked" in said and "records wait in the spool" in said
            assert [one.trial_id for one in Spool(home).records()] == [second]
            holder.communicate("")
        run.until(lambda: recorded(home) == [first, second])  # while the run goes on
        (tmp_path / "gate-2").touch()
        assert run.wait()["missing"] == []
    assert recorded(home) == [first, second, third]
    assert Spool(home).records() == []
