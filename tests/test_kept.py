"""What outlives a trial: a prepared step that serves another recipe of its shape gives what a new one would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_variants import OF_A_STEP, name, recipe_with
from tiny import ArrayCorpus, tiny

from ablate.feed import Feed
from ablate.recipe import Recipe
from ablate.step import Step
from ablate.train import Kept, train
from ablate.variants._factor import Variant

CORPUS = ArrayCorpus()
CPU = torch.device("cpu")


def begun(recipe: Recipe, windows: torch.Tensor) -> Step:
    step = Step(recipe, CPU)
    step.prepare(windows)
    step.begin(recipe)
    return step


def trained(step: Step, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    losses = torch.stack([step(batch, 0.5 + 0.1 * i)[0].clone() for i, batch in enumerate(batches)])
    return {"losses": losses, "evaluation": step.evaluate(batches[0])} | {
        name: parameter.detach().clone() for name, parameter in step.model.named_parameters()
    }


@pytest.mark.parametrize("variant", OF_A_STEP, ids=name)
def test_a_step_begun_again_is_a_new_one(variant: Variant):
    recipe = recipe_with(variant, model__dropout=0.1)
    batches = [torch.randint(0, 64, (8, 17)) for _ in range(3)]
    used = begun(recipe, batches[0])
    trained(used, batches)
    other = recipe.model_copy(update={"seed": 7})
    used.begin(other)
    expected = trained(begun(other, batches[0]), batches)
    for key, value in trained(used, batches).items():
        assert torch.equal(value, expected[key]), key


def test_a_step_begun_again_scales_its_losses_as_a_new_one():
    recipe, windows = tiny(train__precision="fp16"), torch.randint(0, 64, (8, 17))
    used, new = begun(recipe, windows), begun(recipe, windows)
    assert used.scale is not None and new.scale is not None
    used.scale.update(torch.tensor(torch.inf))
    assert used.scale.factor < new.scale.factor
    used.begin(recipe)
    assert used.scale.factor == new.scale.factor


LIKE = [
    {"seed": 3},
    {"optimizer": {"adamw": {"lr": 3e-3, "weight_decay": 0.3}}},
    {"train__clipping": {"norm": {"limit": 0.02}}},
    {"train__steps": 7, "lr_schedule": "linear", "train__warmup": 0.3},
    {"evaluation__sequences": 5},
]
UNLIKE = [
    {"model__dim": 64},
    {"optimizer": {"adamw": {"beta2": 0.9}}},
    {"optimizer": {"adamw": {"weight_decay": 0.0}}},
    {"optimizer": "lion"},
    {"train__clipping": "none"},
    {"train__z_loss": 1e-4},
    {"model__dropout": 0.1},
    {"batch__micro_sequences": 4},
    {"data__document_masking": True},
]


@pytest.mark.parametrize("changes", LIKE, ids=str)
def test_recipes_that_differ_in_what_lies_on_the_device_share_a_step(changes: dict[str, Any]):
    kept = Kept()
    first = train(tiny(), corpus=CORPUS, device="cpu", kept=kept)
    step = kept._step
    second = train(tiny(**changes), corpus=CORPUS, device="cpu", kept=kept)
    assert kept._step is step is not None
    fresh = train(tiny(**changes), corpus=CORPUS, device="cpu")
    assert second.curves == fresh.curves and second.curves != first.curves
    assert second.metrics["peak_memory_gib"] == first.metrics["peak_memory_gib"]


@pytest.mark.parametrize("changes", UNLIKE, ids=str)
def test_recipes_that_are_compiled_differently_do_not(changes: dict[str, Any]):
    kept = Kept()
    train(tiny(), corpus=CORPUS, device="cpu", kept=kept)
    step = kept._step
    second = train(tiny(**changes), corpus=CORPUS, device="cpu", kept=kept)
    assert kept._step is not step
    assert second.curves == train(tiny(**changes), corpus=CORPUS, device="cpu").curves


def test_a_variant_that_did_not_earn_it_is_built_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Recipe, "capturable", property(lambda self: False))
    kept = Kept()
    first, second = (train(tiny(), corpus=CORPUS, device="cpu", kept=kept) for _ in range(2))
    assert kept._step is None and first.curves == second.curves


def test_nothing_is_kept_of_a_trial_that_failed():
    def fail(progress: Any) -> None:
        raise RuntimeError("in the middle of a step")

    kept = Kept()
    with pytest.raises(RuntimeError, match="in the middle"):
        train(tiny(), fail, corpus=CORPUS, device="cpu", kept=kept)
    assert kept._step is None


def test_windows_are_those_of_the_order_wherever_the_tokens_lie():
    recipe = tiny()
    order = CORPUS.order(0, 16, 24, None)
    tokens = torch.from_numpy(CORPUS.tokens.astype("int32"))
    read, held = (Feed(CORPUS, order, 8, 16, CPU, given) for given in (None, tokens))
    out = torch.empty((8, 17), dtype=torch.int32)
    for step in range(3):
        expected = torch.stack(
            [torch.from_numpy(CORPUS.tokens[s : s + 17].astype("int64")) for s in order[8 * step :][:8]]
        )
        assert torch.equal(read.windows(step), expected)
        assert held.windows(step, out) is out and torch.equal(out.long(), expected)
    assert recipe.batch.sequences == 8
