"""The analysis against other ways to compute the same, and what it says where a table is not as it should be."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from registry_records import design
from scipy import stats
from simulated import codes, grid, losses, table

from registry.analysis import Effects, across_scales, analyse
from registry.power import smallest_effect
from registry.rank import holm
from registry.record import DesignRecord

ADDS = [[0.0, 0.02, -0.01], [0.0, 0.01]]


def made(number: int = 0, *, seeds: int = 5, levels: tuple[int, ...] = (3, 2), lost: float = 0.0, **options: Any):
    """A design and a table of trials with effects, some of which are missing."""
    declared = grid(*levels, seeds=seeds)
    generator = np.random.default_rng(number)
    adds = [[*(ADDS[place] if place < 2 else []), *[0.0] * 9][:n] for place, n in enumerate(levels)]
    y = losses(declared, adds, generator, **options)
    y[generator.random(len(y)) < lost] = np.nan
    return declared, table(declared, val_loss=y)


def one(frame: pd.DataFrame, **wanted: Any) -> dict[str, Any]:
    """The only row with these values."""
    rows = frame[np.logical_and.reduce([frame[name] == value for name, value in wanted.items()])]
    assert len(rows) == 1
    return rows.iloc[0].to_dict()


# Against other ways


def test_contrasts_are_paired_t_tests_over_seeds() -> None:
    found = analyse(*(data := made()))
    means = data[1].groupby(["seed", "f0"])["val_loss"].mean().unstack()
    for level in ("1", "2"):
        row = one(found.contrasts, factor="f0", level=level)
        expected = stats.ttest_rel(means[level], means["0"])
        interval = expected.confidence_interval()
        assert (row["p"], row["low"], row["high"]) == pytest.approx((expected.pvalue, interval.low, interval.high))
        assert row["estimate"] == pytest.approx((means[level] - means["0"]).mean())
        assert row["correlation"] == pytest.approx(np.corrcoef(means[level], means["0"])[0, 1])
        assert (row["n"], row["df"], row["family"], row["against"]) == (5, 4, 3, "0")


def test_corrections_and_equivalence_are_those_of_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.weightstats import ttost_paired

    found = analyse(*(data := made(3))).contrasts
    assert found["p_holm"].tolist() == pytest.approx(multipletests(found["p"], method="holm")[1])
    means = data[1].groupby(["seed", "f1"])["val_loss"].mean().unstack()
    row = one(found, factor="f1", level="1")
    assert row["p_equivalence"] == pytest.approx(
        ttost_paired(means["1"].to_numpy(), means["0"].to_numpy(), -0.005, 0.005)[0]
    )


def sum_coded(frame: pd.DataFrame, formula: str):
    import statsmodels.formula.api as smf

    return smf.ols(f"val_loss ~ C(seed) + {formula}", frame.dropna(subset=["val_loss"])).fit()


@pytest.mark.parametrize("lost", [0.0, 0.15])
def test_main_effects_are_those_of_least_squares_with_blocks(lost: float) -> None:
    data = made(5, seeds=6, lost=lost, levels=(3, 2, 2), interaction=np.array([[0, 0], [0, 0.03], [0, -0.02]]))
    terms = sum_coded(data[1], "(C(f0, Sum) + C(f1, Sum) + C(f2, Sum)) ** 2").params
    found = analyse(*data).main_effects
    for factor, level, name in (
        ("f0", "0", "C(f0, Sum)[S.0]"),
        ("f0", "1", "C(f0, Sum)[S.1]"),
        ("f1", "0", "C(f1, Sum)[S.0]"),
    ):
        assert one(found, factor=factor, level=level)["estimate"] == pytest.approx(terms[name])
    assert found[found["factor"] == "f0"]["estimate"].sum() == pytest.approx(0.0, abs=1e-12)


def cr2(x: np.ndarray, y: np.ndarray, seeds: np.ndarray, contrast: np.ndarray) -> tuple[float, float]:
    """Variance and degrees of freedom of a contrast by the matrices of the definition; x holds the blocks too."""
    bread = np.linalg.pinv(x.T @ x)
    hat = x @ bread @ x.T
    left = np.eye(len(y)) - hat
    variance, columns = 0.0, []
    for seed in np.unique(seeds):
        own = seeds == seed
        values, vectors = np.linalg.eigh(left[np.ix_(own, own)])
        root = np.where(values > 1e-9, values, np.inf) ** -0.5
        adjusted = vectors @ np.diag(root) @ vectors.T @ x[own] @ bread @ contrast
        variance += float(adjusted @ (left @ y)[own]) ** 2
        columns.append(left[:, own] @ adjusted)
    omega = np.array(columns) @ np.array(columns).T
    return variance, np.trace(omega) ** 2 / (omega**2).sum()


@pytest.mark.parametrize("lost", [0.0, 0.2])
def test_errors_are_clustered_by_seed_with_the_bias_reduced_correction(lost: float) -> None:
    declared, frame = made(6, seeds=6, lost=lost, levels=(3, 2))
    row = one(analyse(declared, frame).main_effects, factor="f0", level="1")
    there = frame["val_loss"].notna().to_numpy()
    a, b = codes(declared)[there].T
    seeds, y = frame["seed"].to_numpy()[there], frame["val_loss"].to_numpy()[there]
    main = np.array([[1, 0], [0, 1], [-1, -1]])[a]
    other = np.array([[1], [-1]])[b]
    x = np.hstack([main, other, main * other, np.eye(6)[seeds]])
    variance, df = cr2(x, y, seeds, np.eye(x.shape[1])[1])
    assert row["df"] == pytest.approx(df)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(stats.t.isf(0.025, df) * np.sqrt(variance))


def test_the_test_of_an_interaction_is_that_of_repeated_measures() -> None:
    from statsmodels.stats.anova import AnovaRM

    data = made(7, seeds=8, levels=(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table_of = AnovaRM(data[1], "val_loss", "seed", ["f0", "f1"]).fit().anova_table
    row = one(analyse(*data).interactions, metric="val_loss")
    assert row["f"] == pytest.approx(table_of.loc["f0:f1", "F Value"])
    assert row["p"] == pytest.approx(table_of.loc["f0:f1", "Pr > F"], abs=0.1)  # Box's correction of df


def test_p_values_are_those_of_sign_flips() -> None:
    data = made(8, seeds=12, levels=(2, 2), noise=0.02)
    row = one(analyse(*data).contrasts, factor="f1")
    means = data[1].groupby(["seed", "f1"])["val_loss"].mean().unstack()
    differences = (means["1"] - means["0"]).to_numpy()
    flips = np.array(list(itertools.product((1, -1), repeat=12))) @ differences
    assert row["p"] == pytest.approx((np.abs(flips) >= abs(differences.sum()) - 1e-12).mean(), abs=0.02)


def test_an_interaction_by_permutation() -> None:
    data = made(9, seeds=12, levels=(3, 2), noise=0.02, interaction=np.array([[0, 0], [0, 0.02], [0, 0]]))
    row = one(analyse(*data).interactions, metric="val_loss")
    cube = data[1].sort_values(["seed", "f0", "f1"])["val_loss"].to_numpy().reshape(12, 3, 2)
    steps = cube[:, :, 1] - cube[:, :, 0]  # without an interaction the same for all levels of f0
    steps -= steps.mean(1, keepdims=True)
    generator = np.random.default_rng(0)
    shuffled = generator.permuted(np.broadcast_to(steps, (4000, 12, 3)), axis=2)
    size = (shuffled.mean(1) ** 2).sum(1)
    assert row["p"] == pytest.approx((size >= (steps.mean(0) ** 2).sum()).mean(), abs=0.02)


def test_shares_of_variance_are_those_of_the_analysis_of_variance() -> None:
    from statsmodels.stats.anova import anova_lm

    data = made(10, levels=(3, 2))
    squares = anova_lm(sum_coded(data[1], "C(f0, Sum) * C(f1, Sum)"))["sum_sq"]
    found = analyse(*data).variance.set_index("source")["share"]
    expected = dict(zip(["seed", "f0", "f1", "f0 x f1", "residual"], squares / squares.sum(), strict=True))
    assert found.to_dict() == pytest.approx(expected)


def test_a_fraction_estimates_the_sums_that_its_aliases_name() -> None:
    """A quarter of 2^5 with D = AB, E = AC: each effect of it is the sum of the full design's effects in its alias class."""
    full = grid(2, 2, 2, 2, 2, seeds=3)
    y = np.random.default_rng(11).normal(3.0, 0.1, len(full.trials))
    sign = 1 - 2 * codes(full)
    kept = (sign[:, 3] == sign[:, 0] * sign[:, 1]) & (sign[:, 4] == sign[:, 0] * sign[:, 2])
    names = list(full.factors)
    words = [w for n in range(6) for w in itertools.combinations(range(5), n)]
    generators = [{3, 0, 1}, {4, 0, 2}, {3, 1, 4, 2}]
    classes = {w: [w, *(tuple(sorted(set(w) ^ g)) for g in generators)] for w in words}
    aliases = [
        {
            "effect": [names[p] for p in w],
            "aliases": [{"effect": [names[p] for p in v], "coefficient": 1.0} for v in same[1:]],
        }
        for w, same in classes.items()
    ]
    part = replace(
        full, kind="fractional", aliases=aliases, trials=[t for t, k in zip(full.trials, kept, strict=True) if k]
    )
    effect = {w: float((y * sign[:, list(w)].prod(1)).mean()) for w in words}

    found = analyse(part, table(part, val_loss=y[kept]))
    for place, name in enumerate(names):
        expected = sum(effect[w] for w in classes[place,])
        row = one(found.main_effects, factor=name, level="0")
        assert row["estimate"] == pytest.approx(expected, abs=1e-12)
        contrast = one(found.contrasts, factor=name)
        assert contrast["estimate"] == pytest.approx(-2 * expected, abs=1e-12)
        assert contrast["aliases"] == row["aliases"] != ""
    assert one(found.main_effects, factor="f0", level="0")["aliases"] == "+ f1 x f3 + f2 x f4 + f0 x f1 x f2 x f3 x f4"
    for row in found.interactions.to_dict("records"):
        pair = tuple(names.index(factor) for factor in row["factors"])
        assert row["estimate"] == pytest.approx(sum(effect[w] for w in classes[pair]), abs=1e-12)
    assert (
        len(found.interactions) == 2
    )  # f1 x f2 and f1 x f4 with their aliases: all others are aliases of main effects
    assert any("holds its aliases" in note for note in found.notes)


