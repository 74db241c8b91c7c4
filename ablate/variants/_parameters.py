"""What optimizers are given, and the state that they keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Groups as torch wants them, one for each rate: few large operations in place of many small ones.

    `lr` and `decay` are numbers, which 0-dim fp32 tensors on the parameters' device may replace; of the parameters, the first `decayed`
    decay. What multiplies the rate divides the decay: lr weight_decay, the share of a weight that a step takes off, is the same
    for all (arXiv:2405.13698; the mup package does so too).
    """
    found = []
    for rate in dict.fromkeys(g.rate for g in groups):
        same = [g for g in groups if g.rate == rate]
        decayed, others = ([p for g in same if g.decayed is which for p in g.params] for which in (True, False))
        found.append({
            "params": decayed + others, "lr": lr * rate, "decay": weight_decay / rate if decayed else 0.0,
            "decayed": len(decayed), **options,
        })  # fmt: skip
    return found


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


def decayed(params: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Those of a group's parameters that decay; none where the decay is the number zero."""
    if not isinstance(group["decay"], Tensor) and not group["decay"]:
        return []
    known = {id(p) for p in group["params"][: group["decayed"]]}
    return [p for p in params if id(p) in known]


def shrink(params: Sequence[Tensor], group: dict[str, Any], skipped: Tensor | None = None) -> None:
    """Decoupled weight decay, w <- w - lr decay w, of those that decay; bitwise nothing where `skipped` is 1."""
    if found := decayed(params, group):
        share = group["lr"] * group["decay"]
        torch._foreach_mul_(found, 1 - (share if skipped is None else share * (1 - skipped)))


def unmerged(tensors: Iterable[Tensor], parts: tuple[int, ...]) -> list[Tensor]:
    """The matrices that tensors consist of: `parts` says how many rows each of them has, empty where a tensor is one."""
    return [matrix for tensor in tensors for matrix in tensor.split(parts or len(tensor))]


def by_shape(first: Iterable[Tensor], second: Iterable[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Tensors in batches of one shape, each with its partner: few large operations in place of many small ones."""
    batches: dict[torch.Size, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for pair in zip(first, second, strict=True):
        for tensor, batch in zip(pair, batches[pair[0].shape], strict=True):
            batch.append(tensor)
    yield from batches.values()


@torch.no_grad()
def restart(optimizer: torch.optim.Optimizer) -> None:
    """Put the state back, in place, to what it is before the first step, for the parameters as they are now.

    That is zero for every tensor of it; an optimizer for which it is not has a method `restart`.
    """
    if own := getattr(optimizer, "restart", None):
        own()
    else:
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()
