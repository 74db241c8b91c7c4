"""Our decoder and transformers' GPT-2 and Llama are the same functions of the same weights, converted either way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny
from torch import nn

from ablate import convert
from ablate.errors import UserError
from ablate.model import Decoder, build


def gpt2(**changes: Any) -> Any:
    from transformers import GPT2Config

    sizes = {"vocab_size": 320, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2Config(**sizes | changes)


def llama(**changes: Any) -> Any:
    from transformers import LlamaConfig

    sizes = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 16,
    }  # fmt: skip
    return LlamaConfig(**sizes | changes)


MODELS = {
    "gpt2": lambda: gpt2(),
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False),
    "gpt2-other-options": lambda: gpt2(n_inner=48, activation_function="relu", layer_norm_epsilon=0.1),
    "llama": lambda: llama(),
    "llama-gqa": lambda: llama(num_key_value_heads=2),
    "llama-mqa": lambda: llama(num_key_value_heads=1),
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-bias": lambda: llama(attention_bias=True, mlp_bias=True, num_key_value_heads=2),
    "llama-other-options": lambda: llama(
        head_dim=16, hidden_act="gelu", rms_norm_eps=0.1, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
}


def theirs_of(config: Any) -> nn.Module:
    """Their model with weights that leave nothing at zero or one."""
    from transformers import GPT2LMHeadModel, LlamaForCausalLM

    torch.manual_seed(1)
    model = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}[config.model_type](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def ours_of(config: Any) -> Decoder:
    return build(tiny(**convert.settings(config)), "cpu").eval()


def assert_same_function(ours: nn.Module, theirs: nn.Module) -> None:
    tokens = torch.randint(0, 320, (3, 16))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", MODELS)
def test_their_weights_give_their_logits_in_our_decoder(config: str):
    theirs = theirs_of(MODELS[config]())
    ours = ours_of(theirs.config)
    ours.load_state_dict(convert.from_transformers(theirs.config, theirs.state_dict()))
    assert_same_function(ours, theirs)


@pytest.mark.parametrize("config", MODELS)
def test_our_weights_give_our_logits_in_their_model(config: str):
    theirs = theirs_of(MODELS[config]())
    ours = ours_of(theirs.config)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.load_state_dict(convert.to_transformers(theirs.config, ours.state_dict()))
    assert_same_function(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", MODELS)
def test_there_and_back_is_bitwise(config: str, dtype: torch.dtype):
    theirs = theirs_of(MODELS[config]()).to(dtype)
    converted = convert.from_transformers(theirs.config, theirs.state_dict())
    back = convert.to_transformers(theirs.config, converted)
    assert {name: t.dtype for name, t in back.items()} == dict.fromkeys(theirs.state_dict(), dtype)
    assert all(torch.equal(back[name], weight) for name, weight in theirs.state_dict().items())
    assert all(weight.is_contiguous() for weight in back.values())
    again = convert.from_transformers(theirs.config, back)
    assert all(torch.equal(again[name], weight) for name, weight in converted.items())


def test_settings_take_over_what_training_reads_too():
    recipe = tiny(**convert.settings(gpt2(attn_pdrop=0.1, resid_pdrop=0.2, embd_pdrop=0.3, initializer_range=0.05)))
    dropout = recipe.model.dropout
    assert (dropout.attention_weights, dropout.attention_output, dropout.embedding) == (0.1, 0.2, 0.3)
    assert dropout.feed_forward_output == 0.2
    assert recipe.model.init.to_dict() == {"gpt2": {"std": 0.05}}
    assert tiny(**convert.settings(llama(attention_dropout=0.4))).model.dropout.attention_weights == 0.4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: gpt2(scale_attn_by_inverse_layer_idx=True), "only attention scaled by 1 / sqrt(head width)"),
        (lambda: gpt2(activation_function="quick_gelu"), "the activation 'quick_gelu' cannot be converted; known: gelu_new"),
        (lambda: llama(attention_bias=True), "a bias in attention or feed-forward alone cannot be converted"),
        (
            lambda: llama(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
            "a rotary embedding of type 'linear' cannot be converted",
        ),
    ],
)  # fmt: skip
def test_what_our_decoder_cannot_be_is_refused(config: Any, message: str):
    with pytest.raises(UserError) as error:
        convert.settings(config())
    assert str(error.value).startswith(message)


def test_another_family_is_refused():
    from transformers import GPTNeoConfig

    with pytest.raises(UserError, match="a model of type 'gpt_neo' cannot be converted; known: gpt2, llama"):
        convert.settings(GPTNeoConfig())


def test_weights_that_do_not_fit_are_refused():
    theirs = theirs_of(llama())
    weights = theirs.state_dict()
    with pytest.raises(UserError, match=r"weights have no place for 'model\.extra'"):
        convert.from_transformers(theirs.config, weights | {"model.extra": torch.zeros(1)})
    del weights["model.norm.weight"]
    with pytest.raises(UserError, match=r"weights lack 'model\.norm\.weight'"):
        convert.from_transformers(theirs.config, weights)
    with pytest.raises(UserError, match=r"weights lack 'blocks\.0\.attention\.out\.weight'"):
        convert.to_transformers(theirs.config, {"embedding.weight": torch.zeros(1)})