# Verdicts


def shifted(shift: float, *, noise: float = 0.001, seeds: int = 5, **fields: Any) -> tuple[DesignRecord, pd.DataFrame]:
    declared = grid(2, seeds=seeds, **fields)
    return declared, table(declared, val_loss=losses(declared, [[0.0, shift]], np.random.default_rng(1), noise=noise))


@pytest.mark.parametrize(
    ("shift", "noise", "verdict", "within"),
    [(0.05, 0.001, "worse", False), (-0.05, 0.001, "better", False), (0.0, 0.0005, "equivalent", True),
     (0.0, 0.02, "inconclusive", False), (-0.003, 0.0003, "better", True)],
)  # fmt: skip
def test_four_verdicts(shift: float, noise: float, verdict: str, within: bool) -> None:
    row = analyse(*shifted(shift, noise=noise)).contrasts.iloc[0]
    assert (row["verdict"], row["within_margin"]) == (verdict, within)


def test_higher_is_better_for_speed_whose_effects_are_ratios() -> None:
    declared = grid(2)
    faster = np.where(codes(declared)[:, 0] == 1, 1.1, 1.0) * np.exp(np.random.default_rng(0).normal(0, 0.002, 10))
    found = analyse(declared, table(declared, tokens_per_second=1e5 * faster))
    row = found.contrasts.iloc[0]
    assert (row["verdict"], row["scale"]) == ("better", "ratio")
    assert row["low"] < 1.1 < row["high"]
    assert np.isnan(row["margin"])
    assert found.main_effects["estimate"].prod() == pytest.approx(1.0)


