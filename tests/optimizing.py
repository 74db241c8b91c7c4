"""A few parameters, gradients that do not depend on them, and the steps of an optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from ablate.variants.optimizer import Group

Rates = Callable[[int], float]


class NoReading(TorchDispatchMode):
    """No scalar may be read back to the host, which waits for the device there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "a scalar was read back to the host"
        return func(*args, **(kwargs or {}))


def parameters() -> list[Parameter]:
    """Two matrices of a block, two merged in one (6 and 4 rows), an embedding, a vector."""
    generator = torch.Generator().manual_seed(3)
    return [Parameter(torch.randn(*shape, generator=generator)) for shape in ((6, 5), (6, 5), (10, 5), (9, 5), (7,))]


def as_groups(params: list[Parameter]) -> list[Group]:
    first, second, merged, embedding, vector = params
    return [
        Group([first, second], matrices=True, decayed=True, rate=1.0),
        Group([merged], matrices=True, decayed=True, rate=0.5, parts=(6, 4)),
        Group([embedding], matrices=False, decayed=True, rate=1.0),
        Group([vector], matrices=False, decayed=False, rate=1.0),
    ]


def changing(step: int) -> float:
    """A rate that rises, falls and rises again."""
    return 0.55 - 0.45 * math.cos(step / 5)


def run(
    optimizers: Any, params: list[Parameter], *, steps: int = 40, start: int = 0, rates: Any = changing
) -> list[Tensor]:
    """Step `optimizers`, which share `params`, as the trainer does; the parameters where they are evaluated."""
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group in groups:
        group.setdefault("initial_lr", group["lr"])
    for step in range(start, start + steps):
        for i, parameter in enumerate(params):
            generator = torch.Generator().manual_seed(1000 * step + i)
            scale = 10.0 ** (i - 2) * (1 + step % 7)
            parameter.grad = scale * (0.3 + torch.randn(parameter.shape, generator=generator))
        for group in groups:
            group["lr"] = group["initial_lr"] * rates(step)
        for optimizer in optimizers:
            getattr(optimizer, "train", lambda: None)()
            optimizer.step()
    for optimizer in optimizers:
        getattr(optimizer, "eval", lambda: None)()
    return [p.detach().clone() for p in params]
