"""Attention: equality with the reference implementations, what a token cannot see, and equality of the forms it can take."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from attending import COMBINATIONS, SCORES, SEPARATOR, attention_of, forms, random_tokens, tiny_with
from tiny import tiny
from torch import Tensor, nn

from ablate.errors import UserError
from ablate.model import build
from ablate.variants._attend import Attend, Context, context


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


def copy(weights: Any, layers: list[nn.Linear]) -> None:
    """Give the layers the rows of ours that are theirs."""
    with torch.no_grad():
        for layer, rows in zip(layers, weights.split([layer.out_features for layer in layers]), strict=True):
            layer.weight.copy_(rows)


def tokens_of(recipe: Any) -> tuple[Tensor, Tensor]:
    """Tokens and the input of a layer: [2, T] and [2, T, dim]."""
    return random_tokens(recipe), torch.randn(2, recipe.data.seq_len, recipe.model.dim)


def causal(length: int, window: int | None = None) -> Tensor:
    mask = torch.full((length, length), -torch.inf).triu(1)
    return mask if window is None else mask + torch.full((length, length), -torch.inf).tril(-window)


class TestReferences:
    @pytest.mark.parametrize(("heads", "kv_heads"), [("mha", 4), ({"gqa": {"n_kv_heads": 2}}, 2), ("mqa", 1)], ids=str)
    def test_shared_heads_equal_llamas(self, heads: Any, kv_heads: int):
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

        recipe = tiny(model__attention=heads, model__position="rope")
        ours, rope = attention_of(recipe)
        config = LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=kv_heads,
                             max_position_embeddings=16, attn_implementation="eager")  # fmt: skip
        theirs = LlamaAttention(config, layer_idx=0)
        copy(ours.qkv.weight, [theirs.q_proj, theirs.k_proj, theirs.v_proj])
        copy(ours.out.weight, [theirs.o_proj])
        tokens, x = tokens_of(recipe)
        cos_sin = LlamaRotaryEmbedding(config)(x, torch.arange(16)[None])
        y = ours(x, context(recipe.model, rope, tokens, None))
        close(y, theirs(x, cos_sin, causal(16)[None, None])[0])
        assert ours.kv_width == 2 * kv_heads * 8 and ours.score_width == 4 * (8 + 8)

    def test_qk_rmsnorm_equals_qwen3s(self):
        from transformers import Qwen3Config
        from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding

        recipe = tiny(model__attention="gqa", model__position="rope", model__qk_norm="rmsnorm")
        ours, rope = attention_of(recipe)
        config = Qwen3Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                             max_position_embeddings=16, attn_implementation="eager")  # fmt: skip
        theirs = Qwen3Attention(config, layer_idx=0)
        copy(ours.qkv.weight, [theirs.q_proj, theirs.k_proj, theirs.v_proj])
        copy(ours.out.weight, [theirs.o_proj])
        theirs.q_norm.load_state_dict(ours.q_norm.state_dict())
        theirs.k_norm.load_state_dict(ours.k_norm.state_dict())
        tokens, x = tokens_of(recipe)
        cos_sin = Qwen3RotaryEmbedding(config)(x, torch.arange(16)[None])
        y = ours(x, context(recipe.model, rope, tokens, None))
        close(y, theirs(x, cos_sin, causal(16)[None, None])[0])

    def test_qk_layernorm_equals_persimmons(self):
        from transformers import PersimmonConfig
        from transformers.models.persimmon.modeling_persimmon import PersimmonAttention, PersimmonRotaryEmbedding

        recipe = tiny(model__position="rope", model__qk_norm={"layernorm": {"eps": 1e-5}})
        ours, rope = attention_of(recipe)
        config = PersimmonConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=16, qk_layernorm=True,
                                 partial_rotary_factor=1.0, attn_implementation="eager",
                                 rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0})  # fmt: skip
        theirs = PersimmonAttention(config, layer_idx=0)
        with torch.no_grad():  # theirs has q, k and v side by side within each head
            by_head = ours.qkv.weight.view(3, 4, 8, 32).transpose(0, 1)
            theirs.query_key_value.weight.copy_(by_head.reshape(96, 32))
            theirs.dense.weight.copy_(ours.out.weight)
            for bias in (
                theirs.query_key_value.bias,
                theirs.dense.bias,
                theirs.q_layernorm.bias,
                theirs.k_layernorm.bias,
            ):
                bias.zero_()
            theirs.q_layernorm.weight.copy_(ours.q_norm.weight)
            theirs.k_layernorm.weight.copy_(ours.k_norm.weight)
        tokens, x = tokens_of(recipe)
        cos_sin = PersimmonRotaryEmbedding(config)(x, torch.arange(16)[None])
        y = ours(x, context(recipe.model, rope, tokens, None))
        close(y, theirs(x, attention_mask=causal(16)[None, None], position_embeddings=cos_sin)[0])

    def test_a_sliding_window_equals_mistrals(self):
        from transformers import MistralConfig
        from transformers.masking_utils import create_sliding_window_causal_mask
        from transformers.models.mistral.modeling_mistral import MistralAttention, MistralRotaryEmbedding

        recipe = tiny(model__attention="gqa", model__position="rope", model__window={"sliding": {"size": 5}})
        ours, rope = attention_of(recipe)
        config = MistralConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                               sliding_window=5, max_position_embeddings=16, attn_implementation="eager")  # fmt: skip
        theirs = MistralAttention(config, layer_idx=0)
        copy(ours.qkv.weight, [theirs.q_proj, theirs.k_proj, theirs.v_proj])
        copy(ours.out.weight, [theirs.o_proj])
        tokens, x = tokens_of(recipe)
        positions = torch.arange(16)[None]
        mask = create_sliding_window_causal_mask(
            config=config, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=positions
        )
        y = ours(x, context(recipe.model, rope, tokens, None))
        close(y, theirs(x, MistralRotaryEmbedding(config)(x, positions), mask)[0])

    @pytest.mark.parametrize("window", [None, 5])
    def test_a_soft_cap_equals_gemma2s(self, window: int | None):
        from transformers import Gemma2Config
        from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2RotaryEmbedding

        sliding: Any = "full" if window is None else {"sliding": {"size": window}}
        recipe = tiny(
            model__attention="gqa", model__position="rope", model__attention_soft_cap=0.7, model__window=sliding
        )
        ours, rope = attention_of(recipe)
        config = Gemma2Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                              query_pre_attn_scalar=8, attn_logit_softcapping=0.7, max_position_embeddings=16,
                              attn_implementation="eager")  # fmt: skip
        theirs = Gemma2Attention(config, layer_idx=0)
        copy(ours.qkv.weight, [theirs.q_proj, theirs.k_proj, theirs.v_proj])
        copy(ours.out.weight, [theirs.o_proj])
        tokens, x = tokens_of(recipe)
        cos_sin = Gemma2RotaryEmbedding(config)(x, torch.arange(16)[None])
        y = ours(x, context(recipe.model, rope, tokens, None))
        close(y, theirs(x, cos_sin, causal(16, window)[None, None])[0])
        uncapped = tiny(model__attention="gqa", model__position="rope", model__window=sliding)
        other, _ = attention_of(uncapped)
        other.load_state_dict(ours.state_dict())
        assert not torch.allclose(y, other(x, context(uncapped.model, rope, tokens, None)), atol=1e-3)

    @pytest.mark.parametrize("options", [{}, {"kv_rank": 20, "rope_dim": 6, "q_rank": 12}], ids=str)
    def test_latent_attention_equals_deepseek_v3s(self, options: dict[str, int]):
        from transformers import DeepseekV3Config
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
            DeepseekV3Attention,
            DeepseekV3RotaryEmbedding,
        )

        recipe = tiny(model__attention={"mla": options}, model__position="rope")
        ours, rope = attention_of(recipe)
        rank, rope_dim, q_rank = options.get("kv_rank", 32), options.get("rope_dim", 4), options.get("q_rank")
        config = DeepseekV3Config(
            hidden_size=32, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=q_rank, kv_lora_rank=rank,
            qk_rope_head_dim=rope_dim, qk_nope_head_dim=8, v_head_dim=8, max_position_embeddings=16, rope_interleave=False,
            attn_implementation="eager", rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        )  # fmt: skip
        theirs = DeepseekV3Attention(config, layer_idx=0)
        if q_rank is None:
            copy(ours.q.weight, [theirs.q_proj])
        else:
            copy(ours.q[0].weight, [theirs.q_a_proj])
            copy(ours.q[2].weight, [theirs.q_b_proj])
            theirs.q_a_layernorm.load_state_dict(ours.q[1].state_dict())
        copy(ours.kv_down.weight, [theirs.kv_a_proj_with_mqa])
        copy(ours.kv_up.weight, [theirs.kv_b_proj])
        copy(ours.out.weight, [theirs.o_proj])
        theirs.kv_a_layernorm.load_state_dict(ours.kv_norm.state_dict())
        tokens, x = tokens_of(recipe)
        cos_sin = DeepseekV3RotaryEmbedding(config)(x, torch.arange(16)[None])
        assert cos_sin[0].shape[-1] == rope_dim
        y = ours(x, context(recipe.model, rope, tokens, None))
        close(y, theirs(x, cos_sin, causal(16)[None, None])[0])
        assert ours.kv_width == rank + rope_dim and ours.score_width == 4 * (8 + rope_dim + 8)

    @pytest.mark.parametrize("n_heads", [4, 6])
    def test_alibi_equals_blooms_scores(self, n_heads: int):
        from transformers.models.bloom.modeling_bloom import build_alibi_tensor

        recipe = tiny(model__dim=8 * n_heads, model__n_heads=n_heads, model__position="alibi")
        ours, alibi = attention_of(recipe)
        tokens, x = tokens_of(recipe)
        q, k, v = (h.transpose(1, 2) for h in ours.qkv(x).view(2, 16, 3, n_heads, 8).unbind(2))
        bias = build_alibi_tensor(torch.ones(2, 16), n_heads, torch.float32).view(2, n_heads, 1, 16)
        weights = (q @ k.mT / 8**0.5 + bias + causal(16)).softmax(-1)
        expected = ours.out((weights @ v).transpose(1, 2).flatten(2))
        close(ours(x, context(recipe.model, alibi, tokens, None)), expected)

    def test_the_scale_is_the_initializations(self):
        """With queries twice as long, half the scale gives the same."""
        base = tiny(model__init={"mup": {"base_dim": 32, "base_head_dim": 8}})
        quarter = tiny(model__init={"mup": {"base_dim": 32, "base_head_dim": 2}})
        (ours, position), (other, _) = attention_of(base), attention_of(quarter)
        other.load_state_dict(ours.state_dict())
        with torch.no_grad():
            other.qkv.weight[:32] *= 2
        tokens, x = tokens_of(base)
        close(
            ours(x, context(base.model, position, tokens, None)),
            other(x, context(quarter.model, position, tokens, None)),
        )


@pytest.mark.parametrize(("heads", "scores"), COMBINATIONS, ids=str)
def test_flexattention_and_dense_masks_are_equal(heads: Any, scores: dict[str, Any]):
    """Forward, on the CPU; what the context takes there is the dense one, or the plain one, which equals both."""
    recipe = tiny_with(heads, scores)
    attention, position = attention_of(recipe)
    attention.attend.scale *= 0.7  # what nothing takes for granted
    tokens, x = tokens_of(recipe)
    torch.compiler.reset()
    with torch.no_grad():
        flex, dense = forms(recipe, position, tokens)
        attend = torch.compile(attention, backend="eager", fullgraph=True)
        taken = context(recipe.model, position, tokens, SEPARATOR if recipe.data.document_masking else None)
        close(attend(x, flex), attention(x, dense))
        close(attention(x, taken), attention(x, dense))


def test_plain_causal_attention_needs_no_mask():
    recipe = tiny(model__position="rope")
    _, position = attention_of(recipe)
    assert context(recipe.model, position, random_tokens(recipe), None).mask is None
    for changed in SCORES[1:]:
        other = tiny_with("mha", changed)
        _, position = attention_of(other)
        separator = SEPARATOR if other.data.document_masking else None
        assert context(other.model, position, random_tokens(other), separator).mask is not None


@pytest.mark.parametrize(("heads", "scores"), COMBINATIONS, ids=str)
def test_a_token_is_seen_where_it_should_be_and_nowhere_else(heads: Any, scores: dict[str, Any]):
    """By gradient: of each output of a layer with respect to each input, exactly 0 where nothing may be seen."""
    recipe = tiny_with(heads, scores)
    attention, position = attention_of(recipe)
    tokens, x = tokens_of(recipe)
    separator = SEPARATOR if recipe.data.document_masking else None
    seen = context(recipe.model, position, tokens, separator)

    def projected(x: Tensor) -> Tensor:
        return attention(x, seen).sum(-1)

    jacobian = torch.autograd.functional.jacobian(projected, x)  # [B, T, B, T, dim]
    felt = (jacobian != 0).any(-1)
    query, key = torch.arange(16)[:, None], torch.arange(16)
    expected = (key <= query).expand(2, 16, 16)
    if recipe.model.window.name == "sliding":
        expected = expected & (query - key < 5)
    if separator is not None:
        starts = (tokens == separator).cumsum(1)
        expected = expected & (starts[:, :, None] == starts[:, None, :])
    for i, j in itertools.product(range(2), range(2)):
        assert torch.equal(felt[i, :, j], expected[i] if i == j else torch.zeros(16, 16, dtype=torch.bool))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("position", ["learned", "rope", "alibi"])
def test_a_masked_document_has_no_gradient_from_a_later_one(position: str, masked: bool):
    """Through the whole model: of a later document's logits with respect to the embeddings of earlier documents."""
    recipe = tiny(model__position=position, data__document_masking=masked)
    model = build(recipe, "cpu")
    tokens = torch.randint(0, 200, (2, 16))
    tokens[:, 7] = recipe.data.tokenizer.build().separator
    embedded = model.embedding(tokens).detach().requires_grad_()
    model.embedding.register_forward_hook(lambda module, args, out: embedded)
    (gradient,) = torch.autograd.grad(model(tokens)[:, 7:].square().sum(), embedded)
    assert (gradient[:, :7] == 0).all() == masked
    assert (gradient[:, 7:] != 0).any(-1).all()


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("window", ["full", {"sliding": {"size": 5}}], ids=str)
def test_dropout_of_the_weights_keeps_their_mean_and_ends_with_training(window: Any, cap: float | None):
    recipe = tiny(model__dropout__attention_weights=0.5, model__window=window, model__attention_soft_cap=cap)
    attention, position = attention_of(recipe)
    tokens, x = tokens_of(recipe)
    seen = context(recipe.model, position, tokens, None)
    with torch.no_grad():
        whole = attention.eval()(x, seen)
        assert torch.equal(whole, attention(x, seen))
        draws = torch.stack([attention.train()(x, seen) for _ in range(1000)])
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - whole).abs() / (draws.std(0) / 1000**0.5)
    assert error.max() < 6


