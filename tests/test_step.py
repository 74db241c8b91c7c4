"""The step: number formats, what is minimized, what is kept for the backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import ArrayCorpus, tiny
from torch.utils.flop_counter import FlopCounterMode

from ablate.measure import _Storages
from ablate.model import build
from ablate.step import Step
from ablate.train import train
from ablate.variants import load_factors

WINDOWS = torch.from_numpy(ArrayCorpus().validation(16, 8).tokens)


def step_of(**overrides) -> Step:
    return Step(tiny(**overrides), "cpu")


def gradients(**overrides) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    step = step_of(**overrides)
    step.model.train()
    step.gradients(WINDOWS)
    return {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}


# what is minimized


def test_label_smoothing_and_z_loss_follow_their_equations_and_only_in_training():
    model = build(tiny(train__label_smoothing=0.1, train__z_loss=0.01), "cpu")
    entropy, objective = model.train().losses(WINDOWS)
    logits = model(WINDOWS[:, :-1])
    logs = logits.log_softmax(-1)
    plain = -logs.gather(-1, WINDOWS[:, 1:, None])[..., 0]
    torch.testing.assert_close(entropy, plain)
    smoothed = 0.9 * plain - 0.1 * logs.mean(-1)
    torch.testing.assert_close(objective, (smoothed + 0.01 * logits.exp().sum(-1).log().square()).mean())
    entropy, objective = model.eval().losses(WINDOWS)
    assert torch.equal(entropy.mean(), objective)


def test_what_is_reported_is_the_cross_entropy_whatever_is_minimized():
    plain, other = step_of(), step_of(train__label_smoothing=0.2, train__z_loss=0.1)
    assert torch.equal(plain(WINDOWS, 1.0)[0], other(WINDOWS, 1.0)[0])
    assert not torch.equal(plain.evaluate(WINDOWS), other.evaluate(WINDOWS)), "the objective reached no gradient"


def test_output_soft_cap_bounds_the_logits():
    capped, plain = (build(tiny(model__output_soft_cap=cap), "cpu").requires_grad_(False) for cap in (0.1, None))
    tokens = WINDOWS[:, :-1]
    torch.testing.assert_close(capped(tokens), 0.1 * torch.tanh(plain(tokens) / 0.1))
    assert float(plain(tokens).abs().max()) > 0.1 > float(capped(tokens).abs().max())


# what is kept for the backward pass


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_checkpointing_changes_no_gradient_with_dropout_on(checkpointing: str):
    expected, found = (gradients(model__dropout=0.2, train__checkpointing=c) for c in ("none", checkpointing))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def kept_bytes(**overrides) -> int:
    """Bytes that are alive after the forward pass and were not before."""
    step = step_of(model__dim=64, data__seq_len=64, **overrides)
    with _Storages() as storages:
        kept = step.losses(torch.zeros(8, 65, dtype=torch.long))
        live = sum(size for _, size in storages.events)
    assert kept
    return live


def work(checkpointing: str) -> int:
    step = step_of(train__checkpointing=checkpointing)
    with FlopCounterMode(display=False) as counter:
        step.gradients(WINDOWS)
    return counter.get_total_flops()


def test_checkpointing_keeps_less_and_selective_repeats_no_matrix_product():
    none, selective, full = (kept_bytes(train__checkpointing=c) for c in ("none", "selective", "full"))
    assert full < 0.6 * none and full < selective < none
    assert work("none") == work("selective") < work("full")


@pytest.mark.parametrize("chunks", [2, 3, 128])
def test_loss_chunks_change_the_memory_and_not_the_gradient(chunks: int):
    expected, found = gradients(), gradients(train__loss_chunks=chunks)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7)
    # the gradient of the head takes the place of the logits
    assert kept_bytes(train__loss_chunks=chunks) < kept_bytes() - 8 * 64 * 320 * 4 + 2 * 32 * 320 * 4


# number formats


def test_a_bf16_model_is_updated_through_fp32_copies():
    """One step of 1e-5 is below the resolution of bf16 for most weights; a hundred of them are not lost."""
    options = {
        "lr_schedule": "constant",
        "train__warmup": 0.0,
        "optimizer": {"adamw": {"lr": 1e-5, "weight_decay": 0.0}},
    }
    step = step_of(train__precision="bf16_params", **options)
    assert {p.dtype for p in step.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in step.updated} == {torch.float32}
    start = [p.detach().clone() for p in step.updated]
    reference = step_of(train__precision="fp32", **options)
    for mine, theirs in zip(start, reference.parameters, strict=True):
        assert torch.equal(mine, theirs), "the copies start from the values before rounding"
    for _ in range(100):
        step(WINDOWS, 1.0)
        reference(WINDOWS, 1.0)
    for before, copy, theirs in zip(start, step.updated, reference.parameters, strict=True):
        moved, expected = (copy - before).detach().flatten(), (theirs - before).detach().flatten()
        if expected.any():
            assert float(F.cosine_similarity(moved, expected, dim=0)) > 0.8
    for copy, parameter in zip(step.updated, step.parameters, strict=True):
        assert torch.equal(copy.detach().bfloat16(), parameter)


@pytest.mark.parametrize("precision", ["bf16", "bf16_activations", "fp16", "bf16_params"])
def test_gradients_in_few_bits_are_those_in_many_unscaled(precision: str):
    def norm(precision: str) -> float:
        return float(step_of(train__precision=precision)(WINDOWS, 1.0)[1])

    assert norm(precision) == pytest.approx(norm("fp32"), rel=0.05)


def test_an_overflow_in_fp16_leaves_the_step_out_and_halves_the_scale():
    step = step_of(train__precision="fp16")
    assert step.scale is not None
    step.scale.factor.fill_(2.0**40)
    before = [p.detach().clone() for p in step.parameters]
    loss, _ = step(WINDOWS, 1.0)
    assert loss.isfinite()
    assert all(torch.equal(p, b) for p, b in zip(step.parameters, before, strict=True))
    assert float(step.scale.factor) == 2.0**39


@pytest.mark.parametrize("optimizer", [variant.name for variant in load_factors()["optimizer"]])
def test_a_first_step_that_is_left_out_leaves_no_state_of_unset_memory(optimizer: str):
    schedule = "constant" if optimizer == "schedule_free" else "cosine"
    step = step_of(train__precision="fp16", optimizer=optimizer, lr_schedule=schedule)
    assert step.scale is not None
    step.scale.factor.fill_(2.0**40)
    torch.use_deterministic_algorithms(True)  # fills unset memory
    try:
        step(WINDOWS, 1.0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert not any(value.any() for state in step.optimizer.state.values() for value in state.values())


@pytest.mark.parametrize("precision", [variant.name for variant in load_factors()["precision"]])
def test_products_are_in_the_recipes_format(precision: str):
    step = step_of(train__precision=precision)
    seen = []
    for module in step.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    step(WINDOWS, 1.0)
    assert len(seen) == 9 and set(seen) == {step.precision.autocast or step.precision.parameters}


@pytest.mark.parametrize(("precision", "products"), [("tf32", "high"), ("fp32", "highest")])
def test_tf32_holds_for_the_run_and_not_beyond_it(precision: str, products: str):
    seen = []
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        train(tiny(train__precision=precision), lambda p: seen.append(torch.get_float32_matmul_precision()),
              corpus=ArrayCorpus(), device="cpu")  # fmt: skip
        assert set(seen) == {products} and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
