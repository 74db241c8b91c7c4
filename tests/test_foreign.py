"""What is measured of a trainer that is not ours: loss, counts, noise."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ablate import foreign
from ablate.operators import Footprint

SEEDS, FRESH = [0, 1, 2], [3, 4, 5]


def learns(seed: int, steps: int = 30, lr: float = 0.1, waits: bool = False) -> float:
    """A line through points, by torch's SGD."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 8, generator=generator)
    y = x.sum(1, keepdim=True) + torch.randn(64, 1, generator=generator)
    model = torch.nn.Linear(8, 1)
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        if waits:
            loss.item()
    return float(loss.detach())


def saved(train: Callable[..., Any], **settings: Any) -> tuple[Any, list[str]]:
    return foreign.baseline(foreign.Trainer(train, settings), "t", SEEDS, FRESH)


def verdicts(train: Callable[..., Any], known: Any, margin: float | None = None, **settings: Any) -> dict[str, str]:
    findings = foreign.held(foreign.Trainer(train, settings), known, "t", SEEDS, FRESH, margin)
    return {one.metric: one.verdict for one in findings}


def test_the_same_trainer_passes_and_a_wait_is_found() -> None:
    known, notes = saved(learns)
    assert notes == []
    assert verdicts(learns, known) == dict.fromkeys(("host_syncs", "operators", "peak_memory_gib", "val_loss"), "pass")
    found = verdicts(lambda seed: learns(seed, waits=True), known)
    assert (found["host_syncs"], found["val_loss"]) == ("regression", "pass")
    assert verdicts(lambda seed: learns(seed, lr=0.02), known)["val_loss"] == "regression"
    assert verdicts(lambda seed: learns(seed, lr=0.09), known, margin=10.0)["val_loss"] == "pass"


def test_a_loss_is_not_called_worse_before_fresh_seeds_say_so_too() -> None:
    known, _ = saved(lambda seed: 1.0 + seed / 100)
    called = []

    def worse(seed: int, fresh: float) -> float:
        called.append(seed)
        return (1.0 + seed / 100) * (1.05 if seed < 3 else fresh)

    assert verdicts(lambda seed: worse(seed, 1.0), known)["val_loss"] == "inconclusive"
    assert called == [*SEEDS, *FRESH]
    assert verdicts(lambda seed: worse(seed, 1.05), known)["val_loss"] == "regression"


def test_a_count_is_not_called_worse_before_another_training_says_so_too() -> None:
    known, _ = saved(learns)
    calls = []

    def once(seed: int) -> float:
        calls.append(seed)
        return learns(seed, waits=len(calls) == len(SEEDS))

    assert verdicts(once, known)["host_syncs"] == "pass"
    assert calls == [*SEEDS, SEEDS[-1]]


def test_what_is_prepared_once_does_not_count() -> None:
    """Whether another test has prepared it in this process must not matter."""
    prepared: list[torch.Tensor] = []

    def train(seed: int) -> float:
        if not prepared:
            prepared.append(torch.randn(1000) @ torch.randn(1000, 1))
        return learns(seed)

    alone = foreign.Trainer(train, {})
    alone.measure([0])
    after = foreign.Trainer(train, {})
    after.measure([0])
    assert alone.counts == after.counts


def test_a_count_that_differs_from_call_to_call_is_not_held() -> None:
    calls = []

    def train(seed: int) -> float:
        calls.append(seed)
        return learns(seed, waits=len(calls) % 2 == 0)

    known, notes = foreign.baseline(foreign.Trainer(train, {}), "t", SEEDS, [])
    assert notes == ["not held, for it differs from call to call: host_syncs, operators"]
    assert set(known.arms["t"].counts) == {"peak_memory_gib"}


def test_the_noise_is_what_another_last_bit_does_to_a_training() -> None:
    calm = saved(learns)[0].noise["val_loss"]
    wild = saved(learns, lr=0.6, steps=60)[0].noise["val_loss"]  # diverges, and what was rounded with it
    assert 0 < calm.sd < 1e-5
    assert calm.n == wild.n == 6
    assert wild.sd > 1e3 * calm.sd


def test_noise_that_nothing_tells_is_not_made_up() -> None:
    known, notes = saved(lambda seed: 1.0 + seed)
    assert known.noise == {}
    assert notes[0].startswith("the noise of its loss is not known")


