"""Recipes: what a spec resolves to, what it refuses, and what identity depends on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SIZES, tiny

from ablate._words import MULTIPLE, SHORTHANDS
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
    from ablate.model import build, parameter_count

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


SAID = ["train.steps", "train.tokens", "train.tokens_per_parameter"]


@pytest.mark.parametrize("path", SAID)
@pytest.mark.parametrize("before", [{}, {"train.steps": 500}, {"train.tokens_per_parameter": 2}])
def test_a_multiple_is_of_what_was_said_before_in_whichever_words(before: dict, path: str):
    spec = Spec("nano")
    spec.set_all(before)
    steps = spec.resolve().train.steps
    spec.set(path, "x3")
    assert spec.resolve().train.steps == pytest.approx(3 * steps, abs=2)


def test_multiples_are_exact_in_decimal_digits_and_of_the_selected_variant():
    spec = Spec("nano")
    spec.set_all(
        {
            "optimizer.lr": "x0.2",
            "model.n_heads": "x2",
            "batch.tokens": "x1",
            "data.seq_len": "x.5",
            "model.ffn_ratio": "x1e0",
        }
    )
    recipe = spec.resolve()
    assert recipe.optimizer.options["lr"] == 0.0006
    assert (recipe.model.n_heads, recipe.model.head_dim) == (8, 8)
    assert (recipe.data.seq_len, recipe.batch.sequences) == (64, 8), "a multiple stays in the words it was said in"
    assert recipe.model.ffn_dim == Spec("nano").resolve().model.ffn_dim
    spec.set("optimizer", {"lion": {"lr": "x2", "beta1": "x0.5"}})
    lion = spec.resolve().optimizer.options
    assert lion["lr"] == pytest.approx(2 * SCALES["nano"]["optimizer"]["lion"]["lr"]) and lion["beta1"] == 0.45
    spec.set("model.dropout", 0.1)
    spec.set("model.dropout", "x2")
    assert set(spec.resolve().model.dropout.model_dump().values()) == {0.2}


def test_a_rounded_multiple_is_within_one_percent():
    spec = Spec("124m")
    spec.set("data.tokenizer", {"bpe": {"vocab_size": "x0.5"}})
    assert spec.resolve().data.tokenizer.options["vocab_size"] == 25128


@pytest.mark.parametrize("scale", ["nano", "10m", "124m"])
@pytest.mark.parametrize("ratio", [0.5, 1, 2])
def test_depth_is_traded_for_width_at_the_same_parameters(scale: str, ratio: float):
    from ablate.model import build, parameter_count

    spec = Spec(scale)
    before = spec.resolve()
    spec.set("model.depth_ratio", ratio)
    after = spec.resolve()
    assert after.model.n_layers == before.model.n_layers * ratio
    assert abs(after.model.dim - before.model.dim / ratio**0.5) <= before.model.n_heads
    assert after.model.dim == after.model.head_dim * before.model.n_heads and after.model.head_dim % 2 == 0
    sizes = [parameter_count(build(recipe, "meta").blocks) for recipe in (before, after)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    if ratio == 1:
        assert after == before


def test_tokens_per_parameter_count_every_parameter():
    from ablate.model import build, parameter_count

    recipe = tiny(train__tokens_per_parameter=20, model__depth_ratio=2)
    assert recipe.tokens == pytest.approx(20 * parameter_count(build(recipe, "meta")), rel=1e-3)


@pytest.mark.parametrize(
    ("times", "steps", "unique"), [(1, 12, 96), (3, 12, 32), (16, 12, 6), (96, 12, 1), (7, 14, 16)]
)
def test_repetitions_divide_the_run(times: int, steps: int, unique: int):
    recipe = tiny(data__repetitions=times)
    assert (recipe.train.steps, recipe.data.unique_sequences) == (steps, unique)
    assert recipe.train.steps * recipe.batch.sequences == times * unique


def test_epochs_pass_over_the_unique_sequences():
    recipe = tiny(data__unique_tokens=640, train__epochs=2.5)
    assert (recipe.data.unique_sequences, recipe.train.steps) == (40, 12)
    assert tiny(data__unique_sequences=40, train__epochs=2).train.steps == 10
    assert tiny(data__repetitions=2, data__unique_sequences=40).data.unique_sequences == 40, "what is said last holds"


def test_accumulation_is_in_pieces_of_the_batch():
    recipe = tiny(batch__accumulation=4)
    assert (recipe.batch.micro_sequences, recipe.batch.accumulation) == (2, 4)


def test_muon_and_mup_have_what_the_scale_says():
    spec = Spec("124m")
    spec.set_all({"model.init": "mup", "model.dim": "x2"})
    model = spec.resolve().model
    assert model.init.options["base_dim"] == 768 and model.dim == 1536 and model.init.options["base_head_dim"] == 64


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
        ("train.z_loss", -1, "train.z_loss: must be greater than or equal to 0, not -1"),
        ("train.decay_skips", "x2", "train.decay_skips: must be 'nothing', 'vectors' or 'vectors_and_embeddings', not 'x2'"),
        ("train.precision", "fp8", "train.precision: unknown precision 'fp8'"
         "; known: bf16, bf16_activations, bf16_params, fp16, fp32, tf32"),
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
        ("model.n_heads", "x0.6", "model.n_heads: x0.6 of 4 is 2.4, which is no whole number"),
        ("model.output_soft_cap", "x2", "model.output_soft_cap: has no value that x2 could be a multiple of"),
        ("model.n_layers", "x1e9999", "model.n_layers: x1e9999 is too large a multiple; x1e9 is the most"),
        ("optimizer.lr", "2x", "optimizer.lr: optimizer 'adamw': lr: Input should be a valid number, not '2x'"),
        ("model.attention", {"gqa": {"n_kv_heads": "x0.25"}},
         "model.attention: attention 'gqa': n_kv_heads: x0.25 of 2 is 0.5, which is no whole number"),
        ("model.depth_ratio", 0.7, "model.depth_ratio: 0.7 times 2 blocks are no whole number of blocks"),
        ("model.depth_ratio", 400, "model.depth_ratio: no feed-forward width gives 800 blocks of width 8 the parameters of 2 of 32"),
        ("batch.accumulation", 3, "batch.accumulation: 3 does not divide the 8 sequences of a batch"),
        ("train.epochs", 2, "train.epochs: needs data.unique_sequences or data.unique_tokens, which it passes over"),
        ("data.repetitions", 1.5, "data.repetitions: must be a whole number, not 1.5"),
        ("data.repetitions", 97, "data.repetitions: a run of 96 sequences cannot be 97 times the same"),
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
    assert tiny().trial_id("corpus", "code") == "969a72ead4d5184b"


@given(st.dictionaries(st.sampled_from([*SIZES, *SHORTHANDS, "optimizer.lr", "model.dropout", "nonsense"]), st.one_of(
    st.none(), st.booleans(), st.integers(-5, 100), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
    st.from_regex(MULTIPLE, fullmatch=True),
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
