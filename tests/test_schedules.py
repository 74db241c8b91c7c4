"""Schedules and clipping: equality with transformers and torch."""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers
from optimizing import NoReading
from tiny import tiny
from torch import nn

from ablate.errors import UserError
from ablate.train import lr_factors
from ablate.variants import Variant, load_factors

SCHEDULES, CLIPPING = load_factors()["lr_schedule"], load_factors()["clipping"]
STEPS, WARMUP = 200, 20
SHORT = {"num_warmup_steps": WARMUP, "num_training_steps": STEPS}
WSD = {"num_warmup_steps": WARMUP, "num_decay_steps": 45, "num_training_steps": STEPS}


def factors(schedule, warmup: float = WARMUP / STEPS) -> list[float]:
    return lr_factors(tiny(lr_schedule=schedule, train__steps=STEPS, train__warmup=warmup))


@pytest.mark.parametrize(
    ("schedule", "theirs", "options"),
    [
        ("cosine", "cosine_with_min_lr_schedule_with_warmup", SHORT | {"min_lr_rate": 0.1}),
        ({"cosine": {"final": 0.0}}, "cosine_schedule_with_warmup", SHORT),
        ("linear", "linear_schedule_with_warmup", SHORT),
        ("constant", "constant_schedule_with_warmup", {"num_warmup_steps": WARMUP}),
        ("inverse_sqrt", "inverse_sqrt_schedule", {"num_warmup_steps": WARMUP}),
        ({"wsd": {"decay": 0.25}}, "wsd_schedule", WSD | {"decay_type": "1-sqrt"}),
        ({"wsd": {"decay": 0.25, "shape": "linear"}}, "wsd_schedule", WSD | {"decay_type": "linear"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_schedules_equal_those_of_transformers(schedule, theirs: str, options: dict):
    """Which count from a rate of 0 before the first step, where ours counts steps done: one apart."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = getattr(transformers, f"get_{theirs}")(optimizer, **options)
    rates = [scheduler.lr_lambdas[0](step + 1) for step in range(STEPS)]
    assert factors(schedule) == pytest.approx(rates, abs=1e-9)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_a_final_ratio_lifts_the_whole_decay(name: str):
    to_zero = factors({name: {"final": 0.0}})[WARMUP:]
    assert factors({name: {"final": 0.3}})[WARMUP:] == pytest.approx([0.3 + 0.7 * value for value in to_zero])


@pytest.mark.parametrize("variant", list(SCHEDULES), ids=lambda variant: variant.name)
@pytest.mark.parametrize("warmup", [0.1, 0.5])
def test_schedules_rise_to_the_peak_and_never_again(variant: Variant, warmup: float):
    values, risen = factors(variant.name, warmup), round(warmup * STEPS)
    assert values[:risen] == pytest.approx([(i + 1) / risen for i in range(risen)])
    after = values[risen - 1 :]
    assert all(a >= b >= 0 for a, b in itertools.pairwise(after))


def test_schedules_end_where_they_say():
    ends = {"cosine": 0.1, "linear": 0.0, "constant": 1.0, "wsd": 0.0, "inverse_sqrt": 0.1**0.5}
    assert {name: factors(name)[-1] for name in ends} == pytest.approx(ends, abs=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.002])
def test_the_inverse_square_root_needs_a_step_of_warmup(warmup: float):
    with pytest.raises(UserError, match=r"lr_schedule: inverse_sqrt .* no warmup \(train.warmup\)"):
        factors("inverse_sqrt", warmup)


GRADIENTS = [torch.linspace(-3, 3, 30).view(5, 6), torch.linspace(-1, 2, 7)]


def clipped(choice, **tensors: torch.Tensor) -> list[torch.Tensor]:
    gradients = [g.clone() for g in GRADIENTS]
    with NoReading():
        CLIPPING.choose(choice).bind()(gradients, nn.utils.get_total_norm(gradients), **tensors)
    return gradients


@pytest.mark.parametrize("limit", [0.5, 5.0, 100.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("norm", nn.utils.clip_grad_norm_), ("value", nn.utils.clip_grad_value_)],
    ids=["norm", "value"],
)
@pytest.mark.parametrize("tensor", [False, True])
def test_clipping_equals_torchs(ours: str, theirs, limit: float, tensor: bool):
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in GRADIENTS]
    for parameter, gradient in zip(parameters, GRADIENTS, strict=True):
        parameter.grad = gradient.clone()
    theirs(parameters, limit)
    found = clipped(ours, limit=torch.tensor(limit)) if tensor else clipped({ours: {"limit": limit}})
    for a, b in zip(found, parameters, strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-6, atol=0)


def test_no_clipping_leaves_gradients_alone():
    assert all(torch.equal(a, b) for a, b in zip(clipped("none"), GRADIENTS, strict=True))
