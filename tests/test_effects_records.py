"""Effects of a suite from its records: one design, one environment, one evaluation, and what the pass for speed measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from registry_records import cell_id, design, empty_store, record, trial_id
from scipy import stats
from simulated import mirror_of
from test_layers import loaded

import registry
from registry import Effects, effects
from registry._records import latest, trials_of
from registry.analysis import RegistryEmpty, analyse, scales
from registry.mirror import Mirror
from registry.record import DesignRecord, TrialRecord

ATTENTION = [{"model.attention": "mha"}, {"model.attention": "gqa"}]


def runs(
    cells: list[dict[str, str]] = ATTENTION, seeds: int = 4, worse: float = 0.05, **fields: Any
) -> list[TrialRecord]:
    noise = np.random.default_rng(len(cells))
    return [
        record(levels, seed, loss=3 + 0.3 * seed + worse * place + noise.normal(0, 0.003), **fields)
        for place, levels in enumerate(cells) for seed in range(seeds)
    ]  # fmt: skip


def found(mirror: Mirror, made: DesignRecord, environment_id: str | None = None) -> tuple[Effects, list[str]]:
    trials, environment, notes = trials_of(mirror, made, environment_id)
    return replace(analyse(made, trials), environment=environment), notes


def test_environments_never_mix(home: Path) -> None:
    made = design(ATTENTION, 4)
    elsewhere = [replace(r, status="crashed", metrics={}) if r.seed == 3 else r
                 for r in runs(worse=-0.05, environment_id="gpu")]  # fmt: skip
    mirror = mirror_of([made], runs() + elsewhere)
    here, notes = found(mirror, made)
    assert (here.environment["environment_id"], here.contrasts["verdict"].iloc[0]) == ("env-cpu", "worse")
    assert any("gpu (6 finished trials)" in note for note in notes)
    there, _ = found(mirror, made, "gpu")
    assert there.contrasts["verdict"].iloc[0] == "better"
    assert there.contrasts["n"].iloc[0] == 3
    with pytest.raises(RegistryEmpty, match="there are some in: "):
        found(mirror, made, "tpu")


def test_losses_of_several_tokenizers_give_way_to_bits_per_byte() -> None:
    made = design(ATTENTION, 4)
    own, other = runs()[:4], [
        replace(r, evaluation_fingerprint="slice-b", metrics=r.metrics | {"val_loss": 1.0, "val_bpb": 0.9 + r.seed / 1000})
        for r in runs()[4:]
    ]  # fmt: skip
    sized = [replace(r, metrics=r.metrics | {"validation_bytes": 1000.0}) for r in own + other]
    result, notes = found(mirror_of([made], sized), made)
    assert result.metrics == ("val_bpb", "tokens_per_second", "peak_memory_gib")
    row = result.contrasts.iloc[0]
    assert (row["verdict"], math.isnan(row["margin"])) == ("better", True)
    assert any("do not compare" in note for note in notes)
    short = [replace(r, metrics=r.metrics | {"validation_bytes": 800.0}) if r in sized[4:] else r for r in sized]
    result, notes = found(mirror_of([made], short), made)
    assert math.isnan(result.contrasts.iloc[0]["estimate"])
    assert any("other text" in note for note in notes)


def test_a_grown_suite_and_trials_without_a_record() -> None:
    made = design(ATTENTION, 6)
    result, _ = found(mirror_of([design(ATTENTION, 4), made], runs()), made)
    assert result.contrasts.iloc[0]["n"] == 4
    assert (result.trials["status"] == "missing").sum() == 4
    assert any("4 without a result" in note for note in result.notes)


def test_tuning_trials_are_not_reported() -> None:
    made = design(ATTENTION, 4)
    tuning = [{**made.trials[0], "trial_id": trial_id(ATTENTION[0], 90), "seed": 90, "stage": "tune"}]
    made = replace(made, trials=made.trials + tuning)
    result, _ = found(mirror_of([made], [*runs(), record(ATTENTION[0], 90, loss=99)]), made)
    assert 90 not in set(result.trials["seed"])


def speed(
    levels: dict[str, str], ratio: float, error: float, *, rounds: int = 8, baseline: str | None = None, **fields: Any
):
    half = stats.t.isf(0.025, rounds - 1) * error
    ends = {"estimate": ratio, "low": ratio * math.exp(-half), "high": ratio * math.exp(half)}
    context = {"baseline_cell_id": baseline or cell_id(ATTENTION[0]), "rounds": rounds,
               "ratios": {"tokens_per_second": ends, "peak_memory_gib": {"estimate": 0.9}}}  # fmt: skip
    return record(levels, 0, purpose="speed", context={"speed": context}, **fields)


def test_speed_is_that_of_the_newest_pass_against_this_baseline() -> None:
    made = design(ATTENTION, 4)
    passes = [
        speed(ATTENTION[0], 1.003, 0.01), speed(ATTENTION[1], 2.0, 0.01, attempt=0),
        speed(ATTENTION[1], 1.1, 0.01, attempt=1), speed(ATTENTION[1], 3.0, 0.01, attempt=2, baseline="another"),
        speed(ATTENTION[1], 4.0, 0.01, attempt=3, exclusive=False),
    ]  # fmt: skip
    result, _ = found(mirror_of([made], runs() + passes), made)
    row = result.contrasts[result.contrasts["metric"] == "tokens_per_second"].iloc[0]
    assert (row["estimate"], row["n"], row["unit"], row["df"]) == (pytest.approx(1.1), 8, "rounds", pytest.approx(7))
    assert row["p"] == pytest.approx(2 * stats.t.sf(math.log(1.1) / 0.01, 7))
    assert row["verdict"] == "better"
    memory = result.contrasts[result.contrasts["metric"] == "peak_memory_gib"].iloc[0]
    assert memory["unit"] == "seeds"  # the trials had the device to themselves
    assert any("n is rounds" in note for note in result.notes)


def test_errors_of_the_pass_add_up_over_cells() -> None:
    cells = [{"a": a, "b": b} for a in "01" for b in "01"]
    made = design(cells, 1)
    ratios = dict(zip(range(4), (1.0, 1.2, 1.5, 1.9), strict=True))
    passes = [speed(cells[n], ratio, 0.02, baseline=cell_id(cells[0])) for n, ratio in ratios.items()]
    result, _ = found(mirror_of([made], passes), made)
    rows = result.contrasts[result.contrasts["metric"] == "tokens_per_second"].set_index("factor")
    log = {n: math.log(ratio) for n, ratio in ratios.items()}
    assert math.log(rows.loc["a", "estimate"]) == pytest.approx((log[2] + log[3] - log[0] - log[1]) / 2)
    width = math.log(rows.loc["a", "high"] / rows.loc["a", "low"]) / 2
    assert width == pytest.approx(stats.t.isf(0.025, 21) * math.sqrt(3) * 0.02 / 2)  # the baseline is the unit
    effect = result.main_effects.query("metric == 'tokens_per_second' and factor == 'a' and level == '1'").iloc[0]
    assert effect["estimate"] == pytest.approx(math.sqrt(rows.loc["a", "estimate"]))
    assert result.contrasts.query("metric == 'peak_memory_gib'")["untestable"].tolist() == ["measured once"] * 2


def test_the_newest_design_with_results_counts() -> None:
    old, new = design(ATTENTION, 2), design(ATTENTION[:1], 2, created_at="2027-01-01T00:00:00+00:00")
    untrained = design(ATTENTION, 9, created_at="2028-01-01T00:00:00+00:00", corpus="corpus-z")
    assert latest(mirror_of([old, new, untrained], runs()), "attention")["nano"].design_id == new.design_id
    with pytest.raises(RegistryEmpty, match='suite "norm"; there are some for: attention'):
        latest(mirror_of([old], runs()), "norm")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with curves: gqa trains twice as fast and is worse by 0.1 all along."""
    folder = tmp_path_factory.mktemp("stored")
    store = empty_store(folder)
    store.write_design(design(ATTENTION, 2))
    for place, levels in enumerate(ATTENTION):
        for seed in range(2):
            loss = 3.0 + 0.1 * place + 0.001 * seed
            curve = [[step, step * 1000.0, loss + 1.0 - step / 10] for step in (2, 6, 10)]
            rate = {"tokens_per_second": 1000.0 * (1 + place)}
            store.write_trial(record(levels, seed, loss=loss, metrics=rate, curves={"val_loss": curve}))
    return folder


