"""The same registry on an MLflow server, which may go away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from registry_records import ENVIRONMENT, design, empty_store, record

from registry.leaderboard import Leaderboard, query
from registry.spool import Spool
from registry.store import Store, StoreUnavailable

pytestmark = pytest.mark.fire


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """An MLflow server over `folder/mlflow.db`, answering when this is entered and gone when it is left."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination",
        str(folder / "kept"),
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_server_holds_the_same_registry_and_may_be_gone_for_a_while(
    home: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    behind = tmp_path / "behind"
    empty_store(behind)
    cells = [{"model.attention": "mha"}, {"model.attention": "gqa"}]
    trials = [record(levels, seed, cause="é" * 9000, status="finished") for levels in cells for seed in range(2)]
    spool = Spool(home)
    with server(behind, port) as uri:
        store = Store.open(home, uri)
        plan = design(cells, 2, suite_text="x" * 20000)
        assert store.write_design(plan) == store.write_design(plan)
        assert store.write_trial(trials[0]) == store.write_trial(trials[0])
        assert store.designs() == [plan]
        assert store.trials() == [replace(trials[0], curves={})]
        assert store.curves(trials[0].record_id) == trials[0].curves
        assert Leaderboard(home, uri).frame()["n"].tolist() == [1]
        assert len(list((behind / "kept").rglob("record.json"))) == 1
    for trial in trials:
        spool.put(trial)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        store.ingest(spool)
    assert len(spool.records()) == 4
    assert Leaderboard(home, uri, offline=True).frame()["n"].tolist() == [1]
    with server(behind, port) as uri:
        assert store.ingest(spool) == 4
        assert store.ingest(spool) == 0
        assert len(store.statuses(ENVIRONMENT)) == 4
        assert Leaderboard(home, uri).frame()["n"].tolist() == [2, 2]
        assert query("SELECT count(*) AS n FROM curves", home, uri)["n"].tolist() == [20]
    assert len(Store.open(behind).trials()) == 4
    assert not (home / "mlflow.db").exists()
