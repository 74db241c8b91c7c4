"""The benchmark of the registry's speed asks what it says, at a size for a test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from benchmarks import registry_scale, scale_records
from registry_records import empty_store

from registry import Leaderboard, query

FEW = ["--trials", "130", "--times", "1", "--without-processes", "--without-mlflow"]


@pytest.fixture
def elsewhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow's own functions know one store per process, which they also leave in the environment."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    yield
    mlflow.set_tracking_uri(None)


def test_it_asks_ours_and_mlflow_the_same(home: Path, tmp_path: Path, elsewhere: None) -> None:
    empty_store(home)
    output = tmp_path / "found.json"
    registry_scale.main([*FEW, "--home", str(home), "-o", str(output)])
    found = json.loads(output.read_text())
    assert (found["trials"], found["records"]) == (130, 131)
    headers, rows = registry_scale.table(found)
    assert headers == ["what", "ablate"]
    assert [row[0] for row in rows][-3:] == list(registry_scale.ours(home)) == list(registry_scale.theirs(home))
    theirs = {name: ask() for name, ask in registry_scale.theirs(home).items()}
    board = Leaderboard(home).suite(registry_scale.SUITE).frame()
    assert len(board) == len(theirs["board of a suite"]) == 13
    limit = query(registry_scale.LIMIT, home)
    assert len(limit) == 20
    assert limit["val_loss"].tolist() == theirs["filter, sort, limit"]["metrics.val_loss"].tolist()
    assert len(query(registry_scale.GROUP, home)) == len(theirs["group by"])


def test_so_many_trials_as_asked_for() -> None:
    boards = list(scale_records.boards(600))
    assert [size for _, _, size in boards] == [270, 270, 60]
    records = [one for board in boards for one in scale_records.records(*board)]
    assert len({one.trial_id for one in records}) == 600
    assert len({one.record_id for one in records}) == len(records)
