"""A group at work: PostgreSQL behind an MLflow server with passwords, which dies in between."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fake_training
import needs
import psycopg2
import pytest
from registry_records import design, record
from servers import Server, free_port, postgres, server, until

from ablate.status import running
from registry.archive import Bundle, pack
from registry.exchange import import_records
from registry.spool import Spool
from registry.store import Store

pytestmark = [pytest.mark.fire, pytest.mark.timeout(900), needs.program("postgres")]
ROOT = Path(__file__).resolve().parent.parent
SECRETS = {"alice": "alices-long-secret", "bob": "bobs-long-secret", "carol": "carols-long-secret"}
REAL = [
    "run", "quickstart", "--set", "data.source=synthetic", "--set", "train.tokens=8192", "--seeds", "1", "--only", "attention=mha",
]  # fmt: skip


@dataclass
class Group:
    """The server and its database."""

    server: Server
    database: str

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What PostgreSQL holds, asked without anything of ours or of MLflow's."""
        connection = psycopg2.connect(self.database.replace("+psycopg2", ""))
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()
        finally:
            connection.close()

    def runs(self) -> dict[str, dict[str, str]]:
        """The tags of ours of every run that is not deleted."""
        tags: dict[str, dict[str, str]] = {}
        sql = "SELECT run_uuid, key, value FROM tags JOIN runs USING (run_uuid) WHERE lifecycle_stage = 'active' AND key LIKE 'ablate.%'"
        for run, key, value in self.rows(sql):
            tags.setdefault(run, {})[key] = value
        return tags

    def complete(self) -> list[str]:
        """The trials that are recorded, once for each record."""
        return sorted(
            tags["ablate.trial_id"]
            for tags in self.runs().values()
            if {"ablate.complete", "ablate.trial_id"} <= set(tags)
        )


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with postgres() as database, server(tmp_path_factory.mktemp("server"), database) as answering:
        for name, secret in SECRETS.items():
            answering.add_user(name, secret)
        yield Group(answering, database)


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Callable[..., Person]]:
    """Makes people; what their Rays leave goes with them."""
    made: list[Person] = []

    def make(name: str, uri: str, password: str | None = None) -> Person:
        made.append(Person(name, tmp_path / str(len(made)), uri, password))
        return made[-1]

    yield make
    for one in made:
        shutil.rmtree(one.scratch, ignore_errors=True)


