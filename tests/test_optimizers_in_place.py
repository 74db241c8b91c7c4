"""What lets one captured step of an optimizer serve many trials: all of it on the device, in place, and put back to the start."""

from __future__ import annotations

import pytest
import torch
from optimizing import (
    OPTIMIZERS,
    NoReading,
    OnlyOnAGpu,
    Operators,
    build,
    give_gradients,
    near,
    parameters,
    put,
    run,
    set_rates,
    state_tensors,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter

from ablate.variants import Variant
from ablate.variants._parameters import restart
from ablate.variants.optimizer import Group

EACH = pytest.mark.parametrize("variant", list(OPTIMIZERS), ids=lambda variant: variant.name)
DECAYED = pytest.mark.parametrize("choice", [{v.name: {"weight_decay": 0.3}} for v in OPTIMIZERS], ids=str)


def ours(choice, *, tensors: bool = False, **keywords) -> list[Tensor]:
    params = parameters()
    return run(build(choice, params, tensors=tensors), params, **keywords)


@DECAYED
@pytest.mark.parametrize("tensors", [False, True])
def test_no_optimizer_reads_from_the_device(choice, tensors: bool):
    """Torch's own kernels for a CPU read the rate, out of sight of this; those for a GPU do not."""
    with NoReading():
        ours(choice, tensors=tensors, steps=3)


@DECAYED
def test_no_optimizer_moves_anything_between_host_and_device(choice):
    """As a captured step must not; on a GPU that is not there."""
    with FakeTensorMode():
        params = [Parameter(torch.empty(p.shape, device="cuda")) for p in parameters()]
        optimizer = build(choice, params, tensors=True)
        for parameter in params:
            parameter.grad = torch.empty_like(parameter)
        with OnlyOnAGpu():
            optimizer.step()
            optimizer.step()


@DECAYED
def test_rates_and_decays_may_be_tensors(choice):
    """As they must be where one captured graph serves all steps."""
    near(ours(choice, steps=10, tensors=True), ours(choice, steps=10), 1e-6)


@DECAYED
@pytest.mark.parametrize("tensors", [False, True])
def test_a_restarted_optimizer_is_a_new_one(choice, tensors: bool):
    """Bitwise, though it has seen other gradients, rates and decays."""
    params = parameters()
    optimizer = build(choice, params, tensors=tensors)
    decays = [float(group["decay"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["decay"] *= 2
    run(optimizer, params, start=9, steps=5)
    put(params, parameters())
    restart(optimizer)
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["decay"] = group["decay"].fill_(decay) if isinstance(group["decay"], Tensor) else decay
    again, new = run(optimizer, params, steps=5), ours(choice, tensors=tensors, steps=5)
    assert all(torch.equal(a, b) for a, b in zip(again, new, strict=True))


@EACH
def test_state_stays_where_it_is(variant: Variant):
    """A captured step knows it by its address."""
    params = parameters()
    optimizer = build(variant.name, params, tensors=True)

    def places() -> list[int]:
        return [tensor.data_ptr() for tensor in (*params, *state_tensors(optimizer))]

    run(optimizer, params, steps=1)
    before = places()
    run(optimizer, params, start=1, steps=2)
    restart(optimizer)
    run(optimizer, params, steps=1)
    assert places() == before and len(before) > len(params)


@EACH
def test_a_deeper_model_is_no_more_operators(variant: Variant):
    """But for what takes apart and joins, which is nothing on the device, or one."""
    counts = []
    for layers in (2, 7):
        matrices = [Parameter(torch.randn(8, 4)) for _ in range(layers)]
        vectors = [Parameter(torch.randn(4)) for _ in range(layers)]
        groups = [Group(matrices, True, True, 1.0, parts=(4, 4)), Group(vectors, False, False, 1.0)]
        optimizer = OPTIMIZERS.choose(variant.name).build(groups)
        run(optimizer, matrices + vectors, steps=1)
        with Operators() as operators:
            optimizer.step()
        counts.append(operators.count)
    assert counts[0] == counts[1] > 0


SKIPPING = [v.name for v in OPTIMIZERS if getattr(build(v.name, parameters()), "_step_supports_amp_scaling", False)]


@pytest.fixture
def unset_memory_is_nan():
    """Memory that is asked for and not set."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("unset_memory_is_nan")
@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("tensors", [False, True])
def test_a_step_on_gradients_that_overflowed_changes_nothing(name: str, tensors: bool):
    """Not the first, nor a later one; the steps around them are those that would be without them."""
    params = parameters()
    optimizer = build({name: {"weight_decay": 0.3}}, params, tensors=tensors)
    overflowed = optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    for step in range(4):
        before = [t.detach().clone() for t in (*params, *state_tensors(optimizer))]
        for parameter in params:
            parameter.grad = torch.full_like(parameter, torch.inf)
        overflowed.fill_(1)
        optimizer.step()
        after = [*params, *state_tensors(optimizer)]
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=step > 0))
        overflowed.fill_(0)
        give_gradients(params, step)
        set_rates(optimizer, 0.5)
        optimizer.step()
    without = ours({name: {"weight_decay": 0.3}}, tensors=tensors, steps=4, rates=lambda step: 0.5)
    assert all(torch.equal(a, b) for a, b in zip(params, without, strict=True))
