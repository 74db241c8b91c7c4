"""Tuning: each arm finds a bracketed value at an equal budget, on seeds of its own, and is reported with that."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_tuning
import pytest
import registry_records
from hypothesis import given
from hypothesis import strategies as st

from ablate import design
from ablate._grid import Search, Tune, Value, magnitude, search
from ablate.design import Design, Trial
from ablate.suite import Suite, SuiteError, load_suite
from ablate.tune import FIRST_SEED, next_stage, stages
from registry.mirror import Mirror
from registry.record import DesignRecord
from registry.sql import Sandbox

ROOT = Path(__file__).resolve().parent.parent


def grid(*values: Value, extend: int = 2) -> Tune:
    return Tune(field="optimizer.lr", values=values, seeds=1, extend=extend, place=("tune",))


def octaves_from(best: float) -> Callable[[Value], float]:
    """A curve that is lowest at `best`."""
    return lambda value: abs(math.log2(magnitude(value) / best))


def found(
    tune: Tune, curve: Callable[[Value], float | None], possible: Callable[[Value], bool] = lambda value: True
) -> Search:
    return search(tune, curve, possible)


def test_a_best_value_between_others_is_chosen_without_more() -> None:
    ended = found(grid(1.0, 2.0, 4.0), octaves_from(2.2))
    assert (ended.values, ended.chosen, ended.bracketed, ended.standing) == ((1.0, 2.0, 4.0), 2.0, True, "bracketed")


@pytest.mark.parametrize(
    ("best", "values"),
    [(8.0, (1.0, 2.0, 4.0, 8.0, 16.0)), (0.5, (0.25, 0.5, 1.0, 2.0, 4.0)), (4.1, (1.0, 2.0, 4.0, 8.0))],
)
def test_a_best_value_at_an_end_extends_the_grid_there(best: float, values: tuple[float, ...]) -> None:
    ended = found(grid(1.0, 2.0, 4.0), octaves_from(best))
    assert ended.values == values and ended.bracketed
    assert ended.chosen == min(values, key=octaves_from(best))


def test_a_grid_goes_on_as_it_ends() -> None:
    rates = grid(3e-4, 1e-3, 3e-3, extend=1)
    assert found(rates, octaves_from(1)).values == (3e-4, 1e-3, 3e-3, 9e-3)
    assert found(rates, octaves_from(1e-9)).values == (9e-5, 3e-4, 1e-3, 3e-3)
    assert found(grid("x0.5", "x1", "x2"), octaves_from(99)).values == ("x0.5", "x1", "x2", "x4", "x8")
    assert found(grid(4, 8, 16), octaves_from(1)).values == (1, 2, 4, 8, 16)
    assert found(grid("x4", "x1", "x0.25"), octaves_from(1)).values == ("x0.25", "x1", "x4"), (
        "in whatever order it is said"
    )


def test_an_end_that_is_best_when_the_budget_is_spent_is_untuned() -> None:
    ended = found(grid(1.0, 2.0, 4.0), octaves_from(99))
    assert (ended.values[-1], ended.chosen, ended.bracketed, ended.standing) == (16.0, 16.0, False, "untuned")
    ended = found(grid(1.0, 2.0, 4.0, extend=0), octaves_from(99))
    assert (len(ended.values), ended.chosen, ended.bracketed) == (3, 4.0, False)


def test_a_value_that_cannot_be_ends_the_grid() -> None:
    ended = found(grid(0.5, 0.7, 0.9), octaves_from(99), lambda value: magnitude(value) < 1)
    assert (ended.values, ended.chosen, ended.bracketed) == ((0.5, 0.7, 0.9), 0.9, False)


def test_divergence_is_infinitely_bad() -> None:
    losses: dict[Value, float] = {1.0: 3.0, 2.0: 2.0, 4.0: math.inf}
    ended = found(grid(*losses), losses.__getitem__)
    assert (ended.chosen, ended.bracketed) == (2.0, True)


def test_where_all_diverge_it_goes_on_below() -> None:
    ended = found(grid(1.0, 2.0, 4.0), lambda value: 1.0 if magnitude(value) < 0.3 else math.inf)
    assert (ended.values, ended.chosen, ended.bracketed) == ((0.25, 0.5, 1.0, 2.0, 4.0), 0.25, False)
    ended = found(grid(1.0, 2.0, 4.0), lambda value: math.inf)
    assert (ended.chosen, ended.bracketed) == (0.25, False)


def test_what_failed_brackets_nothing() -> None:
    losses: dict[Value, float] = {1.0: 3.0, 2.0: 2.0, 4.0: math.nan}
    ended = found(grid(*losses), losses.__getitem__)
    assert (ended.chosen, ended.bracketed, ended.standing) == (2.0, False, "untuned")
    ended = found(grid(*losses), lambda value: math.nan)
    assert (ended.values, ended.chosen, ended.bracketed) == ((1.0, 2.0, 4.0), None, False)


def test_it_waits_for_every_value() -> None:
    losses: dict[Value, float | None] = {1.0: 3.0, 2.0: None, 4.0: 1.0}
    waiting = found(grid(*losses), losses.__getitem__)
    assert (waiting.values, waiting.decided, waiting.chosen, waiting.standing) == (
        (1.0, 2.0, 4.0),
        False,
        None,
        "1 to try",
    )


@given(best=st.floats(1e-6, 1e6), extend=st.integers(0, 12), diverges=st.floats(1e-6, 1e6))
def test_a_bracketed_value_is_the_lowest_of_a_curve_with_one_valley(best: float, extend: int, diverges: float) -> None:
    def curve(value: Value) -> float:
        return math.inf if magnitude(value) > diverges else octaves_from(best)(value)

    ended = found(grid(0.5, 1.0, 2.0, extend=extend), curve)
    assert ended.chosen is not None and len(ended.values) <= 3 + extend
    assert ended.chosen == min(ended.values, key=lambda value: (curve(value), magnitude(value)))
    if ended.bracketed:
        chosen = magnitude(ended.chosen)
        assert curve(chosen) <= min(curve(chosen * 2**step) for step in range(-40, 41))
    else:
        assert ended.chosen in (ended.values[0], ended.values[-1]) and len(ended.values) == 3 + extend


# Designs


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Suite]:
    def load(text: str) -> Suite:
        (tmp_path / "x.yaml").write_text(text)
        return load_suite(tmp_path / "x.yaml")

    return load


def planted(trial: Trial) -> float:
    optimizer = trial.recipe.optimizer
    return fake_tuning.loss(optimizer.name, optimizer.options["lr"], trial.seed)


class Runner:
    """Trains what is asked for by planted losses, and refuses to train anything twice."""

    def __init__(self, found: Design, curve: Callable[[Trial], float] = planted) -> None:
        self.design, self.curve = found, curve
        self.records: dict[str, float] = {}

    def look(self, trial: Trial) -> float | None:
        return self.records.get(json.dumps(trial.recipe.to_dict()))

    def next(self) -> tuple[Trial, ...] | None:
        return next_stage(self.design, self.look)

    def train(self, trials: tuple[Trial, ...]) -> None:
        for trial in trials:
            assert self.look(trial) is None
            self.records[json.dumps(trial.recipe.to_dict())] = self.curve(trial)

    def run(self) -> list[tuple[Trial, ...]]:
        done = []
        while trials := self.next():
            self.train(trials)
            done.append(trials)
        return done


def rate(trial: Trial) -> float:
    return trial.recipe.optimizer.options["lr"]


def test_every_arm_is_reported_at_its_own_bracketed_rate(load) -> None:
    runner = Runner(design.expand(load(fake_tuning.SUITE)))
    ran = runner.run()
    assert [Counter(trial.label for trial in stage) for stage in ran] == [
        {"adamw": 3, "lion": 3, "sgd": 3}, {"lion": 1, "sgd": 1}, {"lion": 1, "sgd": 1}, {"adamw": 2, "lion": 2, "sgd": 2},
    ]  # fmt: skip
    *tuning, reported = ran
    assert {trial.stage for stage in tuning for trial in stage} == {"tune"} and {trial.stage for trial in reported} == {
        ""
    }
    assert {trial.seed for stage in tuning for trial in stage} == {FIRST_SEED}
    assert [trial.seed for trial in reported] == [0, 0, 0, 1, 1, 1]
    assert {trial.label: rate(trial) for trial in reported} == pytest.approx(
        {"adamw": 3e-3, "lion": 2.4e-3, "sgd": 0.0125}
    )
    arms = {arm.cell.label: arm.search for arm in stages(runner.design, runner.look).arms}
    assert {label: (one.chosen, one.bracketed) for label, one in arms.items()} == {
        "adamw": ("x1", True), "lion": ("x4", True), "sgd": ("x0.125", False),
    }  # fmt: skip


def test_multiples_are_of_what_each_arm_has_and_numbers_are_the_same_for_all(load) -> None:
    first = Runner(design.expand(load(fake_tuning.SUITE))).next()
    assert sorted(rate(trial) for trial in first or () if trial.label == "lion") == pytest.approx([3e-4, 6e-4, 1.2e-3])
    numbers = fake_tuning.SUITE.replace("[x0.5, x1, x2]", "[1.0e-3, 3.0e-4, 3.0e-3]")
    first = Runner(design.expand(load(numbers))).next()
    assert {(trial.label, rate(trial)) for trial in first or ()} == {
        (label, value) for label in ("adamw", "lion", "sgd") for value in (3e-4, 1e-3, 3e-3)
    }
    assert [trial.name for trial in first or ()][:2] == ["adamw, lr=0.0003", "adamw, lr=0.001"]


def test_a_level_may_set_what_multiples_are_of(load) -> None:
    text = fake_tuning.SUITE.replace("lion, sgd", "{lion: {lr: 1.0e-2}}")
    first = Runner(design.expand(load(text))).next()
    assert sorted(rate(trial) for trial in first or () if trial.label == "lion") == [5e-3, 1e-2, 2e-2]


def test_several_tuning_seeds_are_averaged_and_one_that_diverges_counts(load) -> None:
    runner = Runner(design.expand(load(fake_tuning.SUITE.replace("seeds: 1,", "seeds: 2,"))))
    first = runner.next()
    assert first is not None and [trial.seed for trial in first] == [FIRST_SEED] * 9 + [FIRST_SEED + 1] * 9
    runner.train(first[:9])
    assert runner.next() == first[9:], "no value is judged by half of its seeds"
    adamw = [trial for trial in first[9:] if trial.label == "adamw"]
    runner.curve = lambda trial: math.inf if trial == adamw[1] else planted(trial)
    runner.train(first[9:])
    arm = next(arm for arm in stages(runner.design, runner.look).arms if arm.cell.label == "adamw")
    assert arm.search.losses == (None, pytest.approx(2.1005), math.inf, pytest.approx(2.1005)), (
        "and the grid goes on below"
    )


@pytest.mark.parametrize(
    "kept", [slice(0, 5), slice(1, 9, 2), slice(0, 10), slice(3, 15), slice(9, 19), slice(0, 19, 3)], ids=str
)
def test_the_records_alone_say_where_it_stands(load, kept: slice) -> None:
    """Whatever part of a run is there, the rest is trained, and nothing else."""
    runner = Runner(design.expand(load(fake_tuning.SUITE)))
    ran = [trial for stage in Runner(runner.design).run() for trial in stage]
    runner.train(tuple(ran[kept]))
    again = [trial for stage in runner.run() for trial in stage]
    assert Counter((trial.name, trial.seed, rate(trial)) for trial in [*ran[kept], *again]) == Counter(
        (trial.name, trial.seed, rate(trial)) for trial in ran
    )


def test_tuning_follows_only_seeds_and_scale(load) -> None:
    suite = load(fake_tuning.SUITE)
    only = Runner(design.expand(suite, only="optimizer=lion", seeds=3)).run()
    assert [len(stage) for stage in only] == [3, 1, 1, 3]
    assert [trial.seed for trial in only[-1]] == [0, 1, 2]
    large = Runner(design.expand(suite, scale="10m")).next()
    assert sorted(rate(trial) for trial in large or () if trial.label == "adamw") == pytest.approx([5e-4, 1e-3, 2e-3])


def test_tuning_seeds_are_never_reported(load) -> None:
    found = design.expand(load(fake_tuning.SUITE), seeds=[0, FIRST_SEED])
    assert {trial.seed for trial in next_stage(found, lambda trial: None) or ()} == {FIRST_SEED + 1}


def test_a_suite_without_factors_can_be_tuned(load) -> None:
    runner = Runner(design.expand(load("name: x\ntune: {optimizer.lr: [1.0e-3, 2.0e-3, 4.0e-3]}\n")))
    *_, reported = runner.run()
    assert {rate(trial) for trial in reported} == {4e-3} and len(runner.run()) == 0
    assert stages(runner.design, runner.look).arms[0].search.values == (1e-3, 2e-3, 4e-3, 8e-3)


def test_matched_arms_stay_matched(load) -> None:
    text = "name: x\nfactors: {model.attention: [mha, mqa]}\nmatch: parameters\ntune: {optimizer.lr: [x0.5, x1, x2]}\n"
    ran = Runner(design.expand(load(text))).run()
    assert {(trial.label, trial.recipe.model.ffn_dim) for stage in ran for trial in stage} == {
        ("mha", 168),
        ("mqa", 200),
    }


def test_controls_follow_the_baselines_rate(load) -> None:
    """The A/A arm is the baseline that is reported; the known-bad does what is bad to it."""
    text = fake_tuning.SUITE.replace("adamw, lion", "lion, adamw") + "controls: {aa: true, bad: {optimizer.lr: x10}}\n"
    runner = Runner(design.expand(load(text)))
    *tuning, reported = runner.run()
    assert not any(trial.control for stage in tuning for trial in stage)
    rates = {trial.control: rate(trial) for trial in reported if trial.label == "lion" or trial.control}
    assert rates == pytest.approx({"": 2.4e-3, "aa": 2.4e-3, "bad": 2.4e-2})
    baseline, copy = (
        next(t.recipe for t in reported if t.control == kind and t.label in ("lion", "A/A")) for kind in ("", "aa")
    )
    assert copy.model_copy(update={"seed": 0}) == baseline


def test_a_suite_that_does_not_tune_has_one_stage() -> None:
    found = design.expand(load_suite("quickstart"))
    assert next_stage(found, lambda trial: None) == found.trials
    assert next_stage(found, lambda trial: 1.0 if trial.seed else None) == tuple(t for t in found.trials if not t.seed)
    assert next_stage(found, lambda trial: math.nan) is None


def test_a_value_that_is_impossible_at_another_scale_names_it(load) -> None:
    found = load("name: x\nbase: {model.attention: gqa}\ntune: {model.attention.n_kv_heads: [1, 2, 4]}\n")
    with pytest.raises(
        SuiteError, match=r"x.yaml:3: tune.model.attention.n_kv_heads\[2\]: .* 4 key .* \(at scale 10m\)"
    ):
        design.expand(found, scale="10m")


# The registry


def test_tuning_trials_are_on_no_board() -> None:
    levels = {"model.attention": "mha"}
    trials = [
        {"trial_id": "t1", "cell_id": "c1", "levels": levels, "seed": FIRST_SEED, "stage": "tune"},
        {"trial_id": "r1", "cell_id": "c2", "levels": levels, "seed": 0},
    ]
    tuned = registry_records.design([levels], trials=trials, created_at="2026-02-01T00:00:00+00:00")
    older = registry_records.design([levels], 1)

    def shown(*trained: str) -> list[tuple[str, bool]]:
        records = {one: replace(registry_records.record(levels), trial_id=one) for one in trained}
        with Sandbox(Mirror.of(records, {"tuned": tuned, "older": older})) as sandbox:
            rows = sandbox.rows("SELECT trial_id, latest FROM designs ORDER BY created_at DESC")
        return [(row["trial_id"], row["latest"]) for row in rows]

    (own,) = (trial["trial_id"] for trial in older.trials)
    assert shown("t1", own) == [("r1", False), (own, True)], "while it is tuned, the older results stay"
    assert shown("t1", own, "r1") == [("r1", True), (own, False)]


# Runs


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("tuned.yaml").write_text(fake_tuning.SUITE)
    return "tuned.yaml"


def trained(home: Path) -> list[str]:
    return [line.split()[0] for line in (home / "trainings").read_text().splitlines()]


def newest(home: Path) -> DesignRecord:
    from registry import Store

    return Store.open(home).designs()[-1]


@pytest.fixture
def without_ray(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """`ablate run` with the planted trainer, in this process; the list has the number of trials to interrupt it after."""
    from ablate import environment
    from ablate.worker import Place, execute
    from registry import Spool

    registry_records.empty_store(home)
    stop: list[int] = []

    def run(jobs: Any, *, home: Path, open_store: Any, **_: Any) -> Any:
        store, threads = open_store(), environment.share().threads
        place = Place(home=home, device="cpu", threads=threads, lease=None, trainer="fake_tuning:train")
        few = jobs[: stop[0]] if stop else jobs
        records = [execute(job, place) for job in few]
        store.ingest(Spool(home))
        ended = signal.SIGINT if len(few) < len(jobs) else None
        return SimpleNamespace(records=tuple(records), missing=(), interrupted=ended, waiting_in_spool=0)

    scheduler: Any = ModuleType("ablate.scheduler")
    scheduler.run = run
    monkeypatch.setitem(sys.modules, "ablate.scheduler", scheduler)
    monkeypatch.setattr("ablate.scheduler", scheduler, raising=False)

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    return stop


def test_a_run_leads_from_stage_to_stage_and_goes_on_where_it_was(
    suite: str, home: Path, without_ray: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    from ablate.cli import main

    without_ray.append(4)
    for count in (4, 8):
        with pytest.raises(SystemExit, match="130"):
            main(["run", suite])
        assert len(trained(home)) == count
    assert main(["plan", suite]) == 0
    out = capsys.readouterr().out
    assert "8 finished" in out and "1 to try" in out and "then about" in out
    assert newest(home).tuning["sgd"]["chosen"] is None
    without_ray.clear()
    assert main(["run", suite]) == 0
    assert len(trained(home)) == len(set(trained(home))) == 19
    assert main(["run", suite]) == 0
    assert len(trained(home)) == 19, "nothing is left"

    kept = newest(home)
    found = {label: (one["chosen"], one["bracketed"]) for label, one in kept.tuning.items()}
    assert found == {"adamw": (3e-3, True), "lion": (pytest.approx(2.4e-3), True), "sgd": (0.0125, False)}
    lion = kept.tuning["lion"]
    assert lion["field"] == "optimizer.lr" and lion["values"] == pytest.approx([3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3])
    assert lion["seeds"] == [FIRST_SEED] and [len(ids) for ids in lion["trials"]] == [1] * 5
    tuning = {trial["trial_id"] for trial in kept.trials if trial.get("stage") == "tune"}
    assert {i for one in kept.tuning.values() for ids in one["trials"] for i in ids} == tuning and len(tuning) == 13
    assert kept.seeds == [0, 1] and len(kept.trials) == 19
    capsys.readouterr()
    assert main(["leaderboard", "tuned", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["optimizer"], row["n"]) for row in rows][:2] == [("adamw", 2), ("lion", 2)] and len(rows) == 3
    assert main(["plan", suite]) == 0
    out = capsys.readouterr().out
    assert "nothing to run" in out and out.count("bracketed") == 2 and out.count("untuned") == 1


@pytest.mark.slow
def test_a_rate_that_diverges_is_no_failure_of_the_run(suite: str, home: Path, without_ray: list[int]) -> None:
    from ablate.cli import main

    Path(suite).write_text(fake_tuning.SUITE.replace("lion, sgd", "muon"))
    assert main(["run", suite]) == 0
    assert newest(home).tuning["muon"]["chosen"] == pytest.approx(3e-3)
    assert newest(home).tuning["muon"]["bracketed"]


@pytest.mark.slow
def test_one_cell_at_a_time_makes_the_same_design(suite: str, home: Path, without_ray: list[int]) -> None:
    from ablate.cli import main

    assert main(["run", suite, "--only", "optimizer=adamw"]) == 0
    assert {label: one["bracketed"] for label, one in newest(home).tuning.items()} == {
        "adamw": True,
        "lion": False,
        "sgd": False,
    }
    assert main(["run", suite]) == 0
    assert len(trained(home)) == len(set(trained(home))) == 19


@pytest.mark.fire
def test_with_ray_and_a_signal_too(suite: str, home: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}

    def run(*stop: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tests" / "fake_tuning.py"), suite, *stop]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)

    assert run("3").returncode == 130
    assert run("8").returncode == 130
    ended = run()
    assert ended.returncode == 0, ended.stderr
    assert len(trained(home)) == len(set(trained(home))) == 19
    assert {label: one["bracketed"] for label, one in newest(home).tuning.items()} == {
        "adamw": True,
        "lion": True,
        "sgd": False,
    }
