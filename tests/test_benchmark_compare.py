"""Benchmarks compared with a file have the gate's verdicts: in real runs of pytest, over a small project with the conftest of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from foreign_project import ROOT, pytest_in

BENCHMARKS = """
import torch


def test_same(held):
    ones = torch.ones(64)
    held.tensors(lambda: ones.exp().sum())


def test_busier(held):
    ones = torch.ones(64)
    held.tensors(lambda: ones.exp().sum())


def test_hungry(held):
    held.tensors(lambda: torch.ones(1000))


def test_waits(held):
    ones = torch.ones(64)
    held.tensors(lambda: ones.sum())


def test_leaner(held):
    ones = torch.ones(64)
    held.tensors(lambda: ones.exp().log())


def test_other_settings(held):
    held.tensors(lambda: torch.ones(64), "eight layers")


def deeper(n):
    return n and deeper(n - 1)


def test_deeper(held):
    held.python(lambda: deeper(99))


def test_breaks(held):
    held.python(lambda: deeper(9))


def test_is_gone(benchmark):
    benchmark(int)


def test_is_timed_alone(benchmark):
    benchmark(int)
"""
PLANTS = {
    "busier(held):\n    ones = torch.ones(64)\n    held.tensors(lambda: ones.exp().sum())":
        "busier(held):\n    ones = torch.ones(64)\n    held.tensors(lambda: (ones + 0).exp().sum())",
    "torch.ones(1000)": "torch.ones(1010)", "ones.sum())": "ones.sum().item())", "ones.exp().log()": "ones.exp()",
    "eight layers": "nine layers", "deeper(99)": "deeper(199)", "deeper(9))": "1 / 0)", "test_is_gone": "test_is_new",
}  # fmt: skip
RUN = ["-p", "no:cacheprovider", "--benchmark-max-time=0.01", "--benchmark-min-rounds=2", "--benchmark-columns=median"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, with the file that its first run left."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "benchmarks").mkdir()
    for name in ("conftest.py", "counting.py"):
        shutil.copy(ROOT / "tests" / "benchmarks" / name, folder / "benchmarks")
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (folder / "benchmarks" / "test_all.py").write_text(BENCHMARKS)
    (folder / "benchmarks" / "test_more.py").write_text("def test_is_not_run(benchmark):\n    benchmark(int)\n")
    code, said = pytest_in(folder, "benchmarks", *RUN, "--benchmark-save=before")
    assert code == 0, said
    assert "ablate: held" not in said
    return folder


def stored(folder: Path) -> tuple[Path, dict[str, Any]]:
    (path,) = (folder / ".benchmarks").rglob("*.json")
    return path, json.loads(path.read_text())


def compare(folder: Path, *argv: str) -> tuple[int, list[str]]:
    """The exit code, and what our part of the summary says."""
    code, said = pytest_in(folder, *argv, *RUN, "--benchmark-compare")
    before, _, ours = said.partition("ablate: held against 0001_before.json")
    assert ours, before
    return code, ours.splitlines()[1:]


def test_a_file_has_the_machine_the_commit_and_the_counts(saved: Path) -> None:
    _, found = stored(saved)
    assert {"device", "torch", "python", "numpy"} <= set(found["machine_info"]["surroundings"])
    assert {"cpu", "cores", "host", "threads"} <= set(found["machine_info"])
    assert {"id", "dirty"} <= set(found["commit_info"])
    extra = {one["name"]: one["extra_info"] for one in found["benchmarks"]}
    assert extra["test_same"] == {
        "operators": 2.0,
        "host_syncs": 0.0,
        "peak_memory_gib": 65 * 4 / 2**30,
        "settings": "",
    }
    assert extra["test_waits"]["host_syncs"] == 0.0
    assert extra["test_deeper"] == {"calls": 101.0}
    assert extra["test_is_timed_alone"] == {}


def test_the_same_code_passes_and_times_are_told(saved: Path) -> None:
    code, told = compare(saved, "benchmarks")
    assert code == 0
    assert [line for line in told if " passed" not in line and not line.startswith("times are told")] == [
        "20 counts pass", "verdict: pass",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def changed(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[str]]:
    """What a run says of which everything is planted, in one of the two files."""
    folder = shutil.copytree(saved, tmp_path_factory.mktemp("changed") / "project")
    text = BENCHMARKS
    for old, new in PLANTS.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "benchmarks" / "test_all.py").write_text(text)
    return compare(folder, "benchmarks/test_all.py", "--deselect=benchmarks/test_all.py::test_is_timed_alone")
