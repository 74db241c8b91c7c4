"""Matching: arms have as much as the baseline, nothing that a suite varies is touched, and what cannot be is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_records import record

from ablate import design, environment, measure
from ablate._resolve import read
from ablate.fingerprint import code_fingerprint
from ablate.known import Speeds, selected
from ablate.match import SpeedUnknown
from ablate.model import build
from ablate.recipe import Recipe
from ablate.suite import Suite, SuiteError, load_suite, shipped
from registry import mirror

HEAD = "name: x\n"
FREE = [name for name in shipped() if "/" not in name]
UNLIKE = {"compute-optimal", "width-transfer", "sizing", "tokenizer"}
"""Suites whose arms differ in size by so much, or on purpose, that they cannot have equal parameters."""

LARGE = [(name, scale) for name in ("activation", "attention") for scale in ("10m", "124m")]


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Suite]:
    def load(text: str) -> Suite:
        (tmp_path / "x.yaml").write_text(HEAD + text)
        return load_suite(tmp_path / "x.yaml")

    return load


def parameters(recipe: Recipe) -> int:
    """Counted from the shapes of the tensors, a tied one once."""
    return sum(p.numel() for p in {id(p): p for p in build(recipe, "meta").parameters()}.values())


def flops(recipe: Recipe) -> float:
    return measure.flops_per_token(build(recipe, "meta"), recipe) * recipe.train.steps * recipe.batch_tokens


def arms(suite: Suite, **options: object) -> tuple[Recipe, dict[str, Recipe]]:
    """The baseline's recipe, and that of every cell by its label."""
    found = design.expand(suite, seeds=[0], **options)  # type: ignore[arg-type]
    (baseline,) = (trial.recipe for trial in found.trials if trial.levels == suite.baseline and not trial.control)
    return baseline, {trial.label: trial.recipe for trial in found.trials}


@pytest.mark.parametrize(("name", "scale"), [(name, "nano") for name in sorted(set(FREE) - UNLIKE)] + LARGE)
def test_parameters_of_every_arm_are_within_a_hundredth(name: str, scale: str) -> None:
    baseline, found = arms(load_suite(name).matched("parameters"), scale=scale)
    for label, recipe in found.items():
        assert parameters(recipe) == pytest.approx(parameters(baseline), rel=0.01), label
        assert recipe.tokens == pytest.approx(baseline.tokens, rel=0.02), label


def test_parameters_equal_the_count_on_paper() -> None:
    """Two embeddings of V rows, and blocks of four attention matrices (fewer keys and values), three of the gated unit, two norms."""
    _, found = arms(load_suite("attention").matched("parameters"))
    d, v, layers = 64, 1024, 2
    for label, kv_heads in {"mha": 4, "gqa": 2, "mqa": 1}.items():
        width = found[label].model.ffn_dim
        block = 2 * d * d + 2 * d * 16 * kv_heads + 3 * d * width + 2 * d
        assert parameters(found[label]) == 2 * v * d + layers * block + d
    assert [found[label].model.ffn_dim for label in ("mha", "gqa", "mqa")] == [168, 192, 200]


@pytest.mark.parametrize(
    ("name", "scale"), [(name, "nano") for name in sorted(set(FREE) - {"compute-optimal"})] + LARGE
)
def test_flops_of_every_arm_are_within_two_hundredths(name: str, scale: str) -> None:
    baseline, found = arms(load_suite(name).matched("flops"), scale=scale)
    _, plain = arms(load_suite(name).matched("none"), scale=scale)
    for label, recipe in found.items():
        assert flops(recipe) == pytest.approx(flops(baseline), rel=0.02), label
        assert recipe.model == plain[label].model, "the tokens are what is adjusted"


def test_adjusted_widths_suit_a_gpu_where_that_is_close_enough() -> None:
    _, found = arms(load_suite("attention").matched("parameters"), scale="124m")
    assert {recipe.model.ffn_dim % 64 for recipe in found.values()} == {0}


def test_an_arm_that_is_close_keeps_its_trials() -> None:
    """Gated units have two thirds of the width already; matching them again would train them again."""
    suite = load_suite("activation")
    assert design.expand(suite.matched("parameters")).trials == design.expand(suite.matched("none")).trials


def test_depth_serves_where_the_width_is_varied(load) -> None:
    text = "base: {scale: 124m}\nfactors: {model.ffn_dim: [2048, 1536, 3072]}\nmatch: parameters\n"
    baseline, found = arms(load(text))
    assert [recipe.model.ffn_dim for recipe in found.values()] == [2048, 1536, 3072]
    assert [recipe.model.n_layers for recipe in found.values()] == [12, 14, 9]
    for recipe in found.values():
        assert parameters(recipe) == pytest.approx(parameters(baseline), rel=0.02)


