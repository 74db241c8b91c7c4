"""A verification says of each number whether it came out again, and a record cannot widen its own limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from registry_records import design, empty_store, record, write_at_once

from registry.mirror import Mirror, sync
from registry.record import TrialRecord
from registry.store import Store
from registry.verification import SHARES, Claim, claim, frame, judge, plain, with_verdict

MHA = {"model.attention": "mha"}
NUMBERS = {"val_loss": 3.0, "tokens_per_second": 1e4, "peak_memory_gib": 0.25}


@pytest.fixture
def store(home: Path) -> Store:
    """One cell with as many seeds as tell its noise."""
    store = empty_store(home)
    seeds = range(7)
    runs = [record(MHA, seed, loss=3 + seed / 1000, metrics={"tokens_per_second": 1e4 + 10 * seed}) for seed in seeds]
    write_at_once(store, [design([MHA], 7), *runs])
    return store


def said(**fields: Any) -> Claim:
    limits = {name: {"limit": share * NUMBERS[name], "from": ""} for name, share in SHARES.items()}
    base: dict[str, Any] = {
        "record_id": "a" * 32, "status": "finished", "environment_id": "env-cpu", "exclusive": True, "code_fingerprint": "code-1",
        "metrics": NUMBERS, "limits": limits,
    }  # fmt: skip
    return Claim(**(base | fields))


def again(**fields: Any) -> TrialRecord:
    metrics = NUMBERS | fields.pop("metrics", {})
    return record(MHA, purpose="verify", metrics=metrics, **fields)


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {check["metric"]: check["verdict"] for check in found["checks"]}


def test_what_comes_out_the_same_reproduces() -> None:
    found = judge(said(), again(metrics={"tokens_per_second": 9e3}))
    assert found["verdict"] == "reproduces"
    assert found["of"] == "a" * 32
    assert verdicts(found) == {
        "val_loss": "identical",
        "tokens_per_second": "reproduces",
        "peak_memory_gib": "identical",
    }


@pytest.mark.parametrize(
    ("metric", "factor"),
    [("val_loss", 1.002), ("val_loss", 0.998), ("tokens_per_second", 0.7), ("peak_memory_gib", 1.03)],
)
def test_one_number_outside_its_limit_refutes(metric: str, factor: float) -> None:
    found = judge(said(), again(metrics={metric: NUMBERS[metric] * factor}))
    assert found["verdict"] == "does not reproduce"
    assert verdicts(found)[metric] == "does not reproduce"


@pytest.mark.parametrize(
    ("rate", "then", "now", "verdict"),
    [
        (5e3, {"p10": 0.9, "p90": 1.1}, {"p10": 0.5, "p90": 1.2}, "reproduces"),  # some steps were as fast as then
        (5e3, {"p10": 0.9, "p90": 2.5}, {"p10": 0.9, "p90": 1.1}, "reproduces"),  # some steps then were as slow as now
        (5e3, {"p10": 0.9, "p90": 1.1}, {"p10": 0.9, "p90": 1.1}, "does not reproduce"),
        (2e4, {"p10": 0.9, "p90": 1.1}, {"p10": 0.9, "p90": 1.1}, "does not reproduce"),
        (5e3, {}, {}, "does not reproduce"),
    ],
)
def test_speeds_whose_steps_overlap_are_not_told_apart(
    rate: float, then: dict[str, float], now: dict[str, float], verdict: str
) -> None:
    def steps(shares: dict[str, float], median: float) -> dict[str, float]:
        return {"step_time_ms": median} | {f"step_time_ms_{name}": median * share for name, share in shares.items()}

    recorded = said(metrics=NUMBERS | steps(then, 10.0))
    found = judge(recorded, again(metrics={"tokens_per_second": rate} | steps(now, 20.0)))
    assert found["verdict"] == verdict


def test_a_speed_that_was_altered_is_not_saved_by_its_steps() -> None:
    steps = {"step_time_ms": 10.0, "step_time_ms_p10": 9.0, "step_time_ms_p90": 11.0}
    altered = said(metrics=NUMBERS | steps | {"tokens_per_second": 3e4})
    assert judge(altered, again(metrics=steps))["verdict"] == "does not reproduce"


def test_speed_and_memory_of_another_environment_are_not_compared() -> None:
    found = judge(said(), again(environment_id="env-gpu", metrics={"tokens_per_second": 1e6, "peak_memory_gib": 9.0}))
    assert found["verdict"] == "reproduces"
    assert {check["why"] for check in found["checks"] if check["verdict"] == "not compared"} == {"another environment"}


@pytest.mark.parametrize(
    ("then", "now", "why"), [(False, True, "the record shared"), (True, False, "this attempt shared")]
)
def test_speed_is_compared_only_where_both_had_the_device_to_themselves(then: bool, now: bool, why: str) -> None:
    found = judge(said(exclusive=then), again(exclusive=now, metrics={"tokens_per_second": 1.0}))
    assert found["verdict"] == "reproduces"
    (speed,) = (check for check in found["checks"] if check["metric"] == "tokens_per_second")
    assert speed["verdict"] == "not compared"
    assert why in speed["why"]


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        ("diverged", "diverged", "reproduces"),
        ("diverged", "finished", "does not reproduce"),
        ("finished", "diverged", "does not reproduce"),
        ("finished", "crashed", "undecided"),
        ("finished", "out_of_memory", "undecided"),
        ("diverged", "killed", "undecided"),
    ],
)
def test_divergence_is_a_result_and_a_failure_says_nothing_of_the_record(then: str, now: str, verdict: str) -> None:
    assert judge(said(status=then), again(status=now))["verdict"] == verdict


def test_what_is_not_recorded_cannot_reproduce() -> None:
    bare = said(metrics={}, limits={})
    assert judge(bare, again())["verdict"] == "undecided"


def test_other_code_is_told() -> None:
    assert judge(said(code_fingerprint="code-0"), again())["other_code"] is True
    assert "other_code" not in judge(said(), again())


def test_limits_come_from_the_noise_of_other_runs(store: Store) -> None:
    found = claim(record(MHA, 0), sync(store))
    assert found.limits["val_loss"]["from"] == "noise of 6 other runs of this cell"
    # six losses a thousandth apart: sd 0.00187, t(0.995, 5) = 4.032
    assert found.limits["val_loss"]["limit"] == pytest.approx(4.032 * 2**0.5 * 0.001871, rel=1e-3)
    assert 0.01 < found.limits["tokens_per_second"]["limit"] / 1e4 < 0.02
    assert found.limits["peak_memory_gib"] == {
        "limit": pytest.approx(0.005),
        "from": "2.0% of it, for its noise is not known",
    }


def test_a_record_that_is_wrong_does_not_widen_its_own_limits(store: Store) -> None:
    wrong = replace(record(MHA, 0), metrics=record(MHA, 0).metrics | {"val_loss": 5.0})
    before = claim(record(MHA, 0), sync(store)).limits["val_loss"]["limit"]
    store._client.delete_run(record(MHA, 0).record_id)  # which `write_at_once` gives the run, too
    store.write_trial(wrong)
    found = claim(wrong, sync(store))
    assert found.limits["val_loss"]["limit"] == pytest.approx(before)
    assert judge(found, again(metrics={"val_loss": 3.0}))["verdict"] == "does not reproduce"


def test_without_known_noise_a_share_of_the_value_is_the_limit(store: Store) -> None:
    found = claim(record(MHA, 0), Mirror.of({}))
    assert {name: one["limit"] for name, one in found.limits.items()} == pytest.approx(
        {"val_loss": 0.003, "tokens_per_second": 2000.0, "peak_memory_gib": 0.005}
    )


def test_the_verdict_is_in_the_record_and_read_from_there(store: Store) -> None:
    first = record(MHA, 0)
    made = with_verdict(again(metrics={"val_loss": 4.0}), plain(claim(first, sync(store))))
    assert TrialRecord.from_json(made.to_json()).context["verification"]["verdict"] == "does not reproduce"
    shown = frame(first, made).set_index("metric")
    assert shown.loc["val_loss", ["recorded", "again", "difference", "verdict"]].tolist() == [
        3.0,
        4.0,
        1.0,
        "does not reproduce",
    ]
    assert frame(first, made).attrs["notes"][-1] == f"does not reproduce: trial {first.trial_id}"
    assert with_verdict(first, None) is first
