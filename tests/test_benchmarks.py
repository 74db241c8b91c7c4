"""The benchmarks run, what they measure is counted right, and what is published was measured on a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import readme
from benchmarks.gpu import bench, handovers

from ablate.timeline import Bar, Timeline

FOLDER = Path(bench.__file__).parent
SCRIPTS = {
    "step": [], "gpt2": [] if importlib.util.find_spec("accelerate") else ["--no-transformers"], "scaling": [], "loss": [],
    "startup": [], "suite": ["--prime"], "plain_tune": [],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCRIPTS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    rows = measured(name, SCRIPTS[name], tmp_path)
    assert rows
    for row in rows:
        assert row["n"] == max(map(len, row["measurements"].values()))


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_every_arm_of_a_suite_is_measured_alone(tmp_path: Path) -> None:
    home = str(tmp_path / "suite")
    measured("suite", ["--home", home], tmp_path)
    rows = measured("suite", ["--alone", home], tmp_path)
    assert [row["contender"] for row in rows] == ["alone, rmsnorm", "alone, layernorm"]
    for row in rows:
        assert row["measurements"]["ratio: peak_memory_gib in the suite"] == [pytest.approx(1, rel=0.01)]


def measured(name: str, arguments: list[str], folder: Path) -> list[dict[str, Any]]:
    """The rows of a benchmark run at sizes for a CPU, which are in its table too."""
    output = folder / "found.json"
    command = [sys.executable, FOLDER / f"{name}.py", "-o", output, "--device", "cpu", "--tiny", "--budget", "600"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=_environment(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(output.read_text())
    assert (found["benchmark"], found["device_type"], found["left_out"]) == (name, "cpu", [])
    assert all(row["contender"] in done.stdout for row in found["rows"])
    return found["rows"]


def _environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(FOLDER.parents[2]),
        "ABLATE_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }


def bar(trial: str, phase: str, start: float, end: float, worker: int) -> Bar:
    return Bar(trial=trial, phase=phase, start=start, end=end, worker=("here", worker), device="gpu")


TIMELINE = Timeline(
    (
        bar("a0", "compile", 0, 10, 1), bar("b0", "compile", 0, 12, 2), bar("a0", "train", 10, 20, 1), bar("b0", "wait", 12, 20, 2),
        bar("a1", "compile", 20.5, 21, 1), bar("b0", "train", 20.25, 30, 2), bar("a1", "wait", 21, 30, 1), bar("a1", "train", 31, 41, 1),
        bar("c0", "prepare", 30, 35, 2), bar("c0", "train", 40, 50, 2),
    ),
    0.0,
)  # fmt: skip


def test_a_turn_is_from_the_end_of_training_until_the_next_could_begin() -> None:
    cells = {"a0": "a", "a1": "a", "b0": "b", "c0": "c"}
    assert handovers.turnarounds(TIMELINE, cells) == {"same arm": [1.0], "another arm": [10.0]}


def test_the_device_is_idle_between_trainings_which_do_not_overlap() -> None:
    assert handovers.idle(TIMELINE) == [0.25, 1.0, 0.0]
    assert handovers.overlaps(TIMELINE) == 1
    assert handovers.phase_seconds(TIMELINE)["wait"] == [8.0, 9.0]


def test_contenders_take_turns() -> None:
    seen: list[str] = []
    contenders = {name: lambda name=name: seen.append(name) for name in "ab"}
    found = bench.rounds(contenders, "cpu", seconds=0.0, count=3)
    assert seen[-6:] == ["a", "b"] * 3
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}


@pytest.fixture
def results(tmp_path: Path) -> bench.Results:
    options = Namespace(output=tmp_path / "found.json", budget=1.0, revision="abc", device="cpu", tiny=True)
    return bench.Results("one", "About it.", options)


def test_what_was_measured_outlives_a_failure(results: bench.Results) -> None:
    results.add("case", "ours", {"tokens_per_second": [3.0, 1.0, 2.0], "mfu": []})
    with results.guard("case", "theirs"):
        raise RuntimeError("it broke")
    assert not results.affords(2.0, "case", "another")
    found = json.loads(results.path.read_text())
    (row,) = found["rows"]
    assert (row["n"], row["median"], row["measurements"]) == (
        3,
        {"tokens_per_second": 2.0},
        {"tokens_per_second": [3.0, 1.0, 2.0]},
    )
    assert [left["contender"] for left in found["left_out"]] == ["theirs", "another"]
    assert results.finish() == 1


def test_ratios_are_of_medians_in_the_same_case(results: bench.Results) -> None:
    for case, contender, rates in (("x", "ours", [2.0, 4.0, 9.0]), ("x", "theirs", [2.0]), ("y", "ours", [1.0])):
        results.add(case, contender, {"tokens_per_second": rates})
    results.compare("theirs")
    assert [row.measurements.get("ratio: theirs") for row in results.rows] == [[2.0], None, None]


def test_a_table_shows_medians_and_the_spread_of_what_comes_first(results: bench.Results) -> None:
    results.add("case", "ours", {"tokens_per_second": [1000.0, 3000.0, 2000.0], "ratio: theirs": [1.5, 2.5, 2.0]})
    header, rows = bench.table(json.loads(results.path.read_text()))
    assert header == ["case", "contender", "n", "tokens/s", "ratio to theirs"]
    assert rows == [["case", "ours", "3", "2,000 (1,000 to 3,000)", "2.000"]]


@pytest.mark.parametrize("path", readme.measured(), ids=lambda path: path.name)
def test_what_is_published_was_measured_on_a_gpu_and_says_of_what(path: Path) -> None:
    found = json.loads(path.read_text())
    assert found["device_type"] == "cuda"
    assert not found["arguments"]["tiny"]
    assert found["git_revision"]
    assert found["rows"]
    assert found["benchmark"] in SCRIPTS
