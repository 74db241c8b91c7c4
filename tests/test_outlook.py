"""What `plan` says of a design before anything is run is what would come of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from registry_records import design as design_record
from registry_records import empty_store, record
from scipy import stats

from ablate import render, render_outlook
from ablate.cli import main
from ablate.design import Design, expand
from ablate.outlook import Outlook, outlook
from ablate.plan import Plan, make_plan
from ablate.suite import load_suite
from registry.mirror import sync
from registry.noise import Noise, noise_floor
from registry.record import DesignRecord

TEXT = """\
name: x
base: {data.source: synthetic, train.tokens: 8192}
factors:
  model.attention: [mha, gqa]
  model.activation: [gelu, swiglu]
  model.norm: [layernorm, rmsnorm]
  model.position: [learned, rope]
  model.dropout: [0.1, 0.0]
"""
QUARTER = TEXT + "design: {fractional: {resolution: 3}}\n"
CONTROLS = "controls: {aa: 2, bad: {optimizer.lr: x10}}\n"


@pytest.fixture
def planned(tmp_path: Path, home: Path):
    """A suite's design and the plan of it."""

    def planned(text: str, **options) -> tuple[Design, Plan]:
        (tmp_path / "x.yaml").write_text(text)
        design = expand(load_suite(tmp_path / "x.yaml"), **options)
        return design, make_plan(design, home=home)

    return planned


def seen(
    text: str, planned, home: Path, monkeypatch: pytest.MonkeyPatch, noise: Noise | None = None, **options
) -> Outlook:
    """The outlook of a suite where runs are as noisy as given."""
    monkeypatch.setattr("ablate.outlook._noise", lambda *_: noise)
    design, made = planned(text, **options)
    return outlook(design, made, home)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        (TEXT + "design: one_at_a_time\n", 1), (TEXT, 16), (QUARTER, 4), (TEXT + "design: {optimal: {cells: 12}}\n", 6),
        (TEXT + "exclude: [{model.attention: gqa, model.norm: rmsnorm}]\n", 8),
    ],
    ids=["one at a time", "full", "fraction", "optimal", "exclude"],
)  # fmt: skip
def test_the_smallest_effect_is_found_in_four_of_five_tries(text, pairs, planned, home, monkeypatch) -> None:
    """Simulated: blocks of seeds, noise in each cell, the contrast of attention over seeds by a paired t-test, Bonferroni-corrected."""
    noise = Noise("val_loss", 0.02, 0.6, 4, 12, "this cell")
    found = seen(text + "seeds: 4\nmargin: 0.03\n", planned, home, monkeypatch, noise)
    one = found.prospects[0]
    assert (one.factor, one.level, one.against, one.pairs) == ("model.attention", "gqa", "mha", pytest.approx(pairs))
    cells = [cell.levels for cell in found.design.cells]
    if found.design.suite.selection is None:
        by = {tuple(cell.values()): i for i, cell in enumerate(cells)}
        weights = np.zeros(len(cells))
        for i, cell in enumerate(cells):
            other = by.get(("mha", *list(cell.values())[1:]))
            if cell["model.attention"] == "gqa" and other is not None:
                weights[[i, other]] += 1 / pairs, -1 / pairs
    else:  # orthogonal: means of the levels
        weights = np.array([1 if cell["model.attention"] == "gqa" else -1 for cell in cells]) * 2 / len(cells)
    random, n, tries = np.random.default_rng(1), 4, 4000

    def power(effect: float, seeds: int) -> float:
        own = random.normal(0, 0.02 * 0.4**0.5, (tries, seeds, len(cells)))
        block = random.normal(0, 0.02 * 0.6**0.5, (tries, seeds, 1))
        differences = (own + block) @ weights + effect
        t = differences.mean(1) / differences.std(1, ddof=1) * np.sqrt(seeds)
        return float(np.mean(np.abs(t) > stats.t.isf(0.05 / 5 / 2, seeds - 1)))

    assert power(one.smallest_effect, n) == pytest.approx(0.8, abs=0.03)
    assert one.seeds is not None
    assert power(0.03, one.seeds) >= 0.77
    assert one.seeds == 2 or power(0.03, one.seeds - 1) < 0.83


