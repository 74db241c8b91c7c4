"""Inference with a cache gives the logits of the full forward pass, whatever the model is made of, and keeps what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from attending import random_tokens
from tiny import tiny
from torch import Tensor

from ablate import measure
from ablate.errors import UserError
from ablate.inference import Inference, TimedInference, measure_inference
from ablate.model import Decoder, build
from ablate.recipe import Recipe
from ablate.variants import load_factors

FACTORS = {factor.field: factor for factor in load_factors().values() if factor.field.startswith("model.")}
VARIANTS = [(field, variant.name) for field, factor in FACTORS.items() for variant in factor]
ATTENTIONS = [variant.name for variant in FACTORS["model.attention"]]
PROMPT = 6
CHOICES: dict[str, Any] = {
    "a short window": {"model__window": {"sliding": {"size": 5}}},
    "a short window with slopes": {"model__window": {"sliding": {"size": 5}}, "model__position": "alibi"},
    "a window of itself": {"model__window": {"sliding": {"size": 1}}},
    "soft caps": {"model__attention_soft_cap": 0.5, "model__output_soft_cap": 2.0},
    "tied heads and biases": {"model__tie_embeddings": True, "model__bias": True},
    "biases under soft caps": {"model__bias": True, "model__attention_soft_cap": 0.5},
    "documents": {"data__document_masking": True},
    "documents, windows, slopes and caps": {
        "data__document_masking": True, "model__window": {"sliding": {"size": 5}}, "model__position": "alibi",
        "model__attention_soft_cap": 0.5,
    },
}  # fmt: skip


def model_of(recipe: Recipe) -> Decoder:
    """The recipe's model in fp64, with weights that make logits differ."""
    torch.manual_seed(0)
    model = build(recipe, "cpu").double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def step_by_step(model: Decoder, tokens: Tensor, prompt: int = PROMPT) -> tuple[Tensor, Inference]:
    """Logits [B, T - prompt + 1, V] of the token after the prompt and after each one that follows."""
    inference = Inference(model, *tokens.shape)
    inference.prepare(tokens[:, :prompt])
    found = [inference.prefill(tokens[:, :prompt])]
    found += [inference.decode(tokens[:, i]) for i in range(prompt, tokens.shape[1])]
    return torch.stack(found, dim=1), inference


def check(recipe: Recipe, prompt: int = PROMPT) -> Inference:
    model, tokens = model_of(recipe), random_tokens(recipe)
    found, inference = step_by_step(model, tokens, prompt)
    with torch.no_grad():
        expected = model(tokens)[:, prompt - 1 :]
    # rotations and capped scores are computed in fp32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.std() > 0.1
    return inference


@pytest.mark.parametrize(("field", "name"), VARIANTS)
def test_decoding_gives_the_logits_of_the_forward_pass(field: str, name: str) -> None:
    choice: dict[str, Any] = {field.replace(".", "__"): name}
    recipe = tiny(**choice)
    kept = sum(cache.width for cache in check(recipe).caches)
    assert 2 * kept == measure.kv_cache_bytes_per_token(build(recipe, "meta"))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_it_does_with_every_attention(attention: str, choice: str) -> None:
    check(tiny(**({"model__position": "rope"} | CHOICES[choice] | {"model__attention": attention})))


def test_it_does_from_the_first_token_on_and_twice() -> None:
    recipe = tiny(model__attention="mla", model__position="rope")
    inference = check(recipe, prompt=1)
    tokens = random_tokens(recipe)
    again = inference.prefill(tokens[:, :1])
    torch.testing.assert_close(again, inference.model(tokens[:, :1])[:, 0], rtol=1e-5, atol=1e-5)
    assert inference.position.item() == 1


def test_a_short_window_keeps_no_more_than_it_sees() -> None:
    inference = check(tiny(model__window={"sliding": {"size": 5}}))
    assert {kept.shape[2] for cache in inference.caches for kept in cache.tensors} == {5}


