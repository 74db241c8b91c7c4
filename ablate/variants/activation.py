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

Approximation = Literal["none", "tanh"]


@activation.variant("relu", reference="arXiv:1706.03762", capturable=True)
class ReLU(nn.Module):
    """Rectified linear unit: max(x, 0)."""

    gated = False

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


@activation.variant("relu2", reference="arXiv:2109.08668", capturable=True)
class SquaredReLU(nn.Module):
    """Squared rectified linear unit: max(x, 0)^2."""

    gated = False

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


@activation.variant("gelu", reference="arXiv:1606.08415", capturable=True)
class GELU(nn.Module):
    """Gaussian error linear unit: x Phi(x), exact, or by the tanh approximation that GPT-2 uses."""

    gated = False

    def __init__(self, *, approximate: Approximation = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)


@activation.variant("silu", reference="arXiv:1702.03118", capturable=True)
class SiLU(nn.Module):
    """Sigmoid-weighted linear unit: x sigmoid(x)."""

    gated = False

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


@activation.variant("reglu", reference="arXiv:2002.05202", capturable=True)
class ReGLU(nn.Module):
    """ReLU-gated linear unit: max(gate, 0) up."""

    gated = True

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.relu(gate) * up


@activation.variant("geglu", reference="arXiv:2002.05202", capturable=True)
class GEGLU(nn.Module):
    """GELU-gated linear unit: gate Phi(gate) up, exact, or by the tanh approximation that T5 and Gemma use."""

    gated = True

    def __init__(self, *, approximate: Approximation = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate=self.approximate) * up


@activation.variant("swiglu", reference="arXiv:2002.05202", capturable=True)
class SwiGLU(nn.Module):
    """Swish-gated linear unit: gate sigmoid(beta gate) up. With beta 1, the SiLU of Llama."""

    gated = True

    def __init__(self, *, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        swish = F.silu(gate) if self.beta == 1.0 else gate * (self.beta * gate).sigmoid()
        return swish * up
