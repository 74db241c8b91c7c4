"""softmax(scores) v, in the fastest form that the device has for what a recipe asks of the scores; all forms are equal.

Scores of query i and key j: c tanh(scale q_i k_j / c) - slope (i - j) where i sees j, else -inf; the tanh is there with
a soft cap c, the slope with ALiBi. i sees j where the window says so and both are of one document.

- Nothing but causality: torch's fused attention.
- Compiled on a GPU, without dropout of the weights: FlexAttention (arXiv:2412.05496), which skips blocks of keys that
  nobody sees.
- Else: a dense mask.

Shapes: B sequences, T tokens, H query heads, H_kv key and value heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:
    from ablate.recipe import Model
    from ablate.variants.position import Position
    from ablate.variants.window import Window

FLEX_MINIMUM = 16
"""Width of a head below which FlexAttention has no kernel."""


@dataclass(frozen=True)
class Context:
    """What attention needs besides its input, the same in every layer.

    `rotate` turns queries and keys [B, H, T, rotated_dim]. `mask` is None where causality is all; blocks for
    FlexAttention, which takes the `slopes` [H] apart; or a bias of the scores [B or 1, H or 1, T, T], slopes included.
    """

    rotate: Callable[[Tensor], Tensor]
    mask: BlockMask | Tensor | None = None
    slopes: Tensor | None = None


def context(model: Model, position: Position, tokens: Tensor, separator: int | None) -> Context:
    """The context of one forward pass over tokens [B, T]; with a separator, each one starts a document of its own."""
    window, slopes = model.window.build(), position.slopes(model.n_heads, tokens.device)
    if window.unlimited and separator is None and slopes is None and model.attention_soft_cap is None:
        return Context(position.rotate)
    documents = None if separator is None else (tokens == separator).cumsum(1)
    if torch.compiler.is_compiling() and tokens.is_cuda and _flexible(model):
        return Context(position.rotate, block_mask(window, documents, tokens), slopes)
    return Context(position.rotate, dense_mask(window, documents, slopes, tokens))


def _flexible(model: Model) -> bool:
    """Whether FlexAttention has a kernel for the model."""
    return not model.dropout.attention_weights and model.head_dim >= FLEX_MINIMUM


def block_mask(window: Window, documents: Tensor | None, tokens: Tensor) -> BlockMask:
    """Which blocks of keys are seen, for `documents` [B, T] of `tokens` [B, T]."""

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return window.sees(i, j)

    def sees_in_document(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert documents is not None
        return window.sees(i, j) & (documents[b, i] == documents[b, j])

    batch, length = tokens.shape
    if documents is None:
        return create_block_mask(sees, None, None, length, length, device=tokens.device)
    return create_block_mask(sees_in_document, batch, None, length, length, device=tokens.device)


def dense_mask(window: Window, documents: Tensor | None, slopes: Tensor | None, tokens: Tensor) -> Tensor:
    """The bias of the scores [B or 1, H or 1, T, T]: -inf where nothing is seen, else what the slopes take away."""
    key = torch.arange(tokens.shape[1], device=tokens.device)
    query = key[:, None]
    seen = window.sees(query, key)[None, None]
    if documents is not None:
        seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])
    bias = torch.zeros((), device=tokens.device) if slopes is None else -slopes[:, None, None] * (query - key)
    return torch.where(seen, bias, -math.inf)


class Attend(nn.Module):
    """softmax(scores) v for q [B, H, T, query width], k [B, H_kv, T, query width], v [B, H_kv, T, value width].

    `scale` is the recipe's for queries as wide as a head; wider ones are scaled down by the root of their width.
    """

    def __init__(self, model: Model, query_width: int | None = None) -> None:
        super().__init__()
        wider = 1.0 if query_width is None else query_width / model.head_dim
        self.scale = model.init.build(model).attention_scale / math.sqrt(wider)
        self.cap = model.attention_soft_cap
        self.dropout = model.dropout.attention_weights

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seen: Context) -> Tensor:
        q, k = q.to(v.dtype), k.to(v.dtype)
        if isinstance(seen.mask, BlockMask):
            return self._flex(q, k, v, seen.mask, seen.slopes)
        if self.cap is not None:
            assert seen.mask is not None
            return self._capped(q, k, v, self.cap, seen.mask)
        return F.scaled_dot_product_attention(
            q, k, v, None if seen.mask is None else seen.mask.to(v.dtype), is_causal=seen.mask is None,
            dropout_p=self.dropout if self.training else 0.0, scale=self.scale, enable_gqa=k.shape[1] != q.shape[1],
        )  # fmt: skip

    def _flex(self, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, slopes: Tensor | None) -> Tensor:
        cap = self.cap

        def modified(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            if cap is not None:
                score = cap * torch.tanh(score / cap)
            return score if slopes is None else score - slopes[h] * (i - j)

        plain, gqa = cap is None and slopes is None, k.shape[1] != q.shape[1]
        y = flex_attention(q, k, v, None if plain else modified, mask, scale=self.scale, enable_gqa=gqa)
        assert isinstance(y, Tensor)
        return y

    def _capped(self, q: Tensor, k: Tensor, v: Tensor, cap: float, bias: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = cap * torch.tanh(q @ k.mT * (self.scale / cap)) + bias
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        return weights.to(v.dtype) @ v
