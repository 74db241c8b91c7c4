"""A training that differs from another in nothing but how numbers are rounded."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ablate.recipe import Recipe
from ablate.step import Step
from ablate.train import Kept


class Nudged(Kept):
    """Gives steps whose initial weights are those of the recipe with the last bit of each changed, up or down at random."""

    def step(self, recipe: Recipe, device: torch.device, windows: Callable[[], Tensor]) -> Step:
        step = super().step(recipe, device, windows)
        self._nudge(step, recipe.seed)
        return step

    @torch.no_grad()
    def _nudge(self, step: Step, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for updated, used in zip(step.updated, step.parameters, strict=True):
            way = torch.where(torch.rand(updated.shape, generator=generator) < 0.5, -math.inf, math.inf)
            updated.copy_(torch.nextafter(updated, way.to(updated)))
            if used is not updated:
                used.copy_(updated)