def test_one_seed_claims_nothing() -> None:
    found = analyse(*shifted(5.0, seeds=1))
    row = found.contrasts.iloc[0]
    assert row["estimate"] == pytest.approx(5.0, abs=0.01)
    assert np.isnan([row["low"], row["p"], row["p_holm"], row["p_equivalence"]]).all()
    assert (row["verdict"], row["untestable"], row["n"]) == ("inconclusive", "one seed", 1)
    assert found.main_effects["low"].isna().all()
    assert any("One seed" in note for note in found.notes)


def test_without_a_margin_nothing_is_equivalent() -> None:
    found = analyse(*shifted(0.0, noise=1e-6, margin=None))
    assert found.contrasts.iloc[0]["verdict"] == "inconclusive"
    assert any("no margin" in note for note in found.notes)


def test_what_is_the_same_in_every_seed_is_exact() -> None:
    declared = grid(3, 2)
    memory = np.array([1.0, 1.5, 1.0])[codes(declared)[:, 0]]
    found = analyse(declared, table(declared, peak_memory_gib=memory))
    more, same = one(found.contrasts, factor="f0", level="1"), one(found.contrasts, factor="f0", level="2")
    assert (more["estimate"], more["low"], more["high"]) == pytest.approx((1.5, 1.5, 1.5))
    assert more["verdict"] == "worse"
    assert (same["estimate"], same["p"], same["verdict"]) == (1.0, 1.0, "equivalent")
    assert any("no width" in note for note in found.notes)


