"""What only a GPU shows: the compiled step, device-side timing and memory, and bitwise determinism there."""

from __future__ import annotations

import pytest
import torch
from tiny import ArrayCorpus, tiny

from ablate.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SIZES = {"model__dim": 128, "model__n_heads": 2, "data__seq_len": 64, "train__steps": 80, "train__precision": "bf16"}


def test_a_compiled_trial_measures_speed_and_memory_on_the_device():
    result = train(tiny(**SIZES), corpus=ArrayCorpus(), device="cuda")
    m = result.metrics
    assert (result.status, result.step_mode) == ("finished", "compiled")
    assert m["tokens_per_second"] > 0 and m["mfu"] > 0
    parts = ("parameters_gib", "gradients_gib", "optimizer_state_gib", "activations_gib")
    assert sum(m[p] for p in parts) == pytest.approx(m["peak_memory_gib"])


def test_the_deterministic_mode_is_bitwise():
    recipe = tiny(train__deterministic=True, model__dropout=0.1, **SIZES)
    first, second = (train(recipe, corpus=ArrayCorpus(), device="cuda") for _ in range(2))
    assert first.curves == second.curves


@pytest.mark.filterwarnings("ignore:TensorFloat32")
def test_the_device_learns_what_the_cpu_learns():
    recipe = tiny(**SIZES | {"train__precision": "fp32"})
    on_gpu, on_cpu = (train(recipe, corpus=ArrayCorpus(), device=device) for device in ("cuda", "cpu"))
    assert on_gpu.metrics["val_loss"] == pytest.approx(on_cpu.metrics["val_loss"], abs=0.02)


def test_every_trial_of_a_process_is_compiled():
    modes = {
        train(tiny(seed=s, **SIZES | {"train__steps": 5}), corpus=ArrayCorpus(), device="cuda").step_mode
        for s in range(10)
    }
    assert modes == {"compiled"}
