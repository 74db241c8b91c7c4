"""Records travel from one registry to another as one file: the same there, once, and whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import sqlite3
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as some
from registry_records import design, empty_store, record, retraction, verification, write_at_once

from ablate.cli import main
from registry import archive
from registry.archive import ArchiveError, Bundle, pack, unpack
from registry.exchange import import_records
from registry.leaderboard import Leaderboard
from registry.record import SCHEMA_VERSION, DesignRecord, TrialRecord
from registry.report import report
from registry.store import Store

CELLS = [{"model.attention": name, "norm": norm} for name in ("mha", "gqa") for norm in ("layernorm", "rmsnorm")]
LOSSES = [3.1 + 0.1 * i for i in range(3)]


def finished() -> list[TrialRecord | DesignRecord]:
    """A suite of four cells with three seeds, one attempt that failed, a pass for speed, and another suite."""
    trials = [
        record(levels, seed, loss=LOSSES[seed] + number / 7, metrics={"mfu": 0.1 + seed / 30})
        for number, levels in enumerate(CELLS)
        for seed in range(3)
    ]
    trials += [record(CELLS[0], 0, attempt=1, status="crashed", cause="=1+1 <b>é"), record(CELLS[1], purpose="speed")]
    other = {"levels": {"optimizer": "lion"}}
    trials.append(record(other["levels"], corpus="b", suite="other", scale="1m", context=other))
    return [design(CELLS, 3), design([other["levels"]], 1, suite="other", scale="1m", corpus="b"), *trials]


@pytest.fixture
def here(tmp_path: Path) -> Store:
    """A registry with results."""
    store = empty_store(tmp_path / "here")
    write_at_once(store, finished())
    return store


@pytest.fixture
def there(tmp_path: Path) -> Store:
    """A registry without any."""
    return empty_store(tmp_path / "there")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path):
    """Run a command on a registry: its exit code, stdout and stderr."""

    def call(store: Store | Path, *argv: object) -> tuple[int, str, str]:
        monkeypatch.setenv("ABLATE_HOME", str(store.home if isinstance(store, Store) else store))
        code = main([str(arg) for arg in argv])
        return code, *capsys.readouterr()

    return call


def everything(store: Store) -> tuple[Any, ...]:
    trials = sorted(store.trials(), key=lambda one: one.record_id)
    return trials, store.designs(), store.marks(), store.all_curves(), store.damaged()


def test_another_registry_gives_the_same_answers_byte_for_byte(here: Store, there: Store, tmp_path: Path, cli) -> None:
    file, again = tmp_path / "records.ablate", tmp_path / "again.ablate"
    assert cli(here, "export", file) == (0, f"{file}: 15 trials, 2 designs\n", "")
    assert cli(there, "import", file) == (0, "new: 15 trials, 2 designs\n", "")
    assert everything(there) == everything(here)
    for question in (
        ["leaderboard", "--format", "csv"],
        ["leaderboard", "attention", "--sort", "mfu", "--format", "csv"],
        [
            "query",
            "SELECT record_id, recipe, environment, context, val_loss, counts FROM trials ORDER BY ALL",
            "--format",
            "csv",
        ],
        ["query", "SELECT * FROM cells", "--format", "csv"],
        ["query", "SELECT * FROM curves ORDER BY ALL", "--format", "csv"],
        ["report", "attention", "--format", "markdown"],
    ):
        answers = [cli(store, *question) for store in (here, there)]
        assert answers[0] == answers[1]
        assert answers[0][0] == 0
    pages = [report("attention", home=store.home).render("html") for store in (here, there)]
    assert len({re.sub(r"clip\d+", "clip", page) for page in pages}) == 1  # a process numbers what it draws
    assert cli(there, "export", again)[0] == 0
    assert again.read_bytes() == file.read_bytes()


def test_a_mean_does_not_depend_on_the_order_in_which_runs_lie_in_a_store(tmp_path: Path) -> None:
    stores = [empty_store(tmp_path / name) for name in ("one", "other")]
    for store in stores:
        trials = [record(levels, seed, loss=3 + seed * 0.377 % 1) for levels in CELLS for seed in range(9)]
        write_at_once(store, [design(CELLS, 9), *trials])
    with contextlib.closing(sqlite3.connect(stores[1].home / "mlflow.db")) as database, database:
        database.create_function("backwards", 1, lambda text: text[::-1])
        for table in ("runs", "tags", "metrics"):
            database.execute(f"UPDATE {table} SET run_uuid = backwards(run_uuid)")
    one, other = (Leaderboard(store.home).frame() for store in stores)
    assert one.equals(other)


def test_what_is_there_is_left_as_it_is(here: Store, there: Store, tmp_path: Path, cli) -> None:
    file = tmp_path / "records.ablate"
    cli(here, "export", file)
    cli(there, "import", file)
    runs = {kind: there.changes(kind).present for kind in ("trial", "design")}
    assert cli(there, "import", file) == (0, "new: 0 trials, 0 designs\nthere before: 15 trials, 2 designs\n", "")
    assert {kind: there.changes(kind).present for kind in ("trial", "design")} == runs
    before = everything(here)
    assert cli(here, "import", file)[0] == 0
    assert everything(here) == before


def test_an_empty_home_is_made_a_registry(here: Store, tmp_path: Path, cli) -> None:
    file = tmp_path / "records.ablate"
    cli(here, "export", file, "other")
    assert cli(tmp_path / "new", "import", file)[:2] == (0, "new: 1 trial, 1 design\n")
    assert len(Store.open(tmp_path / "new").trials()) == 1


def test_a_part_is_what_a_suite_and_a_condition_name(here: Store, tmp_path: Path, cli) -> None:
    def part(*argv: str) -> tuple[int, set[str]]:
        file = tmp_path / "part.ablate"
        assert cli(here, "export", file, *argv)[0] == 0
        bundle = unpack(file.read_bytes())
        return len(bundle.trials), {one.suite for one in bundle.designs}

    assert part("other") == (1, {"other"})
    assert part("attention", "--scale", "nano") == (14, {"attention"})
    assert part("--where", "seed = 2") == (4, {"attention"})
    assert part("--where", "seed = 0", "--where", "attention = 'gqa' AND purpose = 'primary'") == (2, {"attention"})
    for argv, says in (
        (["nothing"], "no results of suite 'nothing'"),
        (["other", "--scale", "1b"], "no results of suite 'other' at scale '1b'"),
        (["--where", "seed = 9"], "no results for which seed = 9"),
        (["--where", "seeds = 9"], "seeds"),
    ):
        code, out, err = cli(here, "export", tmp_path / "none", *argv)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err
        assert not (tmp_path / "none").exists()


def test_a_trial_that_ran_for_another_suite_comes_with_the_design_that_names_it(
    here: Store, tmp_path: Path, cli
) -> None:
    shared = design(CELLS[:1], 2, suite="smaller")
    write_at_once(here, [shared])
    file = tmp_path / "part.ablate"
    assert cli(here, "export", file, "smaller")[0] == 0
    assert {one.trial_id for one in unpack(file.read_bytes()).trials} == {one["trial_id"] for one in shared.trials}


def test_retractions_and_verifications_come_along(here: Store, there: Store, tmp_path: Path, cli) -> None:
    of, gone = record(CELLS[0], 1), record(CELLS[0], 99)
    here.write_mark(retraction(of, "=1 wrong data"))
    here.write_mark(retraction(gone))  # the mark of a record that was deleted since
    here.write_trial(verification(record(CELLS[1], 2), "does not reproduce"))
    for argv in ([], ["attention"]):
        assert cli(here, "export", tmp_path / "records.ablate", *argv)[0] == 0
        marks = unpack((tmp_path / "records.ablate").read_bytes()).marks
        assert {mark.record_id for mark in marks} == ({of.record_id} if argv else {of.record_id, gone.record_id})
    cli(here, "export", tmp_path / "records.ablate")
    assert cli(there, "import", tmp_path / "records.ablate")[1] == "new: 16 trials, 2 designs, 2 marks\n"
    assert cli(there, "import", tmp_path / "records.ablate")[1].endswith(
        "there before: 16 trials, 2 designs, 2 marks\n"
    )
    assert everything(there) == everything(here)
    board = cli(there, "leaderboard", "attention", "--format", "csv")
    assert board == cli(here, "leaderboard", "attention", "--format", "csv")
    assert Leaderboard(there.home).suite("attention").frame()["refuted"].sum() == 1


def test_the_same_records_make_the_same_bytes_in_whatever_order_they_come() -> None:
    trials = [one for one in finished() if isinstance(one, TrialRecord)]
    designs = [one for one in finished() if isinstance(one, DesignRecord)]
    shuffled = random.Random(0).sample(trials, len(trials))
    assert pack(Bundle(trials, designs)) == pack(Bundle(shuffled, designs[::-1]))


# What is refused

SMALL = pack(Bundle([record(seed=seed) for seed in range(2)], [design([{"model.attention": "mha"}])]))


def sealed(members: dict[str, bytes], /, **manifest: Any) -> bytes:
    """A file with these members and a manifest that fits them: what somebody can make who knows the format."""
    counts = manifest.get("counts") or {
        "marks": members.get("marks.jsonl", b"").count(b"\n"),
        "trials": members.get("trials.jsonl", b"").count(b"\n"), "designs": members.get("designs.jsonl", b"").count(b"\n"),
        "points": pq.ParquetFile(io.BytesIO(members["curves.parquet"])).metadata.num_rows if "curves.parquet" in members else 0,
    }  # fmt: skip
    says: dict[str, Any] = {
        "format": archive.FORMAT, "version": archive.VERSION, "schema_version": SCHEMA_VERSION, "counts": counts,
        "members": {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in members.items()},
    }  # fmt: skip
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", json.dumps(says | manifest))
        for name, data in members.items():
            file.writestr(name, data)
    return resealed(out.getvalue())


def resealed(data: bytes) -> bytes:
    """A zip with the seal it should have."""
    size = archive._END.size
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        directory = archive._directory(data[-size:])
        return (
            data[:-size]
            + archive._end(len(file.infolist()), *directory)
            + f"sha256:{hashlib.sha256(data[:-size]).hexdigest()}".encode()
        )


def parts() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(SMALL)) as file:
        return {name: file.read(name) for name in archive.MEMBERS}


def changed(member: str, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The small file with its first record changed by somebody who knows the format."""
    members = parts()
    first, *rest = members[member].splitlines()
    data = json.loads(first)
    change(data)
    members[member] = b"\n".join([json.dumps(data).encode(), *rest, b""])
    return sealed(members)


