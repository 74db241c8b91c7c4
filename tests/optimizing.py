"""A few parameters, gradients that do not depend on them, the steps of an optimizer, and what watches the operators of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ablate.variants import load_factors
from ablate.variants.optimizer import Group

OPTIMIZERS = load_factors()["optimizer"]
Rates = Callable[[int], float]


class NoReading(TorchDispatchMode):
    """No scalar may be read back to the host, which waits for the device there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "a scalar was read back to the host"
        return func(*args, **(kwargs or {}))


class OnlyOnAGpu(TorchDispatchMode):
    """Within a FakeTensorMode, which refuses to read a scalar: every tensor that an operator takes or makes is on the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch has no fake of its fused kernels for rates that are tensors; they change tensors in place and return nothing
        fused = func.namespace == "aten" and func.__name__.startswith("_fused_")
        made = None if fused else func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, made)):
            assert not isinstance(tensor, Tensor) or tensor.is_cuda, f"{func} has a tensor on the host"
        return made


class Operators(TorchDispatchMode):
    """Counts what would be launched on a GPU, or rather what is asked for: one for a list of tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def parameters(device: str = "cpu") -> list[Parameter]:
    """Two matrices of a block, two merged in one (6 and 4 rows), an embedding, a vector."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((6, 5), (6, 5), (10, 5), (9, 5), (7,))
    return [Parameter(torch.randn(*shape, generator=generator).to(device)) for shape in shapes]


def as_groups(params: list[Parameter]) -> list[Group]:
    first, second, merged, embedding, vector = params
    return [
        Group([first, second], matrices=True, decayed=True, rate=1.0),
        Group([merged], matrices=True, decayed=True, rate=0.5, parts=(6, 4)),
        Group([embedding], matrices=False, decayed=True, rate=1.0),
        Group([vector], matrices=False, decayed=False, rate=1.0),
    ]


def torch_groups(params: list[Parameter], lr: float, decay: float) -> list[dict]:
    """What `as_groups` says, in torch's words: half the rate and so twice the decay for the merged matrix, no decay for the vector."""
    first, second, merged, embedding, vector = params
    return [
        {"params": [first, second], "lr": lr, "weight_decay": decay},
        {"params": [merged], "lr": lr / 2, "weight_decay": decay * 2},
        {"params": [embedding], "lr": lr, "weight_decay": decay},
        {"params": [vector], "lr": lr, "weight_decay": 0.0},
    ]


def build(choice: Any, params: list[Parameter], *, tensors: bool = False) -> Optimizer:
    """The chosen optimizer of `parameters()`; with `tensors`, rates and decays are on the device, as a captured step has them."""
    optimizer = OPTIMIZERS.choose(choice).build(as_groups(params))
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        if tensors:
            device = group["params"][0].device
            group["lr"] = torch.full((), group["lr"], device=device)
            if group["decay"]:
                group["decay"] = torch.full((), group["decay"], device=device)
    return optimizer


def state_tensors(optimizer: Optimizer) -> Iterator[Tensor]:
    """All that an optimizer keeps from step to step."""
    for group in optimizer.param_groups:
        yield from (value for key, value in group.items() if isinstance(value, Tensor) and key not in ("lr", "decay"))
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def changing(step: int) -> float:
    """A rate that rises, falls and rises again."""
    return 0.55 - 0.45 * math.cos(step / 5)


def give_gradients(params: Iterable[Parameter], step: int) -> None:
    """Gradients of very different scales; in place where there are some."""
    for i, parameter in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * step + i)
        scale = 10.0 ** (i - 2) * (1 + step % 7)
        gradient = scale * (0.3 + torch.randn(parameter.shape, generator=generator))
        if parameter.grad is None:
            parameter.grad = gradient.to(parameter.device)
        else:
            parameter.grad.copy_(gradient)


def set_rates(optimizer: Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        rate = group.setdefault("initial_lr", group["lr"]) * factor
        group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate


def run(
    optimizers: Any,
    params: list[Parameter],
    *,
    steps: int = 40,
    start: int = 0,
    rates: Rates = changing,
    step: Any = None,
) -> list[Tensor]:
    """Step `optimizers`, which share `params`, as the trainer does, or `step` in their place; the parameters where they are evaluated."""
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    for number in range(start, start + steps):
        give_gradients(params, number)
        for optimizer in optimizers:
            set_rates(optimizer, rates(number))
            getattr(optimizer, "train", lambda: None)()
            (step or optimizer.step)()
    for optimizer in optimizers:
        getattr(optimizer, "eval", lambda: None)()
    return [p.detach().clone() for p in params]


def near(found: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float) -> None:
    """Equal but for `tolerance` times a number or the largest of its tensor: gradients are large, and sums of them may be small."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@torch.no_grad()
def put(params: list[Parameter], values: Iterable[Tensor]) -> None:
    for parameter, value in zip(params, values, strict=True):
        parameter.copy_(value)
