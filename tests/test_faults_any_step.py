"""Faults of tests/FAULTS.md at any step of a piece of work, each in a process of its own that no Ray is needed for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from faulty import PATIENCE, PYTHONPATH, ROOT, Cut, small_disk
from registry_records import record
from servers import free_port
from test_fire import own_temporary_folder, tracking_server

from registry.spool import Spool
from registry.store import Store
from registry.trouble import StoreUnavailable

pytestmark = pytest.mark.slow
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