def points(rows: list[tuple[Any, ...]], **options: Any) -> bytes:
    out = io.BytesIO()
    table = pa.table(dict(zip(archive.POINTS.names, zip(*rows, strict=True), strict=True)), archive.POINTS)
    pq.write_table(table, out, **({"compression": "none"} | options))
    return out.getvalue()


def test_what_the_tests_make_is_taken_where_nothing_is_wrong_with_it() -> None:
    assert unpack(sealed(parts())) == unpack(SMALL)


@given(some.data())
def test_a_file_with_any_byte_changed_is_refused(data: some.DataObject) -> None:
    place = data.draw(some.integers(0, len(SMALL) - 1))
    altered = bytearray(SMALL)
    altered[place] ^= data.draw(some.integers(1, 255))
    with pytest.raises(ArchiveError):
        unpack(bytes(altered))


@given(some.integers(0, len(SMALL) - 1))
def test_a_file_that_was_cut_off_is_refused(length: int) -> None:
    with pytest.raises(ArchiveError):
        unpack(SMALL[:length])


def deep() -> bytes:
    return sealed(parts() | {"trials.jsonl": b"[" * 100_000 + b"\n"})


def twice() -> bytes:
    return sealed(parts() | {"trials.jsonl": parts()["trials.jsonl"].splitlines(True)[0] * 2})


