"""How the gradients of a step are bounded before the optimizer sees them.

A variant changes the gradients in place, given their norm as one vector. None of them waits for the device;
`limit` may be a number or a tensor.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ablate.variants._factor import Factor

clipping = Factor("clipping", "train.clipping", "How gradients are bounded.")

Limit = Annotated[float, Field(gt=0)]


@clipping.variant("none", reference="arXiv:1905.11881", capturable=True)
def none(gradients: list[Tensor], norm: Tensor) -> None:
    """Gradients as they are."""


@clipping.variant("norm", reference="arXiv:1211.5063", capturable=True, tensors=("limit",))
def by_norm(gradients: list[Tensor], norm: Tensor, *, limit: Limit = 1.0) -> None:
    """All scaled alike, so that the norm is at most `limit`: g <- g min(1, limit / norm)."""
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))


@clipping.variant("value", reference="arXiv:1308.0850", capturable=True, tensors=("limit",))
def by_value(gradients: list[Tensor], norm: Tensor, *, limit: Limit = 1.0) -> None:
    """Every number for itself: g <- max(-limit, min(limit, g))."""
    lowest = -limit
    for gradient in gradients:
        gradient.clamp_(lowest, limit)
