"""Causal self-attention: which heads share keys and values, and what of them is cached.

Built from the sizes of the recipe's model; maps [B, T, dim] to [B, T, dim], given the `Context` of the forward pass.
`kv_width` is how many numbers inference caches per token and layer, `score_width` the sum over heads of the widths of
query and value, `rotated_dim` the width of what positions rotate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ablate.errors import UserError
from ablate.variants._attend import Attend, Context
from ablate.variants._factor import Factor
from ablate.variants._merged import Merged
from ablate.variants.norm import RMSNorm

if TYPE_CHECKING:
    from ablate.recipe import Model, Recipe

attention = Factor("attention", "model.attention", "Which heads share keys and values.")

Width = Annotated[int, Field(ge=1)]


class _Grouped(nn.Module):
    """softmax(scale q k^T) v over earlier positions; each group of query heads shares one key and value head."""

    def __init__(self, model: Model, n_kv_heads: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = model.n_heads, n_kv_heads, model.head_dim
        widths = (self.n_heads * self.head_dim, n_kv_heads * self.head_dim, n_kv_heads * self.head_dim)
        self.qkv = Merged(model.dim, widths, model.bias)
        self.q_norm, self.k_norm = model.qk_norm.build(self.head_dim), model.qk_norm.build(self.head_dim)
        self.attend = Attend(model)
        self.out = nn.Linear(self.n_heads * self.head_dim, model.dim, bias=model.bias)
        self.kv_width = 2 * n_kv_heads * self.head_dim
        self.score_width = 2 * self.n_heads * self.head_dim
        self.rotated_dim = self.head_dim

    def forward(self, x: Tensor, context: Context) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=1)
        q, k = context.rotate(self.q_norm(q)), context.rotate(self.k_norm(k))
        k, v = context.kept(k, v)
        y = self.attend(q, k, v, context)
        return self.out(y.transpose(1, 2).flatten(2))


@attention.variant("mha", reference="arXiv:1706.03762", capturable=True)
class MultiHeadAttention(_Grouped):
    """Multi-head attention: a key and a value head for every query head."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, model.n_heads)


@attention.variant("gqa", reference="arXiv:2305.13245", capturable=True)
class GroupedQueryAttention(_Grouped):
    """Grouped-query attention: n_kv_heads key and value heads, each shared by n_heads / n_kv_heads query heads."""

    def __init__(self, model: Model, *, n_kv_heads: Width = 2) -> None:
        super().__init__(model, n_kv_heads)

    @staticmethod
    def check(recipe: Recipe, *, n_kv_heads: int) -> None:
        if recipe.model.n_heads % n_kv_heads:
            raise UserError(f"{n_kv_heads} key and value heads do not divide {recipe.model.n_heads} query heads")


