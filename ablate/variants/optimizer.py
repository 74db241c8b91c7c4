"""The rule that turns gradients into a step.

Built from two lists of parameters: `decayed` (matrices of the hidden layers) and `rest` (norms, biases, embeddings, which weight
decay skips). `lr` is the peak of the schedule. None of them synchronises with the host.
`state_numbers` is how many numbers of state a matrix parameter carries, to estimate memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter

from ablate.variants._factor import Factor

optimizer = Factor("optimizer", "optimizer", "The rule that turns gradients into a step.")

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that an optimizer treats alike: whether they are matrices of a block, decay, and a multiple of the rate."""

    params: list[Parameter]
    matrices: bool
    decayed: bool
    rate: float


def _groups(groups: Sequence[Group], lr: float, weight_decay: float) -> list[dict]:
    return [
        {"params": g.params, "lr": lr * g.rate, "weight_decay": weight_decay if g.decayed else 0.0} for g in groups
    ]


@optimizer.variant("adamw", reference="arXiv:1711.05101")
class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay: w <- w - lr (m / (sqrt(v) + eps) + weight_decay w), m and v bias-corrected."""

    state_numbers = 2.0

    def __init__(
        self, groups: Sequence[Group], *, lr: Rate = 1e-3, weight_decay: Decay = 0.1,
        beta1: Beta = 0.9, beta2: Beta = 0.95, eps: Rate = 1e-8,
    ) -> None:  # fmt: skip
        super().__init__(_groups(groups, lr, weight_decay), lr=lr, betas=(beta1, beta2), eps=eps, fused=True)


@optimizer.variant("lion", reference="arXiv:2302.06675")
class Lion(torch.optim.Optimizer):
    """Evolved sign momentum: w <- w - lr (sign(beta1 m + (1 - beta1) g) + weight_decay w); m <- beta2 m + (1 - beta2) g."""

    state_numbers = 1.0

    def __init__(
        self, groups: Sequence[Group], *, lr: Rate = 1e-4, weight_decay: Decay = 1.0,
        beta1: Beta = 0.9, beta2: Beta = 0.99,
    ) -> None:  # fmt: skip
        super().__init__(_groups(groups, lr, weight_decay), {"lr": lr, "beta1": beta1, "beta2": beta2})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            moments = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
            directions = torch._foreach_lerp(moments, grads, 1 - group["beta1"])
            torch._foreach_sign_(directions)
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, directions, alpha=-group["lr"])
            torch._foreach_lerp_(moments, grads, 1 - group["beta2"])


@optimizer.variant("adafactor", reference="arXiv:1804.04235")
class Adafactor(torch.optim.Optimizer):
    """Factored second moments: v_ij = r_i c_j / mean(r); the update g / sqrt(v) is clipped to a root mean square of `clip`.

    The step size is relative to the parameter's own root mean square: max(eps2, RMS(w)) min(lr, 1 / sqrt(t)); with lr <= 0.01
    the second bound is idle for 10,000 steps. The decay of the moments is 1 - t^decay. Equals `torch.optim.Adafactor`,
    which reads three scalars back to the host for every parameter and step.
    """

    state_numbers = 0.01

    def __init__(
        self, groups: Sequence[Group], *, lr: Rate = 1e-2, weight_decay: Decay = 0.0,
        decay: Annotated[float, Field(lt=0)] = -0.8, clip: Annotated[float, Field(ge=1)] = 1.0, eps2: Rate = 1e-3,
    ) -> None:  # fmt: skip
        super().__init__(_groups(groups, lr, weight_decay), {"lr": lr, "decay": decay, "clip": clip, "eps2": eps2})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, self.state[p], group)

    def _update(self, p: Tensor, grad: Tensor, state: dict, group: dict) -> None:
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            shapes = ((*p.shape[:-1], 1), (*p.shape[:-2], 1, p.shape[-1])) if p.dim() > 1 else (p.shape,)
            state["moments"] = [p.new_zeros(shape) for shape in shapes]
        t = state["step"].add_(1)
        eps1 = torch.finfo(p.dtype).eps
        weight = t ** group["decay"]
        if p.dim() > 1:
            rows, columns = state["moments"]
            rows.lerp_(grad.square().mean(dim=-1, keepdim=True), weight)
            columns.lerp_(grad.square().mean(dim=-2, keepdim=True), weight)
            second = (rows @ columns).div_(rows.mean(dim=-2, keepdim=True).clamp_(min=eps1))
        else:
            second = state["moments"][0].lerp_(grad.square(), weight).clone()
        update = second.clamp_(min=eps1 * eps1).rsqrt_().mul_(grad)
        rate = _rms(p).clamp(min=group["eps2"]) * t.rsqrt().clamp(max=group["lr"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(update * (rate / (_rms(update) / group["clip"]).clamp(min=1.0)))


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
