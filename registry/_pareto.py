"""The cells that are the best trade of several metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._fit import Array
from .record import METRICS


def front(frame: Any, metrics: Sequence[str]) -> Array:
    """Whether no other cell is as good in every metric and better in one, by the means; of cells that have them all."""
    used = [metric for metric in metrics if frame[metric].notna().any()]
    if not used:
        return np.zeros(len(frame), dtype=bool)
    points = np.column_stack([frame[m] * (1.0 if METRICS[m].better == "lower" else -1.0) for m in used])
    whole = np.isfinite(points).all(1) & (frame["control"] == "").to_numpy()
    others = points[whole]
    beaten = [bool(((others <= point).all(1) & (others < point).any(1)).any()) for point in points]
    return whole & ~np.array(beaten)