def test_speed_of_runs_that_shared_the_device_is_not_analysed() -> None:
    declared = grid(2)
    found = analyse(declared, table(declared, val_loss=3.0, tokens_per_second=1e5, exclusive=False))
    assert found.metrics == ("val_loss",)
    assert any("no run had the device to itself" in note for note in found.notes)


def test_what_one_contrast_could_show_goes_by_its_own_error() -> None:
    declared, frame = made(levels=(3,), seeds=8)
    frame.loc[frame["f0"] == "2", "val_loss"] += np.random.default_rng(3).normal(0, 1.0, 8)
    found = analyse(declared, frame).contrasts
    quiet, loud = (one(found, metric="val_loss", level=level) for level in "12")
    assert loud["smallest_effect"] > 20 * quiet["smallest_effect"]
    half = (quiet["high"] - quiet["low"]) / 2
    error = half / stats.t.isf(0.025, quiet["df"])
    assert quiet["smallest_effect"] == pytest.approx(smallest_effect(error * np.sqrt(8), 8, contrasts=2))


# Divergence, failures, tuning


def test_an_arm_that_always_diverges_is_worse() -> None:
    declared, frame = made(levels=(3,))
    frame.loc[frame["f0"] == "1", ["status", "val_loss"]] = "diverged", np.nan
    found = analyse(declared, frame)
    row = one(found.contrasts, level="1")
    expected = stats.fisher_exact([[5, 0], [0, 5]])[1]
    assert (row["verdict"], row["p"], row["diverged"], row["n"]) == ("worse", pytest.approx(expected), 5, 0)
    assert "diverged in 5 of 5 seeds" in row["untestable"]
    assert one(found.divergence, f0="1")["rate"] == 1.0
    assert any("diverged: 1 (5)" in note for note in found.notes)


def test_three_seeds_that_diverge_are_named_and_no_more() -> None:
    declared, frame = made(levels=(2,), seeds=3)
    frame.loc[frame["f0"] == "1", ["status", "val_loss"]] = "diverged", np.nan
    row = analyse(declared, frame).contrasts.iloc[0]
    assert (row["verdict"], row["diverged"]) == ("inconclusive", 3)
    assert row["p"] == pytest.approx(0.1)


def test_nothing_is_said_in_favour_of_an_arm_that_diverges_more() -> None:
    declared, frame = shifted(-0.05, seeds=6)
    assert analyse(declared, frame).contrasts.iloc[0]["verdict"] == "better"
    frame.loc[(frame["f0"] == "1") & (frame["seed"] == 0), ["status", "val_loss"]] = "diverged", np.nan
    row = analyse(declared, frame).contrasts.iloc[0]
    assert (row["verdict"], row["n"]) == ("inconclusive", 5)
    assert row["high"] < 0


def test_the_interval_of_a_rate_of_divergence_is_wilsons() -> None:
    declared, frame = made(levels=(2,), seeds=9)
    frame.loc[(frame["f0"] == "1") & (frame["seed"] < 2), "status"] = "diverged"
    frame.loc[(frame["f0"] == "1") & (frame["seed"] == 8), "status"] = "out_of_memory"
    row = one(analyse(declared, frame).divergence, f0="1")
    expected = stats.binomtest(2, 8).proportion_ci(method="wilson")
    assert (row["n"], row["diverged"], row["out_of_memory"]) == (8, 2, 1)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))


def test_pairs_are_what_both_sides_have() -> None:
    declared, frame = made(seeds=5, levels=(2,))
    frame.loc[(frame["f0"] == "1") & (frame["seed"] == 2), ["status", "val_loss"]] = "crashed", np.nan
    row = analyse(declared, frame).contrasts.iloc[0]
    kept = frame[frame["seed"] != 2].pivot(index="seed", columns="f0", values="val_loss")
    assert (row["n"], row["p"]) == (4, pytest.approx(stats.ttest_rel(kept["1"], kept["0"]).pvalue))