def test_without_a_known_noise_effects_are_in_standard_deviations_of_a_run(planned, home, monkeypatch, capsys) -> None:
    found = seen(QUARTER + "seeds: 4\nmargin: 0.03\n", planned, home, monkeypatch)
    known = seen(QUARTER + "seeds: 4\n", planned, home, monkeypatch, Noise("val_loss", 0.5, 0.0, 4, 12, ""))
    assert 0.5 * found.prospects[0].smallest_effect == pytest.approx(known.prospects[0].smallest_effect)
    assert found.prospects[0].seeds is None and found.effect == 0.03
    assert (known.effect, known.prospects[0].seeds) == (None, None)


def test_one_seed_shows_nothing(planned, home, monkeypatch, capsys) -> None:
    found = seen(QUARTER + "seeds: 1\n", planned, home, monkeypatch, Noise("val_loss", 0.5, 0.0, 4, 12, ""))
    made = planned(QUARTER + "seeds: 1\n")[1]
    assert all(np.isinf(one.smallest_effect) for one in found.prospects)
    render_outlook.outlook(found, made)
    assert "one seed shows no noise, so no effect can be told from chance" in capsys.readouterr().out
    assert all(one["smallest_effect"] is None for one in render_outlook.data(found, made)["contrasts"])


def test_noise_is_that_of_the_registry(planned, home) -> None:
    design, made = planned(QUARTER)
    baseline = next(row for row in made.rows if row.trial.levels == design.suite.baseline)
    store = empty_store(home)
    losses = [3.0, 3.1, 3.3, 2.9, 3.2, 3.05]
    own = {
        "cell_id": baseline.cell_id,
        "environment_id": made.environment_id,
        "evaluation": baseline.evaluation_fingerprint,
    }
    for seed, loss in enumerate(losses):
        store.write_trial(record(seed=seed, loss=loss, **own))
    found = outlook(design, made, home, effect=0.1)
    assert found.noise is not None
    assert (found.noise.sd, found.noise.n_runs) == (pytest.approx(np.std(losses, ddof=1)), 6)
    assert found.effect == 0.1 and found.prospects[0].seeds is not None
    elsewhere = replace(made, environment_id="another")
    assert outlook(design, elsewhere, home).noise == found.noise, "of another environment where this one has none"


def test_what_is_known_to_be_bad_is_no_noise(home: Path) -> None:
    store, bad = empty_store(home), {"model.attention": "mqa"}
    plan = design_record([{"model.attention": "mha"}, bad], seeds=3)
    trials = [one | ({"control": "bad", "levels": {}} if one["levels"] == bad else {}) for one in plan.trials]
    store.write_design(design_record([{"model.attention": "mha"}, bad], seeds=3, trials=trials))
    for seed in range(3):
        store.write_trial(record(seed=seed, loss=3 + seed / 10))
        store.write_trial(record(bad, seed, loss=10.0 ** (5 * seed)))
    found = noise_floor(sync(store), "val_loss", scale="nano")
    assert found is not None
    assert (found.sd, found.n_runs) == (pytest.approx(0.1), 3)


def test_time_is_that_of_the_shape_where_it_was_measured(planned, home, capsys) -> None:
    design, made = planned(QUARTER + "seeds: 2\n")
    assert not any(row.timed for row in made.rows)
    row = made.rows[0]
    recipe = row.trial.recipe.model_copy(update={"seed": 77})
    metrics = {"tokens_per_second": 1000.0, "flops_per_token": 1e6}
    empty_store(home).write_trial(
        record(seed=77, recipe=recipe.to_dict(), environment_id=made.environment_id, metrics=metrics, purpose="speed")
    )
    made = make_plan(design, home=home)
    evaluated = recipe.evaluation.sequences * recipe.data.seq_len * recipe.evaluation.points
    own = [one for one in made.rows if one.trial.levels == row.trial.levels]
    assert [one.timed for one in own] == [True, True]
    assert own[0].seconds == pytest.approx(1 + (recipe.tokens + evaluated / 3) / 1000)
    assert sum(one.timed for one in made.rows) == 2
    hours, unit = render_outlook.device_hours(made)
    assert unit == "CPU core hours"
    assert hours == pytest.approx(sum(one.seconds for one in made.rows) * made.environment["threads"] / 3600)
    assert "of the same shapes for 2 of them" in render_outlook.price(made)


