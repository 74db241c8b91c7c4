"""The suites that come with ablate: there is one for every choice, each plans at a laptop's scale and at GPT-2's, each trains."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import jsonschema
import pytest

from ablate import design, suite
from ablate._suite_arms import MATCH_TOLERANCE
from ablate._yaml import read
from ablate.plan import Identities
from ablate.presets import SCALES
from ablate.recipe import Recipe
from ablate.variants import load_factors

SHIPPED = suite.shipped()
REFERENCE = [name for name in SHIPPED if name.startswith("reference/")]
ASKED = """
    attention activation norm position optimizer schedule weight-decay clipping dropout batch-size sizing compute-optimal repetition
    data-mix curation precision checkpointing init recipe leave-one-out dropout-x-repetition norm-x-placement optimizer-x-batch
    quickstart controls reference/shakespeare-char reference/shakespeare-char-cpu
""".split()
NEED_A_FILE = {("source", "files"), ("source", "hub"), ("tokenizer", "file")}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The override that gives the reference suites a text: a hundred thousand characters of the standard library."""
    import argparse

    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(Path(argparse.__file__).read_text(encoding="utf-8")[:100_000], encoding="utf-8")
    return {"data.source": {"files": {"paths": str(path)}}}


def recipes(name: str, scale: str, overrides: dict[str, object]) -> list[design.Trial]:
    found = suite.load_suite(name)
    return list(design.expand(found, scale=scale, seeds=[0], overrides=overrides if name in REFERENCE else {}).trials)


def test_there_is_one_for_every_question() -> None:
    assert set(ASKED) <= set(SHIPPED)


def test_they_try_every_variant_there_is() -> None:
    tried = {
        (choice.factor, choice.name)
        for name in SHIPPED for trial in design.expand(suite.load_suite(name), seeds=[0]).trials
        for choice in trial.recipe.choices().values()
    }  # fmt: skip
    own = {(factor.name, variant.name) for factor in load_factors().values() for variant in factor}
    assert own - tried <= NEED_A_FILE


@pytest.mark.parametrize("name", SHIPPED)
def test_it_asks_something_names_its_source_and_is_a_page_at_most(name: str) -> None:
    found = suite.load_suite(name)
    assert found.name == name
    assert "?" in found.description and found.source
    assert len(found.text.splitlines()) <= 40


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(suite.json_schema())


@pytest.mark.parametrize("name", SHIPPED)
def test_the_schema_takes_it(name: str, schema: jsonschema.Draft202012Validator) -> None:
    schema.validate(read(suite.load_suite(name).text, name).value)


@pytest.fixture(scope="module")
def identify(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """What a plan asks of each recipe: hashed corpora, parsed code, shapes on the meta device."""
    return Identities(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("scale", ["nano", "124m"])
@pytest.mark.parametrize("name", SHIPPED)
def test_it_plans_at_a_laptops_scale_and_at_gpt2s(name: str, scale: str, text: dict, identify: Identities) -> None:
    trials = recipes(name, scale, text)
    assert len({identify(trial.recipe).trial_id for trial in trials}) == len(trials)
    tokens = [trial.recipe.tokens for trial in trials]
    if suite.load_suite(name).match == "tokens":
        assert max(tokens) <= (1 + MATCH_TOLERANCE) * min(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [scale for scale in SCALES if scale not in ("nano", "124m")])
@pytest.mark.parametrize("name", SHIPPED)
def test_it_resolves_at_every_scale(name: str, scale: str, text: dict) -> None:
    assert recipes(name, scale, text)


def test_a_reference_setting_is_the_published_one(text: dict) -> None:
    """nanoGPT, config/train_shakespeare_char.py, with the defaults of train.py."""
    (trial,) = recipes("reference/shakespeare-char", "10m", text)
    recipe = trial.recipe
    model = recipe.model
    assert (model.n_layers, model.n_heads, model.dim, model.ffn_dim, recipe.data.seq_len) == (6, 6, 384, 1536, 256)
    assert set(model.dropout.model_dump().values()) == {0.2} and not model.bias and model.tie_embeddings
    assert recipe.batch.sequences == recipe.batch.micro_sequences == 64 and recipe.train.steps == 5000
    adamw = recipe.optimizer.options
    assert (adamw["lr"], adamw["beta1"], adamw["beta2"], adamw["weight_decay"]) == (1e-3, 0.9, 0.99, 0.1)
    assert recipe.lr_schedule.to_dict() == {"cosine": {"final": 0.1}} and recipe.train.warmup * 5000 == 100
    assert recipe.train.clipping.to_dict() == {"norm": {"limit": 1.0}} and recipe.train.decay_skips == "vectors"
    assert model.activation.to_dict() == {"gelu": {"approximate": "none"}}
    assert recipe.evaluation.model_dump() == {"sequences": 435, "points": 20}, "the last tenth of tinyshakespeare"


def test_a_reference_suite_says_how_to_name_its_text(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ablate.cli import main

    assert main(["plan", "reference/shakespeare-char-cpu"]) == 2
    error = capsys.readouterr().err
    assert "tinyshakespeare.txt: no such file; name another with --set data.source='{files: {paths: FILE}}'" in error


STEPS = 60


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    """Corpora by what decides them, each prepared once."""
    from ablate import data

    cache = tmp_path_factory.mktemp("prepared")

    @functools.cache
    def prepare(fields: str):
        return data.prepare(Recipe.from_dict(json.loads(fields)).data, cache)

    return prepare


def four(trials: list[design.Trial]) -> list[design.Trial]:
    """The first, the last and two between: levels of several factors."""
    return [trials[i] for i in sorted({round(share * (len(trials) - 1) / 3) for share in range(4)})]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in REFERENCE])
def test_four_of_its_trials_learn_from_real_text(name: str, prepared, text: dict) -> None:
    """In 60 steps each is better than a guess among all tokens, but for rates that are meant to be too high."""
    from ablate.train import train

    for trial in four(recipes(name, "nano", text)):
        fields = trial.recipe.to_dict()
        fields["train"]["steps"] = STEPS
        fields["evaluation"] = {"sequences": 32, "points": 1}
        recipe = Recipe.from_dict(fields)
        result = train(recipe, corpus=prepared(json.dumps(fields)))
        assert result.status == "finished", trial.label
        assert result.metrics["val_loss"] < math.log(recipe.model.vocab_size) - 0.15, trial.label


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("name", REFERENCE)
def test_a_reference_trains(name: str, prepared, text: dict) -> None:
    from ablate.train import train

    (trial,) = recipes(name, "nano", text | {"batch.sequences": 4, "train.steps": 30, "evaluation.sequences": 4})
    result = train(trial.recipe, corpus=prepared(json.dumps(trial.recipe.to_dict())))
    assert result.metrics["val_loss"] < math.log(67) - 0.5
