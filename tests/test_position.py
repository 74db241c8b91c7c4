"""Positions equal their equations, and transformers' where those have them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import tiny
from torch import Tensor, nn

from ablate.model import build
from ablate.variants import load_factors

POSITION = load_factors()["position"]
CPU = torch.device("cpu")


def position(value: Any, dim: int = 32, rotated_dim: int = 8, seq_len: int = 64) -> Any:
    return POSITION.choose(value).build(dim, rotated_dim, seq_len)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)


def test_each_acts_where_it_says_and_nowhere_else():
    x, q = torch.randn(2, 10, 32), torch.randn(2, 4, 10, 8)
    acts = {}
    for variant in POSITION:
        built = position(variant.name)
        for parameter in built.parameters():
            nn.init.normal_(parameter)
        embeds, rotates = not torch.equal(built.embed(x), x), not torch.equal(built.rotate(q), q)
        acts[variant.name] = embeds, rotates, built.slopes(4, CPU) is not None
    assert acts == {
        "learned": (True, False, False), "sinusoidal": (True, False, False), "rope": (False, True, False),
        "alibi": (False, False, True), "none": (False, False, False),
    }  # fmt: skip


def test_learned_positions_add_a_vector_per_position():
    learned = position("learned")
    nn.init.normal_(learned.table.weight)
    x = torch.randn(2, 10, 32)
    close(learned.embed(x), x + learned.table(torch.arange(10)))


@pytest.mark.parametrize(("dim", "base"), [(32, 10_000.0), (7, 100.0)])
def test_sinusoids_equal_their_equation(dim: int, base: float):
    sinusoidal = position({"sinusoidal": {"base": base}}, dim=dim)
    waves = [
        [(math.cos if i % 2 else math.sin)(t / base ** ((i - i % 2) / dim)) for i in range(dim)] for t in range(10)
    ]
    x = torch.randn(2, 10, dim)
    close(sinusoidal.embed(x), math.sqrt(dim) * x + torch.tensor(waves))


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_rotations_equal_llamas(base: float):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    rope = position({"rope": {"base": base}})
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=64,
                         rope_parameters={"rope_type": "default", "rope_theta": base})  # fmt: skip
    q, k = torch.randn(2, 4, 50, 8), torch.randn(2, 2, 50, 8)
    theirs = apply_rotary_pos_emb(q, k, *LlamaRotaryEmbedding(config)(q, torch.arange(50)[None]))
    close(rope.rotate(q), theirs[0])
    close(rope.rotate(k), theirs[1])


def test_rotated_products_depend_on_distance_alone():
    rope = position("rope")
    q, k = (rope.rotate(torch.randn(8).expand(1, 1, 64, 8))[0, 0] for _ in range(2))
    scores = q @ k.T
    close(scores.diagonal(-3), scores.diagonal(-3)[:1].expand(61))
    assert not torch.allclose(scores[5, 5], scores[5, 2])


def test_rotations_of_bf16_are_computed_in_fp32():
    rope, q = position("rope", seq_len=4096), torch.randn(1, 1, 4096, 8).bfloat16()
    assert torch.equal(rope.rotate(q), rope.rotate(q.float()).bfloat16())


@pytest.mark.parametrize("n_heads", [1, 2, 3, 4, 6, 8, 12, 16, 20, 31])
def test_slopes_equal_blooms_and_mpts(n_heads: int):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    slopes = position("alibi").slopes(n_heads, CPU)
    close(slopes, build_alibi_tensor(torch.ones(1, 2), n_heads, torch.float32)[:, 0, 1])
    close(slopes, -build_mpt_alibi_tensor(n_heads, 2)[:, 0, 0])


@pytest.mark.parametrize("heads", ["gqa", "mla"])
@pytest.mark.parametrize("name", [variant.name for variant in POSITION])
def test_a_causal_mask_tells_the_order_even_where_positions_do_not(name: str, heads: str):
    """Each variant has the model tell two orders of the same past apart; without positions, not in one layer alone."""
    for layers, blind in ((1, name == "none"), (2, False)):
        recipe = tiny(model__position=name, model__attention=heads, model__n_layers=layers)
        model = build(recipe, "cpu")
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        tokens = torch.randperm(64)[None, :16]
        swapped = tokens[:, [1, 0, *range(2, 16)]]
        assert torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], rtol=1e-4, atol=1e-4) == blind
