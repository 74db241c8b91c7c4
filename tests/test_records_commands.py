"""What is asked of single records: unique beginnings of ids, retraction, comparison, logs, and clearing up."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from registry_records import as_api, cell_id, design, empty_store, record, retraction, trial_id, write_at_once

from ablate import housekeeping
from ablate.status import StatusFile
from registry import Leaderboard, Spool, query
from registry.compare import compare, readable
from registry.lookup import LookupFailed, as_record, find, unique
from registry.mirror import sync
from registry.store import Store

MHA, GQA = {"model.attention": "mha"}, {"model.attention": "gqa"}


@pytest.fixture
def store(home: Path) -> Store:
    """Two cells with three seeds."""
    store = empty_store(home)
    runs = [
        record(levels, seed, loss=3 + n / 10 + seed / 100) for n, levels in enumerate((MHA, GQA)) for seed in range(3)
    ]
    write_at_once(store, [design([MHA, GQA], 3), *runs])
    return store


# Ids


@pytest.mark.parametrize(("given", "found"), [("ab", "abc"), ("abc", "abc"), ("b", "b"), ("ba", "ba")])
def test_the_beginning_of_one_id_or_the_whole_of_it_is_enough(given: str, found: str) -> None:
    assert unique(given, ["abc", "b", "ba"], "trial") == found


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("a", "2 of what is recorded begin with 'a': ab, ac"),
        ("x", "no trial begins with 'x'"),
        ("", "no trial begins with ''"),
    ],
)
def test_what_names_nothing_or_several_is_refused(given: str, says: str) -> None:
    with pytest.raises(LookupFailed, match=says):
        unique(given, ["ab", "ac"], "trial")


def test_a_record_comes_back_from_the_mirror_as_it_was_written(store: Store) -> None:
    first = record(MHA, 0, loss=3.0)
    kind, (row,) = find(sync(store), first.trial_id[:10])
    assert kind == "trial"
    assert as_record(row).to_dict() | {"curves": {}} == first.to_dict() | {"curves": {}}
    assert find(sync(store), first.record_id)[0] == "record"
    assert len(find(sync(store), cell_id(MHA), ("cell",))[1]) == 3


@pytest.mark.parametrize(
    "argv", [["verify"], ["retract", "--why", "x"], ["logs"], ["compare", "0123456789abcdef"]], ids=lambda argv: argv[0]
)
@pytest.mark.parametrize("given", ["nonsense", "", "'; DROP TABLE trials; --", "../../etc/passwd", "*"])
def test_every_command_refuses_an_unknown_id_with_one_line(argv: list[str], given: str, store: Store, ablate) -> None:
    code, out, err = ablate(*argv, given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "begins with" in err


# Retraction


def test_retracting_marks_all_records_of_a_trial_and_deletes_none(store: Store, ablate) -> None:
    store.write_trial(record(MHA, 0, purpose="speed"))
    code, out, _ = ablate("retract", trial_id(MHA, 0)[:8], "--why", "  the corpus was wrong ")
    assert (code, out.count("retracted: record")) == (0, 2)
    assert len(store.trials()) == 7
    assert {mark.why for mark in store.marks()} == {"the corpus was wrong"}
    assert Leaderboard().frame().set_index("attention")["n"].to_dict() == {"mha": 2, "gqa": 3}
    assert (
        "2 retracted records are left out (retracted in the view trials says why)"
        in Leaderboard().frame().attrs["notes"]
    )
    code, _, err = ablate("retract", trial_id(MHA, 0), "--why", "again")
    assert code == 2
    assert "is retracted already: the corpus was wrong" in err
    assert len(store.marks()) == 2


def test_one_record_can_be_retracted_alone(store: Store, ablate) -> None:
    second = record(MHA, 0, loss=3.5, attempt=1)
    store.write_trial(second)
    first = record(MHA, 0, loss=3.0)
    assert ablate("retract", first.record_id[:12], "--why", "a bad machine")[0] == 0
    assert query("SELECT val_loss FROM trials WHERE counts AND seed = 0 AND attention = 'mha'")[
        "val_loss"
    ].tolist() == [3.5]


def test_a_record_that_waits_in_the_spool_can_be_retracted(store: Store, ablate) -> None:
    waiting = record(MHA, 9)
    Spool(store.home).put(waiting)
    assert ablate("retract", waiting.trial_id, "--why", "wrong")[0] == 0
    assert store.retracted() == {waiting.record_id: "wrong"}


@pytest.mark.parametrize("argv", [["--why", " "], []])
def test_a_retraction_needs_a_reason(argv: list[str], store: Store, ablate) -> None:
    code, out, err = ablate("retract", trial_id(MHA, 0), *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--why" in err
    assert store.marks() == []


def test_where_nothing_stands_the_board_says_why(store: Store, ablate) -> None:
    for one in store.trials():
        store.write_mark(retraction(one))
    code, out, err = ablate("leaderboard", "attention")
    assert (code, out) == (2, "")
    assert "nothing stands: 6 records were retracted" in err


# Comparison


def test_two_trials_differ_in_settings_and_results(store: Store) -> None:
    frame = compare(trial_id(MHA, 0), trial_id(GQA, 0), store.home)
    rows = {(row["part"], row["what"]): row for row in frame.to_dict("records")}
    assert rows["settings", "model.attention"]["A"] == "mha"
    assert rows["settings", "model.attention.n_kv_heads"]["B"] == 2
    assert rows["results", "val_loss"]["difference"] == pytest.approx(0.1)
    assert ("settings", "model.dim") not in rows  # it is the same
    assert ("results", "tokens") not in rows


def test_of_cells_differences_are_paired_by_seed(store: Store) -> None:
    frame = compare(cell_id(MHA), cell_id(GQA)[:8], store.home)
    rows = {row["what"]: row for row in frame.to_dict("records")}
    assert rows["val_loss"]["A"] == pytest.approx(3.01)
    assert rows["val_loss"]["A_sd"] == pytest.approx(0.01)
    assert (rows["val_loss"]["difference"], rows["val_loss"]["half_width"]) == (
        pytest.approx(0.1),
        pytest.approx(0.0, abs=1e-9),
    )
    assert rows["val_loss"]["A_n"] == 3
    assert "seeds 0, 1, 2" in frame.attrs["notes"][0]


def test_the_half_width_is_students(store: Store) -> None:
    for seed, loss in enumerate((3.0, 3.2, 3.1)):
        store.write_trial(record({"model.attention": "mqa"}, seed, loss=loss))
    frame = compare(cell_id(MHA), cell_id({"model.attention": "mqa"}), store.home)
    row = frame[frame["what"] == "val_loss"].to_dict("records")[0]
    # differences 0, 0.19, 0.08: mean 0.09, sd 0.09539, t(0.975, 2) = 4.3027
    assert (row["difference"], row["half_width"]) == (
        pytest.approx(0.09),
        pytest.approx(4.3027 * 0.09539 / 3**0.5, rel=1e-3),
    )


def test_what_does_not_compare_has_no_difference(store: Store) -> None:
    for levels, fields in (
        ({"model.attention": "far"}, {"environment_id": "env-gpu"}),
        ({"model.attention": "near"}, {"exclusive": False}),
        ({"model.attention": "text"}, {"evaluation": "slice-b"}),
    ):
        store.write_trial(record(levels, 0, **fields))

    def why(name: str) -> dict[str, str]:
        frame = compare(trial_id(MHA, 0), trial_id({"model.attention": name}, 0), store.home)
        return {
            row["what"]: row["note"]
            for row in frame.to_dict("records")
            if row["note"] and row["difference"] != row["difference"]
        }

    assert why("far") == {"tokens_per_second": "other environment", "peak_memory_gib": "other environment"}
    assert why("near") == {"tokens_per_second": "measured beside other trials"}
    assert why("text") == {"val_loss": "other held-out text or tokenizer"}


def test_a_retracted_record_is_compared_only_by_name_and_is_said_to_be_retracted(store: Store, ablate) -> None:
    bad = record(MHA, 0, loss=3.0)
    store.write_mark(retraction(bad))
    code, _, err = ablate("compare", bad.trial_id, trial_id(GQA, 0))
    assert code == 2
    assert "no result that counts" in err
    code, out, _ = ablate("compare", bad.record_id, trial_id(GQA, 0), "--format", "json")
    assert code == 0
    assert f"record {bad.record_id} was retracted: wrong data" in json.loads(out)["notes"]


def test_for_a_reader_numbers_carry_how_sure_they_are(store: Store, ablate) -> None:
    shown = readable(compare(cell_id(MHA), cell_id(GQA), store.home)).set_index("what")
    assert shown.loc["val_loss", ["A", "B"]].tolist() == ["3.01 ± 0.01", "3.11 ± 0.01"]
    code, out, _ = ablate("compare", cell_id(MHA), cell_id(GQA))
    assert code == 0
    assert "n_kv_heads" in out


# Logs


def test_the_log_of_a_trial_by_its_first_digits(store: Store, ablate) -> None:
    folder = store.home / "logs"
    folder.mkdir()
    for name in ("abc1", "abc2"):
        (folder / f"{name}.log").write_text(f"printed by {name}\n")
    assert ablate("logs", "abc1")[:2] == (0, "printed by abc1\n")
    code, _, err = ablate("logs", "abc")
    assert code == 2
    assert "2 of what is recorded begin with 'abc': abc1, abc2" in err


def test_a_trial_recorded_elsewhere_has_no_log_here(store: Store, ablate) -> None:
    far = record(MHA, 7, environment={"device": "H100", "host": "gpu-box"})
    store.write_trial(far)
    code, out, err = ablate("logs", far.trial_id[:10])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"no log of trial {far.trial_id} here: it was recorded on gpu-box" in err


# Clearing up


def _left(home: Path) -> dict[str, Path]:
    """One of each kind of thing that may be cleared, and of what stays."""
    files = {
        "tokens": home / "cache/tokens/0123/train.bin", "compiled": home / "cache/inductor/ab/kernel.py",
        "source": home / "cache/sources/ab/part.jsonl", "old log": home / "logs/a.log", "new log": home / "logs/b.log",
        "old checkpoint": home / "checkpoints/a.pt", "new checkpoint": home / "checkpoints/b.pt",
        "old unfinished": home / "spool/.r.json.0a.tmp", "new unfinished": home / "spool/.r.json.0b.tmp",
        "old record": home / "spool/damaged/r.json",
    }  # fmt: skip
    for name, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
        if name.startswith("old"):
            os.utime(path, (time.time() - 40 * 86400,) * 2)
    return files


@pytest.fixture
def ray_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a killed driver left."""
    folder = tmp_path / "ablate-ray-x"
    folder.mkdir()
    (folder / "log").write_bytes(b"x" * 500)
    monkeypatch.setattr("ablate.scratch._root", lambda: tmp_path)
    return folder


