"""What optimizers are given, and the state that they keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that an optimizer treats alike.

    Args:
        params: the parameters.
        matrices: whether they are matrices of the blocks.
        decayed: whether weight decay applies to them.
        rate: multiplies every learning rate.
        parts: how many rows each of the matrices has that are merged in a parameter; empty where it is one.
    """

    params: list[Parameter]
    matrices: bool
    decayed: bool
    rate: float
    parts: tuple[int, ...] = ()


def param_groups(groups: Sequence[Group], lr: float, weight_decay: float, **options: Any) -> list[dict[str, Any]]:
    """Groups as torch wants them.

    What multiplies the rate divides the decay: lr weight_decay, the share of a weight that a step takes off, is the same for all
    (arXiv:2405.13698; the mup package does so too).
    """
    return [
        {
            "params": g.params,
            "lr": lr * g.rate,
            "weight_decay": weight_decay / g.rate if g.decayed else 0.0,
            "matrices": g.matrices,
            "parts": g.parts,
            **options,
        }
        for g in groups
    ]


def with_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    params = [p for p in group["params"] if p.grad is not None]
    return params, [p.grad for p in params]


def kept(
    state: dict[str, Tensor], name: str, p: Tensor, first: Callable[[Tensor], Tensor] = torch.zeros_like
) -> Tensor:
    """The tensor `name` of a parameter's state, made from the parameter by `first` when there is none yet."""
    if name not in state:
        state[name] = first(p)
    return state[name]