def test_a_nudge_moves_each_weight_by_its_last_bit_once_and_counts_nothing() -> None:
    def twice(footprint: Footprint) -> list[torch.Tensor]:
        weights = torch.nn.Parameter(before.clone())
        optimizer, after = torch.optim.SGD([weights], lr=0.0), []
        with footprint:
            for _ in range(2):
                optimizer.step()
                after.append(weights.detach().clone())
        return after

    before = torch.linspace(-1, 1, 8)
    plain, nudged = Footprint(), Footprint()
    assert all(torch.equal(one, before) for one in twice(plain))
    with foreign.nudge(nudged) as stepped:
        first, second = twice(nudged)
    assert len(stepped) == 1
    assert plain.found == nudged.found
    assert torch.equal(first, second)
    assert (first != before).all()
    assert torch.equal(first, torch.nextafter(before, torch.where(first > before, math.inf, -math.inf)))
    assert all(torch.equal(one, before) for one in twice(Footprint()))


def test_a_footprint_is_the_most_that_was_held_at_once() -> None:
    there = torch.ones(1000)
    with Footprint() as footprint:
        first = torch.zeros(100)
        first.view(10, 10).add_(1.0)
        there.mul_(2.0)
        second = first * 2
        del first
        third = second + 1
        del second, third
    assert footprint.peak == 800
    assert footprint.found == {"aten.zeros": 1, "aten.add_": 1, "aten.mul_": 1, "aten.mul": 1, "aten.add": 1}


def test_what_a_trainer_counts_itself_is_held_and_what_else_it_gives_is_not() -> None:
    def train(seed: int, parameters: int) -> dict[str, Any]:
        return {"loss": 1.0 + seed, "parameters": parameters, "accuracy": "high"}

    known, _ = saved(train, parameters=10)
    assert known.arms["t"].counts == {"parameters": 10.0}
    assert known.environment == {}
    assert known.settings == ["parameters=10"]
    assert verdicts(train, known, parameters=10) == {"parameters": "pass", "val_loss": "pass"}
    assert verdicts(train, known, parameters=11) == {"settings": "rebaseline"}
    assert verdicts(lambda seed, **_: train(seed, 11), known, parameters=10)["parameters"] == "regression"


def test_reading_the_loss_is_none_of_its_host_synchronisations() -> None:
    trainer = foreign.Trainer(lambda seed: torch.ones(3, requires_grad=True).sum(), {})
    trainer.measure([0])
    assert trainer.losses == {0: 3.0}
    assert trainer.counts["host_syncs"] == 0.0


def test_val_loss_goes_before_loss() -> None:
    assert foreign.loss_of({"loss": 1.0, "val_loss": 2.0}) == 2.0


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({"accuracy": 1.0}, "a trainer gives back `val_loss` or `loss`, and this one accuracy"),
        ({}, "and this one nothing"),
        (None, "and this one a NoneType"),
        ({"loss": torch.ones(2)}, "and this one a Tensor"),
    ],
)
def test_a_trainer_without_a_loss_is_told_so(result: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        foreign.loss_of(result)


def test_a_loss_that_ends_is_worse_and_none_to_begin_with_is_no_baseline() -> None:
    known, _ = saved(lambda seed: 1.0 + seed)
    assert verdicts(lambda seed: math.nan if seed == 1 else 1.0 + seed, known) == {"val_loss": "regression"}
    with pytest.raises(ValueError, match="the loss with seed 4 is inf: a baseline needs one that is finite"):
        saved(lambda seed: math.inf if seed == 4 else 1.0)


def test_other_seeds_need_another_baseline() -> None:
    known, _ = saved(lambda seed: 1.0 + seed)
    (found,) = foreign.held(foreign.Trainer(float, {}), known, "t", [0, 9], [], None)
    assert (found.metric, found.verdict, found.why) == ("seeds", "rebaseline", "it has no seed 9")


def test_a_trainer_that_does_not_use_its_seed_is_told_so() -> None:
    assert "the loss is the same with each seed: is the seed used?" in saved(lambda seed: 1.0)[1]


def test_it_takes_neither_the_name_of_a_registry_nor_torch(tmp_path: Path) -> None:
    """Where torch is missing the loss is held, and what the trainer counts itself."""
    code = """
import sys
sys.modules["torch"] = None
from ablate import foreign
known, notes = foreign.baseline(foreign.Trainer(lambda seed: {"loss": 1.0 + seed, "parameters": 3}, {}), "t", [0, 1], [2])
found = foreign.held(foreign.Trainer(lambda seed: 2.0 + seed, {}), known, "t", [0, 1], [2], None)
print([(one.metric, one.verdict) for one in found], "registry" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout == "[('parameters', 'rebaseline'), ('val_loss', 'regression')] False\n", done.stderr
