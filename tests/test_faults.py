"""Faults of tests/FAULTS.md that need no Ray: what was finished is kept once, and the message says what to do."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_training
import numpy as np
import pytest
from faulty import ROOT, flipped, held, in_one_line, mounted
from registry_records import design, empty_store, record
from tiny import ArrayCorpus, tiny

from ablate import checkpoints, data, process, worker
from ablate.errors import said
from ablate.lease import Lease
from registry import sqlite_read
from registry.locks import TrialLock
from registry.spool import Spool
from registry.store import Store
from registry.trouble import StoreUnavailable

# Any step of the work on a home


# A whole run


def test_a_design_that_is_declared_after_the_clock_was_set_back_is_the_newest(home: Path) -> None:
    store, cells = empty_store(home), [{"model.attention": "mha"}, {"model.attention": "gqa"}]
    before = replace(design(cells), created_at="2030-01-01T00:00:00.000+00:00")
    after = replace(design(cells, seeds=[0, 1, 2]), design_id="d" * 32, created_at="2029-01-01T00:00:00.000+00:00")
    for one in (before, after, replace(after, design_id="e" * 32)):
        store.declare(one)
    assert [one.design_id for one in store.designs()] == [before.design_id, after.design_id]


# The store


def test_a_database_that_another_process_has_locked(home: Path, ablate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_store(home).write_trial(record())
    monkeypatch.setattr(sqlite_read, "PATIENCE_SECONDS", 0.2)
    with held(home / "mlflow.db") as holder:
        for argv in (["leaderboard"], ["query", "SELECT count(*) FROM trials"], ["doctor"]):
            code, out, err = ablate(*argv)
            assert code == 2 and "database is locked by another process; try again when that is done" in out + err
            assert len(err.splitlines()) == (argv != ["doctor"])
        holder.communicate("")
    assert len(Store.open(home).trials()) == 1


@pytest.mark.parametrize("left", [100, 20_000])
def test_a_database_that_was_cut_off_is_named(home: Path, ablate: Any, left: int) -> None:
    empty_store(home).write_trial(record())
    os.truncate(home / "mlflow.db", left)
    code, _, err = ablate("leaderboard")
    assert code == 2 and err.startswith("error: tracking store sqlite:///") and len(err.splitlines()) == 1, err


def test_a_server_that_takes_calls_and_never_answers(home: Path, ablate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    Spool(home).put(record())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        code, _, err = ablate("leaderboard")
        assert code == 2 and "does not answer" in err and len(err.splitlines()) == 1, err
        with pytest.raises(StoreUnavailable, match="does not answer"):
            Store.open(home).ingest(Spool(home))
    assert len(Spool(home).records()) == 1


# Files that are not what was written


def test_a_spooled_record_with_any_bit_flipped_is_set_aside_and_its_trial_is_trained_again(home: Path) -> None:
    home.mkdir()
    place = worker.Place(home=home, device="cpu", threads=1, lease=None, trainer="fake_training:train")
    job, spool = fake_training.job(), Spool(home)
    kept = worker.execute(job, place)
    path, before = spool.folder / f"{kept.record_id}.json", TrialLock(home, kept.attempt_key).finished()  # type: ignore[union-attr]
    raw = path.read_bytes()
    for at in (*range(0, len(raw), 97), len(raw) - 1):
        path.write_bytes(flipped(raw, at))
        with pytest.warns(UserWarning, match="not a record, moved out of the spool"):
            assert spool.records() == [], at
    for length in (0, 1, len(raw) // 2):
        path.write_bytes(raw[:length])
        with pytest.warns(UserWarning, match="not a record"):
            assert spool.records() == []
    again = worker.execute(replace(job, finished_before=before), place)
    assert spool.records() == [again]


@pytest.mark.parametrize("damage", [b"", b"\x00", b"x", b"9" * 5000])
def test_a_damaged_counter_stops_nothing(home: Path, damage: bytes) -> None:
    lock = TrialLock(home, "key")
    with lock:
        lock.mark_finished()
        (home / "locks" / "key.count").write_bytes(damage)
        assert lock.finished() == 0
        lock.mark_finished()
        assert lock.finished() == 1


def contents(checkpoint: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class Stopped(Exception):
    pass


def test_a_damaged_checkpoint_is_not_gone_on_from(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = ArrayCorpus()
    process.forget()
    monkeypatch.setattr(data, "prepare", lambda *args: corpus)
    monkeypatch.setattr(worker, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(worker, "CHECKPOINT_SECONDS", 0.0)
    home.mkdir()
    place = worker.Place(home=home, device="cpu", threads=1, lease=None)
    job = replace(fake_training.job(), recipe=tiny().to_dict(), corpus_fingerprint=corpus.fingerprint)

    def train(stop: int | None = None) -> Any:
        def on_step(progress: Any) -> None:
            if progress.step == stop:
                raise Stopped

        return worker.train_job(
            job, place, worker.Hooks(exclusive=Lease(None), on_step=on_step, phase=lambda phase: None)
        )

    whole = train()
    (path,) = (home / "checkpoints").iterdir()
    path.unlink()
    with pytest.raises(Stopped):
        train(8)
    good = path.read_bytes()
    resumed = train()
    assert resumed.context["resumed_at_step"] > 0
    assert resumed.metrics["val_loss"] == whole.metrics["val_loss"]
    damages = [flipped(good, len(good) * i // 100) for i in range(100)] + [b"", good[:1000], good[:-1]]
    for damaged in damages:
        path.write_bytes(damaged)
        # what the checksums do not cover is dates and the like, of which nothing is read
        assert not checkpoints.usable(home, path.stem).exists() or contents(damaged) == contents(good)
    path.write_bytes(flipped(good, len(good) // 2))
    begun = train()
    assert begun.context["resumed_at_step"] == 0
    assert begun.metrics["val_loss"] == whole.metrics["val_loss"]
    path.unlink()
    path.with_suffix(".partial").write_bytes(good[:1000])
    checkpoints.usable(home, path.stem)
    assert list(path.parent.iterdir()) == []


# The machine


def test_a_home_that_cannot_be_written_to(
    home: Path, ablate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there can be read, also what another user has just added."""
    store = empty_store(home)
    store.write_trial(record())
    assert ablate("query", "SELECT count(*) AS n FROM trials", "--format", "csv") == (0, "n\n1\n", "")
    store.write_trial(record(seed=1))
    before = sorted(home.rglob("*"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with mounted(home, "--bind", str(home)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(home)], check=True)
        for _ in "12":
            assert ablate("query", "SELECT count(*) AS n FROM trials", "--format", "csv") == (0, "n\n2\n", "")
        for argv in (["run", "quickstart"], ["speed", "quickstart"]):
            in_one_line(ablate(*argv), "read-only file system; set ABLATE_HOME to a folder that can be written to")
        assert len(Store.open(home, create=False).trials()) == 2
    assert sorted(home.rglob("*")) == before


def test_a_disk_that_is_full_while_a_trial_trains_is_no_result_of_the_trial(home: Path) -> None:
    home.mkdir()
    place = worker.Place(home=home, device="cpu", threads=1, lease=None, trainer="faulty:without_room")
    with pytest.raises(OSError, match="No space left"):
        worker.execute(fake_training.job(), place)
    assert Spool(home).records() == []


def test_a_full_disk_is_named_where_numpy_counts_what_it_wrote(home: Path) -> None:
    with pytest.raises(OSError, match="requested and") as caught, open("/dev/full", "wb") as file:
        np.zeros(2**20).tofile(file)
    assert said(caught.value, home) == "no space left on device; make room and give the same command again"


def test_a_log_and_a_status_that_cannot_be_written_end_no_trial(home: Path) -> None:
    job = fake_training.job(prints="a line")
    for path in (home / "logs" / f"{job.trial_id}.log", home / "status" / f"{job.trial_id}.{os.getpid()}.partial"):
        path.parent.mkdir(parents=True)
        path.symlink_to("/dev/full")
    place = worker.Place(home=home, device="cpu", threads=1, lease=None, trainer="fake_training:train")
    record = worker.execute(job, place)
    assert Spool(home).records() == [record]
    assert record.status == "finished"  # type: ignore[union-attr]


# The list

LIST = (ROOT / "tests" / "FAULTS.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in LIST.splitlines() if line.startswith("| ")][2:]
FAULTS = """prepare; record; upload; mirror; compile; train; worker killed; driver killed; killed twice; Ctrl-C; SIGTERM;
twice, then; disk full; spooled record truncated; token cache truncated; mirror truncated; checkpoint truncated; MLflow absent;
never answers; refuses; dies between two calls; SQLite locked; two drivers; memory of the machine; memory of the device; NaN;
hangs; clock set back; read-only home; /dev/shm"""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_the_list_names_is_there(row: list[str]) -> None:
    fault, done, named, proves = row
    file, _, test = named.strip("`").partition("::")
    assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE), named
    assert fault and done and proves


@pytest.mark.parametrize("fault", [one.strip() for one in FAULTS.split(";")])
def test_the_list_names_every_fault(fault: str) -> None:
    assert any(fault in row[0] for row in ROWS)


def test_every_test_of_a_fault_is_in_the_list() -> None:
    for file in ("test_faults.py", "test_faults_any_step.py", "test_faults_fire.py"):
        for test in re.findall(r"^def (test_\w+)\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE):
            assert "_list" in test or f"`{file}::{test}`" in LIST, test
