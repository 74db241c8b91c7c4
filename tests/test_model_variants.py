"""Norms, activations, and how a block puts them together: equality with torch and transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny
from torch import Tensor, nn

from ablate.model import Block
from ablate.recipe import Recipe
from ablate.variants import load_factors
from ablate.variants._attend import Context

FACTORS = load_factors()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


def norm(value: Any, bias: bool = False) -> Any:
    """The norm at width 32, with random weights."""
    built = FACTORS["norm"].choose(value).build(32, bias)
    for name, parameter in built.named_parameters():
        if name != "alpha":
            nn.init.normal_(parameter)
    return built


class TestNorms:
    x = torch.randn(4, 7, 32, generator=torch.Generator().manual_seed(1)) * 3 + 1

    @pytest.mark.parametrize("bias", [False, True])
    def test_layernorm_equals_its_equation(self, bias: bool):
        ours = norm("layernorm", bias)
        x = self.x
        expected = (
            (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * ours.weight
        )
        close(ours(x), expected + ours.bias if bias else expected)

    def test_rmsnorm_equals_llamas(self):
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        ours, theirs = norm({"rmsnorm": {"eps": 1e-3}}, bias=True), LlamaRMSNorm(32, eps=1e-3)
        theirs.load_state_dict(ours.state_dict())
        close(ours(self.x / 100), theirs(self.x / 100))

    def test_rmsnorm_keeps_the_format_of_its_input(self):
        ours = norm("rmsnorm")
        assert torch.equal(ours(self.x.bfloat16()), ours(self.x.bfloat16().float()).bfloat16())

    @pytest.mark.parametrize("bias", [False, True])
    def test_dynamic_tanh_equals_its_equation(self, bias: bool):
        ours = norm({"dyt": {"alpha": 0.7}}, bias)
        expected = torch.tanh(0.7 * self.x) * ours.weight
        close(ours(self.x), expected + ours.bias if bias else expected)
        assert [name for name, _ in ours.named_parameters()] == ["alpha", "weight", *["bias"] * bias]

    def test_none_is_the_identity_without_parameters(self):
        assert norm("none", bias=True)(self.x) is self.x and not list(norm("none").parameters())


def test_activations_equal_torch_and_transformers():
    from transformers.activations import ACT2FN

    x, up = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    choose = FACTORS["activation"].choose
    for value, theirs in (("relu", "relu"), ("relu2", "relu2"), ("gelu", "gelu"), ("silu", "silu"),
                          ({"gelu": {"approximate": "tanh"}}, "gelu_new")):  # fmt: skip
        close(choose(value).build()(x), ACT2FN[theirs](x))
    for value, theirs in (("reglu", "relu"), ("geglu", "gelu"), ("swiglu", "silu"),
                          ({"geglu": {"approximate": "tanh"}}, "gelu_new")):  # fmt: skip
        close(choose(value).build()(x, up), ACT2FN[theirs](x) * up)
    close(choose({"swiglu": {"beta": 1.702}}).build()(x, up), x * torch.sigmoid(1.702 * x) * up)


@pytest.mark.parametrize("name", [variant.name for variant in FACTORS["activation"]])
def test_the_gate_comes_before_what_it_gates(name: str):
    """A gated feed-forward block is down(activation(gate, up)), with the gate's rows first in the merged matrix."""
    feed_forward = Block(tiny(model__activation=name).model).feed_forward
    x = torch.randn(2, 5, 32)
    projected = [F.linear(x, rows) for rows in feed_forward.up.weight.chunk(2 if feed_forward.gated else 1)]
    close(feed_forward(x), F.linear(feed_forward.activation(*projected), feed_forward.down.weight))


# a whole block

CAUSAL = torch.full((16, 16), -torch.inf).triu(1)


def block_of(recipe: Recipe) -> tuple[Block, Context]:
    """A block with random weights, norms and biases included, and the context of plain causal attention."""
    block = Block(recipe.model)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    position = recipe.model.position.build(recipe.model.dim, block.attention.rotated_dim, recipe.data.seq_len)
    return block, Context(position.rotate)


