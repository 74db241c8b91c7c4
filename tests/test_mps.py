"""Packed trials have a daemon of their own, and it ends whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ablate.cli import main
from ablate.mps import mps

ROOT = Path(__file__).resolve().parent.parent
FAKE = """#!/bin/sh
# as the real one: in the background it keeps the stdout that it was given
echo "$* in $CUDA_MPS_PIPE_DIRECTORY, sees ${CUDA_VISIBLE_DEVICES-all}" >> CALLS
[ "$1" = -d ] && { RETURN; sleep 30 & exit 0; }
read line; echo "$line" >> CALLS
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a stand-in for the daemon's control was called with, one line a call."""
    return daemon(tmp_path, monkeypatch, ":")


def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_start: str) -> Path:
    calls, binary = tmp_path / "calls", tmp_path / "bin" / "nvidia-cuda-mps-control"
    binary.parent.mkdir()
    binary.write_text(FAKE.replace("CALLS", str(calls)).replace("RETURN", on_start).replace("sleep 30", "sleep 2"))
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    return calls


def test_processes_started_meanwhile_find_the_daemon_and_it_is_told_to_quit(calls: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    with mps(tmp_path) as trouble:
        assert trouble == ""
        assert time.monotonic() - began < 1.5, "it waited for what the daemon keeps open"
        assert os.environ["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "mps")
        assert os.environ["CUDA_MPS_LOG_DIRECTORY"] == str(tmp_path / "mps-log")
        assert calls.read_text() == f"-d in {tmp_path / 'mps'}, sees all\n"
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert calls.read_text().splitlines()[1:] == [f" in {tmp_path / 'mps'}, sees all", "quit -t 5"]


def test_it_quits_when_the_run_fails_too(calls: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), mps(tmp_path):
        raise KeyboardInterrupt
    assert calls.read_text().endswith("quit -t 5\n")


def test_it_quits_when_the_run_is_killed(calls: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from ablate.mps import mps
with mps(Path({str(tmp_path)!r})):
    print("on", flush=True)
    sys.stdin.read()
"""
    run = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.stdout is not None and run.stdin is not None
    assert run.stdout.readline() == "on\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdin.close()
    run.stdout.close()
    end = time.monotonic() + 10
    while not calls.read_text().endswith("quit -t 5\n"):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_daemon_that_does_not_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon(tmp_path, monkeypatch, "echo no such thing; exit 3")
    with mps(tmp_path) as trouble:
        assert trouble == "nvidia-cuda-mps-control ended with 3: no such thing"
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


def test_without_the_binary_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("ablate.mps.ELSEWHERE", str(tmp_path))
    with mps(tmp_path) as trouble:
        assert trouble == "nvidia-cuda-mps-control is not installed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_pack_without_a_gpu_is_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "quickstart", "--pack", "2"]) == 2
    err = capsys.readouterr().err
    assert (err.count("\n"), "use --workers" in err) == (1, True)
    assert not home.exists()
