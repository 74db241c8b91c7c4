"""The mirror is the store's copy: complete, incremental, and of no consequence if it breaks."""

from __future__ import annotations

import json
import multiprocessing
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from registry_records import as_api, design, empty_store, recipe, record, retraction

from registry import mirror
from registry.layout import flatten
from registry.mirror import Mirror, sync
from registry.record import TrialRecord
from registry.segments import Segments
from registry.sql import Sandbox, column_names
from registry.sqlite_read import FastReader
from registry.store import Store


def column(copy: Mirror, name: str) -> list[Any]:
    return copy.trials.to_table(columns=[name])[name].to_pylist()


def seeds(copy: Mirror) -> list[int]:
    return sorted(column(copy, "seed"))


def folder(home: Path) -> Path:
    (found,) = (home / "mirror").iterdir()
    return found


def files(home: Path, table: str) -> list[Path]:
    """The files of a table of the mirror, in order."""
    found = Segments.open(folder(home), mirror.VERSION)
    assert found
    return [folder(home) / file.name for file in found.tables[table].files]


def test_only_new_records_are_fetched_and_deleted_ones_vanish(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = empty_store(home)
    runs = [store.write_trial(record(seed=seed)) for seed in range(3)]
    store.write_design(design([{"model.attention": "mha"}]))
    assert seeds(sync(store)) == [0, 1, 2]
    fetched: list[list[str]] = []
    read = FastReader.runs

    def watched(self: Any, run_ids: list[str]) -> Any:
        fetched.append(run_ids)
        return read(self, run_ids)

    monkeypatch.setattr(FastReader, "runs", watched)
    new = store.write_trial(record(seed=3))
    store._client.delete_run(runs[0])
    copy = sync(store)
    assert seeds(copy) == [1, 2, 3]
    assert copy.designs.count_rows() == 1
    assert fetched == [[new], [], []]
    assert seeds(sync(store, offline=True)) == [1, 2, 3]


def test_an_unchanged_mirror_is_not_written(home: Path) -> None:
    store = empty_store(home)
    store.write_trial(record())
    sync(store)
    before = {path.name: path.stat().st_mtime_ns for path in folder(home).iterdir()}
    sync(store)
    assert {path.name: path.stat().st_mtime_ns for path in folder(home).iterdir()} == before


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Any] = {
    "truncated": lambda file, manifest: file.write_bytes(file.read_bytes()[:100]),
    "flipped": lambda file, manifest: _flip(file, file.stat().st_size // 2),
    "missing": lambda file, manifest: file.unlink(),
    "empty manifest": lambda file, manifest: manifest.write_bytes(b""),
    "flipped manifest": lambda file, manifest: _flip(manifest, manifest.stat().st_size // 2),
    "truncated manifest": lambda file, manifest: manifest.write_bytes(manifest.read_bytes()[:-20]),
    "binary manifest": lambda file, manifest: manifest.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "version"])
@pytest.mark.parametrize("table", ["trials", "designs", "marks"])
def test_a_mirror_that_cannot_be_used_is_made_again(
    home: Path, damage: str, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = empty_store(home)
    store.write_trial(record())
    store.write_design(design([{"model.attention": "mha"}]))
    store.write_mark(retraction(record(seed=1)))
    sync(store)
    (file,) = files(home, table)
    if damage == "version":
        monkeypatch.setattr(mirror, "VERSION", "next")
    else:
        DAMAGES[damage](file, folder(home) / "manifest.json")
    assert sync(store, offline=True).trials.count_rows() == 0
    made = sync(store)
    assert (seeds(made), made.designs.count_rows(), made.marks.num_rows) == ([0], 1, 1)
    assert seeds(sync(store, offline=True)) == [0]


def test_a_copied_mirror_is_still_good(home: Path) -> None:
    """Files with another time stamp are judged by their content."""
    store = empty_store(home)
    store.write_trial(record())
    sync(store)
    for path in files(home, "trials"):
        os.utime(path, (0, 0))
    assert seeds(sync(store, offline=True)) == [0]


def test_resync_reads_everything_anew(home: Path) -> None:
    store = empty_store(home)
    runs = [store.write_trial(record(seed=seed)) for seed in range(2)]
    server = as_api(store)
    server.path = None
    sync(server)
    store._client.delete_run(runs[0])
    assert seeds(sync(server)) == [0, 1]
    assert seeds(sync(server, resync=True)) == [1]
    assert seeds(sync(server)) == [1]


def test_small_changes_are_small_files_which_are_merged(home: Path) -> None:
    store = empty_store(home)
    store.write_trials(record(seed=seed) for seed in range(60))
    sync(store)
    (base,) = files(home, "trials")
    for seed in range(60, 70):
        store.write_trials([record(seed=seed)])
        sync(store)
    assert files(home, "trials")[0] == base
    assert 1 < len(files(home, "trials")) <= 4
    assert seeds(sync(store, offline=True)) == list(range(70))
    store.write_trials(record(seed=seed) for seed in range(70, 90))
    assert seeds(sync(store)) == list(range(90))
    assert len(files(home, "trials")) == 1
    assert base.exists()
    os.utime(base, (0, 0))
    store.write_trials([record(seed=90)])
    sync(store)
    assert not base.exists()


def test_the_state_of_a_database_changes_with_every_transaction(home: Path) -> None:
    store = empty_store(home)
    run = store.write_trial(record())
    states = [store.state()]
    for step in (
        lambda: store._client.set_tag(run, "a", "1"),
        lambda: store._client.set_tag(run, "a", "2"),
        lambda: store._client.delete_run(run),
        lambda: store.write_trials([record(seed=1)]),
    ):
        step()
        states.append(store.state())
    assert len(set(states)) == len(states)
    assert store.state() == states[-1]


def _follow(home: Path, count: int) -> None:
    store = Store.open(home)
    while sync(store).trials.count_rows() < count:
        pass


@pytest.mark.fire
def test_two_processes_follow_a_store_at_once(home: Path) -> None:
    store = empty_store(home)
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_follow, args=(home, 200)) for _ in range(2)]
    for process in both:
        process.start()
    for first in range(0, 200, 10):
        store.write_trials(record(seed=seed) for seed in range(first, first + 10))
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert seeds(sync(store)) == list(range(200))


