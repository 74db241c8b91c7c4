"""How the model knows the order of tokens.

Built from the model's width, the width of what attention rotates and the sequence length. `embed` acts once on the
embeddings [B, T, dim], `rotate` on queries and keys [B, heads, T, rotated_dim] in every layer, and `slopes` [heads] are
what a head takes off its scores per token of distance. The T tokens stand at the positions `at` [T], or at 0 to T - 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ablate.errors import UserError
from ablate.variants._factor import Factor

if TYPE_CHECKING:
    from ablate.recipe import Recipe

position = Factor("position", "model.position", "How the model knows the order of tokens.")

Base = Annotated[float, Field(gt=1)]


class Position(nn.Module):
    """Leaves everything as it is; a variant overrides what it acts on."""

    def embed(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        return x

    def rotate(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        return x

    def slopes(self, n_heads: int, device: torch.device) -> Tensor | None:
        return None


@position.variant("learned", reference="arXiv:1705.03122", capturable=True)
class Learned(Position):
    """A trained vector per position, added to the embeddings (as in GPT-2)."""

    def __init__(self, dim: int, rotated_dim: int, seq_len: int) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.empty(seq_len, dim), freeze=False)

    def embed(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        return x + _rows(self.table.weight, x.shape[1], at)


@position.variant("sinusoidal", reference="arXiv:1706.03762", capturable=True)
class Sinusoidal(Position):
    """Waves added to the scaled embeddings: sqrt(dim) x + P, where P_{t,2i} and P_{t,2i+1} are the sine and cosine of
    t base^(-2i/dim) (sections 3.4 and 3.5).
    """

    table: Tensor

    def __init__(self, dim: int, rotated_dim: int, seq_len: int, *, base: Base = 10_000.0) -> None:
        super().__init__()
        angle = _angles(dim, seq_len, base)
        table = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :dim]
        self.register_buffer("table", table, persistent=False)
        self.scale = dim**0.5

    def embed(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        return self.scale * x + _rows(self.table, x.shape[1], at).to(x.dtype)


@position.variant("rope", reference="arXiv:2104.09864", capturable=True)
class Rope(Position):
    """Rotary embedding: at position t, the pair (x_i, x_{i+d/2}) is rotated by the angle t base^(-2i/d)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, dim: int, rotated_dim: int, seq_len: int, *, base: Base = 10_000.0) -> None:
        super().__init__()
        angle = _angles(rotated_dim, seq_len, base)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    @staticmethod
    def check(recipe: Recipe, *, base: float) -> None:
        if recipe.model.head_dim % 2 and recipe.model.attention.name != "mla":  # which rotates a part of its own
            raise UserError(f"rope rotates pairs, and a head of width {recipe.model.head_dim} is odd")

    def rotate(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        cos, sin = _rows(self.cos, x.shape[-2], at), _rows(self.sin, x.shape[-2], at)
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


@position.variant("alibi", reference="arXiv:2108.12409", capturable=True)
class Alibi(Position):
    """Linear biases: head h of n takes 2^(-8h/n) (i - j) off the score of query i and key j.

    Where n is no power of two: the slopes of the power p below, then every other one of 2p, from the first.
    """

    def __init__(self, dim: int, rotated_dim: int, seq_len: int) -> None:
        super().__init__()

    def slopes(self, n_heads: int, device: torch.device) -> Tensor:
        power = 1 << (n_heads.bit_length() - 1)
        first, rest = torch.arange(1, power + 1, device=device), torch.arange(n_heads - power, device=device)
        return torch.exp2(-8 / power * torch.cat((first, rest + 0.5)))


@position.variant("none", reference="arXiv:2305.19466", capturable=True)
class NoPosition(Position):
    """Nothing but the causal mask tells the order."""

    def __init__(self, dim: int, rotated_dim: int, seq_len: int) -> None:
        super().__init__()


def _angles(width: int, seq_len: int, base: float) -> Tensor:
    """t base^(-2i/width) for positions t and i < width / 2: [seq_len, ceil(width / 2)]."""
    with torch.device("cpu"):  # so that every device gets the same table
        frequency = base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
        return torch.outer(torch.arange(seq_len, dtype=torch.float32), frequency)


def _rows(table: Tensor, length: int, at: Tensor | None) -> Tensor:
    """The rows of a table by position."""
    return table[:length] if at is None else table[at]
