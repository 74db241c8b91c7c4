"""What the feed-forward block applies between its two projections.

A gated unit receives two projections of its input, `gate` and `up`, and has 2/3 of the hidden width, so that its three
matrices hold as many parameters as the two of an ungated one (arXiv:2002.05202, section 2). All are element-wise.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ablate.variants._factor import Factor

activation = Factor("activation", "model.activation", "Non-linearity of the feed-forward block, gated or not.")


@activation.variant("relu", reference="arXiv:1706.03762")
class ReLU(nn.Module):
    """Rectified linear unit: max(x, 0)."""

    gated = False

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


@activation.variant("gelu", reference="arXiv:1606.08415")
class GELU(nn.Module):
    """Gaussian error linear unit: x Phi(x), exact, or by the tanh approximation that GPT-2 uses."""

    gated = False

    def __init__(self, *, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)


@activation.variant("swiglu", reference="arXiv:2002.05202")
class SwiGLU(nn.Module):
    """Swish-gated linear unit: gate sigmoid(beta gate) up. With beta 1, the SiLU of Llama."""

    gated = True

    def __init__(self, *, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        swish = F.silu(gate) if self.beta == 1.0 else gate * (self.beta * gate).sigmoid()
        return swish * up
