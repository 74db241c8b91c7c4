"""A retraction is a mark: the record stays, and counts for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from registry_records import ENVIRONMENT, as_api, design, empty_store, record, retraction, verification

from registry import Leaderboard, effects, query
from registry.mirror import sync
from registry.noise import noise_floor
from registry.record import MarkRecord, RecordError
from registry.store import Store

MHA, GQA = {"model.attention": "mha"}, {"model.attention": "gqa"}


@pytest.fixture
def store(home: Path) -> Store:
    """A suite of two cells with two seeds."""
    store = empty_store(home)
    store.write_design(design([MHA, GQA]))
    for number, levels in enumerate((MHA, GQA)):
        for seed in range(2):
            store.write_trial(record(levels, seed, loss=3 + number + seed / 100))
    return store


def test_a_mark_comes_back_equal_is_written_once_and_both_ways_of_reading_give_it(store: Store) -> None:
    long = retraction(record(MHA, 0), why="wrong 'corpus' é\n" * 2000)
    second = retraction(record(MHA, 1), number=1)
    assert store.write_mark(long) == store.write_mark(long)
    store.write_mark(second)
    assert store.marks() == as_api(store).marks() == [long, second]
    assert store.retracted() == as_api(store).retracted() == {long.record_id: long.why, second.record_id: "wrong data"}
    assert len(store.trials()) == 4


def test_a_person_sees_in_mlflow_what_was_retracted_and_why(store: Store) -> None:
    run = store._client.get_run(store.write_mark(retraction(record(MHA, 0))))
    assert run.data.params["why"] == "wrong data"
    assert run.data.params["record_id"] == record(MHA, 0).record_id


@pytest.mark.parametrize(
    ("field", "value"), [("why", " "), ("kind", "praise"), ("record_id", ""), ("schema_version", 9), ("author", 3)]
)
def test_a_mark_that_says_nothing_is_refused(field: str, value: object) -> None:
    with pytest.raises(RecordError, match=field):
        MarkRecord.from_dict(retraction(record()).to_dict() | {field: value})


def test_a_trial_that_has_nothing_but_retracted_records_is_to_be_trained_again(store: Store) -> None:
    first, again = record(MHA, 0), record(MHA, 0, attempt=1)
    store.write_mark(retraction(first))
    for reader in (store, as_api(store)):
        assert first.trial_id not in reader.statuses(ENVIRONMENT)
        assert len(reader.statuses(ENVIRONMENT)) == 3
    store.write_trial(again)
    for reader in (store, as_api(store)):
        assert reader.statuses(ENVIRONMENT)[first.trial_id] == "finished"


def test_the_mirror_follows_marks_and_loses_those_that_are_deleted(store: Store) -> None:
    assert sync(store).marks.num_rows == 0
    run = store.write_mark(retraction(record(MHA, 0)))
    assert sync(store).marks["why"].to_pylist() == ["wrong data"]
    assert sync(store, offline=True).marks["why"].to_pylist() == ["wrong data"]
    store._client.delete_run(run)
    assert sync(store).marks.num_rows == 0


def test_a_damaged_mark_is_reported_and_a_foreign_run_is_not(store: Store) -> None:
    bad = store.write_mark(retraction(record(MHA, 0)))
    store._client.set_tag(bad, "ablate.record", "{")
    foreign = store._client.create_experiment("somebody else's")
    store._client.create_run(foreign, tags={"kind": "mark"})
    for reader in (store, as_api(store)):
        assert [run_id for run_id, _ in reader.damaged()] == [bad]
        assert reader.retracted() == {}
    assert [run_id for run_id, _ in sync(store).damaged] == [bad]
    assert any(f"left out, damaged: run {bad}" in note for note in Leaderboard().frame().attrs["notes"])


def test_sql_sees_what_was_retracted_and_why(store: Store) -> None:
    store.write_mark(retraction(record(MHA, 0)))
    found = query("SELECT seed, attention, retracted, counts FROM trials WHERE retracted <> ''")
    assert found.to_dict("records") == [{"seed": 0, "attention": "mha", "retracted": "wrong data", "counts": False}]
    (mark,) = query("SELECT * FROM marks").to_dict("records")
    assert (mark["why"], mark["author"], mark["record_id"]) == ("wrong data", "ada", record(MHA, 0).record_id)
    assert len(query("SELECT 1 FROM trials WHERE counts")) == 3


def test_the_earliest_reason_stands(store: Store) -> None:
    store.write_mark(retraction(record(MHA, 0), why="later", number=2))
    store.write_mark(retraction(record(MHA, 0), why="first", number=1))
    assert query("SELECT retracted FROM trials WHERE retracted <> ''")["retracted"].tolist() == ["first"]


def test_boards_effects_and_noise_leave_out_what_was_retracted(store: Store) -> None:
    store.write_mark(retraction(record(GQA, 0)))
    board = Leaderboard().frame().set_index("attention")
    assert board["n"].to_dict() == {"mha": 2, "gqa": 1}
    assert board.loc["gqa", "val_loss"] == pytest.approx(4.01)
    trials = effects("attention", home=store.home).trials
    assert sorted(trials.loc[trials["cell"] == "gqa", "status"]) == ["finished", "missing"]
    noise = noise_floor(sync(store), "val_loss", scale="nano")
    assert noise is not None
    assert (noise.n_runs, noise.n_cells) == (2, 1)


def test_a_record_made_after_a_retraction_counts_in_its_place(store: Store) -> None:
    store.write_mark(retraction(record(MHA, 0)))
    store.write_trial(record(MHA, 0, loss=9.0, attempt=1))
    found = query("SELECT val_loss FROM trials WHERE counts AND attention = 'mha' AND seed = 0")
    assert found["val_loss"].tolist() == [9.0]


def test_a_pass_for_speed_that_was_retracted_ranks_nobody(store: Store) -> None:
    fast = record(MHA, 0, purpose="speed", metrics={"tokens_per_second": 5e5})
    store.write_trial(fast)

    def speed() -> float:
        return Leaderboard().frame().set_index("attention")["tokens_per_second"].to_dict()["mha"]

    assert speed() == 5e5
    store.write_mark(retraction(fast))
    assert speed() < 2e4


def test_verifications_are_counted_for_the_record_of_which_they_speak(store: Store) -> None:
    good, bad = record(MHA, 0), record(GQA, 0)
    store.write_trial(verification(good, "reproduces"))
    store.write_trial(verification(good, "reproduces", attempt=2))
    store.write_trial(verification(bad, "does not reproduce"))
    void = verification(bad, "does not reproduce", attempt=2)
    store.write_trial(void)
    store.write_mark(retraction(void))
    found = query("SELECT attention, verified, refuted FROM trials WHERE counts AND seed = 0 ORDER BY attention")
    assert found.to_dict("records") == [
        {"attention": "gqa", "verified": 0, "refuted": 1},
        {"attention": "mha", "verified": 2, "refuted": 0},
    ]
