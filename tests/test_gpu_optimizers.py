"""On a GPU: the step of every optimizer that a graph holds is its eager one, for one trial after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizing import OPTIMIZERS, build, give_gradients, near, parameters, put, run, torch_groups
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from ablate.variants._parameters import restart

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

DECAYED = pytest.mark.parametrize(
    "choice", [{v.name: {"weight_decay": 0.3}} for v in OPTIMIZERS if v.capturable], ids=str
)
STEPS = 20


def captured(optimizer: Optimizer, params: list[Parameter]) -> Callable[[], None]:
    """The optimizer's step as a graph, after two on gradients of another trial; parameters and state are left as these made them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in (100, 101):
            give_gradients(params, step)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


def trajectory(optimizer: Optimizer, params: list[Parameter], step: Callable[[], None], decay: float) -> list[Tensor]:
    """The parameters after steps at changing rates, the decays `decay` times what the optimizer was made with."""
    for group in optimizer.param_groups:
        group.setdefault("initial_decay", float(group["decay"]))
        group["decay"] = _set(group["decay"], group["initial_decay"] * decay)
    return run(optimizer, params, steps=STEPS, step=step)


def _set(value: Any, number: float) -> Any:
    return value.fill_(number) if isinstance(value, Tensor) else number


@DECAYED
def test_a_captured_step_serves_one_trial_after_another_as_eager_steps_do(choice: Any):
    """The second with another decay."""
    params = parameters("cuda")
    optimizer = build(choice, params, tensors=True)
    step = captured(optimizer, params)
    for decay in (1.0, 0.5, 1.0):
        put(params, parameters("cuda"))
        restart(optimizer)
        found = trajectory(optimizer, params, step, decay)
        others = parameters("cuda")
        eager = build(choice, others, tensors=True)
        near(found, trajectory(eager, others, eager.step, decay), 1e-6)


@DECAYED
def test_rates_on_the_device_are_those_of_the_host(choice: Any):
    found = {}
    for tensors in (False, True):
        params = parameters("cuda")
        found[tensors] = run(build(choice, params, tensors=tensors), params, steps=10)
    near(found[True], found[False], 1e-5)


@DECAYED
def test_a_step_on_a_gpu_is_that_of_a_cpu(choice: Any, monkeypatch: pytest.MonkeyPatch):
    """Muon's too, where it multiplies in fp32 as on a CPU."""
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.float)
    found = {}
    for device in ("cuda", "cpu"):
        params = parameters(device)
        found[device] = run(build(choice, params, tensors=True), params, steps=10)
    near([p.cpu() for p in found["cuda"]], found["cpu"], 1e-4)


@DECAYED
def test_an_eager_step_waits_for_nothing(choice: Any):
    params = parameters("cuda")
    optimizer = build(choice, params, tensors=True)
    give_gradients(params, 0)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", [{}, {"lr": 0.3, "weight_decay": 0.1}, {"clip": 1.5, "decay": -0.5, "eps2": 0.5}])
def test_adafactor_equals_torchs_on_a_gpu(options: dict[str, Any]):
    o = OPTIMIZERS.choose({"adafactor": options}).options
    params, others = parameters("cuda"), parameters("cuda")
    theirs = torch.optim.Adafactor(
        torch_groups(others, o["lr"], o["weight_decay"]), beta2_decay=o["decay"], d=o["clip"], eps=(None, o["eps2"]),
        foreach=False,
    )  # fmt: skip
    ours = run(build({"adafactor": options}, params, tensors=True), params)
    near(ours, run(theirs, others), 2e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_captured_step_on_gradients_that_overflowed_changes_nothing(name: str):
    """Where the graph learns on the device that they did."""
    params = parameters("cuda")
    optimizer = build({name: {"weight_decay": 0.3}}, params, tensors=True)
    overflowed = optimizer.found_inf = torch.zeros((), device="cuda")  # type: ignore[attr-defined]
    replay = captured(optimizer, params)
    put(params, parameters("cuda"))
    restart(optimizer)

    def step() -> None:
        before = [p.detach().clone() for p in params]
        gradients = [p.grad.clone() for p in params if p.grad is not None]
        for parameter in params:
            assert parameter.grad is not None
            parameter.grad.fill_(torch.inf)
        overflowed.fill_(1)
        replay()
        assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
        for parameter, gradient in zip(params, gradients, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(gradient)
        overflowed.fill_(0)
        replay()

    others = parameters("cuda")
    without = build({name: {"weight_decay": 0.3}}, others, tensors=True)
    near(run(optimizer, params, steps=STEPS, step=step), run(without, others, steps=STEPS), 1e-6)