def test_effects_of_a_suite(stored: Path, home: Path) -> None:
    result = effects("attention", home=stored)
    assert isinstance(result, Effects)
    assert result.contrasts.iloc[0]["estimate"] == pytest.approx(0.1)
    assert scales("attention", home=stored) == ["nano"]
    assert registry.effects("attention", "nano", home=stored, offline=True).contrasts.equals(result.contrasts)
    with pytest.raises(RegistryEmpty, match='at scale "10m"; there are some at: nano'):
        effects("attention", "10m", home=stored)
    with pytest.raises(RegistryEmpty, match="no results yet"):
        effects("attention", home=home)


def test_time_to_target_and_loss_at_equal_time(stored: Path) -> None:
    result = effects("attention", home=stored)
    reached = result.time_to_target(3.3).set_index("model.attention")
    # losses 4 - step / 10 and 4.1 - step / 10 at 1 and 0.5 seconds a step
    assert reached["seconds"].to_dict() == pytest.approx({"mha": 7.0, "gqa": 4.0}, rel=2e-3)
    assert reached["caveat"].str.contains("not a final one").all()
    default = result.time_to_target()
    assert default["target"].tolist() == pytest.approx([3.1005, 3.1005])
    assert default["reached"].tolist() == [2, 1]
    equal = result.loss_at_equal_time().set_index("model.attention")
    assert equal["val_loss"].to_dict() == pytest.approx({"mha": 3.5005, "gqa": 3.1005})
    assert equal["seconds"].tolist() == pytest.approx([5.0, 5.0])
    with pytest.raises(RegistryEmpty, match="without offline"):
        effects("attention", home=stored, offline=True).time_to_target()


def test_the_analysis_loads_no_trainer_and_no_mlflow(stored: Path) -> None:
    code = "from registry import effects\nassert len(effects('attention').contrasts)"
    assert not loaded(code, stored) & {"torch", "ray", "ablate", "mlflow", "statsmodels"}
