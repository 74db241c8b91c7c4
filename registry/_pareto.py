"""The cells that are the best trade of several metrics."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ._fit import Array
from .record import METRICS


def front(means: Mapping[str, Array], ordinary: Array) -> Array:
    """Whether no other cell is as good in every metric and better in one, by the `means` (nan where there is none); of the `ordinary`
    cells that have them all. A metric that no cell has is left out."""
    used = {metric: values for metric, values in means.items() if np.isfinite(values).any()}
    if not used:
        return np.zeros(len(ordinary), dtype=bool)
    points = np.column_stack([values * (1.0 if METRICS[m].better == "lower" else -1.0) for m, values in used.items()])
    whole = np.isfinite(points).all(1) & ordinary
    others = points[whole]
    beaten = [bool(((others <= point).all(1) & (others < point).any(1)).any()) for point in points]
    return whole & ~np.array(beaten)
