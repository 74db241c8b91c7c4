"""What is published comes from records alone, can be read by anybody, and is refused where nobody could check it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_records import design, empty_store, record, retraction, verification, write_at_once

from ablate.cli import main
from registry import publish as publishing
from registry.record import TrialRecord
from registry.store import Store

CELLS = [{"model.attention": "mha"}, {"model.attention": "gqa"}]


def trials(**fields: Any) -> list[TrialRecord]:
    made = [
        record(levels, seed, loss=3 + seed / 10 + number / 7, **fields)
        for number, levels in enumerate(CELLS)
        for seed in range(3)
    ]
    return [replace(one, curves={"val_loss": [[0, 0, 9.0], [10, 40960, one.metrics["val_loss"]]]}) for one in made]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path):
    """Run a command on a registry: its exit code, stdout and stderr."""

    def call(folder: Path, *argv: object) -> tuple[int, str, str]:
        monkeypatch.setenv("ABLATE_HOME", str(folder))
        code = main([str(arg) for arg in argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Store]:
    """A registry with a suite, of these trials."""

    def make(*some: TrialRecord, **fields: Any) -> Store:
        store = empty_store(tmp_path / "home")
        write_at_once(store, [design(CELLS, 3, **fields), *(some or trials())])
        return store

    return make


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_a_suite_is_published_as_files_that_anybody_can_read(made, tmp_path: Path, cli) -> None:
    home, folder = made().home, tmp_path / "results" / "attention" / "nano" / "cpu"
    assert cli(home, "publish", "attention", "-o", tmp_path / "results") == (0, f"{folder}\n", "")
    assert {path.name for path in folder.iterdir()} == {
        "trials.csv", "effects.csv", "val_loss.csv", "report.md", "env.json", "records.ablate"
    }  # fmt: skip
    written = rows(folder / "trials.csv")
    assert len(written) == 6
    assert {(row["cell"], row["model.attention"], row["purpose"]) for row in written} == {
        (n, n, "primary") for n in ("mha", "gqa")
    }
    assert {float(row["val_loss"]) for row in written} == {one.metrics["val_loss"] for one in trials()}
    assert {row["git_revision"] for row in written} == {"0123456789abcdef"}
    (effect,) = [row for row in rows(folder / "effects.csv") if row["metric"] == "val_loss"]
    assert (effect["level"], effect["against"], effect["verdict"]) == ("gqa", "mha", "worse")
    assert float(effect["estimate"]) == pytest.approx(1 / 7)
    curve = rows(folder / "val_loss.csv")
    assert len(curve) == 12
    assert {(row["step"], row["tokens"]) for row in curve} == {("0", "0.0"), ("10", "40960.0")}
    environment = json.loads((folder / "env.json").read_text())
    assert environment["rows"] == [{"environment_id": "env-cpu", "device": "cpu", "threads": 1, "torch": "2.13.0"}]
    assert cli(home, "report", "attention", "--format", "markdown")[1] == (folder / "report.md").read_text()


def test_what_is_published_can_be_queried_again(made, tmp_path: Path, cli) -> None:
    home = made().home
    cli(home, "publish", "attention", "-o", tmp_path)
    assert cli(tmp_path / "newcomer", "import", tmp_path / "attention/nano/cpu/records.ablate")[0] == 0
    question = "leaderboard", "attention", "--format", "csv"
    assert cli(tmp_path / "newcomer", *question) == cli(home, *question)


def test_publishing_again_changes_nothing(made, tmp_path: Path, cli) -> None:
    home = made().home
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        assert cli(home, "publish", "attention", "-o", folder)[0] == 0
    found = [{path.name: path.read_bytes() for path in folder.rglob("*.*")} for folder in folders]
    assert found[0] == found[1]
    assert len(found[0]) == 6


def test_each_kind_of_hardware_has_a_folder_of_its_own(made, tmp_path: Path, cli) -> None:
    other = trials(environment_id="env-gpu", environment={"device": "NVIDIA H200", "torch": "2.11.0"})
    older = trials(environment_id="env-old", environment={"device": "cpu", "torch": "2.0"}, attempt=1)[:2]
    home = made(*trials(), *other, *older).home
    code, out, _ = cli(home, "publish", "attention", "-o", tmp_path / "results")
    assert (code, out.splitlines()) == (
        0,
        [str(tmp_path / "results/attention/nano" / name) for name in ("nvidia-h200", "cpu")],
    )
    for name, environment in (("cpu", "env-cpu"), ("nvidia-h200", "env-gpu")):
        folder = tmp_path / "results/attention/nano" / name
        assert {row["environment_id"] for row in rows(folder / "trials.csv")} == {environment}
        assert {row["environment_id"] for row in json.loads((folder / "env.json").read_text())["rows"]} == {environment}


def test_records_that_are_large_stay_behind(made, tmp_path: Path, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    home, file = made().home, tmp_path / "attention/nano/cpu/records.ablate"
    cli(home, "publish", "attention", "-o", tmp_path)
    assert file.exists()
    monkeypatch.setattr(publishing, "SMALL", 100)
    cli(home, "publish", "attention", "-o", tmp_path)
    assert not file.exists()


DOUBTFUL: dict[str, tuple[Callable[[TrialRecord], TrialRecord], str]] = {
    "dirty": (lambda one: replace(one, git_dirty=True), "1 of 6 records from a checkout with uncommitted changes"),
    "without revision": (lambda one: replace(one, git_revision=""), "1 of 6 records without a git revision"),
    "without fingerprint": (
        lambda one: replace(one, code_fingerprint="unknown"),
        "1 of 6 records without a fingerprint",
    ),
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_what_nobody_can_check_is_refused_unless_it_is_asked_for(kind: str, made, tmp_path: Path, cli) -> None:
    spoil, says = DOUBTFUL[kind]
    first, *rest = trials()
    home, into = made(spoil(first), *rest).home, tmp_path / "results"
    code, out, err = cli(home, "publish", "attention", "-o", into)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: attention nano on cpu: {says}")
    assert "--unverified" in err
    assert not into.exists()
    assert cli(home, "publish", "attention", "-o", into, "--unverified")[0] == 0
    for name in ("report.md", "env.json"):
        assert (
            f"Published although nobody can check all of it: {says}" in (into / "attention/nano/cpu" / name).read_text()
        )


def test_what_was_retracted_or_refuted_is_refused_until_another_stands_in(made, tmp_path: Path, cli) -> None:
    store, into = made(), tmp_path / "results"
    store.write_mark(retraction(trials()[0]))
    code, _, err = cli(store.home, "publish", "attention", "-o", into)
    assert code == 2
    assert "1 trial has only retracted records" in err
    store.write_trial(replace(trials(attempt=1)[0], finished_at="2026-03-01T00:00:00+00:00"))
    assert cli(store.home, "publish", "attention", "-o", into)[0] == 0
    store.write_trial(verification(trials()[1], "does not reproduce"))
    code, _, err = cli(store.home, "publish", "attention", "-o", into)
    assert code == 2
    assert "1 of 6 records did not reproduce" in err


def test_a_damaged_run_is_refused(made, tmp_path: Path, cli) -> None:
    store = made()
    run = next(iter(store.changes("trial").present))
    store._client.set_tag(run, "ablate.record", "{")
    code, out, err = cli(store.home, "publish", "attention", "-o", tmp_path / "results")
    assert (code, out) == (2, "")
    assert "1 of the registry's runs damaged" in err


def test_nothing_is_written_where_one_of_several_is_refused(made, tmp_path: Path, cli) -> None:
    dirty = trials(environment_id="env-gpu", environment={"device": "NVIDIA H200"}, git_dirty=True)
    home = made(*trials(), *dirty).home
    assert cli(home, "publish", "attention", "-o", tmp_path / "results")[0] == 2
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", ["../../evil", "/etc", "a/../b", ".hidden"])
def test_a_suite_cannot_be_published_outside_of_the_folder(name: str, made, tmp_path: Path, cli) -> None:
    home = made(*trials(suite=name), suite=name).home
    with pytest.raises(publishing.PublishError, match="cannot name a folder"):
        publishing.publish(name, home=home)


@pytest.mark.parametrize(("argv", "says"), [(["nothing"], 'suite "nothing"'), (["attention", "--scale", "1b"], '"1b"')])
def test_what_is_not_there_gets_one_line(argv: list[str], says: str, made, tmp_path: Path, cli) -> None:
    code, out, err = cli(made().home, "publish", *argv, "-o", tmp_path / "results")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert not (tmp_path / "results").exists()


def test_cells_of_a_spreadsheet_are_no_formulas(made, tmp_path: Path, cli) -> None:
    first, *rest = trials()
    failed = replace(first, status="crashed", cause="=HYPERLINK(1)", metrics={})
    cli(made(failed, *rest).home, "publish", "attention", "-o", tmp_path)
    assert "'=HYPERLINK(1)" in {row["cause"] for row in rows(tmp_path / "attention/nano/cpu/trials.csv")}
