"""What only a GPU shows: the captured step, FlexAttention, device-side timing and memory, and bitwise determinism there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attending import HEADS, SCORES, SEPARATOR, attention_of, forms, random_tokens, tiny_with
from tiny import ArrayCorpus, tiny

from ablate.graph import Captured
from ablate.recipe import Recipe
from ablate.step import Step
from ablate.train import Kept, train
from ablate.variants._attend import seen_blocks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:TensorFloat32", "ignore:.*autograd.function.Function:DeprecationWarning"),
]
SIZES = {"model__dim": 128, "model__n_heads": 2, "data__seq_len": 64, "train__steps": 80, "train__precision": "bf16"}


def test_a_captured_trial_measures_speed_and_memory_on_the_device():
    result = train(tiny(**SIZES), corpus=ArrayCorpus(), device="cuda")
    m = result.metrics
    assert (result.status, result.step_mode) == ("finished", "graph")
    assert m["tokens_per_second"] > 0 and 0 < m["mfu"] < m["mfu_measured"] < 1
    assert m["energy_wh"] > 0


MEMORY = {
    "model__dim": 256, "model__n_layers": 4, "data__seq_len": 256, "batch__sequences": 32, "batch__micro_sequences": 16, "train__steps": 4,
}  # fmt: skip


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"train__precision": "bf16"},
        {"train__precision": "bf16_params", "train__checkpointing": "full", "train__loss_chunks": 4},
    ],
    ids=str,
)
def test_the_parts_of_memory_add_up_to_the_allocators_peak(overrides: dict, compiled: bool):
    with torch.compiler.set_stance("default" if compiled else "force_eager"):
        result = train(tiny(**MEMORY | overrides), corpus=ArrayCorpus(), device="cuda")
    m = result.metrics
    parts = ("parameters_gib", "gradients_gib", "optimizer_state_gib", "activations_gib")
    assert sum(m[p] for p in parts) == pytest.approx(m["peak_memory_gib"], rel=0.05)
    # the second of two micro-batches makes the peak, and finds the gradients of the first
    width, copies = (2, 3) if "bf16_params" in overrides.values() else (4, 2)
    assert m["gradients_gib"] == pytest.approx(width * m["parameters"] / 2**30, rel=0.05)
    assert m["optimizer_state_gib"] == pytest.approx(4 * copies * m["parameters"] / 2**30, rel=0.05)


@pytest.mark.parametrize("changes", [{"model__dropout": 0.1}, SCORES[-1]], ids=["dropout", "flexattention"])
def test_the_deterministic_mode_is_bitwise(changes: dict[str, Any]):
    recipe = tiny(train__deterministic=True, **SIZES | changes)
    first, second = (train(recipe, corpus=ArrayCorpus(), device="cuda") for _ in range(2))
    assert first.curves == second.curves


def test_the_device_learns_what_the_cpu_learns():
    recipe = tiny(**SIZES | {"train__precision": "fp32"})
    on_gpu, on_cpu = (train(recipe, corpus=ArrayCorpus(), device=device) for device in ("cuda", "cpu"))
    assert on_gpu.metrics["val_loss"] == pytest.approx(on_cpu.metrics["val_loss"], abs=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__dropout": 0.1, "train__precision": "fp16", "batch__micro_sequences": 4},
        {"optimizer": "muon"},
        SCORES[-1],
    ],
    ids=["plain", "dropout-fp16-accumulation", "muon", "flexattention"],
)
def test_a_captured_step_serves_another_trial_as_a_new_one_would(changes: dict[str, Any]):
    """Bitwise, in the deterministic mode: another seed, rate, decay, limit, length and schedule."""
    sizes = SIZES | {"train__deterministic": True} | changes
    optimizer = sizes.pop("optimizer", "adamw")
    first = tiny(optimizer={optimizer: {"lr": 1e-3}}, **sizes)
    second = tiny(
        seed=5, optimizer={optimizer: {"lr": 3e-3, "weight_decay": 0.3}}, lr_schedule="linear",
        train__clipping={"norm": {"limit": 0.1}}, **sizes | {"train__steps": 30},
    )  # fmt: skip
    kept = Kept()
    train(first, corpus=ArrayCorpus(), device="cuda", kept=kept)
    step = kept._step
    reused = train(second, corpus=ArrayCorpus(), device="cuda", kept=kept)
    assert kept._step is step and reused.step_mode == "graph"
    fresh = train(second, corpus=ArrayCorpus(), device="cuda")
    assert reused.curves == fresh.curves
    assert reused.metrics["peak_memory_gib"] == pytest.approx(fresh.metrics["peak_memory_gib"], rel=0.01)


def test_two_captured_steps_do_not_disturb_one_another():
    """Bitwise, in the deterministic mode: one that is alive while another is prepared and used learns as it does alone."""
    recipes = [tiny(train__deterministic=True, **SIZES | {"model__dim": dim}) for dim in (128, 256)]
    batches = [torch.randint(0, 64, (8, 65), device="cuda") for _ in range(20)]

    def losses(step: Step, batches: list[torch.Tensor]) -> list[float]:
        return [float(step(batch, 1.0)[0]) for batch in batches]

    def prepared(recipe: Recipe) -> Step:
        step = Step(recipe, "cuda")
        step.prepare(batches[0])
        step.begin(recipe)
        return step

    torch.use_deterministic_algorithms(True)
    try:
        alone = losses(prepared(recipes[0]), batches)
        torch.compiler.reset()
        first = prepared(recipes[0])
        second = prepared(recipes[1])
        found = []
        for batch in batches:
            found += losses(first, [batch])
            losses(second, [batch])
    finally:
        torch.use_deterministic_algorithms(False)
    assert found == alone


def test_a_capture_that_fails_leaves_dropout_usable():
    ones = torch.ones(64, device="cuda")

    def reads_back(tensor: torch.Tensor) -> float:
        return float(torch.nn.functional.dropout(tensor).sum())

    with pytest.raises(RuntimeError, match="capture"):
        Captured(reads_back, ones, torch.cuda.Stream())
    torch.cuda.manual_seed(0)
    assert 0 < int((torch.nn.functional.dropout(ones) == 0).sum()) < 64


def test_tokens_that_do_not_fit_arrive_as_those_that_do(monkeypatch: pytest.MonkeyPatch):
    recipe = tiny(train__deterministic=True, **SIZES)
    held = train(recipe, corpus=ArrayCorpus(), device="cuda")
    monkeypatch.setattr("ablate.feed.RESIDENT_SHARE", 0.0)
    assert train(recipe, corpus=ArrayCorpus(), device="cuda").curves == held.curves


def test_a_trial_that_exhausts_the_device_leaves_it_usable():
    kept = Kept()
    with pytest.raises(torch.OutOfMemoryError):
        train(
            tiny(**SIZES | {"batch__sequences": 2**22, "batch__micro_sequences": 2**22}), corpus=ArrayCorpus(),
            device="cuda", kept=kept,
        )  # fmt: skip
    assert train(tiny(**SIZES), corpus=ArrayCorpus(), device="cuda", kept=kept).step_mode == "graph"


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_step_between_reports_waits_for_the_device():
    recipe = tiny(**SIZES)
    step = Kept().step(recipe, torch.device("cuda"), lambda: torch.randint(0, 64, (8, 65), device="cuda"))
    assert step.windows is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step(step.windows, 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_every_trial_of_a_process_is_captured():
    modes = {
        train(tiny(seed=s, **SIZES | {"train__steps": 5}), corpus=ArrayCorpus(), device="cuda").step_mode
        for s in range(10)
    }
    assert modes == {"graph"}


@pytest.mark.parametrize("scores", SCORES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_flexattention_equals_a_dense_mask_forward_and_backward(heads: Any, scores: dict[str, Any]):
    """Over a length that is no multiple of its blocks, in fp32."""
    recipe = tiny_with(heads, scores, model__dim=128, data__seq_len=200)
    attention, position = attention_of(recipe, "cuda")
    attention.attend.scale *= 0.7  # what nothing takes for granted
    tokens = random_tokens(recipe, "cuda")
    separator = SEPARATOR if recipe.data.document_masking else None
    x = torch.randn(2, 200, 128, device="cuda", requires_grad=True)
    upstream = torch.randn(2, 200, 128, device="cuda")
    flex, dense = forms(recipe, position, tokens)
    torch.compiler.reset()
    assert (seen_blocks(recipe.model, position, tokens, separator) is None) == (scores == SCORES[0])

    inputs = [x, *attention.parameters()]
    found = []
    for attend, seen in ((torch.compile(attention, fullgraph=True), flex), (attention, dense)):
        y = attend(x, seen)
        found.append([y, *torch.autograd.grad(y, inputs, upstream)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max()))


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_params"])
@pytest.mark.parametrize("heads", ["gqa", "mla"])
def test_a_compiled_step_with_everything_at_once_has_the_gradients_of_the_cpu(
    heads: str, precision: str, checkpointing: str
):
    changes = {"train__precision": precision, "train__checkpointing": checkpointing}
    recipe = tiny_with(heads, SCORES[-1], model__dim=128, data__seq_len=160, **changes)
    windows = torch.randint(200, 257, (8, 161))
    norms = {}
    for device in ("cpu", "cuda"):
        step = Step(recipe, device)
        step.prepare(windows.to(device))
        step.begin(recipe)
        loss, norms[device] = step(windows.to(device), 1.0)
        assert step.mode == ("graph" if device == "cuda" else "eager")
        norms[device] = torch.stack((loss, norms[device])).cpu()
    torch.testing.assert_close(*norms.values(), rtol=1e-4 if precision == "fp32" else 0.03, atol=0)
