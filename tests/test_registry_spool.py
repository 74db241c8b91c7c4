"""Records wait in the spool whole or not at all; a trial's lock keeps two processes from training it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from registry_records import design, record

from registry.locks import FileLock, TrialLock, write_whole
from registry.record import DesignRecord, RecordError, TrialRecord
from registry.spool import Spool, SpoolWarning

HOLD = """
import sys
from pathlib import Path
from registry.locks import TrialLock
lock = TrialLock(Path(sys.argv[1]), "key")
print(lock.try_acquire(), flush=True)
sys.stdin.readline()
lock.mark_finished()
print("marked", flush=True)
sys.stdin.readline()
"""


def holder(home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(home)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parent.parent)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_spooled_record_comes_back_equal_until_it_is_cleared(home: Path) -> None:
    spool, first, second = Spool(home), record(seed=1), record(seed=0)
    spool.put(first)
    spool.put(second)
    spool.put(first)
    assert spool.records() == [second, first]
    assert spool.find(first.attempt_key) == first
    spool.clear(first.record_id)
    spool.clear(first.record_id)
    assert spool.records() == [second]
    assert spool.find(first.attempt_key) is None


def test_an_empty_spool_is_no_error(home: Path) -> None:
    assert Spool(home).records() == []


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b'{"record_id": "x"', b"[1]"])
def test_a_damaged_file_is_set_aside_and_reported(home: Path, damage: bytes) -> None:
    spool, good = Spool(home), record()
    spool.put(good)
    (spool.folder / "bad.json").write_bytes(damage)
    with pytest.warns(SpoolWarning, match=r"bad\.json: not a record"):
        assert spool.records() == [good]
    assert (spool.folder / "damaged" / "bad.json").read_bytes() == damage
    assert spool.records() == [good]


def test_a_copy_under_another_name_is_no_second_record(home: Path) -> None:
    spool, good = Spool(home), record()
    spool.put(good)
    (spool.folder / "copy.json").write_text(good.to_json(), encoding="utf-8")
    with pytest.warns(SpoolWarning, match="not the name of its file"):
        assert spool.records() == [good]


def test_a_write_that_fails_leaves_nothing_half_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    spool = Spool(home)
    monkeypatch.setattr("registry.locks.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        spool.put(record())
    assert list(spool.folder.iterdir()) == []


def test_an_id_cannot_leave_the_spool(home: Path) -> None:
    with pytest.raises(RecordError, match="record_id"):
        Spool(home).put(record(record_id="../../x"))


def test_a_lock_excludes_processes_threads_and_itself(home: Path) -> None:
    lock = TrialLock(home, "key")
    with holder(home) as other:
        assert said(other) == "True"
        assert not lock.try_acquire()
        other.kill()
    assert lock.acquire()  # the kernel freed what a killed process held
    assert not TrialLock(home, "key").try_acquire()
    got = []
    thread = threading.Thread(target=lambda: got.append(TrialLock(home, "key").try_acquire()))
    thread.start()
    thread.join()
    assert got == [False]
    assert TrialLock(home, "other").try_acquire()
    lock.release()
    assert TrialLock(home, "key").try_acquire()


def test_asking_for_the_counter_keeps_the_lock(home: Path) -> None:
    """Closing any descriptor of a file drops its `lockf`: the counter must not be in the lock's file."""
    lock = TrialLock(home, "key")
    with lock:
        assert lock.finished() == TrialLock(home, "key").finished() == 0
        lock.mark_finished()
        assert TrialLock(home, "key").finished() == 1
        with holder(home) as other:
            assert said(other) == "False"
            other.kill()


def test_the_counter_moves_for_everybody_when_a_holder_finishes(home: Path) -> None:
    lock = TrialLock(home, "key")
    with holder(home) as other:
        assert said(other) == "True"
        before = lock.finished()
        tell(other)
        assert said(other) == "marked"
        assert (before, lock.finished()) == (0, 1)
        other.kill()
    with pytest.raises(AssertionError, match="holder"):
        lock.mark_finished()


def test_a_blocking_lock_waits(home: Path) -> None:
    first, order = FileLock(home / "lock"), []

    def second() -> None:
        with FileLock(home / "lock"):
            order.append("second")

    first.acquire()
    thread = threading.Thread(target=second)
    thread.start()
    order.append("first")
    first.release()
    thread.join()
    assert order == ["first", "second"]


def test_whole_files_replace_each_other(tmp_path: Path) -> None:
    write_whole(tmp_path / "deep" / "file", "one")
    write_whole(tmp_path / "deep" / "file", "two")
    assert [path.read_text() for path in (tmp_path / "deep").iterdir()] == ["two"]


def test_a_whole_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "one")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_a_record_is_set_aside(home: Path) -> None:
    spool = Spool(home)
    (spool.folder / "folder.json").mkdir(parents=True)
    (spool.folder / "deep.json").write_text("[" * 100_000)
    with pytest.warns(SpoolWarning):
        assert spool.records() == []
    assert sorted(path.name for path in (spool.folder / "damaged").iterdir()) == ["deep.json", "folder.json"]


def test_records_of_earlier_versions_are_read_and_of_a_later_one_refused() -> None:
    trial, plan = record(), design([{"model.attention": "mha"}])
    old = trial.to_dict() | {"schema_version": 1}
    del old["text_fingerprint"]
    second = TrialRecord.from_dict(old | {"schema_version": 2}).to_dict()
    assert second == trial.to_dict() | {"text_fingerprint": "slice-a"}
    del old["evaluation_fingerprint"]
    first = TrialRecord.from_dict(old).to_dict()
    assert first == trial.to_dict() | dict.fromkeys(("evaluation_fingerprint", "text_fingerprint"), "corpus-a")
    assert DesignRecord.from_dict(plan.to_dict() | {"schema_version": 1}) == plan
    for kind, data in ((TrialRecord, trial.to_dict()), (DesignRecord, plan.to_dict())):
        with pytest.raises(RecordError, match="schema_version: 4 is not 3"):
            kind.from_dict(data | {"schema_version": 4})
    with pytest.raises(RecordError, match="evaluation_fingerprint"):
        TrialRecord.from_dict(old | {"schema_version": 3})


def test_a_design_says_what_is_no_ordinary_trial_and_older_ones_say_nothing() -> None:
    plan = design([{"norm": "rmsnorm"}, {"norm": "layernorm"}], seeds=1)
    new = ("cells_stood_for", "aliases", "tuning", "drift")
    assert DesignRecord.from_dict({name: value for name, value in plan.to_dict().items() if name not in new}) == plan
    known = {"trial_id": "t", "cell_id": "c", "levels": {}, "seed": 0, "control": "bad", "label": "known-bad: lr=x10"}
    assert DesignRecord.from_dict(plan.to_dict() | {"trials": [known]}).trials == [known]
    for wrong, message in (
        ({"control": "good"}, "control 'good' is not one of aa, bad"),
        ({"stage": "x"}, "stage 'x'"),
    ):
        with pytest.raises(RecordError, match=message):
            DesignRecord.from_dict(plan.to_dict() | {"trials": [known | wrong]})
