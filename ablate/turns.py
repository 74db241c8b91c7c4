"""Two recipes that take turns on a device, and what their times say of one another.

A round is four windows, A B B A, so that a drift of the device cancels in it; it gives one ratio of B to A. An interval is
that of Student's t over the logarithms of the rounds' ratios.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from ablate import measure, memory
from ablate.corpus import Corpus
from ablate.feed import Feed
from ablate.recipe import Recipe
from ablate.train import Kept, arithmetic, lr_factors

MOST_STEPS = 1000
"""Of a window."""
CONFIDENCE = 0.95
Window = Callable[[], dict[str, float]]
"""Works for a while; seconds by what was done."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A cell's figure over the baseline's, with the bounds of its 95 % interval."""

    estimate: float
    low: float
    high: float

    def __rtruediv__(self, number: float) -> Ratio:
        return Ratio(number / self.estimate, number / self.high, number / self.low)


def in_turns(baseline: Window, cell: Window, rounds: int) -> list[list[dict[str, float]]]:
    """The windows of each round, in the order A B B A."""
    return [[baseline(), cell(), cell(), baseline()] for _ in range(rounds)]


def ratio(rounds: Sequence[Sequence[dict[str, float]]], name: str) -> Ratio:
    """B's seconds over A's in rounds of A B B A: the geometric mean, and the interval of Student's t over logarithms."""
    logs = []
    for windows in rounds:
        a, b, c, d = (math.log(window[name]) for window in windows)
        logs.append((b + c - a - d) / 2)
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    half = float(stdtrit(len(logs) - 1, (1 + CONFIDENCE) / 2)) * error
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


class Contestant:
    """A recipe's prepared step on its way through a corpus, as in a trial."""

    def __init__(self, recipe: Recipe, corpus: Corpus, device: torch.device, tokens: Tensor | None) -> None:
        self.recipe, self.corpus, self.device, self.tokens = recipe, corpus, device, tokens
        self.factors, self.steps = lr_factors(recipe), max(recipe.train.steps, MOST_STEPS)
        self._warm = False
        self._begin()
        with arithmetic(recipe):
            self.step = Kept().step(recipe, device, lambda: self.feed.windows(0))

    def _begin(self) -> None:
        recipe, sequences, length = self.recipe, self.recipe.batch.sequences, self.recipe.data.seq_len
        order = self.corpus.order(recipe.seed, length, self.steps * sequences, recipe.data.unique_sequences)
        self.feed = Feed(self.corpus, order, sequences, length, self.device, self.tokens)
        self.losses, self.norms = torch.empty((2, self.steps), device=self.device)
        self.done = 0

    def warm_up(self) -> float:
        """Train until times are steady; seconds of a step."""
        self._warm = True
        return statistics.median(self._run(measure.WARM_UP_STEPS)[measure.WARM_UP_STEPS // 2 :])

    def window(self, steps: int, timed: list[float]) -> dict[str, float]:
        """Train so many steps; the median of their seconds, which are added to `timed`."""
        if not self._warm:
            self.warm_up()
        found = self._run(steps)
        timed += found
        return {"step": statistics.median(found)}

    def _run(self, steps: int) -> list[float]:
        if self.done + steps > self.steps:
            self._begin()
        clock = measure.StepClock(self.device)
        with arithmetic(self.recipe):
            clock.start()
            for _ in range(steps):
                windows = self.feed.windows(self.done, self.step.windows)
                loss, norm = self.step(windows, self.factors[self.done % len(self.factors)])
                self.losses[self.done], self.norms[self.done] = loss, norm
                clock.step()
                self.done += 1
            clock.read()
        return clock.seconds


class Pair:
    """Two contestants, which live at the same time if the device has room for both, and else are made anew when their turn comes."""

    def __init__(self, *make: Callable[[], Contestant]) -> None:
        self._make = make
        self._live: dict[int, Contestant] = {}
        self.together = True

    def __getitem__(self, which: int) -> Contestant:
        if which not in self._live:
            if not self.together:
                self.clear()
            self._live[which] = self._make[which]()
        return self._live[which]

    def warm_up(self) -> float:
        """Find out whether there is room for both; seconds of the shorter step."""
        try:
            return min(self[which].warm_up() for which in (1, 0))
        except Exception as error:
            if not memory.is_exhausted(error):
                raise
        self.clear()  # outside of the handler, whose error keeps tensors alive
        self.together = False
        return min(self[which].warm_up() for which in (1, 0))

    def clear(self) -> None:
        self._live.clear()
        memory.give_back()