class Person:
    """Somebody with a machine, that is, a home, of their own."""

    def __init__(self, name: str, folder: Path, uri: str, password: str | None = None) -> None:
        self.home = folder / name
        self.home.mkdir(parents=True)
        self.outputs: list[Path] = []
        self.scratch = tempfile.mkdtemp(prefix="pg-ray-", dir="/tmp")  # short: Ray puts sockets there
        secret = SECRETS[name] if password is None else password
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "ABLATE_HOME": str(self.home),
            "TMPDIR": self.scratch, "MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": secret,
        }  # fmt: skip

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        self.outputs.append(self.home.parent / f"{self.home.name}-{len(self.outputs)}.out")
        with self.outputs[-1].open("wb") as out:
            return subprocess.Popen(
                [sys.executable, *argv],
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def fake(self, **options: Any) -> subprocess.Popen[bytes]:
        return self.start(str(ROOT / "tests" / "fake_training.py"), str(self.home), json.dumps(options))

    def ablate(self, *argv: str) -> subprocess.Popen[bytes]:
        return self.start("-m", "ablate", *argv)

    @property
    def output(self) -> str:
        return self.outputs[-1].read_text()

    def answer(self, *argv: str) -> tuple[int, str]:
        return self.ablate(*argv).wait(300), self.output


def trial_ids(first: int, count: int) -> set[str]:
    return {fake_training.job(seed).trial_id for seed in range(first, first + count)}


def test_three_people_lose_nothing_and_double_nothing_over_a_server_that_dies(
    group: Group, tmp_path: Path, person
) -> None:
    alice, bob, carol = (person(name, group.server.uri) for name in SECRETS)
    gate = tmp_path / "gate"
    runs = {
        alice: alice.fake(jobs=6, workers=1, recipe={"seconds": 0.5}),
        bob: bob.fake(first=6, jobs=6, workers=1, recipe={"gate": str(gate)}),
        carol: carol.ablate(*REAL),
    }
    try:
        until(lambda: group.complete() and fake_training.notes(bob.home, "measure"), lambda: alice.output + bob.output)
        until(lambda: running(carol.home) or runs[carol].poll() is not None, lambda: carol.output)
        group.server.kill()
        before = group.complete()
        gate.touch()
        until(lambda: len(Spool(bob.home).records()) >= 2, lambda: bob.output)
        assert group.complete() == before
        group.server.start()
        assert [run.wait(300) for run in runs.values()] == [0, 0, 0], [one.output for one in runs]
    finally:
        for run in runs.values():
            if run.poll() is None:
                run.kill()
                run.wait()
    # what a driver did not get rid of while the server was away, the next one takes along
    for one in (alice, bob):
        code = f"from registry import *; from pathlib import Path; h = Path({str(one.home)!r}); print(Store.open(h).ingest(Spool(h)))"
        assert one.start("-c", code).wait(300) == 0, one.output
    # and nobody trains what another has
    assert alice.fake(jobs=12, workers=1).wait(300) == 0, alice.output
    assert json.loads(alice.output)["asked"] == 0
    code, said = carol.answer(*REAL)
    assert code == 0, said
    assert [Spool(one.home).records() for one in runs] == [[], [], []]
    tags = list(group.runs().values())
    assert all("ablate.complete" in one for one in tags)
    assert set(Counter(one["ablate.record_id"] for one in tags).values()) == {1}
    counted = Counter(group.complete())
    assert set(counted.values()) == {1}
    assert len(counted) == 12 + 2
    assert trial_ids(0, 12) <= set(counted)
    assert [one["ablate.kind"] for one in tags].count("design") == 1
    question = "SELECT suite, count(*) AS n FROM trials GROUP BY suite ORDER BY suite"
    for one in runs:  # each sees what all have done
        assert one.answer("query", question, "--format", "csv") == (0, "suite,n\nfake,12\nquickstart,2\n")
    kept = [path for path in (*tmp_path.rglob("*"), *(group.server.folder / "artifacts").rglob("*")) if path.is_file()]
    stored = " ".join(
        str(row) for table in ("tags", "params", "runs", "experiments") for row in group.rows(f"SELECT * FROM {table}")
    )
    assert any(path.name == "record.json" for path in kept)
    for secret in SECRETS.values():
        assert [path for path in kept if secret.encode() in path.read_bytes()] == []
        assert secret not in stored


@pytest.mark.parametrize(
    ("command", "password"), [(["leaderboard"], ""), (["query", "SELECT 1"], "wrong-wrong-wrong"), (REAL, "wrong-wrong-wrong")],
    ids=["none", "wrong", "wrong, to write"],
)  # fmt: skip
def test_wrong_credentials_give_one_line(group: Group, person, password: str, command: list[str]) -> None:
    alice = person("alice", group.server.uri, password)
    if not password:
        del alice.environment["MLFLOW_TRACKING_USERNAME"], alice.environment["MLFLOW_TRACKING_PASSWORD"]
    code, said = alice.answer(*command)
    assert (code, said.count("error:")) == (2, 1)
    assert said.splitlines()[-1] == (
        f"error: tracking store {group.server.uri} does not accept this user and password: "
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )


def test_a_server_that_is_not_there_gives_one_line(person) -> None:
    address = f"127.0.0.1:{free_port()}"
    code, said = person("alice", f"http://alice:in-the-address@{address}").answer("leaderboard")
    says = f"error: tracking store http://{address} does not answer (Connection refused): start it, or set MLFLOW_TRACKING_URI\n"
    assert (code, said) == (2, says)


def test_a_database_that_does_not_let_us_in_gives_one_line_at_once(group: Group, person) -> None:
    """MLflow by itself tries for two minutes."""
    uri = group.database.replace("only-for-this-test", "wrong-wrong")
    code, said = person("alice", uri).answer("leaderboard")
    assert (code, said.count("\n")) == (2, 1), said
    assert said.startswith("error: tracking store postgresql+psycopg2://127.0.0.1:")
    assert "password authentication failed" in said
    assert "wrong-wrong" not in said


def test_a_record_that_three_machines_write_at_once_is_there_once(group: Group, tmp_path: Path, person) -> None:
    """None takes what another has begun for a write of its own that was cut off."""
    fresh = [replace(record(seed=seed, corpus="both"), suite="both") for seed in range(3)]
    plan = design([{"model.attention": "mha"}], 3, suite="both", corpus="both")
    file = tmp_path / "records.ablate"
    file.write_bytes(pack(Bundle(fresh, [plan])))
    people = [person(name, group.server.uri) for name in SECRETS]
    started = [one.ablate("import", str(file)) for one in people]
    assert [run.wait(300) for run in started] == [0, 0, 0], [one.output for one in people]
    code, board = people[0].answer("leaderboard", "both", "--format", "csv")
    assert code == 0, board
    assert [(row["attention"], row["n"]) for row in csv.DictReader(io.StringIO(board))] == [("mha", "3")]
    assert people[1].answer("leaderboard", "both", "--format", "csv") == (0, board)


def test_what_was_exported_there_is_the_same_here(
    group: Group, tmp_path: Path, home: Path, person, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = person("bob", group.server.uri)
    code, said = bob.answer("export", str(tmp_path / "records.ablate"))
    assert code == 0, said
    import_records(tmp_path / "records.ablate", home=home)
    here = Store.open(home)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, bob.environment[name])
    there = Store.open(tmp_path / "elsewhere", group.server.uri)
    assert {r.record_id: r for r in here.trials()} == {r.record_id: r for r in there.trials()}
    assert here.designs() == there.designs()
    assert here.all_curves() == there.all_curves() != {}
