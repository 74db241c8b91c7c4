"""What a design can show before anything is run: what it confounds, the smallest effects it would find, and its price."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ablate.aliases import Alias, Columns, Effect, coding, effects, estimable
from ablate.optimal import Optimal, Quality, quality

if TYPE_CHECKING:
    from ablate.design import Design
    from ablate.plan import Plan
    from registry.noise import Noise

METRIC = "val_loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What can be expected of one contrast: it averages over so many `pairs` of cells, or tells as much as so many.

    `smallest_effect` is what it shows with power 0.8 after correction for all contrasts, in nats per token, or in standard deviations of a
    run where the noise is not known; infinite with one seed or without pairs. `seeds` would show the effect that was stated.
    """

    factor: str
    level: str
    against: str
    pairs: float
    smallest_effect: float
    seeds: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """`interactions` are those of two factors that can be told apart from all others and from the main effects; `noise` that of a
    run's val_loss; `effect` the one that was stated, in nats per token; `quality` is of an optimal design."""

    design: Design
    cells_stood_for: int
    aliases: tuple[Alias, ...]
    interactions: tuple[Effect, ...]
    quality: Quality | None
    noise: Noise | None
    effect: float | None
    prospects: tuple[Prospect, ...]


def outlook(design: Design, made: Plan, home: Path, *, effect: float | None = None) -> Outlook:
    """The outlook of the whole `design`, of which `made` may be a part. `effect` is by default the suite's margin."""
    suite, cells = design.suite, [dict(cell.levels) for cell in design.cells]
    effect = suite.margin if effect is None else effect
    noise = _noise(design, made, home)
    return Outlook(
        design=design,
        cells_stood_for=math.prod(map(len, design.labels.values())),
        aliases=tuple(design.aliases()),
        interactions=tuple(one for one in estimable(design.labels, cells) if len(one) == 2),
        quality=quality(design.labels, cells) if isinstance(suite.selection, Optimal) else None,
        noise=noise,
        effect=effect,
        prospects=_prospects(design, noise, effect),
    )


def _noise(design: Design, made: Plan, home: Path) -> Noise | None:
    """What the registry knows of the noise of the baseline, or of what is most like it; of this environment, else of any."""
    from registry import Store
    from registry.mirror import sync

    try:
        from registry.noise import noise_floor
    except ModuleNotFoundError:  # a machine that only trains may lack what queries need
        return None
    mirror = sync(Store.open(home, create=False))
    if not mirror.trials.count_rows():
        return None
    own = [row for row in made.cells if row.trial.levels == design.suite.baseline]
    row = (own or made.reported)[0]
    for place in (made.environment_id, None):
        found = noise_floor(
            mirror, METRIC, scale=design.scale, environment_id=place, evaluation_fingerprint=row.evaluation_fingerprint,
            cell_id=row.cell_id,
        )  # fmt: skip
        if found is not None:
            return found
    return None


def _prospects(design: Design, noise: Noise | None, effect: float | None) -> tuple[Prospect, ...]:
    from registry.power import seeds_needed, smallest_effect

    contrasts, n = design.suite.contrasts, len(design.seeds)
    single = math.sqrt(2.0) if noise is None else noise.sd_difference
    found = []
    for contrast in contrasts:
        pairs = _pairs(design, contrast)
        sd = single / math.sqrt(pairs) if pairs else math.inf
        seeds = None
        if pairs and noise is not None and effect is not None:
            seeds = seeds_needed(effect, sd, contrasts=len(contrasts))
        smallest = smallest_effect(sd, n, contrasts=len(contrasts)) if pairs else math.inf
        found.append(Prospect(**contrast, pairs=pairs, smallest_effect=smallest, seeds=seeds))
    return tuple(found)


def _pairs(design: Design, contrast: Mapping[str, str]) -> float:
    """Over how many pairs of cells that differ in nothing else a contrast averages.

    A selection of cells has few such pairs or none: there it is the number with the variance of the contrast in the model of main
    effects, 2 / (c' (X'X)^-1 c).
    """
    factor, cells = contrast["factor"], [cell.levels for cell in design.cells]
    if design.suite.selection is None:
        known = {tuple(cell.values()) for cell in cells}
        changed = ({**cell, factor: contrast["against"]} for cell in cells if cell[factor] == contrast["level"])
        return float(sum(tuple(cell.values()) in known for cell in changed))
    columns, names = Columns(design.labels, cells), effects(list(design.labels), 1)
    X = np.hstack([columns[name] for name in names])
    known = design.labels[factor]
    codes = coding(len(known))
    difference = codes[known.index(contrast["level"])] - codes[known.index(contrast["against"])]
    c = np.concatenate([difference if name == (factor,) else np.zeros(columns[name].shape[1]) for name in names])
    return round(float(2 / (c @ np.linalg.inv(X.T @ X) @ c)), 6)
