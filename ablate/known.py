"""What the registry knows that decides what is to be trained: the speed of recipes, and what came of trials."""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import environment
from ablate.errors import UserError
from ablate.fingerprint import code_fingerprint
from ablate.recipe import Recipe

if TYPE_CHECKING:
    from registry import Spool, Store


class Speeds:
    """Tokens per second of one recipe over another's, by the newest pass for speed in this environment that had both take turns.

    A recipe is as fast as any that one prepared step serves, by the same code (`Recipe.shape`): seed, length and rates do not matter.
    """

    def __init__(self, home: Path, *, workers: int | None = None, tracking_uri: str | None = None) -> None:
        self.home, self.workers, self.tracking_uri = home, workers, tracking_uri
        self._code = functools.cache(code_fingerprint)

    def __call__(self, recipe: Recipe, baseline: Recipe) -> float | None:
        own, other = self._kind(recipe), self._kind(baseline)
        return 1.0 if own == other else self._ratios.get((own, other))

    def _kind(self, recipe: Recipe) -> str:
        return f"{recipe.shape()} {self._code(selected(recipe))}"

    @functools.cached_property
    def _ratios(self) -> dict[tuple[str, str], float]:
        import pyarrow.compute as pc

        from registry import Store
        from registry.mirror import sync
        from registry.standing import unretracted

        place = environment.environment_id(environment.expected(workers=self.workers))
        here = (pc.field("environment_id") == place) & (pc.field("purpose") == "speed")
        measured = unretracted(
            sync(Store.open(self.home, self.tracking_uri, create=False)),
            ["finished_at", "trial_id", "recipe", "code_fingerprint", "context"],
            here & (pc.field("status") == "finished") & pc.field("exclusive"),
        ).to_pylist()
        kinds: dict[str, str] = {}
        for row in measured:
            if shape := _shape(row["recipe"]):
                kinds[row["trial_id"]] = f"{shape} {row['code_fingerprint']}"
        found = {}
        for row in sorted(measured, key=lambda row: row["finished_at"]):
            speed: dict[str, Any] = json.loads(row["context"]).get("speed", {})
            both = kinds.get(row["trial_id"]), kinds.get(speed.get("baseline_trial_id", ""))
            if all(both):
                found[both] = speed["ratios"]["tokens_per_second"]["estimate"]
        return found


class Forecast:
    """Seconds that a trial may take, and whether they are from measured step times of its shape in this environment (the newest counts);
    else they are from the rate of other shapes here, else from a guess."""

    def __init__(self, store: Store, environment_id: str, found: dict[str, Any]) -> None:
        import pyarrow.compute as pc

        from registry.mirror import sync
        from registry.standing import unretracted

        speed, flops = "metrics.tokens_per_second", "metrics.flops_per_token"
        here = (pc.field("environment_id") == environment_id) & (pc.field(speed) > 0) & (pc.field(flops) > 0)
        known = unretracted(sync(store), ["finished_at", speed, flops, "recipe"], here)
        newest = sorted(map(tuple, map(dict.values, known.to_pylist())))[-1000:]
        self.rates = [speed * flops for _, speed, flops, _ in newest]
        self.by_shape = {shape: speed for _, speed, _, text in newest if (shape := _shape(text))}
        self.found = found

    def __call__(self, recipe: Recipe, flops_per_token: int) -> tuple[float, bool]:
        # evaluation is a third of the work of training on the same tokens
        evaluated = recipe.evaluation.sequences * recipe.data.seq_len * recipe.evaluation.points
        tokens = recipe.tokens + evaluated / 3
        if measured := self.by_shape.get(recipe.shape()):
            return 1.0 + tokens / measured, True
        return 1.0 + tokens * flops_per_token / self._rate(recipe), False

    def _rate(self, recipe: Recipe) -> float:
        from ablate import measure

        peak = measure.peak_flops(self.found["device"], recipe)
        return (
            statistics.median(self.rates) if self.rates else 0.3 * peak if peak else _matmul_rate(self.found["threads"])
        )


@functools.lru_cache(maxsize=2000)
def _shape(recipe: str) -> str | None:
    """The shape of a recorded recipe; None for one of a version with other fields."""
    try:
        return Recipe.from_dict(json.loads(recipe)).shape()
    except UserError:
        return None


@functools.cache
def _matmul_rate(threads: int) -> float:
    """A quarter of what this CPU multiplies small matrices at, in FLOP/s: about what small models reach."""
    import time

    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a = torch.randn(512, 512)
    torch.mm(a, a)
    begin = time.perf_counter()
    for _ in range(5):
        torch.mm(a, a)
    torch.set_num_threads(before)
    return 0.25 * 5 * 2 * 512**3 / (time.perf_counter() - begin)


class Results:
    """What an environment has of trials: the status of each, and of tuning trials the loss.

    Those whose status is in `again` count as not done, unless they are among those `tried` already; what was retracted is no result.
    """

    def __init__(
        self, store: Store, spool: Spool, environment_id: str, *, again: Collection[str] = (), tried: Collection[str] = ()
    ) -> None:  # fmt: skip
        self.store, self.place, self.again, self.tried = store, environment_id, again, tried
        self.statuses = store.statuses(environment_id)
        retracted = store.retracted()
        self.spooled = [
            r for r in spool.records()
            if (r.environment_id, r.purpose) == (environment_id, "primary") and r.record_id not in retracted
        ]  # fmt: skip
        self.statuses |= {record.trial_id: record.status for record in self.spooled}

    def __call__(self, trial_id: str) -> float | None:
        """Its loss: infinite if it diverged, NaN if it failed, None if it is to be trained."""
        status = self.statuses.get(trial_id)
        if status is None or (status in self.again and trial_id not in self.tried):
            return None
        return (
            math.inf
            if status == "diverged"
            else self._losses.get(trial_id, math.nan)
            if status == "finished"
            else math.nan
        )

    @functools.cached_property
    def _losses(self) -> dict[str, float]:
        """Of each trial that finished, as its first record has it: the one that leaderboards count."""
        import pyarrow.compute as pc

        from registry.mirror import sync
        from registry.standing import unretracted

        here = (pc.field("environment_id") == self.place) & (pc.field("purpose") == "primary")
        trials = unretracted(
            sync(self.store), ["finished_at", "trial_id", "metrics.val_loss"], here & (pc.field("status") == "finished")
        )
        found = [tuple(row.values()) for row in trials.to_pylist()]
        found += [
            (r.finished_at, r.trial_id, r.metrics.get("val_loss")) for r in self.spooled if r.status == "finished"
        ]
        return {
            trial_id: loss
            for _, trial_id, loss in sorted(found, key=lambda row: row[0], reverse=True)
            if loss is not None
        }


def selected(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """Module and name of the definitions that the recipe chooses."""
    return tuple(
        sorted({(c.variant.build.__module__, c.variant.build.__qualname__) for c in recipe.choices().values()})
    )
