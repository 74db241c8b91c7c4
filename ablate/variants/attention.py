"""Causal self-attention.

Built from the sizes of the recipe's model; maps [B, T, dim] to [B, T, dim]. `rotate` comes from the position variant and turns
queries and keys [B, heads, T, head_dim]. `kv_width` is the number of values that inference caches per token and layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ablate.errors import UserError
from ablate.variants._factor import Factor

if TYPE_CHECKING:
    from ablate.recipe import Model, Recipe

attention = Factor("attention", "model.attention", "Which heads share keys and values.")


class _Grouped(nn.Module):
    """softmax(q k^T / sqrt(head_dim)) v over earlier positions; each group of query heads shares one key and value head."""

    def __init__(self, model: Model, n_kv_heads: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = model.n_heads, n_kv_heads, model.head_dim
        self.dropout = model.dropout.attention_weights
        self.qkv = nn.Linear(model.dim, (self.n_heads + 2 * n_kv_heads) * self.head_dim, bias=model.bias)
        self.out = nn.Linear(self.n_heads * self.head_dim, model.dim, bias=model.bias)

    rotated_dim = property(lambda self: self.head_dim)

    @property
    def kv_width(self) -> int:
        return 2 * self.n_kv_heads * self.head_dim

    def forward(self, x: Tensor, context) -> Tensor:
        rotate = context.rotate
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=1)
        y = F.scaled_dot_product_attention(
            rotate(q), rotate(k), v, is_causal=True, enable_gqa=self.n_kv_heads != self.n_heads,
            dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


@attention.variant("mha", reference="arXiv:1706.03762")
class MultiHeadAttention(_Grouped):
    """Multi-head attention: a key and a value head for every query head."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, model.n_heads)


@attention.variant("gqa", reference="arXiv:2305.13245")
class GroupedQueryAttention(_Grouped):
    """Grouped-query attention: n_kv_heads key and value heads, each shared by n_heads / n_kv_heads query heads."""

    def __init__(self, model: Model, *, n_kv_heads: Annotated[int, Field(ge=1)] = 2) -> None:
        super().__init__(model, n_kv_heads)

    @staticmethod
    def check(recipe: Recipe, *, n_kv_heads: int) -> None:
        if recipe.model.n_heads % n_kv_heads:
            raise UserError(f"{n_kv_heads} key and value heads do not divide {recipe.model.n_heads} query heads")


@attention.variant("mqa", reference="arXiv:1911.02150")
class MultiQueryAttention(_Grouped):
    """Multi-query attention: one key and value head for all query heads."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, 1)
