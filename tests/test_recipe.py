"""Recipes: what a spec resolves to, what it refuses, and what identity depends on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SIZES, tiny

from ablate.presets import SCALES
from ablate.recipe import Recipe, RecipeError, canonical_json
from ablate.spec import Spec


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_resolves_and_survives_json(scale: str):
    recipe = Spec(scale).resolve(3)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.seed == 3 and recipe.batch.sequences % recipe.batch.micro_sequences == 0


@pytest.mark.parametrize(("scale", "millions"), [("124m", 124), ("350m", 350), ("1b", 1300)])
def test_scales_have_the_size_they_are_named_after(scale: str, millions: int):
    from ablate.measure import parameter_count
    from ablate.model import build

    assert parameter_count(build(Spec(scale).resolve(), "meta")) == pytest.approx(millions * 1e6, rel=0.05)


def test_gated_units_have_two_thirds_of_the_width():
    plain, gated = tiny(model__dim=96), tiny(model__dim=96, model__activation="swiglu")
    assert (plain.model.ffn_dim, gated.model.ffn_dim) == (384, 256)
    assert tiny(model__dim=96, model__ffn_ratio=2).model.ffn_dim == 192
    assert tiny(model__ffn_dim=40, model__activation="swiglu").model.ffn_dim == 40


def test_what_is_said_last_holds_whichever_way_it_is_said():
    assert tiny(batch__tokens=64).batch.sequences == 4
    assert tiny(train__tokens=1280).train.steps == 10
    assert tiny(train__tokens=20e6).train.steps == 156_250
    assert tiny(model__dropout=0.1).model.dropout.model_dump() == dict.fromkeys(
        ("attention_weights", "attention_output", "feed_forward_output", "embedding"), 0.1
    )


def test_micro_batches_are_the_largest_that_divide():
    assert tiny(batch__sequences=12, batch__micro_limit=8).batch.micro_sequences == 6
    assert tiny(batch__sequences=7, batch__micro_limit=4).batch.micro_sequences == 1


def test_options_belong_to_the_variant_they_were_given_to():
    spec = Spec("nano")
    spec.set("optimizer.lr", 0.5)
    spec.set("optimizer", "lion")
    lion = spec.resolve().optimizer
    assert (lion.name, lion.options["lr"]) == ("lion", SCALES["nano"]["optimizer"]["lion"]["lr"])
    spec.set("optimizer", {"adamw": {"beta2": 0.99}})
    adamw = spec.resolve().optimizer
    assert (adamw.options["lr"], adamw.options["beta2"]) == (0.5, 0.99)


def test_a_copy_of_a_spec_is_independent():
    spec = Spec("nano")
    other = spec.copy()
    other.set_all({"model.dim": 128, "optimizer.lr": 0.1})
    assert spec.resolve() == Spec("nano").resolve() != other.resolve()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.n_head", 3, "model.n_head: is not a field of a recipe; did you mean 'model.n_heads'?"),
        ("model.n_heads", 5, "model.n_heads: 5 heads do not divide a width of 32"),
        ("model.dim", "wide", "model.dim: must be a positive whole number, not 'wide'"),
        ("model.dim", True, "model.dim: must be a positive whole number, not True"),
        ("train.grad_clip", -1, "train.grad_clip: must be greater than 0, not -1"),
        ("train.precision", "fp8", "train.precision: must be 'fp32' or 'bf16', not 'fp8'"),
        ("model.dropout.embedding", 1.5, "model.dropout.embedding: must be less than 1, not 1.5"),
        ("model.attention", {"gqa": {"n_kv_heads": 3}}, "model.attention: 3 key and value heads do not divide 4 query heads"),
        ("optimizer.learning_rate", 1, "optimizer.learning_rate: optimizer 'adamw' has no option 'learning_rate'"
         "; known: beta1, beta2, eps, lr, weight_decay"),
        ("batch.tokens", 100, "batch.tokens: 100 tokens are no whole number of sequences of 16"),
        ("batch.micro_sequences", 3, "batch.micro_sequences: 3 does not divide the 8 sequences of a batch"),
        ("train", 3, "train: is a group of fields and must be a mapping, not 3"),
        ("model.dim", 1e17, "model.dim: must be at most 16,777,216, not 1e+17"),
        ("batch.micro_limit", 1e9, "batch.micro_limit: must be at most 16,777,216, not 1000000000.0"),
        ("model.vocab_size", 64, "model.vocab_size: 64 is smaller than the tokenizer's 257"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(path: str, value: object, message: str):
    with pytest.raises(RecipeError) as error:
        tiny(**{path.replace(".", "__"): value})
    assert str(error.value) == message


def test_rope_needs_an_even_head():
    with pytest.raises(RecipeError, match="a head of width 3 is odd"):
        tiny(model__dim=12, model__position="rope")


def identity(recipe: Recipe, corpus: str = "c", code: str = "k") -> str:
    return recipe.trial_id(corpus, code)


def test_a_trial_is_its_recipe_seed_corpus_and_code():
    base = tiny()
    assert identity(base) == identity(tiny())
    assert len(identity(base)) == 16
    others = [
        identity(base, corpus="d"), identity(base, code="l"), identity(tiny(seed=1)), identity(tiny(optimizer__lr=0.1)),
        identity(tiny(model__norm={"rmsnorm": {}})), identity(tiny(batch__micro_sequences=4)),
    ]  # fmt: skip
    assert len({identity(base), *others}) == 7
    assert base.cell_id("c", "k") == tiny(seed=1).cell_id("c", "k") != identity(base)


def test_identity_goes_by_content_and_not_by_path(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x" * 5000)
    a, b = (tiny(data__source={"files": {"paths": str(tmp_path / name)}}) for name in ("a.txt", "b.txt"))
    assert a != b and identity(a) == identity(b)


def test_numbers_are_typed_before_they_are_hashed():
    assert identity(tiny(optimizer__lr=1)) == identity(tiny(optimizer__lr=1.0))
    assert canonical_json({"b": 1.0, "a": 1}) == '{"a":1,"b":1.0}'


def test_the_identity_of_a_known_recipe_does_not_move():
    """Golden: results recorded by other people are found again under this id."""
    assert tiny().trial_id("corpus", "code") == "873c84040818f5ca"


@given(st.dictionaries(st.sampled_from([*SIZES, "optimizer.lr", "model.dropout", "nonsense"]), st.one_of(
    st.none(), st.booleans(), st.integers(-5, 100), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))))  # fmt: skip
def test_any_overrides_resolve_or_are_refused(overrides: dict):
    spec, refused = Spec("nano"), ""
    try:
        spec.set_all(overrides)
        recipe = spec.resolve()
    except RecipeError as error:
        refused = str(error)
    assert "\n" not in refused
    assert refused or Recipe.from_dict(recipe.to_dict()) == recipe
