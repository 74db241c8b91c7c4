"""Tables of trials with effects that are known, for the tests of the analysis."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from registry_records import design

from registry.mirror import Mirror
from registry.record import DesignRecord, TrialRecord


def grid(*levels: int, seeds: int = 5, **fields: Any) -> DesignRecord:
    """The full factorial of factors f0, f1, ... whose levels are "0", "1", ...; the baseline is all "0"."""
    names = [f"f{place}" for place in range(len(levels))]
    cells = [dict(zip(names, map(str, cell), strict=True)) for cell in itertools.product(*map(range, levels))]
    return design(cells, seeds, **fields)


def table(made: DesignRecord, **columns: Any) -> pd.DataFrame:
    """A finished trial for each of the design's, with these columns besides."""
    rows = [
        {"trial_id": t["trial_id"], "cell_id": t["cell_id"], "seed": t["seed"], "status": "finished", "exclusive": True,
         "control": t.get("control", ""), "environment_id": "e", "cell": t.get("label") or " ".join(t["levels"].values()),
         **{factor: t["levels"].get(factor) for factor in made.factors}}
        for t in made.trials
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**columns)


def codes(made: DesignRecord) -> np.ndarray:
    """Levels [trial, factor] as numbers."""
    return np.array([[int(t["levels"][factor]) for factor in made.factors] for t in made.trials])


def losses(
    made: DesignRecord,
    effects: Sequence[Sequence[float]],
    generator: np.random.Generator,
    *,
    interaction: np.ndarray | None = None,
    noise: float = 0.005,
    loud: float = 1.0,
    seeds: float = 0.3,
    within: float = 0.0,
) -> np.ndarray:
    """val_loss of the trials: 3, what each level adds, a block for each seed with deviation `seeds`, and noise, which is
    `loud` times that in level 1 of the first factor.

    `interaction` [level of f0, level of f1] is added; `within` is the deviation of what level and seed of f0 have in common.
    """
    levels = codes(made)
    _, seed = np.unique([t["seed"] for t in made.trials], return_inverse=True)
    y = 3.0 + generator.normal(0.0, seeds, seed.max() + 1)[seed]
    for place, adds in enumerate(effects):
        y += np.asarray(adds)[levels[:, place]]
    if interaction is not None:
        y += interaction[levels[:, 0], levels[:, 1]]
    y += generator.normal(0.0, 1.0, (seed.max() + 1, len(effects[0])))[seed, levels[:, 0]] * within
    return y + generator.normal(0.0, noise, len(y)) * np.where(levels[:, 0] == 1, loud, 1.0)


def mirror_of(designs: Sequence[DesignRecord], records: Sequence[TrialRecord]) -> Mirror:
    """The mirror of a store with these, without the seconds that it takes to fill one."""
    return Mirror.of({one.record_id: one for one in records}, {made.design_id: made for made in designs})