def test_width_serves_where_the_tokens_are_varied(load) -> None:
    baseline, found = arms(load("factors: {train.tokens: [x1, x0.7]}\nmatch: flops\n"))
    small = found["tokens=x0.7"]
    assert small.tokens == pytest.approx(0.7 * baseline.tokens, rel=0.01)
    assert small.model.ffn_dim > baseline.model.ffn_dim
    assert flops(small) == pytest.approx(flops(baseline), rel=0.02)


def test_tokens_are_equal_whatever_the_batch(load) -> None:
    baseline, found = arms(load("base: {train.steps: 100}\nfactors: {batch.sequences: [4, 8, 16]}\n"))
    assert [recipe.train.steps for recipe in found.values()] == [100, 50, 25]
    assert {recipe.train.warmup for recipe in found.values()} == {baseline.train.warmup}


@pytest.mark.parametrize(
    "factor", ["model.ffn_dim: [168, 1]", "model.n_layers: [2, 9]", "train.steps: [9, 99]", "train.tokens: [x1, x9]"]
)
@pytest.mark.parametrize("axis", ["tokens", "parameters", "flops"])
def test_what_a_suite_varies_is_never_adjusted(load, factor: str, axis: str) -> None:
    suite = load(f"factors: {{{factor}}}\n")
    _, plain = arms(suite.matched("none"))
    field = factor.partition(":")[0]
    kept = {label: read(recipe, field) for label, recipe in plain.items()}
    with contextlib.suppress(SuiteError):  # it cannot be matched, then
        _, found = arms(suite.matched(axis))
        assert {label: read(recipe, field) for label, recipe in found.items()} == kept


def test_shorthands_and_levels_decide_what_they_stand_for(load) -> None:
    text = "factors:\n  model.ffn_ratio: [4, 3]\n  model: [{n_layers: 2}, {n_layers: 3}]\nmatch: {parameters: {tolerance: 0.9}}\n"
    _, found = arms(load(text))
    assert sorted({(recipe.model.n_layers, recipe.model.ffn_dim) for recipe in found.values()}) == [
        (2, 128), (2, 168), (3, 128), (3, 168)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "factors: {train.tokens: [3e5, 4e5]}\n",
            "x.yaml:1: match: tokens=400000.0 cannot be matched in tokens: 33.3 % more tokens than the baseline, where 2 % is tolerated; "
            "its levels decide train.steps",
        ),
        (
            "factors: {model.ffn_dim: [168, 176, 512]}\nmatch:\n  parameters:\n    tolerance: 0.05\n",
            "x.yaml:3: match: ffn_dim=512 cannot be matched in parameters: 7.6 % more parameters than the baseline, "
            "where 5 % is tolerated; its levels decide model.ffn_dim",
        ),
        (
            "base:\n  train.steps: 3\nfactors: {batch.sequences: [4, 8]}\nmatch: tokens\n",
            "x.yaml:5: match: sequences=8 cannot be matched in tokens: 33.3 % more tokens than the baseline, where 2 % is tolerated",
        ),
    ],
    ids=["tokens", "parameters", "rounding"],
)
def test_an_arm_beyond_the_tolerance_is_refused_with_the_number(load, text: str, message: str) -> None:
    suite = load(text)
    with pytest.raises(SuiteError) as caught:
        design.expand(suite)
    assert str(caught.value).partition("x.yaml")[2] == message.removeprefix("x.yaml")
    assert len(design.expand(suite.matched("none")).cells) == len(
        design.expand(suite.matched("{tokens: {tolerance: 0.99}}")).cells
    )


def test_matching_is_pure() -> None:
    suite = load_suite("attention").matched("parameters")
    assert design.expand(suite) == design.expand(suite)


def test_only_one_cell_is_matched_to_the_baseline_that_is_not_there() -> None:
    suite = load_suite("attention").matched("parameters")
    (trial,) = design.expand(suite, seeds=1, only="attention=mqa").trials
    assert trial.recipe.model.ffn_dim == 200


RATES = {"mha": 1.0, "gqa": 1.1, "mqa": 1.25, "mla": 0.5}


def rate(recipe: Recipe, baseline: Recipe) -> float | None:
    return RATES.get(recipe.model.attention.name)


def test_wall_clock_sets_tokens_by_measured_rates() -> None:
    baseline, found = arms(load_suite("attention").matched("wall_clock"), speeds=rate)
    assert found["mha"] == baseline
    for label, recipe in found.items():
        assert recipe.tokens / RATES[label] == pytest.approx(baseline.tokens, rel=0.005), label
        assert recipe.model.ffn_dim == baseline.model.ffn_dim