def differing() -> bytes:
    first = parts()["trials.jsonl"].splitlines(True)[0]
    return sealed(parts() | {"trials.jsonl": first + first.replace(b'"seed": ', b'"seed": 1')})


def two_of_a_name() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("manifest.json", "{}")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("manifest.json", "{}")
    return resealed(out.getvalue())


def bomb() -> bytes:
    return sealed(parts() | {"trials.jsonl": b" " * 50_000_000 + b"\n"})


def larger_than_it_says() -> bytes:
    members = parts()
    says = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in members.items()}
    return sealed(members | {"trials.jsonl": b" " * 50_000_000}, members=says)


RECORD = json.loads(parts()["trials.jsonl"].splitlines()[0])
ONE = RECORD["record_id"]
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "not a file of ablate export"),
    "something else": (lambda: b"trial_id,val_loss\n", "not a file of ablate export"),
    "another zip": (lambda: resealed(two_zip({"a": b""})), "no manifest"),
    "more at its end": (lambda: SMALL + b"\0", "cut off or altered"),
    "two at once": (lambda: SMALL + SMALL, "cut off or altered"),
    "a newer format": (lambda: sealed(parts(), version=2), "newer ablate (version 2; this one reads up to 1)"),
    "a newer schema": (lambda: sealed(parts(), schema_version=SCHEMA_VERSION + 1), "made by a newer ablate"),
    "a schema that is none": (lambda: sealed(parts(), schema_version=True), "schema_version True is none"),
    "a newer record": (lambda: changed("trials.jsonl", lambda r: r.update(schema_version=99)), "schema_version: 99"),
    "path upwards": (lambda: sealed(parts() | {"../../evil": b""}), "unknown member '../../evil'"),
    "path from the root": (lambda: sealed(parts() | {"/etc/cron.d/evil": b""}), "unknown member '/etc/cron.d/evil'"),
    "path of Windows": (lambda: sealed(parts() | {"..\\evil": b""}), "unknown member"),
    "a member less": (lambda: sealed({"trials.jsonl": b""}), "is missing"),
    "two members of a name": (two_of_a_name, "the same name"),
    "members that are not listed": (lambda: sealed(parts(), members={}), "not those that its manifest lists"),
    "other counts": (lambda: sealed(parts(), counts={"trials": 1, "designs": 1, "marks": 0, "points": 10}), "declares"),
    "a large manifest": (lambda: sealed(parts(), more=" " * 70_000), "manifest is larger"),
    "a bomb": (bomb, "not JSON"),
    "a bomb that declares less": (larger_than_it_says, "not as long as the manifest says"),
    "brackets": (deep, "trials.jsonl:1: not JSON"),
    "digits": (lambda: sealed(parts() | {"trials.jsonl": b"9" * 10_000 + b"\n"}), "trials.jsonl:1: not JSON"),
    "no number": (lambda: changed("trials.jsonl", lambda r: r["context"].update(x=float("nan"))), "NaN is not a finite number"),
    "infinity": (lambda: changed("trials.jsonl", lambda r: r["metrics"].update(val_loss=10**400)), "metrics.val_loss: 1000"),
    "a line without an end": (lambda: sealed(parts() | {"trials.jsonl": b"{}"}), "cut off"),
    "an empty line": (lambda: sealed(parts() | {"trials.jsonl": b"\n"}), "not JSON"),
    "no object": (lambda: sealed(parts() | {"trials.jsonl": b"[]\n"}), "expected an object"),
    "an unknown field": (lambda: changed("trials.jsonl", lambda r: r.update(extra=1)), "unknown field extra"),
    "a missing field": (lambda: changed("trials.jsonl", lambda r: r.pop("seed")), "seed"),
    "a record twice": (twice, "is there twice"),
    "two records of an id": (differing, "is there twice"),
    "an id that is none": (lambda: changed("trials.jsonl", lambda r: r.update(record_id="x' OR '1'='1")), "cannot be an id"),
    "a name over two lines": (lambda: changed("trials.jsonl", lambda r: r.update(suite="a\nb")), "cannot be a name"),
    "a seed beyond databases": (lambda: changed("trials.jsonl", lambda r: r.update(seed=2**63)), "not a whole number"),
    "a cause that is no text": (lambda: changed("trials.jsonl", lambda r: r.update(cause={})), "cause: expected a string"),
    "a time that is none": (lambda: changed("trials.jsonl", lambda r: r.update(started_at="noon")), "not a timestamp"),
    "levels that are none": (lambda: changed("trials.jsonl", lambda r: r["context"].update(levels=[1])), "context.levels"),
    "curves in the wrong place": (lambda: changed("trials.jsonl", lambda r: r.update(curves={"y": [[0, 0, 1]]})), "belong into"),
    "labels that are none": (lambda: changed("designs.jsonl", lambda r: r.update(factors={"a": 1})), "factors.a"),
    "a mark that is none": (
        lambda: sealed(parts() | {"marks.jsonl": json.dumps(retraction(record()).to_dict() | {"mark_id": "'"}).encode() + b"\n"}),
        "cannot be an id",
    ),
    "a trial that is none": (lambda: changed("designs.jsonl", lambda r: r["trials"][0].update(trial_id="a b")), "that is none"),
    "no Parquet": (lambda: altered_points(points([(ONE, "x", 0, 0.0, 1.0)])[:-9]), "cut off or altered"),
    "more points than declared": (lambda: altered_points(points([(ONE, "x", n, 0.0, 1.0) for n in range(9)])), "not the rows"),
    "other columns": (lambda: sealed(parts() | {"curves.parquet": other_columns()}), "not the columns"),
    "a curve of nobody": (lambda: sealed(parts() | {"curves.parquet": points([("x", "l", 0, 0.0, 1.0)])}), "not in trials.jsonl"),
    "compressed twice": (
        lambda: sealed(parts() | {"curves.parquet": points([(ONE, "l", 0, 0.0, 1.0)] * 99_999, compression="zstd")}),
        "compressed in another way"
    ),
    "a curve that steps twice": (lambda: sealed(parts() | {"curves.parquet": points([(ONE, "l", 0, 0.0, 1.0)] * 2)}), "cannot be kept"),
    "a curve of no name": (lambda: sealed(parts() | {"curves.parquet": points([(ONE, "a=b", 0, 0.0, 1.0)])}), "cannot be kept"),
    "a curve without a number": (
        lambda: sealed(parts() | {"curves.parquet": points([(ONE, "l", 0, 0.0, float("nan"))])}), "not [step, tokens, value]"
    ),
}  # fmt: skip


