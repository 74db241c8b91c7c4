"""What is written to MLflow is there once, whole, readable by a person, and the same by either way of reading."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_records import ENVIRONMENT, as_api, design, empty_store, record, trial_id

from registry.record import DesignRecord, TrialRecord
from registry.spool import Spool
from registry.store import Store, StoreError, StoreUnavailable, StoreWarning

ROOT = Path(__file__).parent.parent


def bare(trial: TrialRecord) -> TrialRecord:
    return replace(trial, curves={})


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    answers = [process.communicate(timeout=240) for process in processes]
    assert [error for _, error in answers if error] == []
    return [answer.strip() for answer, _ in answers]


def test_a_record_comes_back_equal_however_long_it_is(home: Path) -> None:
    store = empty_store(home)
    short = record(seed=0)
    long = record(
        seed=1, context={"levels": {}, "text": "ünïcode 'quotes' \n" * 2000}, status="crashed", cause="x" * 9000
    )
    for trial in (short, long):
        store.write_trial(trial)
    assert sorted(store.trials(), key=lambda t: t.seed) == [bare(short), bare(long)]
    assert store.curves(short.record_id) == short.curves
    assert store.curves("unknown") == {}


def test_a_record_is_written_once(home: Path) -> None:
    store, trial = empty_store(home), record()
    first = store.write_trial(trial)
    assert store.write_trial(trial) == first
    assert Store.open(home).write_trial(trial) == first
    plan = design([{"model.attention": "mha"}])
    assert store.write_design(plan) == store.write_design(plan)
    assert (len(store.trials()), len(store.designs())) == (1, 1)


def test_both_ways_of_reading_give_the_same(home: Path) -> None:
    store = empty_store(home)
    for seed in range(3):
        store.write_trial(record({"model.attention": "gqa"}, seed, cause="é" * 6000 * seed))
    store.write_trial(record(status="timeout", attempt=1))
    store.write_trial(record(purpose="speed"))
    store.write_design(design([{"model.attention": "mha"}, {"model.attention": "gqa"}], 30))
    slow = as_api(store)

    def everything(store: Store) -> tuple[Any, ...]:
        changes = store.changes("trial")
        return (
            store.trials(),
            store.designs(),
            store.damaged(),
            store.statuses(ENVIRONMENT),
            store.statuses(ENVIRONMENT, "speed"),
            store.statuses("elsewhere"),
            store.all_curves(),
            changes.present,
            {run.run_id for run in changes.new},
        )

    assert everything(store) == everything(slow)
    assert len(store.trials()) == 5


def test_a_person_can_read_the_run(home: Path) -> None:
    store = empty_store(home)
    trial = record({"model.attention": "gqa"}, 3, metrics={"mfu": 0.4})
    run = store._client.get_run(store.write_trial(trial))
    assert run.info.run_name == "gqa · seed 3"
    assert run.info.status == "FINISHED"
    assert store._client.get_experiment(run.info.experiment_id).name == "attention"
    assert run.data.params["model.attention"] == "gqa"
    assert run.data.params["model.attention.n_kv_heads"] == "2"
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.metrics["mfu"] == 0.4
    assert run.data.metrics["val_loss"] == trial.metrics["val_loss"]
    history = store._client.get_metric_history(run.info.run_id, "curves/train_loss")
    assert [point.step for point in history] == [0, 1, 2, 3, 4]
    tags = {f"ablate.{name}": getattr(trial, name) for name in ("record_id", "trial_id", "cell_id", "environment_id")}
    assert run.data.tags.items() >= tags.items()
    assert run.data.tags["ablate.exclusive"] == "true"
    artifact = next((home / "artifacts" / "attention").glob("*/artifacts/record.json"))
    assert TrialRecord.from_json(artifact.read_bytes()) == trial


@pytest.mark.parametrize(("status", "shown"), [("diverged", "FAILED"), ("killed", "KILLED"), ("timeout", "FAILED")])
def test_mlflow_shows_how_a_trial_ended(home: Path, status: str, shown: str) -> None:
    store = empty_store(home)
    run = store._client.get_run(store.write_trial(record(status=status)))
    assert run.info.status == shown


def test_the_experiment_can_be_chosen_and_a_deleted_one_stays_deleted(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = empty_store(home)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    run = store._client.get_run(store.write_trial(record()))
    assert store._client.get_experiment(run.info.experiment_id).name == "mine"
    store._client.delete_experiment(run.info.experiment_id)
    assert store.trials() == as_api(store).trials() == []
    again = store._client.get_run(store.write_trial(record()))
    assert store._client.get_experiment(again.info.experiment_id).name == "mine (2)"
    assert store.trials() == [bare(record())]


@pytest.mark.parametrize("step", ["log_batch", "log_text", "set_tag", "set_terminated"])
def test_a_write_that_was_cut_off_is_completed_by_the_next(
    home: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*args: object, **kwargs: object) -> None:
        raise Killed

    trial = record()
    store = empty_store(home)
    with monkeypatch.context() as patch:
        patch.setattr(store._client, step, die)
        with pytest.raises(Killed):
            store.write_trial(trial)
    assert store.trials() == as_api(store).trials()
    fresh = Store.open(home)
    run_id = fresh.write_trial(trial)
    assert fresh.trials() == [bare(trial)]
    assert fresh.curves(trial.record_id) == trial.curves
    runs = list(fresh._search(None, {"ablate.record_id": trial.record_id}, complete=False))
    assert [(run.info.run_id, run.info.status) for run in runs] == [(run_id, "FINISHED")]


def test_artifacts_are_a_convenience(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("no place")

    store, trial = empty_store(home), record()
    monkeypatch.setattr(store._client, "log_text", refuse)
    with pytest.warns(StoreWarning, match="artifacts cannot be written"):
        store.write_trial(trial)
    store.write_trial(record(seed=1))  # warned once
    assert bare(trial) in store.trials()
    assert store.curves(trial.record_id) == trial.curves


def test_a_home_that_was_moved_is_read_and_written(home: Path, tmp_path: Path) -> None:
    store = empty_store(home)
    store.write_trial(record(seed=0))
    moved = home.rename(tmp_path / "moved é here")
    store = Store.open(moved)
    store.write_trial(record(seed=1))
    assert {trial.seed for trial in store.trials()} == {0, 1}
    assert not home.exists()


def test_runs_of_others_are_ignored_and_damaged_ones_reported(home: Path) -> None:
    store = empty_store(home)
    good = store.write_trial(record(seed=0))
    bad, cut = store.write_trial(record(seed=1)), store.write_trial(record(seed=2, cause="x" * 6000, status="crashed"))
    client = store._client
    experiment = client.get_run(good).info.experiment_id
    client.create_run(experiment, tags={"mine": "1"})
    client.set_terminated(client.create_run("0").info.run_id)
    client.set_tag(bad, "ablate.record", '{"record_id": 1}')
    client.delete_tag(cut, "ablate.record.1")
    for reader in (store, as_api(store)):
        assert [trial.seed for trial in reader.trials()] == [0]
        damaged = dict(reader.damaged())
        assert set(damaged) == {bad, cut}
        assert "missing" in damaged[cut]


def test_of_two_runs_of_one_record_the_smallest_id_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines have no lock in common: what they write at once is read as one."""
    store, trial = empty_store(home), record()
    first = store.write_trial(trial)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_search", lambda *args, **kwargs: iter(()))
        second = store.write_trial(trial)
    assert first != second
    assert store.trials() == as_api(store).trials() == [bare(trial)]
    assert store._smallest(trial.record_id) == min(first, second)
    assert store.changes("trial").present == {min(first, second)}