def test_attention_that_does_not_cache_what_it_says_is_refused() -> None:
    model = model_of(tiny())
    model.blocks[1].attention.kv_width = 3  # type: ignore[union-attr, assignment]
    with pytest.raises(UserError, match="attention 'mha' says that it caches 3 numbers a token, and caches 64"):
        Inference(model, 2, 16).prepare(random_tokens(tiny()))


@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_it_compiles_whole_and_once(attention: str) -> None:
    recipe = tiny(**CHOICES["documents, windows, slopes and caps"] | {"model__attention": attention})
    model, tokens = model_of(recipe), random_tokens(recipe)
    inference = Inference(model, *tokens.shape)
    inference.prepare(tokens[:, :PROMPT])
    counter = torch._dynamo.testing.CompileCounter()
    prefill = torch.compile(inference._prefill_seen, backend=counter, fullgraph=True, dynamic=False)
    decode = torch.compile(inference._decode, backend=counter, fullgraph=True, dynamic=False)
    with torch.no_grad():
        found = [prefill(tokens[:, :PROMPT], None), *(decode(tokens[:, i]) for i in range(PROMPT, tokens.shape[1]))]
        torch.testing.assert_close(torch.stack(found, dim=1), model(tokens)[:, PROMPT - 1 :], rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 2


def test_figures_are_tokens_over_the_median_time() -> None:
    timed = TimedInference(tiny(), torch.device("cpu"), batch=3, context=16)
    assert timed.conditions == {"batch": 3, "context": 16, "prompt": 8, "dtype": "float32", "mode": "eager"}
    windows = [{"prefill": 2.0, "decode": 0.5}, {"prefill": 4.0, "decode": 0.1}, {"prefill": 3.0, "decode": 0.3}]
    assert timed.metrics(windows) == {"prefill_tokens_per_second": 3 * 8 / 3.0, "decode_tokens_per_second": 3 / 0.3}
    seconds = timed.seconds()
    assert set(seconds) == {"prefill", "decode"} and min(seconds.values()) > 0


def test_measuring_leaves_the_cache_full() -> None:
    timed = TimedInference(tiny(), torch.device("cpu"), batch=2, context=10)
    for _ in range(2):
        timed.seconds()
        assert timed.inference.position.item() == 10
    assert set(measure_inference(tiny(), "cpu", batch=2, repeats=1)) == {
        "prefill_tokens_per_second", "decode_tokens_per_second"
    }  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:TensorFloat32", "ignore:.*autograd.function.Function:DeprecationWarning")
@pytest.mark.parametrize("choice", ["full", *CHOICES])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_graph_gives_the_logits_of_the_forward_pass(attention: str, choice: str) -> None:
    sizes = {"model__dim": 128, "data__seq_len": 256, "model__position": "rope", "model__attention": attention}
    recipe = tiny(**sizes | CHOICES.get(choice, {}))
    torch.manual_seed(0)
    model, tokens = build(recipe, "cuda").eval(), random_tokens(recipe, "cuda")
    expected = model(tokens)
    inference = Inference(model, *tokens.shape)
    inference.prepare(tokens[:, :160])
    assert inference.mode == "graph"
    for _ in range(2):
        found = [inference.prefill(tokens[:, :160]).clone()]
        found += [inference.decode(tokens[:, i]).clone() for i in range(160, 256)]
        torch.testing.assert_close(torch.stack(found, dim=1), expected[:, 159:], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:TensorFloat32", "ignore:.*autograd.function.Function:DeprecationWarning")
def test_fewer_keys_decode_faster() -> None:
    sizes: dict[str, Any] = {"model__dim": 1024, "model__n_heads": 16, "data__seq_len": 2048, "model__position": "rope"}
    few, many = (
        measure_inference(tiny(**sizes, model__attention=name), "cuda", batch=64)["decode_tokens_per_second"]
        for name in ("mqa", "mha")
    )
    assert few > 1.5 * many
