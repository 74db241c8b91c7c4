from typing import Annotated
from pydantic import Field
import torch
from ablate.variants._factor import Factor
clipping = Factor("clipping", "train.clipping", "How gradients are bounded.")
@clipping.variant("norm", reference="arXiv:1211.5063")
def norm(gradients, total, *, limit: Annotated[float, Field(gt=0)] = 1.0) -> None:
    """Stub."""
    torch._foreach_mul_(gradients, (limit / (total + 1e-6)).clamp(max=1.0))