def two_zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


def altered_points(data: bytes) -> bytes:
    return (
        sealed(parts() | {"curves.parquet": data}, counts={"trials": 2, "designs": 1, "marks": 0, "points": 10})
        if data
        else b""
    )


def other_columns() -> bytes:
    out = io.BytesIO()
    pd.DataFrame({"a": [1]}).to_parquet(out)
    return out.getvalue()


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_is_refused_whole(kind: str, tmp_path: Path, cli) -> None:
    make, says = REFUSED[kind]
    file = tmp_path / "records.ablate"
    file.write_bytes(make())
    code, out, err = cli(tmp_path / "home", "import", file)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {file}: ")
    assert says in err
    assert err.endswith("; nothing was imported\n")
    assert not (tmp_path / "home").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"records.ablate"}


SHOWN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a setting with a quote in its name": lambda r: r["recipe"].update({'a"b': 1}),
    "a setting beyond databases": lambda r: r["recipe"].update(dim=2**70),
    "a metric with a quote in its name": lambda r: r["metrics"].update({'x" FROM trials; --': 1.0}),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_a_record_that_would_break_the_board_is_refused_or_harmless(
    kind: str, here: Store, tmp_path: Path, cli
) -> None:
    file = tmp_path / "records.ablate"
    file.write_bytes(changed("trials.jsonl", lambda r: (r.update(record_id="new"), SHOWN[kind](r))))
    drop = parts()
    code, _, err = cli(here, "import", file)
    assert (code, err.count("\n")) == (2, 1), drop
    assert Leaderboard(here.home).frame()["n"].sum() == 13


