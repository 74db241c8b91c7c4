"""What can be counted of code that trains, and is the same each time it runs: operators, host synchronisations, graph breaks.

Counted with the dispatcher, on the CPU, whatever the device of the trials: a wait for the device is dispatched there, too, where it costs
nothing.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch

from ablate.feed import Corpus
from ablate.operators import Operators
from ablate.recipe import Recipe
from ablate.step import Step
from ablate.train import train

STEPS = (3, 5)
"""The steps of two trainings: what one has more than the other is what two steps cost, and nothing that happens once."""


def of_recipe(recipe: Recipe, corpus: Corpus) -> dict[str, float]:
    """Of one optimizer step of a recipe: `operators` and `host_syncs`, the training loop's included; and `graph_breaks` of its loss."""
    few, more = (_trained(recipe, corpus, steps) for steps in STEPS)
    apart = STEPS[1] - STEPS[0]
    found = {name: (more[name] - few[name]) / apart for name in few}
    return found | {"graph_breaks": float(graph_breaks(recipe))}


def _trained(recipe: Recipe, corpus: Corpus, steps: int) -> dict[str, float]:
    short = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"steps": steps}),
            "evaluation": recipe.evaluation.model_copy(
                update={"points": 1, "sequences": min(recipe.evaluation.sequences, recipe.batch.micro_sequences)}
            ),
        }
    )
    with Operators() as operators:
        train(short, corpus=corpus, device="cpu")
    return operators.counts()


def graph_breaks(recipe: Recipe) -> int:
    """In how many places torch.compile gives up on the loss of a recipe and goes on in Python."""
    step = Step(recipe, "cpu")
    windows = torch.zeros((recipe.batch.micro_sequences, recipe.data.seq_len + 1), dtype=torch.long)
    return breaks_of(step.losses, windows)


def breaks_of(function: Callable[..., Any], *args: Any) -> int:
    """In how many places torch.compile gives up on `function(*args)` and goes on in Python."""
    torch.compiler.reset()
    with contextlib.redirect_stderr(io.StringIO()):
        found = torch._dynamo.explain(function)(*args)
    torch.compiler.reset()
    return found.graph_break_count
