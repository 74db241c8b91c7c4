"""The stages of a run: where a suite tunes, each arm finds its own value first, and is then trained with it on the reporting seeds.

`next_stage` is a pure function of the design and of what the records say; nothing is kept beside them. Tuning trials have seeds of their
own, so that what is reported was not chosen by its own luck, and every arm may try as many values as any other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ablate._grid import Search, Value, search
from ablate._resolve import read
from ablate.design import Cell, Design, Trial
from ablate.errors import UserError
from ablate.recipe import Recipe

FIRST_SEED = 2_000_000
"""Tuning seeds count from here."""

Records = Callable[[Trial], float | None]
"""What is recorded of a trial: its loss, infinite if it diverged, NaN if it failed; None if it is to be trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """The search of one cell, and the trials of each value, by seed."""

    cell: Cell
    search: Search
    trials: Mapping[Value, tuple[Trial, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """A design as far as the records tell: the `trials` that it comes to, those whose value is not chosen yet (`later`, as they would
    be without tuning), and those that are to be trained now (`pending`)."""

    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...]
    later: tuple[Trial, ...]
    pending: tuple[Trial, ...]


def next_stage(design: Design, records: Records) -> tuple[Trial, ...] | None:
    """The trials that can be trained now, seed by seed; None where the design is complete."""
    return stages(design, records).pending or None


def stages(design: Design, records: Records) -> Stages:
    """All that the records decide. Nothing is reported before every arm is tuned."""
    if design.suite.tune is None:
        pending = tuple(trial for trial in design.trials if records(trial) is None)
        return Stages(arms=(), trials=design.trials, later=(), pending=pending)
    arms = tuple(_arm(design, cell, records) for cell in design.cells)
    tuning = sorted(
        (trial for arm in arms for same in arm.trials.values() for trial in same), key=lambda trial: trial.seed
    )
    by_levels = {tuple(arm.cell.levels.items()): arm for arm in arms}
    reported, later = [], []
    for trial in design.trials:
        levels = design.suite.baseline if trial.control == "bad" else trial.levels
        arm = by_levels[tuple(levels.items())]
        if not arm.search.decided:
            later.append(trial)
        else:
            reported.append(replace(trial, recipe=_with(design, arm, trial)))
    pending = [trial for trial in tuning if records(trial) is None] or [
        trial for trial in reported if records(trial) is None
    ]
    return Stages(arms=arms, trials=(*tuning, *reported), later=tuple(later), pending=tuple(pending))


def value_of(recipe: Recipe, field: str) -> Any:
    """What a tuned field comes to: a number, whatever it was said as."""
    for path, choice in recipe.choices().items():
        if field.startswith(f"{path}."):
            return choice.options[field.removeprefix(f"{path}.")]
    return read(recipe, field)


def _arm(design: Design, cell: Cell, records: Records) -> Arm:
    tune = design.suite.tune
    assert tune is not None
    taken = {*design.suite.seeds, *design.seeds}
    seeds = list(itertools.islice((seed for seed in itertools.count(FIRST_SEED) if seed not in taken), tune.seeds))
    trials: dict[Value, tuple[Trial, ...]] = {}

    def recipe(value: Value) -> Recipe:
        return design.arms.recipe(cell.levels, cell.label, {tune.field: value})

    def loss(value: Value) -> float | None:
        if value not in trials:
            one = recipe(value)
            trials[value] = tuple(
                Trial(
                    cell.levels, cell.label, seed, one.model_copy(update={"seed": seed}), stage="tune",
                    tuned=f"{tune.field.rpartition('.')[2]}={value}",
                )
                for seed in seeds
            )  # fmt: skip
        found = [records(trial) for trial in trials[value]]
        known = [one for one in found if one is not None]
        if len(known) < len(found):
            return None
        return math.inf if math.inf in known else math.fsum(known) / len(known)

    def possible(value: Value) -> bool:
        try:
            recipe(value)
        except UserError:
            return False
        return True

    return Arm(cell=cell, search=search(tune, loss, possible), trials=trials)


def _with(design: Design, arm: Arm, trial: Trial) -> Recipe:
    """The recipe of a reported trial with what its arm chose; that of the known-bad goes by the baseline's."""
    tune, chosen = design.suite.tune, arm.search.chosen
    tuned = {} if tune is None or chosen is None else {tune.field: chosen}
    bad = trial.control == "bad"
    recipe = (
        design.arms.resolver.known_bad(tuned) if bad else design.arms.recipe(arm.cell.levels, arm.cell.label, tuned)
    )
    return recipe.model_copy(update={"seed": trial.seed})
