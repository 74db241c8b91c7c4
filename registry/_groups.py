"""Rows of a board that stand for several cells: means over them, with the seeds inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import fmean

import numpy as np

from ._cells import COUNT, GROUP, SEEDS, Cell, by_seed, group_of
from ._fit import paired
from .record import METRICS, STATUSES


def grouped(
    cells: list[Cell], fields: Sequence[str], factors: Sequence[str], metrics: Sequence[str], spread: Sequence[str]
) -> list[Cell]:
    """A row for each combination of `fields` within what compares (suite, scale, environment and evaluation: never over different
    hardware, text or tokenizers), controls left out.

    A metric is the mean over the cells, each with the same weight. Those in `spread` have a half-width: of the same mean from the
    seeds, which are what was repeated, where each cell has two. `n` counts the seeds that all cells have finished, `cells` the cells.
    """

    def place(cell: Cell) -> tuple[object, ...]:
        return (*group_of(cell), *((cell[field] is None, str(cell[field])) for field in fields))

    ordinary = sorted((cell for cell in cells if not cell["control"]), key=place)
    return [_row(list(same), fields, factors, metrics, spread) for _, same in groupby(ordinary, place)]


def _row(
    cells: list[Cell], fields: Sequence[str], factors: Sequence[str], metrics: Sequence[str], spread: Sequence[str]
) -> Cell:
    row: Cell = {name: cells[0][name] for name in (*GROUP, "text_fingerprint", "device", "kind", *fields)}
    rest = [factor for factor in factors if factor not in fields]
    failed = {status: sum(cell[status] for cell in cells) for status in STATUSES[1:]}
    row |= {
        "cells": len(cells), "cell": " · ".join(str(cells[0][field]) for field in fields), "control": "",
        "rest": frozenset(tuple(str(cell[name]) for name in rest) for cell in cells),
        "exclusive": all(cell["exclusive"] for cell in cells),
        "failed": ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in failed.items() if count),
        **{name: sum(cell[name] for cell in cells) for name in ("verified", "refuted")},
        "most_seeds": max(cell["n"] for cell in cells),
    }  # fmt: skip
    for metric in metrics:
        values = [cell[metric] for cell in cells]
        row[metric] = fmean(values) if all(value is not None for value in values) else None
        kind = METRICS[metric].kind if metric in METRICS else "quality"
        if kind in ("speed", "memory") and not row["exclusive"] and any(cell["exclusive"] for cell in cells):
            row[metric] = None  # some alone, some not: no mean of the two
    for metric in spread:
        seeds = [by_seed(cell, metric) for cell in cells]
        common = sorted(set.intersection(*(set(one) for one in seeds)))
        row[COUNT + metric] = len(common)
        row[SEEDS + metric] = [{"seed": seed, "value": fmean(one[seed] for one in seeds)} for seed in common]
        row[f"{metric}_half_width"] = _half_width(seeds)
    row["n"] = _common(cells)
    return row


def _common(cells: list[Cell]) -> int:
    """Seeds in which every cell finished."""
    return len(set.intersection(*({pair["seed"] for pair in cell[SEEDS + "val_loss"] or ()} for cell in cells)))


def _half_width(seeds: list[dict[int, float]]) -> float | None:
    names = sorted(set().union(*seeds))
    values = np.array([[one.get(seed, math.nan) for seed in names] for one in seeds]).reshape(len(seeds), len(names))
    if not values.size or (np.isfinite(values).sum(1) < 2).any():
        return None
    low, high = paired(values).interval()
    return (high - low) / 2.0 if math.isfinite(high - low) else None