@pytest.mark.parametrize("autocast", [False, True])
def test_a_soft_cap_rounds_no_scores(autocast: bool):
    """In bf16 a score of 40 is rounded to a quarter, which the fused kernels, that keep scores in fp32, do not do."""
    attend = Attend(tiny(model__attention_soft_cap=50.0).model).eval()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (scale * torch.randn(1, 4, 256, 8, generator=generator).bfloat16() for scale in (4, 4, 1))
    mask = torch.full((256, 256), -torch.inf).triu(1)
    exact = attend(q.double(), k.double(), v.double(), Context(lambda x: x, mask.double()))
    with torch.autocast("cpu", enabled=autocast):
        rounded = attend(q, k, v, Context(lambda x: x, mask))
    assert float((rounded - exact).norm() / exact.norm()) < 5e-3


def test_heads_of_an_odd_width_go_with_a_latent_that_rotates_a_part_of_its_own():
    recipe = tiny(model__head_dim=7, model__position="rope", model__attention={"mla": {"rope_dim": 4}})
    assert build(recipe, "cpu")(torch.zeros(1, 16, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize(("heads", "scores"), COMBINATIONS, ids=str)
def test_a_step_has_no_graph_break(heads: Any, scores: dict[str, Any]):
    model = build(tiny_with(heads, scores, model__n_layers=1), "cpu")
    torch.compiler.reset()
    losses = torch.compile(model.losses, backend="eager", fullgraph=True)
    losses(torch.randint(0, 257, (2, 17)))[1].mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": {"gqa": {"n_kv_heads": 3}}}, "model.attention: 3 key and value heads do not divide 4 query heads"),
        ({"attention": {"mla": {"rope_dim": 3}}}, "model.attention: mla rotates pairs, and its rope_dim of 3 is odd or zero"),
        ({"attention": "mla", "qk_norm": "rmsnorm"},
         "model.attention: mla normalizes its latents, and has no place for qk_norm 'rmsnorm'"),
        ({"position": "rope", "dim": 28}, "model.position: rope rotates pairs, and a head of width 7 is odd"),
        ({"window": {"sliding": {"size": 0}}}, "window 'sliding': size: Input should be greater than or equal to 1, not 0"),
    ],
)  # fmt: skip
def test_what_cannot_go_together_is_refused_with_the_reason(changes: dict[str, Any], message: str):
    with pytest.raises(UserError) as error:
        tiny(**{f"model__{name}": value for name, value in changes.items()})
    assert message in str(error.value)
