"""The learning rate after warmup, as a multiple of the peak.

A schedule maps progress p (0 at the end of warmup, 1 at the last step) to a factor; it is told the share of the steps that
warmup took, too. Warmup is linear and belongs to every schedule: `train.warmup`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ablate.errors import UserError
from ablate.variants._factor import Factor

if TYPE_CHECKING:
    from ablate.recipe import Recipe

lr_schedule = Factor("lr_schedule", "lr_schedule", "Learning rate after warmup, relative to its peak.", in_step=False)

Share = Annotated[float, Field(ge=0, le=1)]


@lr_schedule.variant("cosine", reference="arXiv:1608.03983")
def cosine(progress: float, warmup: float, *, final: Share = 0.1) -> float:
    """Half a cosine from 1 to `final`: final + (1 - final) (1 + cos(pi p)) / 2."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


@lr_schedule.variant("linear", reference="arXiv:1810.04805")
def linear(progress: float, warmup: float, *, final: Share = 0.0) -> float:
    """A straight line from 1 to `final`: 1 - (1 - final) p."""
    return 1 - (1 - final) * progress


@lr_schedule.variant("constant", reference="arXiv:2001.08361")
def constant(progress: float, warmup: float) -> float:
    """No decay."""
    return 1.0


@lr_schedule.variant("wsd", reference="arXiv:2404.06395, arXiv:2405.18392")
def wsd(
    progress: float, warmup: float, *, decay: Annotated[float, Field(gt=0, le=1)] = 0.2, final: Share = 0.0,
    shape: Literal["linear", "sqrt"] = "sqrt",
) -> float:  # fmt: skip
    """Warmup, stable, decay: 1 until the last `decay` of the steps after warmup, then down to `final`.

    With q the share of the decay that is done: 1 - (1 - final) q (linear) or 1 - (1 - final) sqrt(q) (sqrt).
    """
    done = max(0.0, 1 - (1 - progress) / decay)
    return 1 - (1 - final) * (math.sqrt(done) if shape == "sqrt" else done)


@lr_schedule.variant("inverse_sqrt", reference="arXiv:1706.03762, section 5.3")
def inverse_sqrt(progress: float, warmup: float) -> float:
    """The inverse square root of the step, 1 at the end of warmup: sqrt(warmup / (warmup + p (1 - warmup)))."""
    return math.sqrt(warmup / (warmup + progress * (1 - warmup)))


def _has_warmup(recipe: Recipe) -> None:
    if not round(recipe.train.warmup * recipe.train.steps):
        raise UserError("inverse_sqrt decays from the end of warmup, and this recipe has no warmup (train.warmup)")


inverse_sqrt.check = _has_warmup  # pyright: ignore[reportFunctionMemberAccess]
