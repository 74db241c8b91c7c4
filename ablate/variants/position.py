"""How the model knows the order of tokens.

A position is built from the model's width, a head's width and the sequence length. `embed` acts once on the
embeddings [B, T, dim], `rotate` on queries and keys [B, heads, T, head_dim] in every layer.
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


@position.variant("learned", reference="arXiv:1705.03122")
class Learned(nn.Module):
    """A trained vector per position, added to the embeddings (as in GPT-2)."""

    def __init__(self, dim: int, head_dim: int, seq_len: int) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.empty(seq_len, dim), freeze=False)

    def embed(self, x: Tensor) -> Tensor:
        return x + self.table.weight[: x.shape[1]]

    def rotate(self, x: Tensor) -> Tensor:
        return x


@position.variant("rope", reference="arXiv:2104.09864")
class Rope(nn.Module):
    """Rotary embedding: at position t, the pair (x_i, x_{i+d/2}) is rotated by the angle t base^(-2i/d)."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, dim: int, head_dim: int, seq_len: int, *, base: Annotated[float, Field(gt=1)] = 10_000.0
    ) -> None:
        super().__init__()
        with torch.device("cpu"):  # so that every device gets the same table
            frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
            angle = torch.outer(torch.arange(seq_len, dtype=torch.float32), frequency)  # [T, head_dim / 2]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    @staticmethod
    def check(recipe: Recipe, *, base: float) -> None:
        if recipe.model.head_dim % 2:
            raise UserError(f"rope rotates pairs, and a head of width {recipe.model.head_dim} is odd")

    def embed(self, x: Tensor) -> Tensor:
        return x

    def rotate(self, x: Tensor) -> Tensor:
        cos, sin = self.cos[: x.shape[-2]], self.sin[: x.shape[-2]]
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
