"""The parts of an optimizer step, and the whole of it, with every variant of every factor: `pytest -m slow tests/benchmarks/test_steps.py`.

At a size at which what is dispatched is most of the time, on the synthetic source, without a compiler: on the CPU, or on a GPU where there
is one.
"""

from __future__ import annotations

import pytest
import torch
from counting import Held
from test_variants import ALL, FACTORS, name, recipe_with
from tiny import tiny
from torch import Tensor

from ablate.data import Corpus, prepare
from ablate.feed import Feed
from ablate.model import build
from ablate.recipe import Recipe
from ablate.step import Step
from ablate.train import lr_factors
from ablate.variants import Variant

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IN_STEP = [v for v in ALL if FACTORS[v.factor].in_step]
OF_THE_LOSS = [v for v in IN_STEP if v.factor not in ("optimizer", "clipping")]
"""What forward and backward go through."""
BEFORE_STEPS = [v for v in ALL if v.factor in ("init", "lr_schedule")]
OF_THE_DATA = [v for v in ALL if FACTORS[v.factor].field.startswith("data.")]
"""Those of test_data_pipeline.py."""

pytestmark = pytest.mark.benchmark(max_time=0.3)
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare(tiny(data__source={"synthetic": {"size": 200_000}}).data, tmp_path_factory.mktemp("cache"))


def windows_of(recipe: Recipe, corpus: Corpus) -> Tensor:
    """The first step's."""
    sequences, length = recipe.batch.sequences, recipe.data.seq_len
    return Feed(corpus, corpus.order(0, length, sequences), sequences, length, DEVICE, None).windows(0)


def with_gradients(recipe: Recipe, corpus: Corpus) -> Step:
    """The step of a recipe, before its optimizer."""
    step = Step(recipe, DEVICE)
    step.gradients(windows_of(recipe, corpus))
    return step


def settings(recipe: Recipe) -> str:
    return recipe.cell_id("", "")


def test_every_variant_has_a_benchmark() -> None:
    assert {*map(name, [*IN_STEP, *BEFORE_STEPS, *OF_THE_DATA])} == {*map(name, ALL)}


@slow
@pytest.mark.parametrize("variant", OF_THE_LOSS, ids=name)
def test_forward_and_backward(variant: Variant, corpus: Corpus, held: Held) -> None:
    recipe = recipe_with(variant)
    step, windows = Step(recipe, DEVICE), windows_of(recipe, corpus)

    def forward_and_backward() -> None:
        step.gradients(windows)
        step.optimizer.zero_grad(set_to_none=True)
        step.model.zero_grad(set_to_none=True)

    held.tensors(forward_and_backward, settings(recipe))


@slow
@pytest.mark.parametrize("variant", [*FACTORS["optimizer"]], ids=name)
def test_optimizer_step(variant: Variant, corpus: Corpus, held: Held) -> None:
    recipe = recipe_with(variant)
    step = with_gradients(recipe, corpus)
    held.tensors(step.optimizer.step, settings(recipe))


@slow
@pytest.mark.parametrize("variant", [*FACTORS["clipping"]], ids=name)
def test_clipping(variant: Variant, corpus: Corpus, held: Held) -> None:
    recipe = recipe_with(variant)
    step = with_gradients(recipe, corpus)
    gradients = [p.grad for p in step.updated if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    held.tensors(lambda: step.clip(gradients, norm), settings(recipe))


@slow
@pytest.mark.parametrize("variant", IN_STEP, ids=name)
def test_whole_step(variant: Variant, corpus: Corpus, held: Held) -> None:
    recipe = recipe_with(variant)
    step, windows = Step(recipe, DEVICE), windows_of(recipe, corpus)
    held.tensors(lambda: step(windows, 1.0), settings(recipe))


@slow
@pytest.mark.parametrize("variant", [*FACTORS["init"]], ids=name)
def test_building_a_model(variant: Variant, held: Held) -> None:
    recipe = recipe_with(variant)
    held.tensors(lambda: build(recipe, DEVICE), settings(recipe))


@slow
@pytest.mark.parametrize("variant", [*FACTORS["lr_schedule"]], ids=name)
def test_learning_rates_of_a_training(variant: Variant, held: Held) -> None:
    recipe = recipe_with(variant, train__steps=2000)
    held.python(lambda: lr_factors(recipe))
