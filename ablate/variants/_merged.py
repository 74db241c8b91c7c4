"""Linear maps of one input that are computed as one."""

from __future__ import annotations

from torch import nn


class Merged(nn.Linear):
    """Maps from `dim` numbers to each of `parts`, their matrices stacked in one weight, their results side by side."""

    def __init__(self, dim: int, parts: tuple[int, ...], bias: bool) -> None:
        super().__init__(dim, sum(parts), bias=bias)
        self.parts = parts
