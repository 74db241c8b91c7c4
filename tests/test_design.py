"""Designs: which trials a suite comes to."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ablate import design
from ablate.errors import UserError
from ablate.suite import SuiteError, load_suite

TWO = """\
name: two
base: {train.steps: 10}
factors:
  model.attention: [mha, gqa, mqa]
  optimizer: [adamw, {lion: {lr: 1.0e-4}}, {lion: {lr: 2.0e-4}}]
"""


@pytest.fixture
def load(tmp_path: Path):
    def load(text: str):
        (tmp_path / "x.yaml").write_text(text)
        return load_suite(tmp_path / "x.yaml")

    return load


def labels(found: design.Design) -> list[tuple[str, ...]]:
    return [tuple(cell.levels.values()) for cell in found.cells]


def test_a_full_design_has_every_combination_once_per_seed(load) -> None:
    found = design.expand(load(TWO + "seeds: [4, 2]\n"))
    assert len(found.cells) == 9 and len(set(labels(found))) == 9
    assert [trial.seed for trial in found.trials] == [4] * 9 + [2] * 9, "an interrupted run is balanced"
    assert [trial.levels for trial in found.trials[:9]] == [cell.levels for cell in found.cells]
    assert all(trial.recipe.seed == trial.seed for trial in found.trials)
    assert found.cells[4].label == "gqa + lion(lr=0.0001)"
    assert found.seeds == (4, 2)


def test_one_at_a_time_varies_the_baseline_one_factor_at_a_time(load) -> None:
    found = design.expand(load(TWO + "design: one_at_a_time\nbaseline: {model.attention: gqa}\n"))
    assert labels(found) == [
        ("gqa", "adamw"), ("mha", "adamw"), ("mqa", "adamw"), ("gqa", "lion(lr=0.0001)"), ("gqa", "lion(lr=0.0002)"),
    ]  # fmt: skip


def test_leave_one_out_takes_each_choice_of_the_baseline_back_alone(load) -> None:
    base = "baseline: {model.attention: gqa}\n"
    found = design.expand(load(TWO + base + "design: leave_one_out\n"))
    assert labels(found) == labels(design.expand(load(TWO + base + "design: one_at_a_time\n")))
    assert [cell.label for cell in found.cells] == [
        "baseline", "attention=mha", "attention=mqa", "optimizer=lion(lr=0.0001)", "optimizer=lion(lr=0.0002)",
    ]  # fmt: skip
    assert found.suite.design == "leave_one_out"


def test_a_variant_that_could_be_taken_for_another_factors_is_named_in_full(load) -> None:
    found = load(
        "name: x\nfactors: {model.qk_norm: [none, rmsnorm], model.norm: [rmsnorm, layernorm], model.block: [parallel, sequential]}\n"
    )
    assert design.expand(found).cells[0].label == "qk_norm=none + norm=rmsnorm + parallel"


def test_excluded_cells_are_left_out(load) -> None:
    found = design.expand(load(TWO + "exclude: [{model.attention: [gqa, mqa], optimizer: lion(lr=0.0002)}]\n"))
    assert len(found.cells) == 7
    assert ("mha", "lion(lr=0.0002)") in labels(found) and ("mqa", "lion(lr=0.0002)") not in labels(found)


def test_expanding_is_pure(load) -> None:
    found = load(TWO)
    assert design.expand(found) == design.expand(found)


def test_the_scale_can_be_another_than_the_suites(load) -> None:
    found = design.expand(load(TWO), scale="10m")
    assert found.scale == "10m"
    assert {trial.recipe.model.dim for trial in found.trials} == {384}
    assert {trial.recipe.train.steps for trial in found.trials} == {10}
    with pytest.raises(UserError, match="unknown scale '10mm'; did you mean '10m'"):
        design.expand(load(TWO), scale="10mm")


def test_what_fails_at_another_scale_names_line_and_scale(load) -> None:
    found = load("name: x\nfactors:\n  model.attention:\n  - mha\n  - gqa: {n_kv_heads: 4}\n")
    with pytest.raises(SuiteError, match=r"x.yaml:5: factors.model.attention\[1\].gqa.n_kv_heads: .*\(at scale 10m\)$"):
        design.expand(found, scale="10m")


def test_overrides_come_between_base_and_levels(load) -> None:
    found = load("name: x\nbase: {model.dim: 32}\nfactors: {model.n_layers: [1, 2]}\n")
    recipe = design.expand(found, overrides={"model.dim": 96, "model.bias": True}).trials[1].recipe
    assert (recipe.model.dim, recipe.model.bias, recipe.model.n_layers) == (96, True, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model.attention": "mqa"},
            "--set model.attention: model.attention is a factor of this suite; pick its levels with --only",
        ),
        ({"model": {"attention": "mqa"}}, "--set model: model.attention is a factor of this suite"),
        ({"train.tokens": 1000}, "--set train.tokens: train.steps is a factor of this suite"),
        ({"train.epochs": 2}, "--set train.epochs: train.steps is a factor of this suite"),
        ({"model.n_heads": "x0.6"}, "--set model.n_heads: x0.6 of 4 is 2.4, which is no whole number"),
        ({"model.dropout.embedding": 0.1}, "--set model.dropout.embedding: model.dropout is a factor of this suite"),
        ({"seed": 1}, "--set seed: seeds are chosen with --seeds"),
        ({"model.dmi": 1}, "--set model.dmi: is not a field of a recipe; did you mean 'model.dim'?"),
        (
            {"model.dim": 66, "train.precision": "fp32"},
            "--set model.dim: model.n_heads: 4 heads do not divide a width of 66",
        ),
        ({"optimizer.lr": "high"}, "--set optimizer.lr: optimizer 'adamw': lr: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_override_is_one_line(load, overrides: dict, message: str) -> None:
    factors = "{model.attention: [mha, mqa], train.steps: [1, 2], model.dropout: [0.0, 0.1]}"
    found = load(f"name: x\nfactors: {factors}\n")
    with pytest.raises(UserError) as caught:
        design.expand(found, overrides=overrides)
    assert str(caught.value).startswith(message)


def test_a_level_that_an_override_makes_impossible_is_blamed_on_both(load) -> None:
    found = load("name: mine\nfactors:\n  model.attention: [mha, gqa]\n")
    with pytest.raises(UserError, match=r"x.yaml:3: factors.model.attention\[1\]: .* \(with --set model.n_heads\)$"):
        design.expand(found, overrides={"train.tokens": 1e5, "model.n_heads": 1})


def test_the_override_at_fault_is_found_among_some_that_need_each_other(load) -> None:
    overrides = {"optimizer": "sgd", "optimizer.momentum": 0.5, "model.n_heads": 5}
    found = load("name: mine\nbase: {lr_schedule: wsd, lr_schedule.decay: 0.5}\n")
    with pytest.raises(UserError, match=r"--set model.n_heads: 5 heads do not divide a width of 64$"):
        design.expand(found, overrides=overrides)


def test_an_override_may_choose_what_a_factor_is_an_option_of(load) -> None:
    found = load("name: x\nfactors: {optimizer.lr: [1e-3, 2e-3]}\n")
    trials = design.expand(found, overrides={"optimizer": "lion"}, seeds=1).trials
    assert [(t.recipe.optimizer.name, t.recipe.optimizer.options["lr"]) for t in trials] == [
        ("lion", 1e-3),
        ("lion", 2e-3),
    ]


@pytest.mark.parametrize(
    ("asked", "given"),
    [(None, (7, 1)), (1, (7,)), (4, (7, 1, 0, 2)), ([9, 0], (9, 0))],
    ids=["suite", "fewer", "more", "list"],
)
def test_seeds_can_be_fewer_more_or_others(load, asked, given: tuple[int, ...]) -> None:
    assert design.expand(load(TWO + "seeds: [7, 1]\n"), seeds=asked).seeds == given


@pytest.mark.parametrize("seeds", [0, -1, 10**9, [], [1, 1], [-1]], ids=str)
def test_wrong_seeds_are_refused(load, seeds) -> None:
    with pytest.raises(UserError, match="seeds must be"):
        design.expand(load(TWO), seeds=seeds)


@pytest.mark.parametrize(
    ("only", "count"),
    [
        ("attention=gqa", 3), ("model.attention=gqa,optimizer=adamw", 1), ("attention=gqa,attention=mqa", 6),
        ("optimizer=lion(lr=0.0001), attention=mha", 1), ({"attention": ["mha", "gqa"], "optimizer": "adamw"}, 2),
    ],
    ids=str,
)  # fmt: skip
def test_only_keeps_the_named_levels(load, only, count: int) -> None:
    assert len(design.expand(load(TWO), only=only).cells) == count


def test_a_level_with_several_options_can_be_asked_for(load) -> None:
    found = load(
        "name: x\nfactors: {optimizer: [adamw, {lion: {lr: 1e-4, beta1: 0.9}}, {lion: {lr: 2e-4, beta1: 0.8}}]}\n"
    )
    assert len(design.expand(found, only="optimizer=lion(lr=0.0002, beta1=0.8)").cells) == 1


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("attentoin=gqa", "'attentoin' is not a factor of two; did you mean 'attention'"),
        ("attention=gqq", "'gqq' is not a level of attention; did you mean 'gqa'"),
        ("gqa", "must be factor=level"),
        ("optimizer=lion(lr=0.0001),attention=mqa", "no cell of two has these levels together"),
    ],
)
def test_a_wrong_only_is_refused(load, only: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        design.expand(load(TWO + "exclude: [{optimizer: lion(lr=0.0001), model.attention: mqa}]\n"), only=only)


def test_short_names_are_dotted_where_they_would_clash() -> None:
    assert design.short_names(["batch.tokens", "train.tokens", "optimizer.lr"]) == {
        "batch.tokens": "batch.tokens", "train.tokens": "train.tokens", "optimizer.lr": "lr",
    }  # fmt: skip


def test_a_cell_names_numbers_by_their_factor(load) -> None:
    found = load(
        "name: x\nfactors: {model.norm: [layernorm, rmsnorm], model.dropout: [0.0, 0.1], model.bias: [false, true]}\n"
    )
    assert design.expand(found).cells[-1].label == "rmsnorm + dropout=0.1 + bias=true"


def test_settings_of_the_command_line_are_yaml() -> None:
    found = design.parse_set(
        ["model.dim=128", "train.grad_clip=null", "data.source={files: {paths: [a, b=c]}}", "optimizer=lion"]
    )
    assert found == {
        "model.dim": 128,
        "train.grad_clip": None,
        "data.source": {"files": {"paths": ["a", "b=c"]}},
        "optimizer": "lion",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.dim"], "^--set model.dim: must be field=value, such as model.dim=128$"),
        (["=3"], "must be field=value"),
        (["a=1", "a=2"], "^--set a: is given twice$"),
        (["a=[1"], "^--set a: not YAML: "),
        (["a=!!python/name:os.system x"], "^--set a: tags .* are not allowed"),
        (["a={b: .nan}"], "^--set a: b: .nan is not a finite number$"),
        (["a=" + "1" * 70_000], "^--set a: is larger than"),
    ],
    ids=lambda value: value[0][:20] if isinstance(value, list) else "",
)
def test_wrong_settings_are_one_line(settings: list[str], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        design.parse_set(settings)


def test_paths_count_from_the_suite_or_from_where_set_is_typed(
    load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load(
        "name: x\nbase: {data.source: {files: {paths: [a.txt]}}}\nfactors: {model.norm: [layernorm, rmsnorm]}\n"
    )

    def paths(overrides: dict) -> list[str]:
        return list(design.expand(found, overrides=overrides).trials[0].recipe.data.sources[0].source.options["paths"])

    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert paths({}) == [str(tmp_path / "a.txt")]
    assert paths({"data.source": {"files": {"paths": ["a.txt"]}}}) == [str(tmp_path / "other" / "a.txt")]


CONTROLS = "controls: {aa: true, bad: {optimizer.lr: x10, model.norm: none}}\nseeds: [4, 2]\n"


def controls(found: design.Design) -> list[tuple[str, int, str]]:
    return [(trial.control, trial.seed, trial.label) for trial in found.trials if trial.control]


def test_controls_are_the_baseline_again_on_seeds_of_its_own_and_what_is_known_to_be_bad(load) -> None:
    found = design.expand(load(TWO + "baseline: {model.attention: gqa}\n" + CONTROLS))
    assert controls(found) == [
        ("aa", 1_000_000, "A/A"), ("bad", 4, "known-bad: lr=x10, norm=none"),
        ("aa", 1_000_001, "A/A"), ("bad", 2, "known-bad: lr=x10, norm=none"),
    ]  # fmt: skip
    assert len(found.cells) == 9 and found.seeds == (4, 2)
    baseline = next(trial for trial in found.trials if trial.levels == found.suite.baseline)
    again = next(trial for trial in found.trials if trial.control == "aa")
    bad = next(trial for trial in found.trials if trial.control == "bad")
    assert again.levels == baseline.levels and bad.levels == {}
    assert again.recipe.model_copy(update={"seed": 4}) == baseline.recipe
    assert bad.recipe.model.norm.name == "none" and bad.recipe.model.attention == baseline.recipe.model.attention
    assert bad.recipe.optimizer.options["lr"] == pytest.approx(10 * baseline.recipe.optimizer.options["lr"])


@pytest.mark.parametrize(
    ("aa", "asked", "count"), [("true", None, 2), ("true", 5, 5), ("1", None, 1), ("3", 1, 3)], ids=str
)
def test_an_aa_arm_has_as_many_seeds_as_the_suite_or_as_it_says(load, aa: str, asked: int | None, count: int) -> None:
    text = TWO + f"seeds: [1000000, 0]\ncontrols: {{aa: {aa}}}\n"
    found = design.expand(load(text), seeds=asked)
    seeds = [trial.seed for trial in found.trials if trial.control]
    assert len(set(seeds)) == len(seeds) == count
    assert not set(seeds) & {1_000_000, *found.seeds}, "no seed of the suite"


def test_a_part_of_a_suite_has_controls_where_it_has_the_baseline(load) -> None:
    found = load(TWO + CONTROLS)
    assert len(controls(design.expand(found, only="attention=mha"))) == 4
    assert controls(design.expand(found, only="attention=gqa")) == []


def test_a_suite_of_one_cell_can_have_controls(load) -> None:
    found = design.expand(
        load("name: x\nbase: {train.steps: 10}\nseeds: 1\ncontrols: {aa: 2, bad: {optimizer.lr: x10}}\n")
    )
    assert [(trial.control, trial.label) for trial in found.trials] == [
        ("", "base"), ("aa", "A/A"), ("bad", "known-bad: lr=x10"), ("aa", "A/A"),
    ]  # fmt: skip


def test_a_known_bad_that_cannot_be_at_another_scale_is_named(load) -> None:
    found = load("name: x\nbase: {scale: 1m}\ncontrols: {bad: {model.attention: {gqa: {n_kv_heads: 4}}}}\n")
    with pytest.raises(
        SuiteError, match=r"x.yaml:3: controls.bad: .*4 key and value heads do not divide 6.*\(at scale 10m\)$"
    ):
        design.expand(found, scale="10m")


def test_a_design_knows_the_command_that_runs_it() -> None:
    suite = load_suite("attention")
    assert design.expand(suite).command == "ablate run attention --scale nano"
    changed = design.expand(
        suite.matched("parameters"), scale="1m", seeds=2, overrides={"train.tokens": "x0.1", "model.bias": True}
    )
    assert shlex.split(changed.command) == [
        "ablate", "run", "attention", "--scale", "1m", "--set", 'train.tokens="x0.1"', "--set", "model.bias=true", "--seeds", "2",
        "--match", "parameters",
    ]  # fmt: skip
    settings = design.parse_set(['train.tokens="x0.1"', "model.bias=true"])
    again = design.expand(suite.matched("parameters"), scale="1m", seeds=2, overrides=settings)
    assert [trial.recipe for trial in again.trials] == [trial.recipe for trial in changed.trials]