def test_settings_of_other_types_and_other_recipes_share_a_table(home: Path) -> None:
    store = empty_store(home)
    values: list[Any] = [1, 2.5, "auto", True, None, [1, 2]]
    for seed, value in enumerate(values):
        store.write_trial(record(seed=seed, recipe=recipe() | {"depth": value, f"only_{seed}": seed}))
        sync(store)
    copy = sync(store)
    found = dict(zip(column(copy, "seed"), column(copy, "recipe.depth"), strict=True))
    assert [found[seed] for seed in (1, 2, 4, 5)] == ["2.5", "auto", None, "[1, 2]"]
    assert column(copy, "recipe.only_3").count(3) == 1


def test_records_are_one_row_each_however_often_they_are_stored(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = empty_store(home)
    first = store.write_trial(record())
    sync(store)
    monkeypatch.setattr(store, "_search", lambda *args, **kwargs: iter(()))
    store.write_trial(record())
    monkeypatch.undo()
    assert seeds(sync(store)) == [0]
    store._client.delete_run(first)
    assert seeds(sync(store)) == [0]


def test_a_store_without_cheap_listing_is_asked_for_the_last_days(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server all is read once a day; in between only what was written since the day before."""
    local = empty_store(home)
    runs = [local.write_trial(record(seed=seed)) for seed in range(2)]
    server = as_api(local)
    server.path = None
    asked: list[datetime | None] = []
    changes = Store.changes

    def watched(self: Store, kind: Any, known: set[str] | None = None, since: datetime | None = None) -> Any:
        asked.append(since)
        return changes(self, kind, known, since)

    monkeypatch.setattr(Store, "changes", watched)
    assert seeds(sync(server)) == [0, 1]
    local.write_trial(record(seed=2))
    old = local.write_trial(record(seed=3))
    long_ago = datetime.now(UTC) - timedelta(days=9)
    local._client.set_tag(old, "ablate.complete", str(long_ago.date()))
    assert seeds(sync(server)) == [0, 1, 2]
    assert [since is None for since in asked] == [True] * 3 + [False] * 3
    local._client.delete_run(runs[0])
    monkeypatch.setattr(mirror, "FULL_SYNC", timedelta(0))
    assert seeds(sync(server)) == [1, 2, 3]


def test_damaged_runs_are_reported_and_left_out(home: Path) -> None:
    store = empty_store(home)
    store.write_trial(record(seed=0))
    bad = store.write_trial(record(seed=1))
    store._client.set_tag(bad, "ablate.record", "{")
    copy = sync(store)
    assert seeds(copy) == [0]
    assert [run_id for run_id, _ in copy.damaged] == [bad]


def test_a_recipe_becomes_columns() -> None:
    found = list(flatten({"model": {"attention": {"gqa": {"n_kv_heads": 2}}, "dim": 64}, "norm": {"rmsnorm": {}}}))
    assert found == [
        ("model.attention", "gqa", {"n_kv_heads": 2}),
        ("model.attention.n_kv_heads", 2, None),
        ("model.dim", 64, None),
        ("norm", "rmsnorm", {}),
    ]


def test_column_names_are_short_where_that_is_unambiguous() -> None:
    columns = [
        *("run_id", "seed", "metrics.val_loss", "metrics.seed", "metrics.my metric"),
        *("recipe.model.dim", "recipe.model.lr", "recipe.optimizer.lr", "recipe.data.seed", "recipe.model.val_loss"),
        *("recipe.model.attention", "options.model.attention"),
    ]
    assert column_names(columns) == {
        "run_id": "run_id",
        "seed": "seed",
        "metrics.val_loss": "val_loss",
        "metrics.seed": "metric_seed",
        "metrics.my metric": "my_metric",
        "recipe.model.dim": "dim",
        "recipe.model.lr": "model_lr",
        "recipe.optimizer.lr": "optimizer_lr",
        "recipe.data.seed": "data_seed",
        "recipe.model.val_loss": "model_val_loss",
        "recipe.model.attention": "attention",
        "options.model.attention": "attention_options",
    }


def test_of_the_attempts_at_a_trial_the_earliest_that_finished_counts(home: Path) -> None:
    store = empty_store(home)
    attempts: dict[int, list[str]] = {
        0: ["crashed", "finished", "finished"],
        1: ["crashed", "timeout"],
        2: ["killed", "diverged", "crashed"],
    }
    expected: set[str] = set()
    for (seed, statuses), counted in zip(attempts.items(), (1, 1, 1), strict=True):
        for attempt, status in enumerate(statuses):
            trial: TrialRecord = record(seed=seed, attempt=attempt, status=status)
            store.write_trial(trial)
            expected |= {trial.record_id} if attempt == counted else set()
    elsewhere = record(seed=0, environment_id="gpu")
    store.write_trial(elsewhere)
    store.write_trial(record(seed=0, purpose="speed"))
    with Sandbox(sync(store)) as sandbox:
        frame = sandbox.query("SELECT record_id FROM trials WHERE counts")
    assert set(frame["record_id"]) == {*expected, elsewhere.record_id}


def test_designs_are_exploded_and_the_newest_is_marked(home: Path) -> None:
    store = empty_store(home)
    small, grown = ({"model.attention": "mha"}, {"model.attention": "gqa", "norm": "rmsnorm"})
    store.write_design(design([small], 1, created_at="2026-01-01T00:00:00+00:00"))
    store.write_design(design([small], 3, created_at="2026-01-02T00:00:00+00:00"))
    store.write_design(design([grown], 1, scale="10m"))
    with Sandbox(sync(store)) as sandbox:
        frame = sandbox.query(
            "SELECT scale, cell, latest, levels, count(*) AS n FROM designs GROUP BY ALL ORDER BY ALL"
        )
    rows = [tuple(row) for row in frame.itertuples(index=False)]
    assert [(scale, cell, latest, n) for scale, cell, latest, _, n in rows] == [
        ("10m", "gqa · rmsnorm", True, 1),
        ("nano", "mha", False, 1),
        ("nano", "mha", True, 3),
    ]
    assert json.loads(rows[0][3]) == grown
