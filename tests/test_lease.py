"""One process at a time is measured on a device, and nobody's death blocks the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ablate.lease import Lease, lease_folder

HOLDER = """
import sys, time
from ablate.lease import Lease
with Lease("device"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def test_a_lease_without_a_name_is_shared() -> None:
    started = []
    with Lease(None, on_start=lambda: started.append(1)) as first, Lease(None) as second:
        assert not first.exclusive
        assert not second.exclusive
    assert started == [1]
    assert not lease_folder().exists()


def test_a_free_lease_is_exclusive_and_waits_for_nobody() -> None:
    waits = []
    with Lease("device", on_wait=lambda: waits.append(1)) as lease:
        assert lease.exclusive
        with Lease("another device") as other:
            assert other.exclusive
    assert lease.waited == 0.0
    assert not waits


def test_a_lease_may_be_taken_before_the_measured_window() -> None:
    seen: list[tuple[str, bool]] = []
    lease = Lease(
        "device",
        on_start=lambda: seen.append(("start", lease.held)),
        on_end=lambda: seen.append(("end", lease.held)),  # it is over before the next one's can begin
    )
    lease.release()
    lease.acquire()
    assert lease.held and not seen
    with lease:
        assert seen == [("start", True)]
    assert (lease.held, lease.exclusive, seen) == (False, True, [("start", True), ("end", True)])


@pytest.mark.parametrize(("mode", "free"), [("", False), ("shared=True", True)])
def test_a_shared_lease_keeps_out_only_those_that_want_the_device_alone(mode: str, free: bool) -> None:
    """`lockf` excludes processes, so the second one is another process."""
    with Lease("device", shared=True) as lease:
        assert not lease.exclusive
        script = f"""
import os
from ablate.lease import Lease
with Lease("device", {mode}{", " if mode else ""}on_wait=lambda: os._exit(3)):
    pass
"""
        done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.returncode == (0 if free else 3)


def test_a_killed_holder_is_succeeded_at_once() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waiting, got = threading.Event(), []

    def take() -> None:
        with Lease("device", on_wait=waiting.set) as lease:
            got.append(lease)

    thread = threading.Thread(target=take)
    thread.start()
    assert waiting.wait(10)
    assert not got
    holder.send_signal(signal.SIGKILL)
    thread.join(10)
    holder.wait()
    holder.stdout.close()
    assert got[0].exclusive
    assert got[0].waited > 0
