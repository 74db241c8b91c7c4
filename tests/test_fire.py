"""Whatever dies, a finished trial is neither lost nor trained again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_training
import psutil
import pytest

from ablate.status import running
from registry.record import TrialRecord
from registry.spool import Spool
from registry.store import Store

pytestmark = pytest.mark.fire
ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0


@pytest.fixture(autouse=True)
def own_temporary_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leases of one test are not those of another. Its path is short, for Ray puts sockets there."""
    with tempfile.TemporaryDirectory(prefix="fire-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        home.mkdir()
        yield


class Driver:
    """`fake_training.main` in a process group of its own; the words `before` start it."""

    def __init__(self, home: Path, before: Sequence[str] = (), **options: Any) -> None:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.log = (home / f"driver-{time.monotonic_ns()}").open("w+")
        self.process = subprocess.Popen(
            [*before, sys.executable, str(ROOT / "tests" / "fake_training.py"), str(home), json.dumps(options)],
            env=os.environ | {"PYTHONPATH": path}, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for something to be seen while the driver lives."""
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < end, self.output()
            time.sleep(0.02)
        return found

    def family(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def wait(self, code: int = 0) -> dict[str, Any]:
        """The outcome, which is all that it may print."""
        assert self.process.wait(PATIENCE) == code, self.output()
        lines = self.output().splitlines()
        assert len(lines) == 1, lines
        return json.loads(lines[0])

    def output(self) -> str:
        self.log.seek(0)
        return self.log.read()


@contextmanager
def driver(home: Path, before: Sequence[str] = (), **options: Any) -> Iterator[Driver]:
    made = Driver(home, before, **options)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()
        made.log.close()


def finish(home: Path, **options: Any) -> dict[str, Any]:
    with driver(home, **options) as run:
        return run.wait()


def trial_ids(count: int) -> list[str]:
    return [fake_training.job(seed).trial_id for seed in range(count)]


def recorded(home: Path) -> list[str]:
    """The trial of every record in the store; one that was trained twice to its end is there twice."""
    return sorted(record.trial_id for record in Store.open(home).trials())


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ended(home: Path, count: int) -> Callable[[], bool]:
    return lambda: len(fake_training.notes(home, "end")) >= count


def test_a_run_that_nothing_disturbs_completes(home: Path) -> None:
    """Also without any one of the safeguards that `safeguards.py` takes out: so it is for the fault that the other tests fail then."""
    report = finish(home, jobs=3)
    assert (report["status"], report["missing"], report["messages"]) == (["finished"] * 3, [], [])
    assert recorded(home) == trial_ids(3)
    assert Spool(home).records() == []


def test_a_killed_driver_loses_nothing_and_repeats_nothing(home: Path) -> None:
    with driver(home, recipe={"seconds": 0.5}) as run:
        run.until(ended(home, 3))
        run.process.kill()
        run.process.wait()
    report = finish(home, recipe={"seconds": 0.5})
    assert report["missing"] == []
    assert report["asked"] < 8
    assert recorded(home) == trial_ids(8)
    assert Spool(home).records() == []


@pytest.mark.parametrize("workers", [1, 2], ids=["holding the lease", "sharing the device"])
def test_a_killed_workers_trial_is_given_to_the_next(home: Path, tmp_path: Path, workers: int) -> None:
    gate = tmp_path / "gate"
    with driver(home, jobs=3, workers=workers, recipe={"gate": str(gate)}) as run:
        trial_id, pid = run.until(lambda: fake_training.notes(home, "measure"))[0]
        os.kill(pid, signal.SIGKILL)
        gate.touch()
        report = run.wait()
    assert report["status"] == ["finished"] * 3
    assert recorded(home) == trial_ids(3)
    begun = [begun for begun, _ in fake_training.notes(home, "begin")]
    assert sorted(begun) == sorted([*trial_ids(3), trial_id])
    records = {record.trial_id: record for record in Store.open(home).trials()}
    assert {record.exclusive for record in records.values()} == {workers == 1}
    assert {i for i, record in records.items() if record.context.get("worker_deaths")} == {trial_id}
    assert records[trial_id].context["worker"] != pid


def test_a_trial_without_room_beside_others_is_tried_alone(home: Path) -> None:
    report = finish(home, jobs=4, workers=2, recipe={"crowded": 1})
    assert dict(zip(report["records"], report["status"], strict=True)) == dict.fromkeys(trial_ids(4), "finished")
    assert report["records"][-1] == trial_ids(2)[1]
    begun = [begun for begun, _ in fake_training.notes(home, "begin")]
    assert sorted(begun) == sorted([*trial_ids(4), *[trial_ids(2)[1]] * 2])


HOLDER = """
import sys
from pathlib import Path
import fake_training
from ablate.worker import Place, execute
place = Place(home=Path(sys.argv[1]), device="cpu", threads=1, lease="gpu-x", trainer="fake_training:train")
print(execute(fake_training.job(int(sys.argv[2]), **({"gate": sys.argv[3]} if sys.argv[3:] else {})), place).to_json())
"""


def test_workers_that_wait_for_the_device_go_on_when_its_holder_is_killed(home: Path, tmp_path: Path) -> None:
    gate, path = tmp_path / "gate", os.pathsep.join([str(ROOT), str(ROOT / "tests")])

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(home), *arguments]
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)

    def until(condition: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    with start("0", str(gate)) as holder:
        until(lambda: fake_training.notes(home, "measure"))
        with start("1") as second, start("2") as third:
            until(lambda: sum(status.phase == "wait" for status in running(home)) == 2)
            killed = time.time()
            holder.kill()
            records = [TrialRecord.from_json(worker.communicate(timeout=PATIENCE)[0]) for worker in (second, third)]
    trained = sorted(phase for record in records for phase in record.context["timeline"] if phase[0] == "train")
    assert [record.status for record in records] == ["finished"] * 2
    assert all(record.exclusive and record.context["waited_seconds"] > 0 for record in records)
    assert killed < trained[0][1]
    assert trained[0][2] <= trained[1][1]


def test_a_trial_that_always_kills_its_worker_is_recorded_as_killed(home: Path) -> None:
    report = finish(home, jobs=3, workers=1, recipe={"dies": 1})
    assert dict(zip(report["records"], report["status"], strict=True)) == dict(
        zip(trial_ids(3), ["finished", "killed", "finished"], strict=True)
    )
    assert sum(trial_id == trial_ids(2)[1] for trial_id, _ in fake_training.notes(home, "begin")) == 3
    (killed,) = [record for record in Store.open(home).trials() if record.status == "killed"]
    assert killed.cause.startswith("its worker died 3 times")
    assert finish(home, jobs=3, workers=1)["asked"] == 0


def test_a_trial_that_hangs_is_ended_and_the_rest_goes_on(home: Path, tmp_path: Path) -> None:
    report = finish(home, jobs=2, workers=1, timeout=1.0, recipe={"hangs": 0})
    assert dict(zip(report["records"], report["status"], strict=True)) == dict(
        zip(trial_ids(2), ["timeout", "finished"], strict=True)
    )
    assert len(fake_training.notes(home, "begin")) == 2
    (hung,) = [record for record in Store.open(home).trials() if record.status == "timeout"]
    assert hung.cause == "not done after 1 s, and it did not answer: its worker was ended"


@pytest.mark.parametrize("to_group", [False, True], ids=["driver", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_at_once_and_leaves_no_process(home: Path, number: signal.Signals, to_group: bool) -> None:
    with driver(home, jobs=6, recipe={"seconds": 1.5}) as run:
        run.until(ended(home, 1))
        run.until(lambda: len(Spool(home).records()) + len(recorded(home)) > 0)
        family = run.family()
        began = time.monotonic()
        (os.killpg if to_group else os.kill)(run.process.pid, number)
        report = run.wait(128 + number)
        assert time.monotonic() - began < 5
    assert [process for process in family if alive(process)] == []
    assert report["missing"] != []
    report = finish(home, jobs=6)
    assert report["missing"] == []
    assert report["asked"] < 6
    assert recorded(home) == trial_ids(6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts_ends_the_run_too(home: Path, number: signal.Signals) -> None:
    with driver(home, jobs=2) as run:
        run.until(lambda: list(Path(os.environ["TMPDIR"]).glob("ablate-ray-*/session*")))
        family = run.family()
        began = time.monotonic()
        run.process.send_signal(number)
        assert run.wait(128 + number)["missing"] == trial_ids(2)
        while any(map(alive, family)):
            assert time.monotonic() - began < 5
    assert fake_training.notes(home, "end") == []


def test_two_drivers_on_an_empty_home_share_the_work(home: Path) -> None:
    with driver(home, jobs=4, recipe={"seconds": 0.5}) as one, driver(home, jobs=4, recipe={"seconds": 0.5}) as two:
        reports = one.wait(), two.wait()
    for report in reports:
        assert sorted(report["records"] + report["elsewhere"]) == trial_ids(4)
    assert recorded(home) == trial_ids(4)
    assert len(fake_training.notes(home, "end")) == 4


@contextmanager
def tracking_server(folder: Path, port: int) -> Iterator[None]:
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [
        sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            assert server.poll() is None
            assert time.monotonic() < end
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_tracking_server_may_be_away_in_the_middle(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    gate = tmp_path / "gate"
    with tracking_server(tmp_path, port):
        run = Driver(home, jobs=4, workers=1, recipe={"seconds": 0.5, "gate": str(gate)})
        run.until(lambda: fake_training.notes(home, "measure"))
    with run.log:
        gate.touch()
        run.until(ended(home, 3))
        assert len(Spool(home).records()) >= 2
        with tracking_server(tmp_path, port):
            report = run.wait()
            assert sorted(report["records"]) == trial_ids(4)
            assert any("does not answer" in message for message in report["messages"])
            Store.open(home).ingest(Spool(home))
            assert recorded(home) == trial_ids(4)
            assert finish(home, jobs=4, workers=1)["asked"] == 0
