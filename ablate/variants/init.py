"""From which normal distribution each matrix starts, and what width asks of rates and scales.

Built from the model's sizes. `std(name, parameter)` is the standard deviation of a matrix (or embedding), `rate(name, parameter)`
the multiple of the optimizer's rate that a parameter gets, `attention_scale` multiplies the products of queries and keys,
`output_scale` the logits. Projections back into the residual stream are called `attention.out` and `feed_forward.down`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import Tensor

from ablate.errors import UserError
from ablate.variants._factor import Factor

if TYPE_CHECKING:
    from ablate.recipe import Model, Recipe

init = Factor("init", "model.init", "From which distribution each matrix starts.", in_step=False)

Std = Annotated[float, Field(gt=0)]


def _into_the_stream(name: str) -> bool:
    return name.endswith(("attention.out.weight", "feed_forward.down.weight"))


def _in_a_block(name: str, parameter: Tensor) -> bool:
    return name.startswith("blocks.") and parameter.dim() > 1


@init.variant("normal", reference="arXiv:1810.04805")
class Normal:
    """Normal(0, std^2) for every matrix, as in GPT-1 and BERT."""

    output_scale = 1.0

    def __init__(self, model: Model, *, std: Std = 0.02) -> None:
        self.sigma = std
        self.attention_scale = model.head_dim**-0.5
        self.residual_scale = 1.0

    def std(self, name: str, parameter: Tensor) -> float:
        return self.sigma * (self.residual_scale if _into_the_stream(name) else 1.0)

    def rate(self, name: str, parameter: Tensor) -> float:
        return 1.0


@init.variant("gpt2", reference="Radford et al. 2019, section 2.3")
class ScaledResidual(Normal):
    """Normal(0, std^2), and std / sqrt(2 n_layers) for what projects into the residual stream, which adds up 2 n_layers of them."""

    def __init__(self, model: Model, *, std: Std = 0.02) -> None:
        super().__init__(model, std=std)
        self.residual_scale = 1 / math.sqrt(2 * model.n_layers)


@init.variant("small", reference="arXiv:1910.05895, arXiv:2204.06745")
class Small(Normal):
    """By width: std sqrt(2 / (5 dim)), and 2 / (n_layers sqrt(dim)) for what projects into the residual stream (GPT-NeoX)."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, std=math.sqrt(2 / (5 * model.dim)))
        self.residual_scale = 2 / (model.n_layers * math.sqrt(model.dim)) / self.sigma


@init.variant("mup", reference="arXiv:2203.03466, table 8")
class MaximalUpdate(ScaledResidual):
    """Maximal update parametrization: rates that are right at width `base_dim` stay right at m times that width.

    Matrices of a block: std / sqrt(m) and rate / m; logits are divided by m; embeddings, head, norms and biases as at the base.
    Equal to `gpt2` at m = 1. `base_head_dim` is the width of a head at the base, where heads grow with the model: products of
    queries and keys are scaled by sqrt(base_head_dim) / head_dim. Without it, a wider model has more heads.
    """

    def __init__(
        self, model: Model, *, base_dim: Annotated[int, Field(ge=1)] = 64, base_head_dim: Annotated[int, Field(ge=1)] | None = None,
        std: Std = 0.02,
    ) -> None:  # fmt: skip
        super().__init__(model, std=std)
        self.width = model.dim / base_dim
        self.output_scale = 1 / self.width
        self.attention_scale = math.sqrt(base_head_dim or model.head_dim) / model.head_dim

    def std(self, name: str, parameter: Tensor) -> float:
        return super().std(name, parameter) / (math.sqrt(self.width) if _in_a_block(name, parameter) else 1.0)

    def rate(self, name: str, parameter: Tensor) -> float:
        return 1 / self.width if _in_a_block(name, parameter) else 1.0

    @staticmethod
    def check(recipe: Recipe, **options: object) -> None:
        if not recipe.optimizer.variant.trait("adam_like", False):
            raise UserError(
                f"mup's rule for rates is that of Adam and its kin, and does not hold for {recipe.optimizer.name}"
            )
        if recipe.model.attention.name == "mla":
            raise UserError("mup has no rule for the latents of mla, whose widths do not grow with the model")
        if recipe.model.position.name == "sinusoidal":
            raise UserError("mup keeps embeddings at one scale, and sinusoidal positions multiply them by sqrt(dim)")
