"""Many records written at once lie in the database as if they had been written one by one."""

from __future__ import annotations

import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from registry_records import as_api, empty_store, recipe, record

from registry import store as store_module
from registry.record import TrialRecord
from registry.store import Store, StoreError

TABLES = ("runs", "tags", "params", "metrics", "latest_metrics", "experiments")


def rows(store: Store) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the database, with each run's record id in place of its own."""
    found = {}
    with closing(sqlite3.connect(store.home / "mlflow.db")) as database:
        ids = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'ablate.record_id'"))
        ids[store._writer] = "WRITER"  # who shares a lock; each home has its own
        for table in TABLES:
            names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            varying = {"creation_time", "last_update_time"}
            kept = [place for place, name in enumerate(names) if name not in varying]
            found[table] = sorted(
                (tuple(_without(row[place], ids, store.home) for place in kept) for row in database.execute(f"SELECT * FROM {table}")),
                key=repr,
            )  # fmt: skip
    return found


def _without(value: Any, ids: dict[str, str], home: Path) -> Any:
    if not isinstance(value, str):
        return value
    for run_id, record_id in ids.items():
        value = value.replace(run_id, record_id)
    return value.replace(str(home), "HOME")


def files(home: Path) -> list[str]:
    return sorted(path.read_text() for path in (home / "artifacts").rglob("*.json"))


def samples() -> list[TrialRecord]:
    long = {"prompt": "x" * 7000, "text": "é" * 5200, "a:b": 1}
    points = [[0, 0.0, 3.0], [2, 20.0, 2.0], [1, 10.0, 5.0], [2, 20.0, 1.0]]
    return [
        record(seed=0),
        record({"model.attention": "gqa"}, seed=1, suite="other", status="diverged", metrics={"diverged_at_step": 3}),
        record(seed=2, status="crashed", cause="a\nb", curve=0),
        record(seed=3, status="killed", recipe=recipe() | {"empty": "", "nothing": None, "list": [1, "é"]}),
        record(seed=4, recipe=recipe() | long, curves={"val_loss": points, "train loss!": points}),
        record(seed=5, metrics={"..odd": 1.0}),
        record(seed=6, context={"levels": {"model.attention": "mha"}, "log": "y" * 12_000}),
    ]


def test_many_at_once_are_what_one_by_one_gives(tmp_path: Path) -> None:
    single, bulk = empty_store(tmp_path / "single"), empty_store(tmp_path / "bulk")
    records = samples()
    odd = [one for one in records if "..odd" in one.metrics]
    for one in records:
        if one not in odd:
            single.write_trial(one)
    assert bulk.write_trials(one for one in records if one not in odd) == len(records) - len(odd)
    assert rows(bulk) == rows(single)
    assert files(bulk.home) == files(single.home)
    written = [sorted(as_api(store).trials(), key=lambda one: one.record_id) for store in (bulk, single)]
    assert written[0] == written[1]
    ids = [one.record_id for one in records]
    assert as_api(bulk).all_curves(ids) == as_api(single).all_curves(ids)
    refusals = []
    for write in (lambda: single.write_trial(odd[0]), lambda: bulk.write_trials(odd)):
        with pytest.raises(Exception, match="odd") as refused:
            write()
        refusals.append(str(refused.value).replace("/bulk/", "/single/"))
    assert refusals[0] == refusals[1]


def test_twice_changes_nothing_and_what_is_new_is_counted(home: Path) -> None:
    store = empty_store(home)
    store.write_trial(record(seed=0))
    assert store.write_trials([record(seed=0), record(seed=1), record(seed=1)]) == 1
    before = rows(store)
    assert store.write_trials([record(seed=0), record(seed=1)]) == 0
    assert rows(store) == before
    assert store.write_trials([]) == 0


def test_what_was_interrupted_is_completed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = empty_store(home)
    monkeypatch.setattr(store, "_log", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write_trial(record(seed=0))
    monkeypatch.undo()
    monkeypatch.setattr(store_module, "BATCH", 2)

    def half() -> Any:
        yield from (record(seed=seed) for seed in range(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write_trials(half())
    assert [one.seed for one in store.trials()] and {one.seed for one in store.trials()} <= {0, 1, 2}
    store.write_trials(record(seed=seed) for seed in range(4))
    assert sorted(one.seed for one in as_api(store).trials()) == [0, 1, 2, 3]


def test_a_failed_transaction_leaves_nothing(home: Path) -> None:
    store = empty_store(home)
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON latest_metrics BEGIN SELECT RAISE(ABORT, 'no space'); END"
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        database.execute(refuse)
        before = rows(store)
        with pytest.raises(StoreError, match="no space"):
            store.write_trials([record()])
        after = rows(store)
        assert after | {"experiments": before["experiments"]} == before
        database.execute("DROP TRIGGER refuse")
    assert store.write_trials([record()]) == 1


def test_a_schema_that_is_not_known_is_left_to_mlflow(home: Path) -> None:
    store = empty_store(home)
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        database.execute("ALTER TABLE runs ADD COLUMN later TEXT")
    assert store.write_trials([record(seed=seed) for seed in range(2)]) == 2
    assert sorted(one.seed for one in store.trials()) == [0, 1]


def _write(home: Path, seeds: range) -> None:
    Store.open(home).write_trials(record(seed=seed) for seed in seeds)


@pytest.mark.fire
def test_two_processes_write_the_same_records_once(home: Path) -> None:
    store = empty_store(home)
    context = multiprocessing.get_context("spawn")
    halves = range(1200), range(600, 1800)
    both = [context.Process(target=_write, args=(home, seeds)) for seeds in halves]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    with closing(sqlite3.connect(store.home / "mlflow.db")) as database:
        (runs,) = database.execute("SELECT count(*) FROM runs").fetchone()
    assert runs == len(store.trials()) == 1800
