"""Faults of tests/FAULTS.md that take processes, Ray or a server: what was finished is kept once, and the next run completes the rest."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_training
import pytest
from faulty import CLOCK, PATIENCE, PYTHONPATH, ROOT, Cut, fill, held, small_disk, until
from registry_records import record
from servers import free_port
from test_fire import alive, driver, ended, finish, own_temporary_folder, recorded, tracking_server, trial_ids

from ablate.status import running
from registry.spool import Spool
from registry.store import Store
from registry.trouble import StoreUnavailable

pytestmark = pytest.mark.fire
own_temporary_folder = own_temporary_folder  # every test of this file has it


def crash(what: str, folder: Path, *ways: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "crashing.py"), what, str(folder), *ways], env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


KILLED = {
    "prepare": ("SIGKILL:4", "SIGINT:3", "SIGTERM+SIGKILL:3"),
    "record": ("SIGKILL:16", "SIGINT:4", "SIGTERM+SIGKILL:4"),
    "upload": ("SIGKILL:10", "SIGINT:3", "SIGTERM+SIGKILL:3"),
    "sync": ("SIGKILL:5", "SIGINT:3", "SIGTERM+SIGKILL:3"),
}
FULL = {"prepare": "3", "record": "12/11", "upload": "5", "sync": "4"}  # a record takes six blocks


@pytest.mark.parametrize("what", KILLED)
def test_killed_at_any_step_and_twice(what: str, home: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "disk").mkdir()
    crash(what, folder, *KILLED[what])


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_at_any_write(what: str, home: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16) as disk:
        (folder := disk / "it").mkdir()
        crash(what, folder, f"full:{FULL[what]}")


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


@pytest.mark.filterwarnings("ignore::registry.store.StoreWarning")  # artifacts, which are only for people to look at
def test_a_server_that_dies_between_any_two_calls(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port, spool = free_port(), Spool(home)
    with tracking_server(tmp_path, port), Cut(port) as cut:
        threading.Thread(target=cut.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{cut.server_address[1]}"
        calls, done = 0, False
        while not done:
            cut.left = calls
            spool.put(one := record(seed=calls))
            try:
                taken = Store.open(home, uri).ingest(spool)
            except StoreUnavailable:
                taken = 0
            done = cut.left >= 0  # there were as many calls as it takes
            assert [kept.record_id for kept in spool.records()] == [one.record_id] * (1 - taken)
            cut.left = 10**9
            assert Store.open(home, uri).ingest(spool) == 1 - taken
            calls += 1
        found = Store.open(home, f"http://127.0.0.1:{port}").trials()
        runs = Store.open(home, f"http://127.0.0.1:{port}").changes("trial").present
        cut.shutdown()
    assert calls > 5
    assert sorted(one.seed for one in found) == list(range(calls))
    assert len(runs or ()) == calls


HUNGRY = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import fake_training
from tiny import tiny
from ablate import data
from ablate.worker import Place, execute
home = Path(sys.argv[1])
def job(seed, **fields):
    recipe = tiny(seed, **fields)
    corpus = data.prepare(recipe.data, home / "cache")
    return replace(fake_training.job(seed), recipe=recipe.to_dict(), corpus_fingerprint=corpus.fingerprint)
place = Place(home=home, device="cpu", threads=1, lease=None)
small, large = job(0), job(1, model__dim=4096, model__n_layers=4)
said = [execute(small, place).status]
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 500 * 2**20,) * 2)
said += [execute(one, place).status for one in (large, replace(small, trial_id="2" * 16))]
print(*said)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process are Linux's")
def test_the_memory_of_the_machine_runs_out(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HUNGRY, str(home)], env=os.environ | {"PYTHONPATH": PYTHONPATH}, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["finished", "out_of_memory", "finished"], done.stderr[-2000:]
