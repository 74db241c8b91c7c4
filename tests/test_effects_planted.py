"""Planted truth: over many simulated tables, estimates are unbiased, intervals cover as they say, false alarms stay rare."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from simulated import grid, losses, table

from registry._contrasts import controls, declared, judged
from registry._grid import Grid
from registry._model import Linear
from registry.power import equivalence_power, smallest_effect

ADDS = [[0.0, 0.02, -0.01], [0.0, 0.01], [0.0, 0.0]]
INTERACTION = np.array([[0.0, 0.0], [0.0, 0.012], [0.0, -0.006]])

SITUATIONS = {
    "whole": {},
    "three times the noise": {"loud": 3.0},
    "missing": {"lost": 0.1},
    "missing and three times the noise": {"lost": 0.1, "loud": 3.0},
    "factor by seed": {"within": 0.01},
    "interaction": {"interaction": INTERACTION},
    "interaction and missing": {"interaction": INTERACTION, "lost": 0.1},
    "three seeds": {"n_seeds": 3},
}


def tables(number: int, n: int):
    return [np.random.default_rng([number, i]) for i in range(n)]


def coverage(situation: dict, n: int) -> pd.DataFrame:
    """Over `n` tables: of each contrast and main effect how often its interval held the truth, its mean error and that
    error's standard error."""
    options = dict(situation)
    made = grid(3, 2, 2, seeds=options.pop("n_seeds", 5))
    lost = options.pop("lost", 0.0)
    truth = np.zeros((3, 2, 2)) + np.reshape(ADDS[0], (3, 1, 1)) + np.reshape(ADDS[1], (2, 1))
    truth += options.get("interaction", np.zeros((3, 2)))[:, :, None]
    margins = [truth.mean((1, 2)), truth.mean((0, 2)), truth.mean((0, 1))]
    empty, seen = table(made, val_loss=0.0), defaultdict(list)
    for generator in tables(1, n):
        y = losses(made, ADDS, generator, **options)
        y[generator.random(len(y)) < lost] = np.nan
        runs = Grid(made, empty.assign(val_loss=y))
        for one in declared(runs, "val_loss"):
            low, high = one.estimate.interval()
            true = margins[int(one.factor[1])][int(one.level)] - margins[int(one.factor[1])][int(one.against)]
            seen["contrast", one.factor, one.level].append((low <= true <= high, one.estimate.value - true, low == low))
        for row in Linear(runs, "val_loss").main_effects():
            own = margins[int(row["factor"][1])]
            true = own[int(row["level"])] - own.mean()
            seen["main", row["factor"], row["level"]].append(
                (row["low"] <= true <= row["high"], row["estimate"] - true, row["low"] == row["low"])
            )
    rows = []
    for key, found in seen.items():
        held, error, known = np.array(found).T
        sure = known > 0
        rows.append((*key, held[sure].mean(), error[sure].mean(), error[sure].std() / np.sqrt(sure.sum()), sure.mean()))
    return pd.DataFrame(rows, columns=["kind", "factor", "level", "coverage", "bias", "error", "known"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SITUATIONS)
def test_estimates_are_unbiased_and_intervals_cover(name: str) -> None:
    found = coverage(SITUATIONS[name], 2000)
    assert found["coverage"].between(0.93, 0.97).all(), found
    assert (found["bias"].abs() < 4 * found["error"]).all(), found
    assert (found["known"] > 0.95).all(), found


@pytest.mark.parametrize("name", ["whole", "missing and three times the noise"])
def test_intervals_cover_roughly(name: str) -> None:
    found = coverage(SITUATIONS[name], 60)
    assert found["coverage"].between(0.82, 1.0).all(), found
    assert (found["bias"].abs() < 5 * found["error"]).all(), found


def family_alarms(n: int, *, lost: float = 0.0, loud: float = 1.0) -> tuple[float, float, float]:
    """Over `n` tables of a design all of whose arms are the same: the share in which any contrast is called better or worse,
    in which the A/A arm is, and in which any interaction of pairs is significant."""
    trials = grid(4, 2).trials
    aa = [{**trials[0], "trial_id": f"aa-{s}", "seed": s, "control": "aa"} for s in range(100, 105)]
    made = grid(4, 2, trials=trials + aa)
    empty, alarms = table(made, val_loss=0.0), []
    for generator in tables(2, n):
        y = losses(made, [[0.0] * 4, [0.0] * 2], generator, loud=loud, seeds=0.003)
        y[generator.random(len(y)) < lost] = np.nan
        frame = empty.assign(val_loss=y)
        runs = Grid(made, frame[frame["control"] == ""].reset_index(drop=True))
        family = judged(declared(runs, "val_loss"), "val_loss", None)
        copy = judged(controls(runs, frame, "val_loss"), "val_loss", None)
        pairs = Linear(runs, "val_loss").interactions(None)
        alarms.append([any(row["verdict"] in ("better", "worse") for row in rows) for rows in (family, copy)]
                      + [any(row["p_holm"] < 0.05 for row in pairs)])  # fmt: skip
    return tuple(np.mean(alarms, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("situation", [{}, {"lost": 0.1}, {"loud": 3.0}], ids=str)
def test_arms_that_are_the_same_raise_few_false_alarms(situation: dict[str, float]) -> None:
    family, copy, pairs = family_alarms(2000, **situation)
    assert family < 0.06
    assert copy < 0.06
    assert pairs < (0.08 if "loud" in situation else 0.06)


def test_arms_that_are_the_same_rarely_raise_an_alarm() -> None:
    assert max(family_alarms(80)) < 0.17


def verdicts(true: float, noise: float, n: int, *, seeds: int = 6, margin: float = 0.005) -> dict[str, float]:
    """How often each verdict is given of an arm that is worse by `true`."""
    made = grid(2, seeds=seeds, margin=margin)
    empty, count = table(made, val_loss=0.0), defaultdict(int)
    for generator in tables(3, n):
        y = losses(made, [[0.0, true]], generator, noise=noise)
        (row,) = judged(declared(Grid(made, empty.assign(val_loss=y)), "val_loss"), "val_loss", margin)
        count[row["verdict"]] += 1
        count["within"] += row["within_margin"]
    return {verdict: times / n for verdict, times in count.items()}


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0015, 0.0025, 0.0035])
def test_equivalence_is_declared_with_the_planned_power_and_seldom_when_it_is_not_true(noise: float) -> None:
    planned = equivalence_power(0.005, noise * np.sqrt(2), 6)
    assert verdicts(0.0, noise, 2000)["within"] == pytest.approx(planned, abs=0.035)
    assert verdicts(0.005, noise, 2000).get("within", 0.0) < 0.06  # at the margin itself: the level of the test


@pytest.mark.slow
def test_an_effect_is_found_with_the_planned_power() -> None:
    true = smallest_effect(0.005 * np.sqrt(2), 6)
    assert verdicts(true, 0.005, 2000)["worse"] == pytest.approx(0.8, abs=0.03)


def test_equal_arms_are_mostly_called_equivalent_where_power_is_high() -> None:
    assert equivalence_power(0.005, 0.001 * np.sqrt(2), 6) > 0.99
    assert verdicts(0.0, 0.001, 40)["equivalent"] > 0.85
