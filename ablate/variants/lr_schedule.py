"""The learning rate after warmup, as a multiple of the peak.

A schedule maps progress (0 at the end of warmup, 1 at the last step) to a factor. Warmup is linear and belongs to every
schedule: `train.warmup`.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from ablate.variants._factor import Factor

lr_schedule = Factor("lr_schedule", "lr_schedule", "Learning rate after warmup, relative to its peak.")

Share = Annotated[float, Field(ge=0, le=1)]


@lr_schedule.variant("cosine", reference="arXiv:1608.03983")
def cosine(progress: float, warmup: float, *, final: Share = 0.1) -> float:
    """Half a cosine from 1 to `final`."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


@lr_schedule.variant("linear", reference="arXiv:1810.04805")
def linear(progress: float, warmup: float, *, final: Share = 0.0) -> float:
    """A straight line from 1 to `final`."""
    return 1 - (1 - final) * progress


@lr_schedule.variant("constant", reference="arXiv:2001.08361")
def constant(progress: float, warmup: float) -> float:
    """No decay."""
    return 1.0