def test_wall_clock_without_a_pass_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_suite("attention").matched("wall_clock")
    with pytest.raises(
        SpeedUnknown, match=r"the speed of gqa was not measured .*; run `ablate speed attention --scale 1m` first$"
    ):
        design.expand(suite, scale="1m")
    monkeypatch.delitem(RATES, "mla")
    with pytest.raises(SpeedUnknown, match="the speed of mla was not measured"):
        design.expand(suite, speeds=rate)


def test_drift_is_on_every_axis() -> None:
    found = design.expand(load_suite("attention").matched("wall_clock"), speeds=rate, seeds=1)
    drift = {trial.label: found.arms.drift(trial.recipe) for trial in found.trials}
    assert drift["mha"] == {"tokens": 0, "parameters": 0, "flops": 0, "wall_clock": 0}
    assert drift["mla"]["tokens"] == pytest.approx(-0.5, abs=0.01)
    assert drift["mla"]["wall_clock"] == pytest.approx(0, abs=0.01)
    (mla, mha) = (next(t.recipe for t in found.trials if t.label == label) for label in ("mla", "mha"))
    assert drift["mla"]["parameters"] == pytest.approx(parameters(mla) / parameters(mha) - 1, abs=1e-6)
    assert drift["mla"]["flops"] == pytest.approx(flops(mla) / flops(mha) - 1, abs=1e-6)


def measured(recipes: dict[str, Recipe], ratios: dict[str, float], minute: int, **fields: object) -> list[dict]:
    """Rows of the mirror for a pass for speed: the baseline against itself, and the others against it."""
    found = []
    for number, (label, ratio) in enumerate(ratios.items()):
        recipe = recipes[label]
        speed = {"baseline_trial_id": f"mha-{minute}", "ratios": {"tokens_per_second": {"estimate": ratio}}}
        given = {
            "trial_id": f"{label}-{minute}", "purpose": "speed", "recipe": recipe.to_dict(), "context": {"speed": speed},
            "environment_id": environment.environment_id(environment.expected()),
            "code_fingerprint": code_fingerprint(selected(recipe)),
            "finished_at": f"2026-01-02T04:{minute:02d}:{number:02d}+00:00",
        }  # fmt: skip
        found.append(record({"model.attention": label}, minute, **(given | fields)))
    return found


def test_speeds_are_those_of_the_newest_pass_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = load_suite("attention")
    baseline, recipes = arms(suite)
    speeds = Speeds(home)
    assert speeds(baseline, baseline) == 1.0 and speeds(recipes["gqa"], baseline) is None, "an empty registry"
    rows = [
        *measured(recipes, {"mha": 1.001, "gqa": 1.3, "mqa": 1.4}, 1),
        *measured(recipes, {"mha": 0.999, "gqa": 1.2}, 2),
        *measured(recipes, {"mha": 1.0, "gqa": 9.0}, 3, exclusive=False),
        *measured(recipes, {"mha": 1.0, "gqa": 9.0}, 4, environment_id="elsewhere"),
        *measured(recipes, {"mha": 1.0, "mla": 9.0}, 5, code_fingerprint="older"),
    ]
    found = mirror.Mirror.of({str(place): one for place, one in enumerate(rows)})
    monkeypatch.setattr(mirror, "sync", lambda store: found)
    speeds = Speeds(home)
    assert [speeds(recipes[label], baseline) for label in ("mha", "gqa", "mqa", "mla")] == [1.0, 1.2, 1.4, None]
    longer = design.expand(suite, seeds=[7], overrides={"train.tokens": "x2"}).trials[1].recipe
    assert speeds(longer, baseline) == 1.2, "length and seed do not matter"
    assert speeds(baseline, recipes["gqa"]) is None, "it was the other way round"


def test_the_commands_match(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ablate.cli import main
    from ablate.plan import make_plan

    assert main(["plan", "attention", "--match", "parameters"]) == 0
    out = capsys.readouterr().out
    assert "matched in parameters" in out and "ffn_dim=200" in out
    assert main(["plan", "attention", "--match", "parameters", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["match"] == "parameters" and found["drift"]["mla"]["flops"] == pytest.approx(0.047, abs=0.001)
    assert main(["plan", "attention", "--match", "wall_clock"]) == 2
    assert "run `ablate speed attention` first" in capsys.readouterr().err
    assert main(["plan", "attention", "--match", "paramters"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --match paramters: unknown axis 'paramters'; did you mean 'parameters'?"
    )
    made = make_plan(design.expand(load_suite("attention").matched("parameters"), only="attention=mqa"), home=home)
    kept = made.design_record()
    assert kept.match == "parameters" and kept.drift == {"mqa": {"tokens": 0, "parameters": 0, "flops": 0}}
