"""Everything that can be asked of attention scores, in all combinations; for the tests on the CPU and on the GPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny import tiny
from torch import Tensor, nn

from ablate.recipe import Recipe
from ablate.variants._attend import Context, block_mask, dense_mask

SEPARATOR = 3
HEADS: list[Any] = ["mha", "gqa", "mqa", "mla", {"mla": {"kv_rank": 24, "rope_dim": 6, "q_rank": 20}}]
SCORES: list[dict[str, Any]] = [
    {"model__window": window, "model__position": position, "model__attention_soft_cap": cap, "data__document_masking": documents}
    for window, position, cap, documents in itertools.product(
        ["full", {"sliding": {"size": 5}}], ["rope", "alibi"], [None, 0.5], [False, True]
    )
]  # fmt: skip
COMBINATIONS = [
    pytest.param(heads, scores, marks=() if heads == "gqa" or scores == SCORES[-1] else pytest.mark.slow)
    for heads, scores in itertools.product(HEADS, SCORES)
]
"""Heads and scores; by default, grouped heads with everything and all heads with everything at once."""


def attention_of(recipe: Recipe, device: str = "cpu") -> tuple[nn.Module, nn.Module]:
    """The attention of a layer and the position, with weights that make scores far from equal."""
    with torch.device(device):
        attention = recipe.model.attention.build(recipe.model).to(device)
        position = recipe.model.position.build(recipe.model.dim, attention.rotated_dim, recipe.data.seq_len).to(device)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    return attention, position


def random_tokens(recipe: Recipe, device: str = "cpu") -> Tensor:
    """Tokens [2, seq_len], with separators in different places of the two sequences."""
    tokens = torch.randint(SEPARATOR + 1, 64, (2, recipe.data.seq_len), device=device)
    tokens[0, [4, 11]] = tokens[1, [0, 9]] = SEPARATOR
    return tokens


def forms(recipe: Recipe, position: Any, tokens: Tensor) -> tuple[Context, Context]:
    """The contexts of FlexAttention and of a dense mask."""
    slopes = position.slopes(recipe.model.n_heads, tokens.device)
    documents = (tokens == SEPARATOR).cumsum(1) if recipe.data.document_masking else None
    window = recipe.model.window.build()
    return (
        Context(position.rotate, block_mask(window, documents, tokens), slopes),
        Context(position.rotate, dense_mask(window, documents, slopes, tokens)),
    )


def tiny_with(heads: Any, scores: dict[str, Any], **overrides: Any) -> Recipe:
    return tiny(model__attention=heads, **scores | overrides)
