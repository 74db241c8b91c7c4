"""Initialization: the distribution that each scheme states, and muP's promise that width does not change what a step does."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import ArrayCorpus, tiny

from ablate.errors import UserError
from ablate.model import build
from ablate.step import Step
from ablate.train import train


def spread(model, name: str) -> float:
    return float(model.get_parameter(name).detach().std())


@pytest.mark.parametrize(
    ("init", "matrix", "residual"),
    [
        ("normal", 0.02, 0.02),
        ("gpt2", 0.02, 0.02 / math.sqrt(2 * 3)),
        ({"gpt2": {"std": 0.05}}, 0.05, 0.05 / math.sqrt(2 * 3)),
        ("small", math.sqrt(2 / (5 * 128)), 2 / (3 * math.sqrt(128))),
        ({"mup": {"base_dim": 32}}, 0.02 / 2, 0.02 / 2 / math.sqrt(2 * 3)),
    ],
)
def test_matrices_have_the_stated_spread(init, matrix: float, residual: float):
    model = build(tiny(model__dim=128, model__n_layers=3, model__init=init, model__bias=True), "cpu")
    for i in range(3):
        for name in ("attention.qkv", "feed_forward.up"):
            assert spread(model, f"blocks.{i}.{name}.weight") == pytest.approx(matrix, rel=0.05)
        for name in ("attention.out", "feed_forward.down"):
            assert spread(model, f"blocks.{i}.{name}.weight") == pytest.approx(residual, rel=0.05)
            assert not model.get_parameter(f"blocks.{i}.{name}.bias").any()


def test_mup_at_its_base_is_gpt2():
    gpt2, mup = (
        train(tiny(model__init=init), corpus=ArrayCorpus(), device="cpu")
        for init in ("gpt2", {"mup": {"base_dim": 32, "base_head_dim": 8}})
    )
    assert gpt2.curves == mup.curves


def movement(init, dim: int) -> tuple[float, float]:
    """Root mean square of how far ten Adam steps move the logits, and what the last block adds to the stream."""
    recipe = tiny(
        model__init=init, model__dim=dim, model__n_heads=dim // 16, optimizer={"adamw": {"lr": 3e-3}}, model__norm="rmsnorm"
    )  # fmt: skip
    windows = torch.from_numpy(ArrayCorpus().validation(16, 8).tokens)
    step = Step(recipe, "cpu")
    model, added = step.model, []
    model.blocks[-1].register_forward_hook(lambda block, inputs, output: added.append((output - inputs[0]).detach()))
    before = model(windows[:, :-1]).detach()
    for _ in range(10):
        step(windows, 1.0)
    after = model(windows[:, :-1]).detach()
    return root_mean_square(after - before), root_mean_square(added[-1] - added[0])


def root_mean_square(change: torch.Tensor) -> float:
    return float(change.square().mean().sqrt())


def test_with_mup_a_step_moves_logits_and_stream_as_far_at_every_width():
    """The coordinate check of arXiv:2203.03466, appendix D.1; without muP the same rate moves a wider model further."""
    mup = [movement({"mup": {"base_dim": 32, "base_head_dim": None}}, dim) for dim in (32, 128, 512)]
    plain = [movement("gpt2", dim) for dim in (32, 128, 512)]
    for moved in zip(*mup, strict=True):
        assert max(moved) / min(moved) < 1.6, mup
    for moved in zip(*plain, strict=True):
        assert moved[2] / moved[0] > 2.5, plain


def test_heads_that_grow_with_the_model_are_scaled_from_the_base():
    grown = build(tiny(model__init={"mup": {"base_dim": 32, "base_head_dim": 4}}), "cpu").scheme
    kept = build(tiny(model__init={"mup": {"base_dim": 32, "base_head_dim": None}}), "cpu").scheme
    assert grown.attention_scale == pytest.approx(2 / 8) and kept.attention_scale == pytest.approx(8**-0.5)


@pytest.mark.parametrize(
    "overrides", [{"optimizer": "adafactor"}, {"model__attention": "mla"}, {"model__position": "sinusoidal"}]
)
def test_mup_is_refused_where_its_rule_does_not_hold(overrides: dict):
    with pytest.raises(UserError, match=r"model\.init: mup"):
        tiny(model__init="mup", **overrides)