def test_statuses_merge_attempts(home: Path) -> None:
    store = empty_store(home)
    attempts = {
        0: ["crashed", "finished", "killed"],
        1: ["timeout", "crashed"],
        2: ["out_of_memory", "diverged", "killed"],
    }
    for seed, statuses in attempts.items():
        for attempt, status in enumerate(statuses):
            store.write_trial(record(seed=seed, attempt=attempt, status=status))
    store.write_trial(record(seed=3, environment_id="gpu"))
    store.write_trial(record(seed=4, purpose="verify"))
    levels = {"model.attention": "mha"}
    expected = {trial_id(levels, 0): "finished", trial_id(levels, 1): "crashed", trial_id(levels, 2): "diverged"}
    assert store.statuses(ENVIRONMENT) == as_api(store).statuses(ENVIRONMENT) == expected


def test_ingest_takes_over_the_spool(home: Path) -> None:
    store, spool = empty_store(home), Spool(home)
    for seed in range(3):
        spool.put(record(seed=seed))
    store.write_trial(record(seed=1))
    assert store.ingest(spool) == 3
    assert spool.records() == []
    assert len(store.trials()) == 3


def test_ingest_stops_at_a_store_that_is_gone_and_passes_what_it_refuses(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, spool = empty_store(home), Spool(home)
    for seed in range(3):
        spool.put(record(seed=seed))
    write, refused = store.write_trial, record(seed=0).record_id

    def gone(trial: TrialRecord) -> str:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(store, "write_trial", gone)
    with pytest.raises(StoreUnavailable):
        store.ingest(spool)
    assert len(spool.records()) == 3

    def choosy(trial: TrialRecord) -> str:
        if trial.record_id == refused:
            raise RuntimeError("refused")
        return write(trial)

    monkeypatch.setattr(store, "write_trial", choosy)
    with pytest.warns(StoreWarning, match="stays in the spool: refused"):
        assert store.ingest(spool) == 2
    assert [trial.record_id for trial in spool.records()] == [refused]


def test_a_server_that_does_not_answer_is_named_without_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = Store.open(home, "http://user:secret@127.0.0.1:9/x")
    with pytest.raises(StoreUnavailable) as caught:
        store.trials()
    assert "http://127.0.0.1:9/x does not answer (Connection refused)" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreUnavailable):
        store.write_trial(record())


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        ("error code 401 != 200. Response body: 'You are not authenticated.'", StoreUnavailable, "set MLFLOW_TRACKING_USERNAME"),
        ("error code 403 != 200. Response body: 'Permission denied'", StoreError, "does not allow this: Permission denied"),
        ("error code 404 != 200. Response body: '<html>'", StoreError, "there is no MLflow server at this address"),
        ("error code 502 != 200. Response body: 'Bad Gateway'", StoreUnavailable, "does not answer (error code 502"),
    ],
)  # fmt: skip
def test_what_a_server_answers_is_said_in_a_line(
    answer: str, kind: type[StoreError], says: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    def refuse(*args: object, **kwargs: object) -> None:
        raise MlflowException(f"API request to endpoint /api failed with {answer}")

    store = Store.open(home, "http://user:secret@127.0.0.1:9")
    monkeypatch.setattr(store._client, "search_experiments", refuse)
    with pytest.raises(StoreError) as caught:
        store.trials()
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_experiment_that_another_machine_makes_in_between_is_used(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    store = empty_store(home)
    create = store._client.create_experiment

    def late(name: str, artifact_location: str | None = None) -> str:
        create(name, artifact_location)
        raise MlflowException("it exists", error_code=3001)  # RESOURCE_ALREADY_EXISTS

    monkeypatch.setattr(store._client, "create_experiment", late)
    store.write_trial(record())
    assert store.trials() == [bare(record())]


def test_a_copy_that_is_another_users_to_delete_stays_and_counts_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    store = empty_store(home)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_search", lambda *args, **kwargs: iter(()))
        runs = [store.write_trial(record()) for _ in range(2)]

    def refuse(run_id: str) -> None:
        raise MlflowException(
            "API request to endpoint /api failed with error code 403 != 200. Response body: 'Permission denied'"
        )

    monkeypatch.setattr(store._client, "delete_run", refuse)
    assert store._smallest(record().record_id) == min(runs)
    assert store.trials() == [bare(record())]


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/x"])
def test_a_folder_is_refused_as_a_store(home: Path, uri: str) -> None:
    with pytest.raises(StoreError, match="sqlite:///PATH"):
        Store.open(home, uri)


def test_a_file_that_is_no_database_gets_one_line(home: Path) -> None:
    home.mkdir()
    (home / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match="cannot be used") as caught:
        Store.open(home).trials()
    assert "\n" not in str(caught.value)


def test_another_schema_is_read_through_the_api(home: Path) -> None:
    store = empty_store(home)
    store.write_trial(record())
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("ALTER TABLE tags RENAME COLUMN value TO worth")
    assert Store.open(home)._fast is None


def test_the_uri_comes_from_the_argument_then_the_environment_then_home(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_store(home)
    assert Store.open(home).path == home / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    assert Store.open(home, create=False).path == tmp_path / "other.db"
    assert Store.open(home, f"sqlite:///{tmp_path}/third.db", create=False).path == tmp_path / "third.db"


def test_a_store_that_is_not_there_reads_as_empty_and_is_not_made(home: Path) -> None:
    store = Store.open(home, create=False)
    assert (store.trials(), store.designs(), store.statuses(ENVIRONMENT), store.all_curves()) == ([], [], {}, {})
    assert not home.exists()


def test_a_killed_writer_leaves_a_database_that_reads(home: Path) -> None:
    """What it had half written is in a journal that only a connection that may write can roll back."""
    store = empty_store(home)
    store.write_trial(record())
    die = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA cache_size = 1")
database.execute("UPDATE tags SET value = 'wrong'")
database.executemany("INSERT INTO tags VALUES (?, ?, 'x')", [(str(i), "y" * 4000) for i in range(500)])
os._exit(0)
"""
    finish([python(die, home / "mlflow.db")])
    assert (home / "mlflow.db-journal").exists()
    assert Store.open(home).trials() == [bare(record())]


def test_reading_and_the_package_itself_stay_light(home: Path) -> None:
    empty_store(home).write_trial(record())
    code = """
import sys
import registry
light = {"mlflow", "pandas", "torch", "ray", "ablate", "duckdb", "numpy", "pyarrow"}
print(sorted(light & set(sys.modules)))
from pathlib import Path
store = registry.Store.open(Path(sys.argv[1]))
print(len(store.statuses("env-cpu")), len(store.trials()), len(registry.Spool(store.home).records()))
print(sorted(light & set(sys.modules)))
"""
    assert finish([python(code, home)]) == ["[]\n1 1 0\n[]"]


@pytest.mark.slow
def test_eight_processes_can_make_one_store_and_three_write_one_record(home: Path, tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from registry_records import record
from registry import Store
os.chdir(sys.argv[2])
store = Store.open(Path(sys.argv[1]))
if sys.argv[3] == "write":
    print(store.write_trial(record()))
"""
    working = tmp_path / "cwd"
    working.mkdir()
    writers = [python(code, home, working, "write") for _ in range(3)]
    openers = [python(code, home, working, "open") for _ in range(5)]
    run_ids = finish(writers)
    finish(openers)
    assert len(set(run_ids)) == 1
    store = Store.open(home)
    assert store.trials() == [bare(record())]
    assert store.changes("trial").present == set(run_ids)
    assert list(working.iterdir()) == []
    assert not (home / "mlflow.db.new").exists()


def test_threads_of_one_process_write_one_record_once(home: Path) -> None:
    store = empty_store(home)
    store.write_design(design([{"model.attention": "mha"}]))
    with ThreadPoolExecutor(4) as pool:
        runs = set(pool.map(store.write_trial, [record()] * 4))
    assert len(runs) == 1
    assert len(store.trials()) == 1


def test_designs_come_back_in_order(home: Path) -> None:
    store = empty_store(home)
    late = design([{"a": "x"}], created_at="2026-02-01T00:00:00+00:00", suite_text="name: x\n" * 3000)
    early = design([{"a": "x"}], 1, created_at="2026-01-01T00:00:00+00:00")
    for plan in (late, early):
        store.write_design(plan)
    assert store.designs() == [early, late]
    assert all(isinstance(plan, DesignRecord) for plan in store.designs())
    artifacts = (home / "artifacts").glob("*/*/artifacts/design.json")
    assert {json.loads(path.read_text())["design_id"] for path in artifacts} == {early.design_id, late.design_id}