def test_gc_clears_what_can_be_made_again_and_says_how_much(store: Store, ray_folder: Path, ablate) -> None:
    files = _left(store.home)
    code, out, _ = ablate("gc", "--dry-run")
    assert (code, "5,500 bytes would be free" in out) == (0, True)
    assert all(path.exists() for path in files.values())
    code, out, _ = ablate("gc")
    assert (code, "5,500 bytes are free" in out) == (0, True)
    assert {name for name, path in files.items() if path.exists()} == {
        "source", "new log", "new checkpoint", "new unfinished", "old record",
    }  # fmt: skip
    assert not ray_folder.exists()
    assert len(store.trials()) == 6
    assert "0 bytes are free" in ablate("gc")[1]


def test_gc_leaves_a_corpus_that_is_being_prepared(store: Store, ray_folder: Path, ablate) -> None:
    from filelock import FileLock

    files = _left(store.home)
    partial = store.home / "cache/tokens/0123.partial"
    partial.mkdir()
    with FileLock(store.home / "cache/tokens/0123.lock"):
        assert ablate("gc")[0] == 0
        assert files["tokens"].exists()
        assert partial.exists()
    assert ablate("gc")[0] == 0
    assert not files["tokens"].exists()


def test_gc_waits_for_trials_that_run(store: Store, ray_folder: Path, ablate) -> None:
    files = _left(store.home)
    status = StatusFile(store.home, trial_id="a", label="", suite="")
    code, out, err = ablate("gc")
    assert (code, out) == (2, "")
    assert "1 trials are running" in err
    assert ablate("gc", "--dry-run")[0] == 0
    status.close()
    assert all(path.exists() for path in files.values())


def test_runs_of_retracted_records_go_only_when_asked_and_their_marks_stay(
    home: Path, ray_folder: Path, ablate
) -> None:
    store, bad = empty_store(home), record(MHA, 0)
    for one in (bad, record(MHA, 1)):
        store.write_trial(one)
    store.write_mark(retraction(bad))
    assert ablate("gc")[0] == 0
    assert len(store.trials()) == 2
    assert ablate("gc", "--retracted", "--dry-run")[0] == 0
    assert len(store.trials()) == 2
    assert ablate("gc", "--retracted")[0] == 0
    for reader in (store, as_api(store)):
        assert len(reader.trials()) == 1
        assert reader.retracted() == {bad.record_id: "wrong data"}
    # a copy of it that comes from elsewhere is known to be retracted
    store.write_trial(bad)
    assert query("SELECT count(*) AS n FROM trials WHERE counts")["n"].tolist() == [1]


def test_gc_of_a_home_without_anything(home: Path, ray_folder: Path) -> None:
    heaps = housekeeping.clear(home, days=30, retracted=True, dry_run=True)
    assert sum(heap.bytes for heap in heaps) == 500
