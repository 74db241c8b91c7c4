"""Normalization of the residual stream, in each block and before the head; where it stands is the placement's.

A norm is built from the width and from whether the model has biases, and maps [..., dim] to [..., dim] of the same format.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from ablate.variants._factor import Factor

norm = Factor("norm", "model.norm", "Normalization in each block and before the head.")

Epsilon = Annotated[float, Field(gt=0)]


@norm.variant("layernorm", reference="arXiv:1607.06450", capturable=True)
class LayerNorm(nn.LayerNorm):
    """Layer normalization: (x - mean(x)) / sqrt(var(x) + eps) * weight (+ bias)."""

    def __init__(self, dim: int, bias: bool, *, eps: Epsilon = 1e-5) -> None:
        super().__init__(dim, eps=eps, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).to(input.dtype)  # autocast computes and leaves it in fp32


@norm.variant("rmsnorm", reference="arXiv:1910.07467", capturable=True)
class RMSNorm(nn.RMSNorm):
    """Root-mean-square normalization: x / sqrt(mean(x^2) + eps) * weight; no mean, never a bias."""

    def __init__(self, dim: int, bias: bool, *, eps: Epsilon = 1e-5) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        # autocast leaves x in its own format, and the fused kernel takes only one
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


@norm.variant("dyt", reference="arXiv:2503.10622", capturable=True)
class DynamicTanh(nn.Module):
    """Dynamic tanh, in place of a norm: tanh(a x) * weight (+ bias), with a trained number a that starts at `alpha`."""

    def __init__(self, dim: int, bias: bool, *, alpha: Annotated[float, Field(gt=0)] = 0.5) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.alpha * x) * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)


@norm.variant("none", reference="arXiv:1901.09321", capturable=True)
class NoNorm(nn.Identity):
    """The stream as it is; no parameters."""

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
