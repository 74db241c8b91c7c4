"""`ablate verify` trains from what a record says, and refuses what would be another trial."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_records import empty_store, record, retraction
from tiny import tiny

from ablate import data, environment, scheduler
from ablate.cli import main
from ablate.errors import UserError
from ablate.plan import Identities
from ablate.scheduler import Outcome
from ablate.verify import chosen, verify
from ablate.worker import Job, Place, execute
from registry import Leaderboard, query
from registry.mirror import sync
from registry.record import TrialRecord
from registry.store import Store

ELSEWHERE = {"environment_id": "env-gpu"}


def train(job: Job, home: Path) -> TrialRecord:
    """Train in this process as a worker would, with the CPU to itself."""
    got = execute(job, Place(home=home, device="cpu", threads=1, lease="verify-test"))
    assert isinstance(got, TrialRecord)
    return got


@pytest.fixture
def trained(home: Path, monkeypatch: pytest.MonkeyPatch) -> TrialRecord:
    """A tiny trial that was trained and recorded; verifications of it run in this process, without Ray."""
    store, recipe = empty_store(home), tiny(seed=3)
    data.prepare(recipe.data, home / "cache")
    here = Identities(home / "cache")(recipe)
    job = Job(
        trial_id=here.trial_id, cell_id=here.cell_id, label="tiny", suite="tiny", scale="nano", seed=3, recipe=recipe.to_dict(),
        levels={"model.norm": "layernorm"}, corpus_fingerprint=here.corpus, evaluation_fingerprint=here.evaluation,
        text_fingerprint=here.text, code_fingerprint=here.code, shape=recipe.shape(), estimated_seconds=1.0, purpose="primary",
        git_revision="", git_dirty=False, finished_before=0, ablate_version="0",
    )  # fmt: skip
    # speed on a machine that runs tests says nothing
    made = replace(train(job, home), exclusive=False)
    store.write_trial(made)

    def run(jobs: Sequence[Job], *, home: Path, open_store: Any, **options: Any) -> Outcome:
        records = tuple(train(job, home) for job in jobs)
        open_store()
        return Outcome(records=records)

    monkeypatch.setattr(scheduler, "run", run)
    return made


def rewrite(home: Path, record: TrialRecord) -> None:
    """Put an altered record in the place of what the store has."""
    store = Store.open(home)
    for run in store._search("trial", {"ablate.record_id": record.record_id}):
        store._client.delete_run(run.info.run_id)
    store.write_trial(record)


def test_a_trial_reproduces_and_both_records_stay(
    trained: TrialRecord, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", trained.trial_id[:6], "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {row["metric"]: row["verdict"] for row in shown["rows"]} == {
        "val_loss": "identical", "tokens_per_second": "not compared", "peak_memory_gib": "identical",
    }  # fmt: skip
    assert shown["notes"][-1] == f"reproduces: trial {trained.trial_id}"
    first, again = query("SELECT * FROM trials ORDER BY purpose").to_dict("records")
    assert (first["purpose"], first["verified"], first["refuted"], first["counts"]) == ("primary", 1, 0, True)
    assert (again["purpose"], again["counts"], again["trial_id"]) == ("verify", False, trained.trial_id)
    assert json.loads(again["context"])["verification"]["of"] == trained.record_id


def test_an_altered_loss_does_not_reproduce(
    trained: TrialRecord, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(home, replace(trained, metrics=trained.metrics | {"val_loss": trained.metrics["val_loss"] - 0.05}))
    assert main(["verify", trained.trial_id]) == 1
    assert f"does not reproduce: trial {trained.trial_id}" in capsys.readouterr().out
    assert query("SELECT refuted FROM trials WHERE counts")["refuted"].tolist() == [1]


def test_what_is_put_to_the_test_is_the_record_not_its_copy(trained: TrialRecord, home: Path) -> None:
    store = Store.open(home)
    sync(store)
    altered = json.loads(replace(trained, curves={}).to_json())
    altered["metrics"]["val_loss"] += 0.5
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        text = dict(database.execute("SELECT key, value FROM tags WHERE key LIKE 'ablate.record%'"))
        assert text["ablate.record_id"] == trained.record_id
        whole = "".join(text[key] for key in sorted(text) if key != "ablate.record_id")
        new = whole.replace(
            f'"val_loss":{trained.metrics["val_loss"]!r}', f'"val_loss":{altered["metrics"]["val_loss"]!r}'
        )
        assert new != whole
        for start, key in enumerate(sorted(key for key in text if key != "ablate.record_id")):
            database.execute("UPDATE tags SET value = ? WHERE key = ?", (new[5000 * start : 5000 * (start + 1)], key))
    again = verify(trained.trial_id, home=home, say=lambda text: None).again
    assert again is not None
    assert again.context["verification"]["verdict"] == "does not reproduce"


def test_other_code_or_another_corpus_is_another_trial(trained: TrialRecord, home: Path) -> None:
    rewrite(home, replace(trained, corpus_fingerprint="another"))
    with pytest.raises(UserError, match="trained on another corpus"):
        verify(trained.trial_id, home=home, say=lambda text: None)
    rewrite(home, replace(trained, code_fingerprint="older", git_revision="abc"))
    with pytest.raises(UserError, match="git revision abc, or ask with --other-code"):
        verify(trained.trial_id, home=home, say=lambda text: None)
    again = verify(trained.trial_id, home=home, other_code=True, say=lambda text: None).again
    assert again is not None
    assert again.context["verification"]["verdict"] == "reproduces"
    assert again.context["verification"]["other_code"] is True


def test_of_a_trial_the_record_of_here_is_verified_and_otherwise_one_is_to_be_named(home: Path) -> None:
    store = empty_store(home)
    here = environment.environment_id(environment.expected())
    own, other, third = (record(environment_id=place) for place in (here, "env-gpu", "env-tpu"))
    for one in (other, own):
        store.write_trial(one)
    assert chosen(sync(store), own.trial_id).record_id == own.record_id
    assert chosen(sync(store), other.record_id).record_id == other.record_id
    store.write_trial(third)
    store.write_mark(retraction(own))
    with pytest.raises(UserError, match="run in 2 environments, none of them here"):
        chosen(sync(store), own.trial_id)
    with pytest.raises(UserError, match="was retracted: wrong data"):
        chosen(sync(store), own.record_id)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"status": "crashed", "cause": "boom"}, "ended as crashed, which says nothing that could be repeated: boom"),
        ({"purpose": "speed"}, "has no result to verify"),
    ],
)
def test_what_cannot_be_repeated_is_refused(fields: dict[str, Any], says: str, home: Path) -> None:
    store = empty_store(home)
    made = record(**fields)
    store.write_trial(made)
    with pytest.raises(UserError, match=says):
        chosen(sync(store), made.record_id)


def test_a_retracted_trial_is_refused_and_pending_again(home: Path) -> None:
    store, made = empty_store(home), record()
    store.write_trial(made)
    store.write_mark(retraction(made))
    with pytest.raises(UserError, match="all of its records were retracted"):
        chosen(sync(store), made.trial_id)


@pytest.fixture
def own_leases(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing else on this machine holds up what wants the CPU to itself. The path is short, for Ray puts sockets there."""
    with tempfile.TemporaryDirectory(prefix="verify-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield


def ablate(*argv: str) -> tuple[int, str]:
    """Run a command in a process of its own: its exit code and what it printed."""
    done = subprocess.run([sys.executable, "-m", "ablate", *argv], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_real_trial_reproduces_an_altered_one_does_not_and_the_board_shows_both(home: Path, own_leases: None) -> None:
    """Through the commands: trained by `run`, trained again by `verify` with Ray, taken back by `retract`, and trained anew by `run`."""
    suite = ["quickstart", "--set", "data.source=synthetic", "--set", "train.tokens=20000", "--seeds", "2"]
    suite += ["--only", "attention=mha"]
    code, said = ablate("run", *suite)
    assert code == 0, said
    good, bad = query("SELECT trial_id, record_id FROM trials WHERE activation = 'gelu' ORDER BY seed").to_dict(
        "records"
    )
    honest = Store.open(home).trial(bad["record_id"])
    rewrite(home, replace(honest, metrics=honest.metrics | {"val_loss": honest.metrics["val_loss"] - 0.1}))

    code, said = ablate("verify", good["trial_id"][:8])
    assert (code, f"reproduces: trial {good['trial_id']}" in said) == (0, True), said
    code, said = ablate("verify", bad["trial_id"][:8])
    assert (code, f"does not reproduce: trial {bad['trial_id']}" in said) == (1, True), said
    board = Leaderboard().frame().set_index("activation")
    assert (board["verified"].to_dict()["gelu"], board["refuted"].to_dict()["gelu"]) == (1, 1)

    code, said = ablate("retract", bad["trial_id"], "--why", "altered by hand")
    assert code == 0, said
    assert Leaderboard().frame().set_index("activation")["n"].to_dict() == {"gelu": 1, "swiglu": 2}
    code, said = ablate("run", *suite)
    assert code == 0, said
    after = query("SELECT val_loss FROM trials WHERE counts AND activation = 'gelu' ORDER BY seed")
    assert after["val_loss"].tolist()[1] == honest.metrics["val_loss"]