def test_a_lost_run_does_not_move_an_effect_that_differs_between_cells() -> None:
    """Without noise the contrast stays the mean over cells, whichever run is lost."""
    interaction = np.array([[0.0, 0.0], [0.0, 0.2]])
    declared, frame = made(levels=(2, 2), noise=0.0, interaction=interaction)
    whole = one(analyse(declared, frame).contrasts, factor="f1")["estimate"]
    frame.loc[(frame["f0"] == "1") & (frame["f1"] == "1") & (frame["seed"] == 3), "val_loss"] = np.nan
    assert one(analyse(declared, frame).contrasts, factor="f1")["estimate"] == pytest.approx(whole)


def test_a_missing_combination_is_said_and_the_rest_is_analysed() -> None:
    declared, frame = made(levels=(3, 2))
    frame.loc[(frame["f0"] == "2") & (frame["f1"] == "1"), ["status", "val_loss"]] = "crashed", np.nan
    found = analyse(declared, frame)
    assert found.interactions.empty
    assert any("cannot be told" in note for note in found.notes)
    assert found.contrasts["df"].notna().all()


def test_an_untuned_arm_is_not_called_worse() -> None:
    declared, frame = shifted(0.05)
    tuning = {cell: {"field": "optimizer.lr", "bracketed": cell == "0"} for cell in ("0", "1")}
    found = analyse(replace(declared, tuning=tuning), frame)
    row = found.contrasts.iloc[0]
    assert (row["verdict"], row["tuned"]) == ("inconclusive", False)
    assert any("Untuned" in note for note in found.notes)
    other = {cell: {"bracketed": cell == "1"} for cell in ("0", "1")}
    better = analyse(replace(declared, tuning=other), shifted(-0.05)[1]).contrasts.iloc[0]
    assert better["verdict"] == "inconclusive"  # that would call the untuned baseline worse


# Interactions, controls, scales


def test_a_material_interaction_leads_to_simple_effects() -> None:
    data = made(levels=(2, 2), interaction=np.array([[0.0, 0.0], [0.0, 0.05]]))
    found = analyse(*data)
    row = found.interactions.iloc[0]
    assert row["factors"] == ("f0", "f1")
    assert row["material"]
    assert row["misstated"] == pytest.approx(0.025, abs=0.004)
    simple = found.simple_effects
    within = simple[simple["factor"] == "f1"]
    within = within.set_index(within["within"].map(lambda levels: levels["f0"]))
    cells = data[1].set_index(["f0", "f1", "seed"])["val_loss"].unstack()
    for level in ("0", "1"):
        expected = stats.ttest_rel(cells.loc[level, "1"], cells.loc[level, "0"])
        assert within.loc[level, "p"] == pytest.approx(expected.pvalue)
    assert (simple["family"] == 4).all()
    assert any("interact in val_loss" in note for note in found.notes)


def test_an_interaction_within_the_margin_is_not_material() -> None:
    found = analyse(*made(levels=(2, 2), noise=0.0002, interaction=np.array([[0.0, 0.0], [0.0, 0.006]])))
    row = found.interactions.iloc[0]
    assert row["p_holm"] < 0.05
    assert not row["material"]
    assert found.simple_effects.empty


def with_controls(bad: float) -> tuple[DesignRecord, pd.DataFrame]:
    declared = grid(2)
    aa = [{**declared.trials[0], "trial_id": f"aa{s}", "seed": s, "control": "aa"} for s in range(50, 55)]
    wrong = [
        {"trial_id": f"bad{s}", "cell_id": "bad", "levels": {}, "seed": s, "control": "bad", "label": "lr x 10"}
        for s in declared.seeds
    ]
    declared = replace(declared, trials=declared.trials + aa + wrong)
    generator = np.random.default_rng(2)
    frame = table(declared, val_loss=3.0 + generator.normal(0, 0.004, 20))
    frame.loc[frame["control"] == "bad", "val_loss"] += bad
    return declared, frame


def test_controls_are_a_family_of_their_own() -> None:
    declared, frame = with_controls(0.3)
    found = analyse(declared, frame)
    rows = found.contrasts[found.contrasts["factor"] == "(control)"]
    assert rows["level"].tolist() == ["A/A", "lr x 10"]
    assert rows["verdict"].tolist()[1] == "worse"
    assert (rows["family"] == 2).all()
    assert one(found.contrasts, factor="f0")["family"] == 1
    base = frame[(frame["f0"] == "0") & (frame["control"] == "")]["val_loss"]
    copy = frame[frame["control"] == "aa"]["val_loss"]
    welch = stats.ttest_ind(copy, base, equal_var=False)
    assert rows.iloc[0]["p"] == pytest.approx(welch.pvalue)
    assert rows.iloc[0]["low"] == pytest.approx(welch.confidence_interval().low)
    assert not any("known-bad" in note for note in found.notes)
    assert len(found.cells) == 4


