"""What is measured of a run: FLOPs, throughput, and what lies in memory at the moment of a step's peak."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import ArrayCorpus, tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ablate import measure
from ablate.model import build, parameter_count
from ablate.recipe import Recipe
from ablate.step import Step
from ablate.train import train
from ablate.variants import Variant, load_factors

OF_THE_MODEL = [v for f in load_factors().values() if f.field.startswith("model.") for v in f]
PARTS = ("parameters_gib", "gradients_gib", "optimizer_state_gib", "activations_gib")
GIB = 2**30


def name(variant: Variant) -> str:
    return f"{variant.factor}-{variant.name}"


def counted(recipe: Recipe) -> float:
    """FLOP per token of a forward and a backward pass, as torch counts them."""
    model, length = build(recipe, "meta"), recipe.data.seq_len
    with FlopCounterMode(display=False) as counter:
        model.losses(torch.zeros(2, length + 1, dtype=torch.long, device="meta"))[1].mean().backward()
    return counter.get_total_flops() / (2 * length)


@pytest.mark.parametrize("variant", OF_THE_MODEL, ids=name)
def test_the_flop_formula_agrees_with_torchs_count(variant: Variant):
    field = load_factors()[variant.factor].field
    recipe = tiny(**{field.replace(".", "__"): variant.name, "model__dim": 64, "data__seq_len": 128})
    assert measure.flops_per_token(build(recipe, "meta"), recipe) == pytest.approx(counted(recipe), rel=0.01)


@pytest.mark.parametrize(
    "overrides",
    [
        {"model__tie_embeddings": True},
        {"model__attention_soft_cap": 20.0, "model__output_soft_cap": 10.0},
        {"model__attention": {"gqa": {"n_kv_heads": 1}}, "model__activation": "swiglu", "model__head_dim": 32},
        {"data__document_masking": True, "model__bias": True},
    ],
    ids=lambda o: next(iter(o)),
)
def test_the_flop_formula_agrees_with_torchs_count_beyond_the_factors(overrides: dict):
    recipe = tiny(model__dim=64, data__seq_len=128, **overrides)
    assert measure.flops_per_token(build(recipe, "meta"), recipe) == pytest.approx(counted(recipe), rel=0.01)


def test_what_is_computed_again_is_no_flop_of_the_model():
    plain = tiny()
    again = tiny(train__checkpointing="full")
    assert counted(again) > 1.1 * counted(plain)
    flops = [measure.flops_per_token(build(recipe, "meta"), recipe) for recipe in (plain, again)]
    assert flops[0] == flops[1]


def test_the_flop_formula_by_hand():
    """Two layers of width 32 with 4 heads of 8: 12 dim^2 weights each, a head of 320 x 32, 2 x 32 products per key."""
    recipe = tiny(model__ffn_dim=128)
    assert recipe.model.vocab_size == 320
    expected = 6 * (2 * 12 * 32 * 32 + 320 * 32) + 6 * 16 * 2 * (32 + 32)
    assert measure.flops_per_token(build(recipe, "meta"), recipe) == expected


def measured(recipe: Recipe, steps: int = 2) -> tuple[Step, dict[str, float]]:
    """A step of the recipe and the memory of its last call."""
    step = Step(recipe, "cpu")
    windows = torch.randint(0, 64, (recipe.batch.sequences, recipe.data.seq_len + 1))
    for _ in range(steps - 1):
        step(windows, 1.0)
    with measure.StepMemory(step.model, step.optimizer) as memory:
        step(windows, 1.0, memory.watch)
    return step, memory.metrics()


def allocated_peak(recipe: Recipe) -> float:
    """The peak of a step in GiB by the CPU allocator's own reports, which see what the dispatcher does not."""
    step = Step(recipe, "cpu")
    windows = torch.randint(0, 64, (recipe.batch.sequences, recipe.data.seq_len + 1))
    step(windows, 1.0)
    state = [t for entry in step.optimizer.state.values() for t in entry.values() if isinstance(t, torch.Tensor)]
    held = {id(t.untyped_storage()): t.nbytes for t in (*step.parameters, *step.updated, *step.model.buffers(), *state)}
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        step(windows, 1.0)
    changes = [e.nbytes() for e in profile.kineto_results.events() if e.name() == "[memory]"]
    return (sum(held.values()) + max(np.cumsum(changes))) / GIB


SHAPES = {"model__dim": 64, "data__seq_len": 32, "batch__micro_sequences": 4}
CASES = [
    {},
    {"batch__micro_sequences": 8, "model__dim": 128, "data__seq_len": 16},
    {"train__precision": "bf16"},
    {"train__precision": "bf16_params"},
    {"train__checkpointing": "full"},
    {"train__loss_chunks": 8},
    {"model__tie_embeddings": True},
    {"optimizer": "adafactor"},
]


@pytest.mark.parametrize("overrides", CASES, ids=str)
def test_the_parts_of_memory_add_up_to_what_the_allocator_reports(overrides: dict):
    recipe = tiny(**SHAPES | overrides)
    _, found = measured(recipe)
    assert sum(found[part] for part in PARTS) == pytest.approx(allocated_peak(recipe), rel=0.05)
    assert found["peak_memory_gib"] == pytest.approx(sum(found[part] for part in PARTS))