@pytest.mark.parametrize("path", ["nowhere.ablate", ".", "/dev/zero"])
def test_what_is_no_file_gets_one_line(path: str, tmp_path: Path, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(tmp_path / "home", "import", path)
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda one: replace(one, metrics=one.metrics | {"val_loss": 1.0}), "with other content (metrics)"),
        (lambda one: replace(one, curves={}), "with other curves"),
    ],
)
def test_a_record_that_contradicts_one_in_the_registry_stops_all(
    other: Callable[[TrialRecord], TrialRecord], says: str, there: Store, tmp_path: Path
) -> None:
    write_at_once(there, [record(seed=0)])
    file = tmp_path / "records.ablate"
    file.write_bytes(pack(Bundle([other(record(seed=0)), record(seed=1)])))
    with pytest.raises(ArchiveError) as caught:
        import_records(file, home=there.home)
    assert says in str(caught.value)
    assert len(there.trials()) == 1


def test_a_record_of_an_earlier_schema_is_taken() -> None:
    members = parts()
    lines = [json.loads(line) for line in members["trials.jsonl"].splitlines()]
    for old in lines:
        old["schema_version"] = 2
        del old["text_fingerprint"]
    members["trials.jsonl"] = b"".join(json.dumps(old).encode() + b"\n" for old in lines)
    found = unpack(sealed(members, schema_version=2)).trials[0]
    assert (found.schema_version, found.text_fingerprint) == (SCHEMA_VERSION, found.evaluation_fingerprint)


def test_an_export_that_fails_leaves_the_file_that_was_there(here: Store, tmp_path: Path, cli, monkeypatch) -> None:
    file = tmp_path / "records.ablate"
    file.write_text("before")

    replace = os.replace

    def full(source: str, target: str) -> None:
        if Path(target) == file:
            raise OSError(28, "No space left on device", str(file))
        replace(source, target)

    monkeypatch.setattr("os.replace", full)
    code, _, err = cli(here, "export", file)
    assert (code, err) == (2, f"error: {file}: no space left on device; make room and give the same command again\n")
    assert [path.name for path in tmp_path.glob("*ablate*")] == ["records.ablate"]
    assert file.read_text() == "before"
