"""Power and the noise floor, against simulation and other ways to compute them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from registry_records import design, record
from scipy import stats
from simulated import mirror_of

from registry.noise import noise_floor, pooled
from registry.power import detection_power, equivalence_power, seeds_needed, smallest_effect


def samples(effect: float, n: int, times: int = 100_000) -> np.ndarray:
    return np.random.default_rng(n).normal(effect, 1.0, (times, n))


@pytest.mark.parametrize(("n", "contrasts"), [(2, 1), (4, 10), (5, 6), (20, 1)])
def test_the_smallest_effect_is_found_four_times_in_five(n: int, contrasts: int) -> None:
    effect = smallest_effect(1.0, n, contrasts=contrasts)
    found = stats.ttest_1samp(samples(effect, n), 0.0, axis=1).pvalue < 0.05 / contrasts
    assert found.mean() == pytest.approx(0.8, abs=0.006)


def test_the_smallest_effect_where_statsmodels_is_wrong() -> None:
    assert smallest_effect(1.0, 4, alpha=0.005) == pytest.approx(4.71, abs=0.005)


def test_it_scales_with_the_deviation_and_needs_two_seeds() -> None:
    assert smallest_effect(0.01, 5) == pytest.approx(0.01 * smallest_effect(1.0, 5))
    assert smallest_effect(0.0, 5) == 0.0
    assert smallest_effect(1.0, 1) == math.inf
    assert detection_power(1e6, 1.0, 3, contrasts=100) == 1.0
    assert detection_power(1.0, 1.0, 1) == 0.0


@pytest.mark.parametrize("effect", [0.3, 1.0, 5.0])
def test_seeds_needed_are_the_fewest_that_suffice(effect: float) -> None:
    n = seeds_needed(effect, 1.0, contrasts=4)
    assert n is not None
    assert smallest_effect(1.0, n, contrasts=4) <= effect < smallest_effect(1.0, n - 1, contrasts=4)


def test_no_number_of_seeds_may_suffice() -> None:
    assert seeds_needed(0.001, 1.0) is None
    assert seeds_needed(0.0, 1.0) is None


@pytest.mark.parametrize(
    ("margin", "effect", "n"), [(1.0, 0.0, 10), (1.0, 0.3, 10), (0.5, 0.0, 5), (2.0, 0.5, 3), (1.0, 1.0, 20)]
)
def test_power_of_equivalence_is_how_often_both_one_sided_tests_reject(margin: float, effect: float, n: int) -> None:
    drawn = samples(effect, n)
    above = stats.ttest_1samp(drawn, -margin, axis=1, alternative="greater").pvalue
    below = stats.ttest_1samp(drawn, margin, axis=1, alternative="less").pvalue
    both = (np.maximum(above, below) < 0.05).mean()
    assert equivalence_power(margin, 1.0, n, effect=effect) == pytest.approx(both, abs=0.006)


def test_without_noise_or_seeds_equivalence_is_known_or_not_at_all() -> None:
    assert equivalence_power(1.0, 0.0, 2) == 1.0
    assert equivalence_power(1.0, 0.0, 2, effect=1.0) == 0.0
    assert equivalence_power(1.0, 1e-6, 30) == pytest.approx(1.0)
    assert equivalence_power(1.0, 1.0, 1) == 0.0


def test_the_noise_within_cells_and_what_pairing_takes_out_of_it() -> None:
    generator = np.random.default_rng(0)
    cells, seeds = (codes.reshape(-1) for codes in np.meshgrid(range(4), range(400), indexing="ij"))
    y = cells * 1.0 + generator.normal(0.0, 0.3, 400)[seeds] + generator.normal(0.0, 0.4, len(cells))
    found = pooled("val_loss", y, cells, seeds)
    assert found is not None
    assert (found.n_cells, found.n_runs, found.df) == (4, 1600, 1596)
    assert found.sd == pytest.approx(np.sqrt(np.mean([y[cells == cell].var(ddof=1) for cell in range(4)])))
    assert found.correlation == pytest.approx(0.09 / 0.25, abs=0.06)
    table = y.reshape(4, 400)
    differences = [np.var(table[a] - table[b], ddof=1) for a in range(4) for b in range(a)]
    assert found.sd_difference == pytest.approx(np.sqrt(np.mean(differences)))


def test_unbalanced_noise_is_that_of_least_squares() -> None:
    generator = np.random.default_rng(1)
    cells, seeds = (codes.reshape(-1) for codes in np.meshgrid(range(5), range(6), indexing="ij"))
    kept = generator.random(30) > 0.25
    cells, seeds = cells[kept], seeds[kept]
    y = generator.normal(0.0, 1.0, 6)[seeds] + generator.normal(0.0, 0.5, len(cells))
    x = np.hstack([np.eye(5)[cells], np.eye(6)[seeds]])
    _, (residual,), rank, _ = np.linalg.lstsq(np.hstack([x[:, :5], x[:, 6:]]), y)
    found = pooled("val_loss", y, cells, seeds)
    assert found is not None
    assert found.sd**2 * (1.0 - found.correlation) == pytest.approx(residual / (len(y) - rank))


def test_a_single_run_per_cell_tells_no_noise() -> None:
    assert pooled("val_loss", np.array([1.0, 2.0]), np.array([0, 1]), np.array([0, 0])) is None


ONE, OTHER = {"model.attention": "mha"}, {"model.attention": "gqa"}


def test_the_noise_floor_comes_from_what_is_most_alike() -> None:
    quiet = [record(ONE, seed, loss=3.0 + 0.01 * (seed % 2), curve=0) for seed in range(5)]
    loud = [record(OTHER, seed, loss=3.0 + 0.1 * (seed % 2), curve=0) for seed in range(5)]
    elsewhere = [
        record(ONE, seed, loss=9.0 + seed, environment_id="other", evaluation="slice-b", curve=0) for seed in range(2)
    ]
    made = design([ONE, OTHER], 5)
    wild = [record({"model.attention": "wild"}, seed, loss=9.0 * seed, curve=0) for seed in range(5)]
    bad = [{"trial_id": r.trial_id, "cell_id": r.cell_id, "levels": {}, "seed": r.seed, "control": "bad"} for r in wild]
    made = replace(made, trials=made.trials + bad)
    mirror = mirror_of([made], quiet + loud + elsewhere + wild)

    own = noise_floor(mirror, "val_loss", scale="nano", cell_id=quiet[0].cell_id, environment_id="env-cpu")
    assert own is not None
    assert (own.like, own.n_runs) == ("this cell", 5)
    assert own.sd == pytest.approx(np.std([0.0, 0.01, 0.0, 0.01, 0.0], ddof=1))
    assert own.correlation == pytest.approx(
        2 * 0.01 * 0.1 / (0.01**2 + 0.1**2)
    )  # that of the two cells: one tells none

    wider = noise_floor(mirror, "val_loss", scale="nano", cell_id="new", evaluation_fingerprint="slice-a")
    assert wider is not None
    assert (wider.like, wider.n_cells, wider.n_runs) == ("cells evaluated on the same", 2, 10)
    scale = noise_floor(mirror, "val_loss", scale="nano")
    assert scale is not None
    assert (scale.n_cells, scale.n_runs) == (3, 12)  # the cell has another mean in the other environment
    assert noise_floor(mirror, "val_loss", scale="10m") is None
