"""Contracts that hold for every registered variant; equality with references is in the files of their factors."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
import torch
from tiny import tiny
from torch import nn

from ablate.data import Corpus, prepare
from ablate.errors import UserError
from ablate.model import build
from ablate.step import Step
from ablate.train import train
from ablate.variants import Variant, load_factors

FACTORS = load_factors()
ALL = [v for factor in FACTORS.values() for v in factor]
OF_THE_MODEL = [v for v in ALL if FACTORS[v.factor].field.startswith("model.")]
OF_A_STEP = [v for v in ALL if not FACTORS[v.factor].field.startswith("data.")]


def name(variant: Variant) -> str:
    return f"{variant.factor}-{variant.name}"


def recipe_with(variant: Variant, **overrides):
    """A tiny recipe with the variant; where others do not go with it, with the first of them that do."""
    chosen = {FACTORS[variant.factor].field.replace(".", "__"): variant.name}
    try:
        return tiny(**chosen | overrides)
    except UserError:
        for other in OF_A_STEP:
            if other.factor != variant.factor:
                with contextlib.suppress(UserError):
                    return tiny(**chosen | {FACTORS[other.factor].field.replace(".", "__"): other.name} | overrides)
        raise


@pytest.mark.parametrize("variant", ALL, ids=name)
def test_says_what_it_is_and_where_it_comes_from(variant: Variant):
    assert variant.doc.endswith(".") and len(variant.reference) > 5


@pytest.mark.parametrize("variant", OF_THE_MODEL, ids=name)
def test_gives_logits_and_is_causal(variant: Variant):
    recipe = recipe_with(variant)
    model = build(recipe, "cpu").eval()
    tokens = torch.randint(0, 64, (2, 16))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 64
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 16, recipe.model.vocab_size)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("variant", OF_THE_MODEL, ids=name)
def test_takes_sequences_shorter_than_the_longest(variant: Variant):
    model = build(recipe_with(variant), "cpu").eval()
    tokens = torch.randint(0, 64, (2, 16))
    torch.testing.assert_close(model(tokens)[:, :5], model(tokens[:, :5]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", OF_A_STEP, ids=name)
def test_has_finite_gradients_everywhere_and_no_graph_break(variant: Variant):
    recipe = recipe_with(variant, data__document_masking=True)
    step = Step(recipe, "cpu")
    torch.compiler.reset()
    step._losses = torch.compile(step.model.losses, backend="eager", fullgraph=True)
    windows = torch.randint(0, 257, (8, 17))
    step.gradients(windows)
    for parameter_name, parameter in step.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("variant", OF_A_STEP, ids=name)
def test_loss_falls_on_real_text(variant: Variant, words: Corpus):
    """From log(vocabulary) at the start, more than half of the way to what the frequencies of bytes alone explain."""
    recipe = recipe_with(variant, train__steps=120, data__source="stdlib")
    result = train(recipe, corpus=words, device="cpu")
    assert result.status == "finished"
    start, frequencies = math.log(recipe.model.vocab_size), result.metrics["unigram_entropy"]
    assert result.metrics["val_loss"] < (start + frequencies) / 2


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A piece of the standard library's sources, in bytes."""
    data = tiny(data__source={"stdlib": {"max_bytes": 500_000}}).data
    return prepare(data, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("variant", OF_THE_MODEL, ids=name)
def test_runs_in_bf16_and_keeps_fp32_state(variant: Variant):
    recipe = recipe_with(variant, train__precision="bf16")
    step = Step(recipe, "cpu")
    windows = torch.randint(0, 64, (8, 17))
    full = build(recipe_with(variant, train__precision="fp32"), "cpu").eval()
    with torch.no_grad():
        expected = full.losses(windows)[0].mean()
    assert step.losses(windows)[0].dtype == torch.float32
    assert float(step.evaluate(windows).mean()) == pytest.approx(float(expected), rel=0.01)
    step(windows, 1.0)
    assert {p.dtype for p in step.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("variant", OF_THE_MODEL, ids=name)
def test_goes_with_a_model_in_bf16(variant: Variant):
    recipe = recipe_with(variant, train__precision="bf16_params")
    step = Step(recipe, "cpu")
    loss, norm = step(torch.randint(0, 64, (8, 17)), 1.0)
    assert loss.isfinite() and norm.isfinite()
    assert {p.dtype for p in step.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("variant", OF_THE_MODEL, ids=name)
def test_leaves_the_residual_stream_in_its_format(variant: Variant):
    step, seen = Step(recipe_with(variant, train__precision="bf16_activations"), "cpu"), []
    for module in (*step.model.blocks, step.model.norm):
        module.register_forward_hook(lambda module, inputs, output: seen.extend((inputs[0].dtype, output.dtype)))
    loss, norm = step(torch.randint(0, 64, (8, 17)), 1.0)
    assert loss.isfinite() and norm.isfinite() and set(seen) == {torch.bfloat16}
    assert {p.dtype for p in step.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("variant", OF_A_STEP, ids=name)
def test_a_checkpoint_brings_back_the_whole_step(variant: Variant, tmp_path: Path):
    recipe = recipe_with(variant)
    windows = [torch.randint(0, 64, (8, 17)) for _ in range(4)]
    whole, other = (Step(recipe, "cpu") for _ in range(2))
    for batch in windows[:2]:
        whole(batch, 0.5)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in (whole, other):
        step(windows[2], 1.0)
    assert torch.equal(whole(windows[3], 1.0)[0], other(windows[3], 1.0)[0])
    assert torch.equal(whole.evaluate(windows[0]), other.evaluate(windows[0]))


def test_a_variant_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="defined twice"):
        FACTORS["norm"].variant("rmsnorm", reference="nowhere")(nn.Identity)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("layer_norm", "unknown norm 'layer_norm'; did you mean 'layernorm'?"),
        ({"rmsnorm": {"epps": 1e-5}}, "norm 'rmsnorm' has no option 'epps'; did you mean 'eps'?"),
        ({"rmsnorm": {"eps": "small"}}, "norm 'rmsnorm': eps: Input should be a valid number, not 'small'"),
        ({"rmsnorm": {"eps": -1.0}}, "norm 'rmsnorm': eps: Input should be greater than 0, not -1.0"),
        ({"rmsnorm": 3}, "options of norm 'rmsnorm' must be a mapping, not 3"),
        (
            7,
            "expected a variant of norm (layernorm, rmsnorm, dyt, none) or one with options, such as {name: {option: value}}, not 7",
        ),
    ],
)
def test_a_wrong_choice_is_refused_with_what_was_meant(value, message: str):
    with pytest.raises(UserError) as error:
        FACTORS["norm"].choose(value)
    assert str(error.value) == message
