"""What can be counted of code that trains, and is the same each time it runs: operators, host synchronisations, graph breaks.

Counted with the dispatcher, on the CPU, whatever the device of the trials: a wait for the device is dispatched there, too, where it costs
nothing.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ablate.feed import Corpus
from ablate.recipe import Recipe
from ablate.step import Step
from ablate.train import train

SYNCHRONISING = frozenset({
    "aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.unique", "aten._unique2",
})  # fmt: skip
"""Operators whose result, or its shape, the host waits for."""
STEPS = (3, 5)
"""The steps of two trainings: what one has more than the other is what two steps cost, and nothing that happens once."""


class Operators(TorchDispatchMode):
    """Counts operators by name within a context; views, which compute nothing, are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.found[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def host_syncs(self) -> int:
        """How often the host would wait for a device."""
        return sum(self.found[name] for name in SYNCHRONISING)

    def counts(self) -> dict[str, float]:
        """`operators` and `host_syncs`."""
        return {"operators": float(self.found.total()), "host_syncs": float(self.host_syncs)}


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
            "evaluation": recipe.evaluation.model_copy(update={"points": 1}),
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
