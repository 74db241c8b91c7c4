"""A gate says regression where there is one, hardly ever where there is none, and reads only what is a baseline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from registry import gate, gate_report
from registry.baseline import Arm, Baseline, BaselineError, Noise

AROUND = {"device": "cpu", "torch": "2.13.0"}
COUNTS = {"parameters": 1000.0, "flops_per_token": 6000.0, "operators": 200.0, "host_syncs": 1.0, "graph_breaks": 0.0,
          "peak_memory_gib": 0.25}  # fmt: skip
NOISE = Noise(0.002, 20)


def arm(losses: list[float] | None = None, **counts: float) -> Arm:
    values = [3.6, 3.7] if losses is None else losses
    return Arm("r1", {seed: {"val_loss": loss} for seed, loss in enumerate(values)}, COUNTS | counts)


def baseline(**fields) -> Baseline:
    given = {"suite": "ci", "scale": "nano", "settings": ["train.tokens=1e5"], "arms": {"a": arm()}, "environment": AROUND,
             "noise": {"val_loss": NOISE}}  # fmt: skip
    return Baseline(**given | fields)


def verdicts(now: Arm, around: dict[str, str] = AROUND, before: Baseline | None = None) -> dict[str, str]:
    findings = gate.against_baseline(before or baseline(), {"a": now}, around)
    return {one.metric: one.verdict for one in findings}


def test_the_same_passes() -> None:
    found = verdicts(arm())
    assert set(found.values()) == {"pass"}
    assert set(found) == {*COUNTS, "val_loss"}


@pytest.mark.parametrize(
    ("metric", "value", "verdict"),
    [
        ("parameters", 1001.0, "regression"),
        ("parameters", 999.0, "improvement"),
        ("graph_breaks", 1.0, "regression"),
        ("host_syncs", 2.0, "regression"),
        ("host_syncs", 0.0, "improvement"),
        ("operators", 203.0, "pass"),
        ("operators", 210.0, "regression"),
        ("peak_memory_gib", 0.2505, "pass"),
        ("peak_memory_gib", 0.2575, "regression"),
    ],
)
def test_a_count_has_bounds(metric: str, value: float, verdict: str) -> None:
    found = verdicts(arm(**{metric: value}))
    assert found.pop(metric) == verdict
    assert set(found.values()) == {"pass"}


def test_a_loss_is_worse_beyond_the_margin_and_one_like_it_passes() -> None:
    assert verdicts(arm([3.636, 3.737]))["val_loss"] == "regression"
    assert verdicts(arm([3.564, 3.663]))["val_loss"] == "improvement"
    assert verdicts(arm([3.601, 3.6995]))["val_loss"] == "pass"
    assert verdicts(arm([3.604, 3.706]))["val_loss"] == "inconclusive"


def test_a_run_that_no_longer_finishes_is_a_regression() -> None:
    now = arm()
    now.runs[1].clear()
    assert verdicts(now)["val_loss"] == "regression"


def test_without_a_seed_in_common_nothing_is_said_of_the_loss() -> None:
    now = replace(arm(), runs={7: {"val_loss": 3.0}})
    assert verdicts(now)["val_loss"] == "inconclusive"


def test_false_alarms_are_rare_and_one_per_cent_is_found() -> None:
    """Of runs that only round otherwise, with the noise known from 20 differences; of runs whose loss is 1 % higher, in each seed by
    somewhat more or less."""
    generator, times = np.random.default_rng(11), 4000
    base, sd, wrong, unsure, found = [3.6, 3.7, 3.65, 3.68, 3.62, 3.66], 0.002, 0, 0, 0
    for _ in range(times):
        known = Noise(float(np.sqrt(np.mean(generator.normal(0.0, sd, 20) ** 2))), 20)
        before = baseline(arms={"a": arm(base)}, noise={"val_loss": known})
        rounded = [loss + generator.normal(0.0, sd) for loss in base]
        verdict = verdicts(arm(rounded), before=before)["val_loss"]
        wrong, unsure = wrong + (verdict == "regression"), unsure + (verdict == "inconclusive")
        worse = [loss * (1.01 + generator.normal(0.0, 0.001)) for loss in rounded]
        found += verdicts(arm(worse), before=before)["val_loss"] == "regression"
    assert wrong / times < 0.001
    assert unsure / times < 0.01
    assert found / times > 0.99


def test_differences_that_scatter_more_than_the_noise_known_are_judged_by_their_own() -> None:
    before = baseline(arms={"a": arm([3.6] * 4)}, noise={"val_loss": Noise(1e-5, 20)})
    found = gate.against_baseline(before, {"a": arm([3.5, 3.75, 3.6, 3.62])}, AROUND)[-1]
    assert found.verdict == "inconclusive"
    assert found.low is not None and found.high is not None and found.high - found.low > 0.3


def test_with_one_seed_and_no_noise_only_the_same_loss_passes() -> None:
    before = baseline(arms={"a": arm([3.6])}, noise={})
    assert verdicts(arm([3.6]), before=before)["val_loss"] == "pass"
    assert verdicts(arm([3.6001]), before=before)["val_loss"] == "inconclusive"


def rounds(rng: np.random.Generator, n: int, slower: float) -> list[list[float]]:
    """Rounds of a machine that others use: each window is off by a few per cent, and one in twenty by half as much again."""
    noise = rng.normal(0.0, 0.05, (n, 4)) + 0.4 * (rng.random((n, 4)) < 0.05)
    return (0.02 * np.exp(noise) * [1.0, 1.0 + slower, 1.0 + slower, 1.0]).tolist()


@pytest.mark.parametrize(("slower", "verdict"), [(0.0, "pass"), (0.1, "regression"), (-0.1, "improvement")])
def test_a_step_that_is_a_tenth_slower_is_told_from_one_that_is_not_on_a_machine_that_others_use(
    slower: float, verdict: str
) -> None:
    rng = np.random.default_rng(0)
    found = [gate.time("a", "step_time_ms", rounds(rng, 120, slower)) for _ in range(300)]
    assert sum(one.verdict == verdict for one in found) >= 285
    opposite = "improvement" if verdict == "regression" else "regression"
    assert not any(one.verdict == opposite for one in found)


def test_the_interval_of_a_ratio_holds_the_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [gate.time("a", "step_time_ms", rounds(rng, 40, 0.04)) for _ in range(1000)]
    assert sum(one.low <= 1.04 <= one.high for one in found) >= 975


def test_another_environment_asks_for_another_baseline_and_holds_what_it_can() -> None:
    found = verdicts(arm([3.64, 3.75], peak_memory_gib=0.3, parameters=1001.0), AROUND | {"torch": "2.14.0"})
    assert found == {
        "parameters": "regression", "flops_per_token": "pass", "operators": "pass", "host_syncs": "pass", "graph_breaks": "pass",
        "peak_memory_gib": "rebaseline", "val_loss": "regression", "environment": "rebaseline",
    }  # fmt: skip
    (last,) = (
        one for one in gate.against_baseline(baseline(), {"a": arm()}, AROUND | {"torch": "2.14.0"}) if one.arm == "all"
    )
    assert last.why == "torch 2.13.0 -> 2.14.0"


def test_another_recipe_and_other_arms_ask_for_another_baseline() -> None:
    assert verdicts(replace(arm(), recipe="r2")) == {"arm": "rebaseline"}
    findings = gate.against_baseline(baseline(), {"b": arm()}, AROUND)
    assert [(one.arm, one.verdict) for one in findings] == [("a", "rebaseline"), ("b", "rebaseline")]
    assert verdicts(replace(arm(), counts={}))["parameters"] == "rebaseline"


@pytest.mark.parametrize(
    ("given", "verdict", "code"),
    [
        (["pass", "pass"], "pass", 0),
        (["pass", "improvement"], "improvement", 0),
        (["improvement", "rebaseline"], "rebaseline", 4),
        (["rebaseline", "inconclusive"], "inconclusive", 3),
        (["inconclusive", "regression", "pass"], "regression", 1),
        ([], "inconclusive", 3),
    ],
)
def test_the_worst_verdict_decides(given: list[gate.Verdict], verdict: gate.Verdict, code: int) -> None:
    assert gate.overall(gate.Finding("a", "x", one) for one in given) == verdict
    assert gate.EXIT[verdict] == code


# Files


def test_a_baseline_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    made = baseline(created_at="2026-01-02T03:04:05+00:00", git_revision="abc", ablate_version="1.0")
    path = tmp_path / "b.json"
    path.write_text(made.to_json(), encoding="utf-8")
    assert Baseline.read(path) == made
    assert Baseline.read(path).to_json() == made.to_json()


def broken(**fields) -> str:
    return json.dumps(json.loads(baseline().to_json()) | fields)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[1]", "no baseline of ablate"),
        ("{}", "no baseline of ablate"),
        (broken(ablate_baseline=99), "of version 99, and this is version 1"),
        (broken(arms=[]), "arms is not an object"),
        (broken(arms={"a": {}}), "recipe is missing"),
        (broken(arms={"a": {"recipe": "r", "runs": {"x": {}}}}), "arms.a.runs.x is not a seed"),
        (broken(arms={"a": {"recipe": "r", "runs": {"0": {"val_loss": "3"}}}}), "arms.a.runs.0.val_loss is not a finite number"),
        (broken(arms={"a": {"recipe": "r", "counts": {"parameters": True}}}), "arms.a.counts.parameters is not a finite number"),
        (broken(noise={"val_loss": {"sd": 1.0}}), "n is missing"),
        (broken(settings="x"), "settings is not a list"),
        (broken(suite=3), "suite is not text"),
        (broken(more=3), "more is not a field of a baseline"),
        (broken(noise={"val_loss": {"sd": float("nan"), "n": 3}}), "noise.val_loss.sd is not a finite number"),
    ],
)  # fmt: skip
def test_what_is_no_baseline_is_refused_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BaselineError, match=says) as caught:
        Baseline.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_baseline_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaselineError, match="No such file"):
        Baseline.read(tmp_path / "b.json")


# What is told


FINDINGS = [
    gate.Finding("a", "parameters", "pass", 10, 10),
    gate.Finding("a|b", "val_loss", "regression", 3.6, 3.7, 0.09, 0.11, 3, "margin <b>"),
    gate.Finding("c", "host_syncs", "rebaseline", 1, 2, why="the environment is another"),
    gate.Finding("d", "val_loss", "inconclusive", 3.6, 3.6, -np.inf, np.inf, 1),
]


def test_the_summary_has_what_did_not_pass_and_counts_the_rest() -> None:
    text = gate_report.markdown("ablate check ci", FINDINGS)
    assert text.startswith("## ablate check ci: regression\n\n1 inconclusive, 1 pass, 1 rebaseline, 1 regression\n")
    assert (
        r"| a\|b | val\_loss | regression | 3.6 | 3.7 | +2.78% | +0.0900 to +0.1100 | 3 | margin &lt;b&gt; |"
        in text.replace("val_loss", r"val\_loss")
    )
    assert "parameters" not in text


def test_junit_counts_what_failed_and_what_was_left_open() -> None:
    suite = ElementTree.fromstring(gate_report.junit("ablate check\x01 ci", FINDINGS).encode())
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "2")
    cases = {case.get("classname"): [child.tag for child in case] for case in suite}
    assert list(cases.values()) == [[], ["failure"], ["skipped"], ["skipped"]]
    (failure,) = suite.iter("failure")
    assert failure.get("message") == (
        "a|b: val_loss is worse: 3.6 -> 3.7 (+2.78%); interval +0.0900 to +0.1100, n = 3; margin <b>"
    )


def test_json_is_json() -> None:
    found = json.loads(gate_report.as_json("t", FINDINGS), parse_constant=lambda text: pytest.fail(text))
    assert found["verdict"] == "regression"
    assert [one["low"] for one in found["findings"]] == [None, 0.09, None, None]
