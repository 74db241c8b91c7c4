"""ablate: what each choice in an LLM pretraining recipe does to quality, speed and memory, measured.

From Python::

    import ablate
    from ablate.train import train

    design = ablate.expand(ablate.load_suite("attention"), scale="nano")
    recipe = design.trials[0].recipe
    result = train(recipe, corpus=ablate.prepare(recipe.data, cache))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablate.data import prepare
    from ablate.design import expand
    from ablate.plan import make_plan
    from ablate.recipe import Recipe
    from ablate.scheduler import run
    from ablate.suite import load_suite

__version__ = "0.1.0"
__all__ = ["Recipe", "expand", "load_suite", "make_plan", "prepare", "run"]

_WHERE = {
    "Recipe": "recipe", "expand": "design", "load_suite": "suite", "make_plan": "plan", "prepare": "data", "run": "scheduler",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'ablate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ablate.{_WHERE[name]}"), name)