def give(target: nn.Module, source: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_norm_before_or_after_the_branch_equals_torchs_layer(placement: str):
    recipe = tiny(model__placement=placement, model__activation="relu", model__bias=True)
    ours, seen = block_of(recipe)
    theirs = nn.TransformerEncoderLayer(32, 4, recipe.model.ffn_dim, dropout=0.0, batch_first=True,
                                        norm_first=placement == "pre")  # fmt: skip
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.attention.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.attention.qkv.bias)
    give(theirs.self_attn.out_proj, ours.attention.out)
    give(theirs.linear1, ours.feed_forward.up)
    give(theirs.linear2, ours.feed_forward.down)
    give(theirs.norm1, ours.residuals[0].norm)
    give(theirs.norm2, ours.residuals[1].norm)
    x = torch.randn(2, 16, 32)
    close(ours(x, seen), theirs(x, src_mask=CAUSAL, is_causal=True))


def test_norms_on_both_sides_of_the_branch_equal_gemma2s_layer():
    from transformers import Gemma2Config
    from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer, Gemma2RotaryEmbedding

    recipe = tiny(model__placement="sandwich", model__norm={"rmsnorm": {"eps": 1e-6}}, model__attention="gqa",
                  model__position="rope", model__activation={"geglu": {"approximate": "tanh"}})  # fmt: skip
    ours, seen = block_of(recipe)
    config = Gemma2Config(hidden_size=32, intermediate_size=recipe.model.ffn_dim, num_attention_heads=4,
                          num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=None,
                          max_position_embeddings=16, attn_implementation="eager")  # fmt: skip
    theirs = Gemma2DecoderLayer(config, layer_idx=1)
    a, m = theirs.self_attn, theirs.mlp
    norms = (theirs.input_layernorm, theirs.post_attention_layernorm,
             theirs.pre_feedforward_layernorm, theirs.post_feedforward_layernorm)  # fmt: skip
    own = [part for residual in ours.residuals for part in (residual.norm, residual.output_norm)]
    with torch.no_grad():
        for layer, rows in zip(
            (a.q_proj, a.k_proj, a.v_proj), ours.attention.qkv.weight.split([32, 16, 16]), strict=True
        ):
            layer.weight.copy_(rows)
        for layer, rows in zip((m.gate_proj, m.up_proj), ours.feed_forward.up.weight.chunk(2), strict=True):
            layer.weight.copy_(rows)
        for theirs_norm, ours_norm in zip(norms, own, strict=True):
            theirs_norm.weight.copy_(ours_norm.weight - 1)  # theirs multiplies by 1 + weight
    give(a.o_proj, ours.attention.out)
    give(m.down_proj, ours.feed_forward.down)
    x = torch.randn(2, 16, 32)
    cos_sin = Gemma2RotaryEmbedding(config)(x, torch.arange(16)[None])
    found = theirs(x, position_embeddings=cos_sin, attention_mask=CAUSAL[None, None])
    close(ours(x, seen), found[0] if isinstance(found, tuple) else found)


def test_parallel_branches_equal_phis_layer():
    from transformers import PhiConfig
    from transformers.models.phi.modeling_phi import PhiDecoderLayer, PhiRotaryEmbedding

    recipe = tiny(model__block="parallel", model__position="rope", model__bias=True,
                  model__activation={"gelu": {"approximate": "tanh"}})  # fmt: skip
    ours, seen = block_of(recipe)
    config = PhiConfig(hidden_size=32, intermediate_size=recipe.model.ffn_dim, num_attention_heads=4,
                       max_position_embeddings=16, resid_pdrop=0.0, attn_implementation="eager",
                       rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0})  # fmt: skip
    theirs = PhiDecoderLayer(config, layer_idx=0)
    a, qkv = theirs.self_attn, ours.attention.qkv
    with torch.no_grad():
        for layer, rows, bias in zip(
            (a.q_proj, a.k_proj, a.v_proj), qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True
        ):
            layer.weight.copy_(rows)
            layer.bias.copy_(bias)
    give(a.dense, ours.attention.out)
    give(theirs.mlp.fc1, ours.feed_forward.up)
    give(theirs.mlp.fc2, ours.feed_forward.down)
    give(theirs.input_layernorm, ours.residuals[0].norm)
    x = torch.randn(2, 16, 32)
    cos_sin = PhiRotaryEmbedding(config)(x, torch.arange(16)[None])
    found = theirs(x, attention_mask=CAUSAL[None, None], position_embeddings=cos_sin)
    close(ours(x, seen), found[0] if isinstance(found, tuple) else found)
    assert len(ours.residuals) == 1