@attention.variant("mqa", reference="arXiv:1911.02150", capturable=True)
class MultiQueryAttention(_Grouped):
    """Multi-query attention: one key and value head for all query heads."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, 1)


@attention.variant("mla", reference="arXiv:2405.04434", capturable=True)
class MultiHeadLatentAttention(nn.Module):
    """Multi-head latent attention: keys and values of all heads come from one narrow latent, and only that is cached.

    With the latent c = norm(W_dkv x) and r = rotate(W_kr x), which all heads share, head h has
    q_h = [W_q_h x, rotate(W_qr_h x)], k_h = [W_uk_h c, r], v_h = W_uv_h c; queries come from a latent norm(W_dq x) in
    place of x where `q_rank` is set. The scale is that of a query as wide as these (section 2.1, equations 9 to 19).

    Args:
        kv_rank: width of c; 4 head_dim where nothing is said.
        rope_dim: width of r; half of head_dim where nothing is said.
        q_rank: width of the queries' latent; none where nothing is said.
    """

    def __init__(
        self, model: Model, *, kv_rank: Width | None = None, rope_dim: Width | None = None, q_rank: Width | None = None
    ) -> None:
        super().__init__()
        self.head_dim, self.rotated_dim = model.head_dim, rope_dim or model.head_dim // 2
        self.kv_rank = kv_rank or 4 * model.head_dim
        query_width = self.head_dim + self.rotated_dim
        if q_rank is None:
            self.q = nn.Linear(model.dim, model.n_heads * query_width, bias=model.bias)
        else:
            self.q = nn.Sequential(
                nn.Linear(model.dim, q_rank, bias=model.bias),
                RMSNorm(q_rank, False, eps=1e-6),
                nn.Linear(q_rank, model.n_heads * query_width, bias=model.bias),
            )
        self.kv_down = Merged(model.dim, (self.kv_rank, self.rotated_dim), model.bias)
        self.kv_norm = RMSNorm(self.kv_rank, False, eps=1e-6)
        self.kv_up = nn.Linear(self.kv_rank, model.n_heads * 2 * self.head_dim, bias=model.bias)
        self.attend = Attend(model, query_width)
        self.out = nn.Linear(model.n_heads * self.head_dim, model.dim, bias=model.bias)
        self.kv_width = self.kv_rank + self.rotated_dim
        self.score_width = model.n_heads * (query_width + self.head_dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        parts = [self.head_dim, self.rotated_dim]
        q, q_rotated = self.q(x).unflatten(-1, (-1, sum(parts))).transpose(1, 2).split(parts, dim=-1)
        latent, shared = self.kv_down(x).split([self.kv_rank, self.rotated_dim], dim=-1)
        latent, shared, q_rotated = self.kv_norm(latent), context.rotate(shared[:, None]), context.rotate(q_rotated)
        if context.cache is not None:
            (cached,) = context.kept(torch.cat((latent[:, None], shared), dim=-1))
            if context.decoding:
                return self._decode(q, q_rotated, cached, context)
        k, v = self.kv_up(latent).unflatten(-1, (-1, 2 * self.head_dim)).transpose(1, 2).chunk(2, dim=-1)
        q, k = torch.cat((q, q_rotated), dim=-1), torch.cat((k, shared.expand(-1, k.shape[1], -1, -1)), dim=-1)
        return self.out(self.attend(q, k, v, context).transpose(1, 2).flatten(2))

    def _decode(self, q: Tensor, q_rotated: Tensor, cached: Tensor, context: Context) -> Tensor:
        """The same as attention of all heads over the cached [c, r]; no k_h and v_h are computed (section 2.1.2).

        q_h k_h = [W_uk_h^T W_q_h x, rotate(W_qr_h x)] [c, r], and the weighted sum of v_h is W_uv_h times that of c. Biases
        are the weights of a further number of c, which is 1.
        """
        weight, bias, values = self.kv_up.weight, self.kv_up.bias, cached[..., : self.kv_rank]
        if bias is not None:
            weight = torch.cat((weight, bias[:, None]), dim=1)
            values = torch.cat((values, torch.ones_like(values[..., :1])), dim=-1)
            cached = torch.cat((values, cached[..., self.kv_rank :]), dim=-1)
        up_k, up_v = weight.unflatten(0, (-1, 2 * self.head_dim)).chunk(2, dim=1)
        q = torch.cat((torch.einsum("bhtd,hdc->bhtc", q, up_k), q_rotated), dim=-1)
        y = torch.einsum("bhtc,hdc->bhtd", self.attend(q, cached, values, context), up_v)
        return self.out(y.transpose(1, 2).flatten(2))

    @staticmethod
    def check(recipe: Recipe, *, kv_rank: int | None, rope_dim: int | None, q_rank: int | None) -> None:
        model = recipe.model
        width = rope_dim or model.head_dim // 2
        if width < 2 or width % 2:
            raise UserError(f"mla rotates pairs, and its rope_dim of {width} is odd or zero")
        if model.qk_norm.name != "none":
            raise UserError(f"mla normalizes its latents, and has no place for qk_norm {model.qk_norm.name!r}")