def test_the_record_of_a_design_has_its_controls_and_aliases(planned) -> None:
    made = planned(QUARTER + CONTROLS + "seeds: 1\n")[1]
    found = DesignRecord.from_json(made.design_record().to_json())
    assert (found.kind, found.cells_stood_for, found.seeds) == ("fractional", 32, [0])
    assert [trial.get("control") for trial in found.trials] == [None] * 8 + ["aa", "bad", "aa"]
    again, bad = found.trials[8:10]
    baseline = next(trial for trial in found.trials if trial["levels"] == found.baseline)
    assert again["cell_id"] == baseline["cell_id"] and again["trial_id"] != baseline["trial_id"]
    assert again["levels"] == found.baseline and again["seed"] == 1_000_000
    assert (bad["levels"], bad["label"], bad["seed"]) == ({}, "known-bad: lr=x10", 0)
    dropout = next(one for one in found.aliases if one["effect"] == ["model.dropout"])
    assert {"effect": ["model.attention", "model.norm"], "coefficient": 1.0} in dropout["aliases"]
    assert len(found.aliases) == 16 and all(len(one["aliases"]) == 3 for one in found.aliases)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT, ["32 of the 32 cells of the full grid (full)", "every main effect and every interaction of two factors"]),
        (TEXT + "design: one_at_a_time\n", ["6 of the 32 cells", "at the baseline's levels of the other factors; no interaction"]),
        (QUARTER + CONTROLS, [
            "8 of the 32 cells of the full grid (fractional, resolution III)",
            "dropout departs from the baseline where an odd number of these do: attention, norm",
            "activation x dropout", "none of the interactions of two factors", "A/A (the baseline again, on 2 seeds of its own",
            "known-bad: lr=x10 (on 3 seeds",
        ]),
        (TEXT + "design: {fractional: {resolution: 5}}\n", ["16 of the 32", "resolution V", "all interactions of two factors"]),
        (TEXT + "design: {optimal: {cells: 12}}\n", ["12 of the 32", "D-efficiency 1.00, worst alias 0.33 of 0.5 allowed", "+ 0.33 "]),
        (TEXT + "exclude: [{model.attention: gqa, model.norm: rmsnorm}]\n", ["24 of the 32", "but attention x norm: exclude leaves"]),
        ("name: x\nbase: {data.source: synthetic}\n", ["1 of the 1 cells", "the mean of one cell"]),
    ],
    ids=["full", "one at a time", "quarter", "half", "optimal", "exclude", "one cell"],
)  # fmt: skip
def test_plan_says_what_a_design_can_show_in_a_hundred_columns(
    text, says, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(render, "WIDE", 100)
    (tmp_path / "x.yaml").write_text(text)
    assert main(["plan", str(tmp_path / "x.yaml")]) == 0
    out = capsys.readouterr().out
    shown = out[out.index("\ndesign: ") :]
    assert max(map(len, shown.splitlines())) <= 100
    words = " ".join(shown.split())
    for phrase in says:
        assert phrase in words
    assert "price: " in words


def test_plan_as_json_has_the_whole_outlook(tmp_path: Path, home: Path, capsys) -> None:
    (tmp_path / "x.yaml").write_text(QUARTER)
    argv = ["plan", str(tmp_path / "x.yaml"), "--effect", "0.02", "--json", "--only", "attention=mha,norm=rmsnorm"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["trials"]) == 3 * 2
    design = found["design"]
    assert (design["cells"], design["cells_stood_for"], design["resolution"], design["effect"]) == (8, 32, 3, 0.02)
    assert design["generators"]["model.dropout"] == ["model.attention", "model.norm"]
    assert len(design["aliases"]) == 16 and len(design["contrasts"]) == 5
    assert design["noise"] is None and design["contrasts"][0]["unit"] == "sd of a run"
    assert design["price"]["trials"] == 6