def test_each_part_is_what_is_there_at_the_peak():
    """Logits of half a mebibyte make the peak, when backward has just begun: the second micro-batch finds the first's gradients."""
    recipe = tiny(**SHAPES)
    step, found = measured(recipe)
    parameters = sum(p.nbytes for p in step.parameters) / GIB
    buffers = sum(b.nbytes for b in step.model.buffers()) / GIB
    assert found["parameters_gib"] == pytest.approx(parameters + buffers)
    assert found["gradients_gib"] == pytest.approx(parameters)
    assert found["optimizer_state_gib"] == pytest.approx(2 * parameters, rel=0.01)
    assert found["activations_gib"] > 2 * 4 * 32 * recipe.model.vocab_size * 4 / GIB


def test_gradients_that_are_not_there_at_the_peak_do_not_count():
    """One micro-batch whose logits outweigh the model: at the peak there is at most the head's gradient."""
    recipe = tiny(batch__micro_sequences=8, data__seq_len=64)
    step, found = measured(recipe)
    assert found["gradients_gib"] <= step.model.head.weight.nbytes / GIB


def test_fp32_copies_of_rounded_parameters_are_optimizer_state():
    step, found = measured(tiny(**SHAPES, train__precision="bf16_params"))
    count = sum(p.numel() for p in step.parameters)
    buffers = sum(b.nbytes for b in step.model.buffers())
    assert found["parameters_gib"] * GIB == 2 * count + buffers
    assert found["optimizer_state_gib"] * GIB == pytest.approx(3 * 4 * count, rel=0.01)


def test_the_first_step_counts_the_state_that_it_makes():
    _, found = measured(tiny(batch__micro_sequences=1, data__seq_len=4), steps=1)
    assert found["optimizer_state_gib"] > 0


def test_memory_agrees_with_torchs_tracker():
    from torch.distributed._tools.mem_tracker import MemTracker

    recipe = tiny(**SHAPES | {"batch__micro_sequences": 8})
    _, found = measured(recipe)
    step = Step(recipe, "cpu")
    windows = torch.randint(0, 64, (8, 33))
    step(windows, 1.0)
    tracker = MemTracker()
    tracker.track_external(step.model, step.optimizer)
    with tracker:
        step(windows, 1.0)
    theirs = {
        str(getattr(k, "value", k)): v / GIB for k, v in tracker.get_tracker_snapshot("peak")[step.device].items()
    }
    assert found["peak_memory_gib"] == pytest.approx(theirs["Total"], rel=0.02)
    assert found["parameters_gib"] == pytest.approx(theirs["Parameter"] + theirs["Buffer"], rel=0.02)
    assert found["optimizer_state_gib"] == pytest.approx(theirs["Optstate"], rel=0.02)
    assert found["activations_gib"] == pytest.approx(theirs["Activation"] + theirs["Temp"], rel=0.1)


def test_a_run_records_the_memory_of_one_step():
    metrics = train(tiny(**SHAPES), corpus=ArrayCorpus(), device="cpu").metrics
    _, found = measured(tiny(**SHAPES))
    for part, value in found.items():
        assert metrics[part] == pytest.approx(value, rel=0.02), part


@pytest.mark.parametrize("checkpointing", [v.name for v in load_factors()["checkpointing"]])
@pytest.mark.parametrize("loss_chunks", [1, 8])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_activations", "bf16_params"])
def test_the_forecast_of_memory_is_right_within_a_factor_of_two(checkpointing: str, loss_chunks: int, precision: str):
    recipe = tiny(model__dim=64, model__n_layers=4, data__seq_len=64, train__checkpointing=checkpointing,
                  train__loss_chunks=loss_chunks, train__precision=precision)  # fmt: skip
    step, found = measured(recipe)
    forecast = measure.estimated_memory(recipe, parameter_count(step.model)) / GIB
    assert found["peak_memory_gib"] / 2 < forecast < found["peak_memory_gib"] * 2


def test_storages_are_counted_once_and_forgotten_when_they_go():
    model = nn.Linear(8, 8, bias=False)
    with measure.StepMemory(model, torch.optim.SGD(model.parameters())) as memory:
        kept = torch.zeros(1000)
        for _ in range(5):
            kept = kept + torch.ones(1000)
            kept.view(10, 100).add_(1)
    assert memory.metrics()["parameters_gib"] * GIB == 256
    assert 8000 <= memory.metrics()["activations_gib"] * GIB <= 12_000


def test_throughput_is_batch_over_median_step():
    recipe = tiny(train__steps=20)
    clock = measure.StepClock(torch.device("cpu"))
    clock.seconds = [9.0] * 2 + list(np.linspace(1, 3, 18))
    found = clock.metrics(recipe, flops=10, peak=1000.0, ceiling=800.0)
    assert found["step_time_ms"] == pytest.approx(2000)
    assert found["tokens_per_second"] == pytest.approx(128 / 2)
    assert (found["mfu"], found["mfu_measured"]) == (pytest.approx(64 * 10 / 1000), pytest.approx(64 * 10 / 800))
    assert 1000 < found["step_time_ms_p10"] < 2000 < found["step_time_ms_p90"] < 3000


@pytest.mark.parametrize("precision", [v.name for v in load_factors()["precision"]])
def test_the_peak_is_that_of_the_recipes_products(precision: str):
    expected = {"fp32": 67e12, "tf32": 494.7e12}.get(precision, 989.5e12)
    recipe = tiny(train__precision=precision)
    assert measure.peak_flops("NVIDIA H100 80GB HBM3", recipe) == expected
    assert measure.peak_flops("cpu", recipe) is None
