"""Benchmarks compared with a file have the gate's verdicts: in real runs of pytest, over a small project with the conftest of ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_project import ROOT

Runs = tuple[Path, dict[str, tuple[int, str]]]
BENCHMARKS = """
import pytest
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


def test_is_skipped(held):
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
    "eight layers": "nine layers", "deeper(99)": "deeper(199)", "deeper(9))": "pytest.skip())", "test_is_gone": "test_is_new",
}  # fmt: skip
DRIVER = """
import gc, json, os, shutil, sys
from pathlib import Path

import pytest

RUN = "-p no:cacheprovider --benchmark-max-time=0.01 --benchmark-min-rounds=2 --benchmark-columns=median".split()
before, again, changed = (Path(name).resolve() for name in ("before", "again", "changed"))


def run(folder, *argv, name=""):
    print(f"<<<{name or folder.name}", flush=True)
    os.chdir(folder)
    print(f">>>{int(pytest.main([*argv, *RUN]))}", flush=True)
    for name in [name for name, one in sys.modules.items() if (getattr(one, "__file__", "") or "").startswith(str(folder))]:
        del sys.modules[name]


run(before, "benchmarks", "--benchmark-save=before")
gc.freeze()
for folder in (again, changed):
    shutil.copytree(before / ".benchmarks", folder / ".benchmarks")
(path,) = (again / ".benchmarks").rglob("*.json")
found = json.loads(path.read_text())
found["machine_info"]["surroundings"]["torch"] = "1.0"
found["benchmarks"][0]["extra_info"]["operators"] = 1.0
path.with_name("0002_elsewhere.json").write_text(json.dumps(found))
run(again, "benchmarks", "--benchmark-compare=000")
run(again, "-W", "ignore::pytest_benchmark.logger.PytestBenchmarkWarning", "-k", "same", "--benchmark-compare=0001", name="late")
run(changed, "benchmarks/test_all.py", "--deselect=benchmarks/test_all.py::test_is_timed_alone", "--benchmark-compare")
"""
"""The runs, in one process, for torch takes longer to import than all of them: what is saved; the same code again, held against that and
against a file from elsewhere, in which a count is another, without naming the folder too; and everything planted, in one of two files."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Where they ran, and the exit code and the text of each."""
    folder, changed = tmp_path_factory.mktemp("runs"), BENCHMARKS
    for old, new in PLANTS.items():
        assert changed.count(old) == 1, old
        changed = changed.replace(old, new)
    for name, text in {"before": BENCHMARKS, "again": BENCHMARKS, "changed": changed}.items():
        benchmarks = folder / name / "benchmarks"
        benchmarks.mkdir(parents=True)
        (folder / name / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
        (benchmarks / "test_all.py").write_text(text)
        (benchmarks / "test_more.py").write_text("def test_is_not_run(benchmark):\n    benchmark(int)\n")
        for ours in ("conftest.py", "counting.py"):
            shutil.copy(ROOT / "tests" / "benchmarks" / ours, benchmarks)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "400",
        "OMP_NUM_THREADS": "1",
        "PYTEST_ADDOPTS": "-p no:hypothesispytest",
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^<<<(\w+)\n(.*?)^>>>(\d+)$", done.stdout, re.MULTILINE | re.DOTALL)
    return folder, {name: (int(code), said) for name, said, code in found}


def held_against(file: str, said: str) -> list[str]:
    """What our part of the summary says."""
    _, _, ours = said.partition(f"ablate: held against {file}")
    return ours[: ours.index("\n", ours.index("\nverdict: ") + 1)].splitlines()[1:]


def test_a_file_has_the_machine_the_commit_and_the_counts(runs: Runs) -> None:
    folder, found = runs
    code, said = found["before"]
    assert code == 0, said
    (path,) = (folder / "before" / ".benchmarks").rglob("*.json")
    kept = json.loads(path.read_text())
    assert {"device", "torch", "python", "numpy"} <= set(kept["machine_info"]["surroundings"])
    assert {"cpu", "cores", "host", "threads"} <= set(kept["machine_info"])
    assert {"id", "dirty"} <= set(kept["commit_info"])
    extra = {one["name"]: one["extra_info"] for one in kept["benchmarks"]}
    assert extra["test_same"] == {
        "operators": 2.0,
        "host_syncs": 0.0,
        "peak_memory_gib": 65 * 4 / 2**30,
        "settings": "",
    }
    assert extra["test_deeper"] == {"calls": 101.0}
    assert extra["test_is_timed_alone"] == {}


def test_the_same_code_passes_and_times_are_told(runs: Runs) -> None:
    code, said = runs[1]["again"]
    assert code == 0, said
    held, times, verdict = held_against("0001_before.json", said)
    assert (held, verdict) == ("20 counts pass", "verdict: pass")
    assert times.startswith("times are told, not held")


def test_counts_from_elsewhere_need_a_new_file(runs: Runs) -> None:
    count, around, held, _, verdict = held_against("0002_elsewhere.json", runs[1]["again"][1])
    assert count.endswith("::test_same: operators needs a new baseline: 1 -> 2 (+100.00%); the environment is another")
    assert around.startswith("all: environment needs a new baseline: torch 1.0 -> ")
    assert (held, verdict) == ("19 counts pass", "verdict: rebaseline")


def test_each_count_has_its_verdict_and_a_regression_fails(runs: Runs) -> None:
    code, said = runs[1]["changed"]
    assert code == 1 and " failed" not in said and "8 passed, 1 skipped" in said, said
    told = held_against("0001_before.json", said)
    lines = {line.split("::")[-1] for line in told if "::" in line and not line.startswith("times")}
    assert lines == {
        "test_busier: operators is worse: 2 -> 3 (+50.00%)",
        "test_busier: peak_memory_gib is worse: 2.42144e-07 -> 4.76837e-07 (+96.92%)",
        "test_hungry: peak_memory_gib is worse: 3.72529e-06 -> 3.76254e-06 (+1.00%)",
        "test_waits: operators is worse: 1 -> 2 (+100.00%)",
        "test_waits: host_syncs is worse: 0 -> 1 (+1)",
        "test_leaner: operators is better: 2 -> 1 (-50.00%)",
        "test_leaner: peak_memory_gib is better: 4.76837e-07 -> 2.38419e-07 (-50.00%)",
        "test_other_settings: arm needs a new baseline: its settings or its corpus are not those of the baseline",
        "test_deeper: calls is worse: 101 -> 201 (+99.01%)",
        "test_is_skipped: arm needs a new baseline: it was not measured now",
        "test_is_gone: arm needs a new baseline: it was not measured now",
        "test_is_new: arm needs a new baseline: it is not in the baseline",
    }
    assert told[-1] == "verdict: regression"


def test_what_was_not_to_run_is_not_missed(runs: Runs) -> None:
    told = held_against("0001_before.json", runs[1]["changed"][1])
    assert not any("test_is_timed_alone" in line or "test_is_not_run" in line for line in told)


def test_files_that_were_read_before_the_benchmarks_were_found_are_no_pass(runs: Runs) -> None:
    code, said = runs[1]["late"]
    assert code == 4 and "1 passed" in said, said
    assert "nothing is held: name tests/benchmarks on the command line" in said
