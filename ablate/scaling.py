"""Loss scaling for fp16 (arXiv:1710.03740, section 3.2), without the host ever asking how it stands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

START, GROWTH_STEPS = 2.0**16, 2000
"""As in torch.amp.GradScaler."""


class LossScale:
    """What the loss is multiplied by so that small gradients do not vanish in fp16.

    `factor` doubles after `GROWTH_STEPS` steps without an overflow, and is halved by one; `overflowed` says whether the last
    gradients had one. All are tensors on the device that are changed in place.
    """

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.tensor(START, device=device)
        self.overflowed = torch.tensor(False, device=device)
        self._clean = torch.tensor(0, device=device)

    @torch.no_grad()
    def update(self, norm: Tensor) -> None:
        """Take in the norm of a step's gradients."""
        self.overflowed.copy_(~torch.isfinite(norm))
        self._clean.add_(1).masked_fill_(self.overflowed, 0)
        grown = self._clean == GROWTH_STEPS
        self._clean.masked_fill_(grown, 0)
        self.factor.mul_(torch.where(self.overflowed, 0.5, torch.where(grown, 2.0, 1.0)))

    def restart(self) -> None:
        self.factor.fill_(START)
        self.overflowed.fill_(False)
        self._clean.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "clean": self._clean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor.copy_(state["factor"])
        self._clean.copy_(state["clean"])
