"""The study of the gate plants what it says, and tells a gate that is right from one that is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import copied
import numpy as np
import pytest
from benchmarks import gate_resampled, gate_study

SIZES = {"copies": 100.0, "bytes": 1000.0}
SCRIPT = Path(gate_study.__file__)
COUNTS = {"operators": [200.0, 200.0], "host_syncs": [1.0, 1.0]}


@pytest.mark.parametrize("name", gate_study.CONDITIONS)
def test_what_is_planted_has_its_place_and_is_python(name: str) -> None:
    for change in gate_study.CONDITIONS[name].edits(SIZES):
        code = (copied.ROOT / change.file).read_text(encoding="utf-8")
        assert code.count(change.old) == 1 and change.new != change.old
        compile(change.applied(code), change.file, "exec")


def check(condition: str, slower: float = 0.0, worse: float = 1.0, **counts: list[float]) -> dict[str, Any]:
    """What is kept of a check of two looks and six seeds."""
    rng = np.random.default_rng(0)
    before = rng.normal(3.6, 0.01, 6)
    losses = {
        "before": before,
        "nudged": before + rng.normal(0.0, 0.001, 6),
        "after": worse * (before + rng.normal(0.0, 0.001, 6)),
    }
    return {
        "condition": condition, "exit": 0, "machine": "m", "lanes": 1, "shared": 1, "counts": COUNTS | counts,
        "verdicts": {"val_loss": "pass", "step_time_ms": "pass", "host_syncs": "pass", "peak_memory_gib": "pass", "graph_breaks": "pass"},
        "looks": [rng.normal(np.log1p(slower), 0.05, n).tolist() for n in (40, 120)],
        "losses": {name: values.tolist() for name, values in losses.items()},
    }  # fmt: skip


def drawn(monkeypatch: pytest.MonkeyPatch, **instead: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Shares of drawn checks by condition, some kept otherwise."""
    monkeypatch.setattr(gate_resampled, "DRAWN", 30)
    kept = {
        "unchanged": check("unchanged"), "rounding": check("rounding"), "loss +1 %": check("loss +1 %", worse=1.01),
        "step +10 %": check("step +10 %", slower=0.1), "memory +3 %": check("memory +3 %", peak_memory_gib=[1.0, 1.03]),
        "graph break": check("graph break", graph_breaks=[0.0, 1.0]), "host sync": check("host sync", host_syncs=[1.0, 2.0]),
    }  # fmt: skip
    planted = {name: one.metric for name, one in gate_study.CONDITIONS.items()}
    found = gate_resampled.summary([*(kept | instead).values()], planted, gate_study.MORE_LOSS)
    json.dumps(found, allow_nan=False)
    return {row["condition"]: row["drawn"] for row in found["rows"]}


def test_what_was_planted_is_found_in_drawn_checks_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    found = drawn(monkeypatch)
    assert [one["found"] for one in found.values()] == [None, None, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert {one["false"] for one in found.values()} == {0.0}


def test_a_gate_that_is_wrong_is_seen_in_drawn_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that was to change nothing and did; one that was planted and is not there."""
    found = drawn(monkeypatch, unchanged=check("unchanged", worse=1.01), **{"host sync": check("host sync")})
    assert found["unchanged"]["false"] == 1.0
    assert found["host sync"]["found"] == 0.0


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_a_whole_check_of_a_planted_change(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    subprocess.run([sys.executable, SCRIPT, "-o", kept, "--checks", "1", "memory +3 %"], check=True)
    (line,) = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert line["condition"] == "memory +3 %" and line["exit"] == 1
    assert line["verdicts"]["peak_memory_gib"] == "regression" and line["verdicts"]["val_loss"] == "pass"
    assert line["looks"] and line["losses"]["before"] == line["losses"]["after"]
