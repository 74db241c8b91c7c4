"""Normalization of queries and keys, each head by itself, before they are rotated.

Built from a head's width; maps [B, heads, T, head_dim] to the same. Queries and keys have weights of their own, which
all heads share.
"""

from __future__ import annotations

from torch import nn

from ablate.variants import norm
from ablate.variants._factor import Factor

qk_norm = Factor("qk_norm", "model.qk_norm", "Normalization of queries and keys.")


@qk_norm.variant("none", reference="arXiv:1706.03762", capturable=True)
class NoNorm(nn.Identity):
    """Queries and keys as projected."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()


@qk_norm.variant("rmsnorm", reference="arXiv:2505.09388", capturable=True)
class RMSNorm(norm.RMSNorm):
    """q / sqrt(mean(q^2) + eps) * weight, and k likewise (as in Qwen3)."""

    def __init__(self, head_dim: int, *, eps: norm.Epsilon = 1e-6) -> None:
        super().__init__(head_dim, False, eps=eps)


@qk_norm.variant("layernorm", reference="arXiv:2302.05442", capturable=True)
class LayerNorm(nn.LayerNorm):
    """(q - mean(q)) / sqrt(var(q) + eps) * weight, and k likewise; no bias (as in ViT-22B)."""

    def __init__(self, head_dim: int, *, eps: norm.Epsilon = 1e-6) -> None:
        super().__init__(head_dim, eps=eps, bias=False)
