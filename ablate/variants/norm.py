"""Normalization of the residual stream before each block and before the head (pre-norm, arXiv:2002.04745).

A norm is built from the width and from whether the model has biases, and maps [..., dim] to [..., dim].
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import nn

from ablate.variants._factor import Factor

norm = Factor("norm", "model.norm", "Normalization before each block and before the head.")

Epsilon = Annotated[float, Field(gt=0)]


@norm.variant("layernorm", reference="arXiv:1607.06450")
class LayerNorm(nn.LayerNorm):
    """Layer normalization: (x - mean(x)) / sqrt(var(x) + eps) * weight (+ bias)."""

    def __init__(self, dim: int, bias: bool, *, eps: Epsilon = 1e-5) -> None:
        super().__init__(dim, eps=eps, bias=bias)


@norm.variant("rmsnorm", reference="arXiv:1910.07467")
class RMSNorm(nn.RMSNorm):
    """Root-mean-square normalization: x / sqrt(mean(x^2) + eps) * weight; no mean, never a bias."""

    def __init__(self, dim: int, bias: bool, *, eps: Epsilon = 1e-5) -> None:
        super().__init__(dim, eps=eps)