def test_a_known_bad_arm_that_is_not_found_bad_is_named() -> None:
    assert any("known-bad" in note for note in analyse(*with_controls(0.0)).notes)


def test_scales_are_compared_by_the_difference_of_their_contrasts() -> None:
    small, large = (analyse(*made(number, levels=(2,), loud=loud)) for number, loud in ((1, 1.0), (2, 3.0)))
    large = replace(large, design=replace(large.design, scale="10m"))
    row = across_scales([small, large]).iloc[0]
    a, b = (one(found.contrasts, factor="f0") for found in (small, large))
    errors = [(found["high"] - found["low"]) / 2 / stats.t.isf(0.025, 4) for found in (a, b)]
    df = sum(e**2 for e in errors) ** 2 / sum(e**4 / 4 for e in errors)
    t = (b["estimate"] - a["estimate"]) / np.hypot(*errors)
    assert (row["at"], row["than"], row["family"]) == ("10m", "nano", 1)
    assert (row["df"], row["p"]) == (pytest.approx(df), pytest.approx(2 * stats.t.sf(abs(t), df)))
    assert across_scales([small]).empty


# Designs, empty tables, size


def test_around_the_baseline_each_cell_is_held_against_it() -> None:
    cells = [{"a": "0", "b": "0"}, {"a": "1", "b": "0"}, {"a": "0", "b": "1"}]
    declared = design(cells, 5, kind="one_at_a_time")
    frame = table(declared, val_loss=np.random.default_rng(0).normal(3, 0.1, 15))
    found = analyse(declared, frame)
    wide = frame.pivot(index="seed", columns="cell", values="val_loss")
    assert one(found.contrasts, factor="b")["p"] == pytest.approx(stats.ttest_rel(wide["0 1"], wide["0 0"]).pvalue)
    assert found.interactions.empty
    assert any("one at a time" in note for note in found.notes)


def test_the_front_holds_what_nothing_beats() -> None:
    declared = grid(4, seeds=2)
    level = codes(declared)[:, 0]
    found = analyse(declared, table(
        declared, val_loss=np.array([3.0, 2.9, 3.1, 2.95])[level], tokens_per_second=np.array([1e5, 9e4, 9.5e4, 8e4])[level],
    ))  # fmt: skip
    assert found.cells["pareto"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("status", ["missing", "diverged", "crashed"])
def test_a_table_without_a_finished_run_has_every_frame(status: str) -> None:
    declared = grid(2, 2)
    found = analyse(declared, table(declared, val_loss=np.nan, status=status))
    assert isinstance(found, Effects)
    assert found.main_effects["estimate"].isna().all()
    assert len(found.divergence) == len(found.cells) == 4
    assert found.notes


def test_a_suite_without_factors_has_cells_alone() -> None:
    declared = design([{"a": "0"}], 3, factors={}, baseline={})
    for trial in declared.trials:
        trial["levels"] = {}
    found = analyse(declared, table(declared, val_loss=[3.0, 3.1, 3.2]))
    assert found.contrasts.empty
    assert found.cells["val_loss"].tolist() == pytest.approx([3.1])
    assert found.noise.iloc[0]["sd"] == pytest.approx(0.1)


def test_holm_counts_what_cannot_be_tested() -> None:
    declared, frame = made(levels=(4,))
    frame.loc[frame["f0"] == "3", ["status", "val_loss"]] = "missing", np.nan
    found = analyse(declared, frame).contrasts
    ps = found["p"].tolist()
    assert np.isnan(ps[2])
    assert found["p_holm"].tolist()[:2] == pytest.approx(holm([ps[0], ps[1], 1.0])[:2])
    assert (found["family"] == 3).all()


@pytest.mark.slow
@pytest.mark.timeout(60)  # a loop over runs would take minutes
@pytest.mark.parametrize("levels", [(10, 10, 10), (2,) * 10], ids=str)
def test_five_thousand_runs_do_not_take_minutes(levels: tuple[int, ...]) -> None:
    declared = grid(*levels)
    generator = np.random.default_rng(0)
    y = generator.normal(3, 0.1, (2, len(declared.trials)))
    frame = table(declared, val_loss=y[0], tokens_per_second=np.exp(y[1]), peak_memory_gib=1.0)
    frame.loc[generator.random(len(frame)) < 0.05, "status"] = "crashed"
    assert len(analyse(declared, frame).main_effects)
