"""One side of `ablate check --against`: a process over one tree of the code, which measures what it is asked.

A request is a line of JSON on stdin and has one of JSON on stdout for an answer. Both sides are alive at once and take turns: whichever
is not asked sleeps.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from ablate import counts, data, environment
from ablate.check import LOSS, RECORDED
from ablate.corpus import Corpus
from ablate.design import Design, expand, parse_set
from ablate.feed import resident
from ablate.recipe import Recipe
from ablate.rounding import Nudged
from ablate.suite import load_suite
from ablate.train import Kept, train
from ablate.turns import Contestant


class Side:
    """The arms of a suite as this tree has them; of each, the recipe of any seed."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.share = environment.share()
        self.device = torch.device(self.share.device)
        torch.set_num_threads(self.share.threads)
        self.recipes: dict[str, dict[int, Recipe]] = {}
        self._contestants: dict[str, Contestant] = {}

    def arms(
        self, suite: str, scale: str | None, settings: list[str], seeds: int | None, only: str | None
    ) -> dict[str, Any]:
        """Take up a suite: its arms, each with its seeds, and its scale."""
        design: Design = expand(load_suite(suite), scale=scale, overrides=parse_set(settings), seeds=seeds, only=only)
        for trial in design.trials:
            if not trial.control:
                self.recipes.setdefault(trial.label, {})[trial.seed] = trial.recipe
        return {"arms": {label: list(found) for label, found in self.recipes.items()}, "scale": design.scale}

    def run(self, arm: str, seed: int, nudged: bool = False) -> dict[str, float]:
        """Train one run; its loss and what is counted of it. Without a loss it did not finish. `nudged` as in `ablate.rounding`."""
        recipe, kept = self.recipes[arm][seed], Nudged() if nudged else Kept()
        result = train(recipe, corpus=self._corpus(recipe), device=str(self.device), kept=kept)
        wanted = RECORDED if result.status != "finished" else (*RECORDED, LOSS)
        return {name: result.metrics[name] for name in wanted if name in result.metrics}

    def count(self, arm: str) -> dict[str, float]:
        """What `ablate.counts` finds."""
        recipe = next(iter(self.recipes[arm].values()))
        return counts.of_recipe(recipe, self._corpus(recipe))

    def warm_up(self, arm: str) -> float:
        """Prepare the step of an arm and let go of any other; its seconds."""
        self._contestants.clear()
        recipe = next(iter(self.recipes[arm].values()))
        corpus = self._corpus(recipe)
        self._contestants[arm] = Contestant(recipe, corpus, self.device, resident(corpus, self.device))
        return self._contestants[arm].warm_up()

    def window(self, arm: str, steps: int) -> dict[str, float]:
        """Seconds of a step, the median of so many."""
        return self._contestants[arm].window(steps, [])

    def _corpus(self, recipe: Recipe) -> Corpus:
        return data.prepare(recipe.data, self.cache)


def serve(side: Side, requests: IO[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer until the requests end. An error is an answer, too."""
    for line in requests:
        asked = json.loads(line)
        try:
            answer({"answer": getattr(side, asked.pop("ask"))(**asked)})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"})


def end_with(parent: int) -> None:
    """End this process, whatever it is at, soon after that which started it was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what training prints is no answer

    def answer(said: dict[str, Any]) -> None:
        out.write(json.dumps(said) + "\n")
        out.flush()

    serve(Side(Path(sys.argv[1])), sys.stdin, answer)


if __name__ == "__main__":
    main()
