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
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from ablate.variants._cache import Cache

if TYPE_CHECKING:
    from ablate.recipe import Model
    from ablate.variants.position import Position
    from ablate.variants.window import Window

FLEX_WIDTH, FLEX_LENGTH = 16, 128
"""Width of a head and length of a sequence below which FlexAttention has no kernel for training."""


@dataclass(frozen=True)
class Context:
    """What attention needs besides its input, the same in every layer but for the cache.

    `rotate` turns queries and keys [B, H, T, rotated_dim]. `mask` is None where causality is all; blocks for
    FlexAttention, which takes the `slopes` [H] apart; or a bias of the scores [B or 1, H or 1, T, T], slopes included.
    At inference, tokens go to `slots` [T] of the layer's `cache`; where one is `decoding`, they are one of each sequence,
    which sees what is cached: T is 1 for queries and the cache's slots for keys.
    """

    rotate: Callable[[Tensor], Tensor]
    mask: BlockMask | Tensor | None = None
    slopes: Tensor | None = None
    cache: Cache | None = None
    slots: Tensor | None = None
    decoding: bool = False

    def kept(self, *new: Tensor) -> tuple[Tensor, ...]:
        """What there is to be seen, of what is `new` [B, H_kv, T, width]: all that is cached where one is decoding."""
        if self.cache is None:
            return new
        assert self.slots is not None
        self.cache.write(self.slots, new)
        return tuple(self.cache.tensors) if self.decoding else new


def context(
    model: Model, position: Position, tokens: Tensor, separator: int | None, blocks: BlockMask | None = None
) -> Context:  # fmt: skip
    """The context of one forward pass over tokens [B, T]; with a separator, each one starts a document of its own.

    `blocks` are those of `seen_blocks`, without which masks are dense.
    """
    slopes = position.slopes(model.n_heads, tokens.device)
    if blocks is not None:
        return Context(position.rotate, blocks, slopes)
    if _all_seen(model, slopes, separator):
        return Context(position.rotate)
    return Context(position.rotate, dense_mask(model.window.build(), documents(tokens, separator), slopes, tokens))


def seen_blocks(model: Model, position: Position, tokens: Tensor, separator: int | None) -> BlockMask | None:
    """The mask of tokens [B, T] for a compiled forward pass on a GPU; None where nothing is masked or FlexAttention does not fit.

    Made outside of what is compiled: made in it by torch 2.11, masks by document train another model than dense ones do.
    """
    fits = not model.dropout.attention_weights and model.head_dim >= FLEX_WIDTH and tokens.shape[1] >= FLEX_LENGTH
    if not fits or not tokens.is_cuda or _all_seen(model, position.slopes(model.n_heads, tokens.device), separator):
        return None
    return block_mask(model.window.build(), documents(tokens, separator), tokens)


def documents(tokens: Tensor, separator: int | None) -> Tensor | None:
    """The number of the document of each token [B, T], or None where they all see one another."""
    return None if separator is None else (tokens == separator).cumsum(1)


def _all_seen(model: Model, slopes: Tensor | None, separator: int | None) -> bool:
    """Whether causality is all that attention asks."""
    unlimited = model.window.build().unlimited
    return unlimited and separator is None and slopes is None and model.attention_soft_cap is None


def block_mask(window: Window, document: Tensor | None, tokens: Tensor) -> BlockMask:
    """Which blocks of keys are seen, for the `document` [B, T] of `tokens` [B, T]."""

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return window.sees(i, j)

    def sees_in_document(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert document is not None
        return window.sees(i, j) & (document[b, i] == document[b, j])

    batch, length = tokens.shape
    if document is None:
        return create_block_mask(sees, None, None, length, length, device=tokens.device)
    return create_block_mask(sees_in_document, batch, None, length, length, device=tokens.device)


def dense_mask(window: Window, document: Tensor | None, slopes: Tensor | None, tokens: Tensor) -> Tensor:
    """The bias of the scores [B or 1, H or 1, T, T]: -inf where nothing is seen, else what the slopes take away."""
    key = torch.arange(tokens.shape[1], device=tokens.device)
    query = key[:, None]
    seen = window.sees(query, key)[None, None]
    if document is not None:
        seen = seen & (document[:, None, :, None] == document[:, None, None, :])
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
        if seen.decoding:
            assert isinstance(seen.mask, Tensor)
            return self._decoded(q, k, v, seen.mask)
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
        # fused kernels, too, keep scores in fp32; the meta device knows no autocast
        with nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False):
            scores = cap * torch.tanh(q.float() @ k.float().mT * (self.scale / cap)) + bias
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        return weights.to(v.dtype) @ v

    def _decoded(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """For one query of each head; heads that share keys are rows of one product, which reads these once."""
        shape = (-1, k.shape[1], q.shape[1] // k.shape[1])
        rows, bias = q.reshape(*shape, q.shape[-1]), bias.expand(-1, q.shape[1], -1, -1).reshape(*shape, k.shape[2])
        if self.cap is None:
            y = F.scaled_dot_product_attention(rows, k, v, bias.to(v.dtype), scale=self.scale)
        else:
            scores = self.cap * torch.tanh((rows @ k.mT).float() * self.scale / self.cap) + bias
            y = scores.softmax(-1).to(v.dtype) @ v
        return y.flatten(1, 2).unsqueeze(2)
