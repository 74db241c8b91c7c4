"""The cells of a board: what SQL aggregates of their trials, which of them compare, their order and rank."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

from scipy.special import stdtrit

from .rank import ranks
from .record import METRICS, STATUSES

Cell = dict[str, Any]
GROUP = ("suite", "scale", "environment_id", "evaluation_fingerprint")
"""What losses and speeds are never averaged or ranked across."""
CELL = (*GROUP, "text_fingerprint", "cell_id", "kind", "control", "cell")
SAME_TEXT = 0.02
"""By which share of its bytes the evaluated text of two cells may differ: the last sequence ends elsewhere with each tokenizer."""
FIELD, DISTINCT, SEEDS, COUNT = "field:", "distinct:", "seeds:", "count:"
"""Prefixes of what is no column of a board: a field of the trials, how many values it has, a metric by seed, how many it is the mean of."""


def key_of(cell: Cell) -> tuple[Any, ...]:
    """What makes it this cell."""
    return tuple(cell[name] for name in CELL)


def aggregates(
    metrics: Sequence[str], spread: Iterable[str], fields: Iterable[str] = (), ratios: bool = False, every: bool = False
) -> str:
    """SQL that aggregates the rows of a cell: of each metric the mean; of those in `spread`, or of `every` one, standard deviation and
    error; of those in `spread` the values by seed, too; the value of each of `fields` that all its trials share; with `ratios` what the
    newest pass for speed found."""
    primary, alone = "purpose = 'primary'", "status = 'finished' AND exclusive"
    finished = f"{primary} AND status = 'finished'"
    same = ("device", "levels", "baseline", "tuned", "margin")
    parts = [*(f"any_value({name}) AS {name}" for name in same), f"count(*) FILTER ({finished}) AS n"]
    parts += [f"count(*) FILTER ({primary} AND status = '{status}') AS {status}" for status in STATUSES[1:]]
    parts += [f"coalesce(sum({name}) FILTER ({primary}), 0)::INT AS {name}" for name in ("verified", "refuted")]
    parts.append(f"count(*) FILTER ({alone}) > 0 OR count(*) FILTER ({finished}) = 0 AS exclusive")
    if ratios:
        parts.append(f"arg_max(context, finished_at) FILTER (purpose = 'speed' AND {alone}) AS pass")
    for field in fields:
        parts += [
            f'any_value("{field}") AS "{FIELD}{field}"',
            f'count(DISTINCT "{field}") + (count("{field}") < count(*) AND count("{field}") > 0)::INT AS "{DISTINCT}{field}"',
        ]
    for metric in metrics:
        kind = METRICS[metric].kind if metric in METRICS else "quality"
        measured = [f"{alone} AND purpose = 'speed'", f"{alone} AND {primary}"]
        ranked = {"quality": [finished], "size": [primary]}.get(kind, measured)
        shown = ranked if kind in ("quality", "size") else [*measured, finished]
        value = f'"{metric}"'
        parts.append(f'{_first(f"avg({value}) @", shown)} AS "{metric}"')
        if every or metric in spread:
            parts.append(f'{_first(f"stddev_samp({value}) @", shown)} AS "{metric}_sd"')
            parts.append(f'{_first(f"stddev_samp({value}) @ / sqrt(count({value}) @)", shown)} AS "{metric}_sem"')
        if metric in spread:
            pairs = _first(f"list({{'seed': seed, 'value': {value}}}) @", ranked)
            parts.append(
                f'{_first(f"nullif(count({value}) @, 0)", shown)} AS "{COUNT}{metric}", {pairs} AS "{SEEDS}{metric}"'
            )
    return ", ".join(parts)


def _first(aggregate: str, sources: list[str]) -> str:
    """SQL for `aggregate`, with `@` for its filter, over the first of `sources` that has rows."""
    return f"coalesce({', '.join(aggregate.replace('@', f'FILTER ({source})') for source in sources)})"


def by_seed(cell: Cell, metric: str) -> dict[int, float]:
    """The values of a metric that may be ranked."""
    return {p["seed"]: p["value"] for p in cell[SEEDS + metric] or () if p["value"] is not None}


def with_half_widths(cells: list[Cell], spread: Iterable[str]) -> None:
    """Add `<metric>_half_width`, of the 95 % interval of the mean by Student's t over seeds; None with one seed."""
    for metric in spread:
        for cell in cells:
            n, error = cell[COUNT + metric], cell[f"{metric}_sem"]
            cell[f"{metric}_half_width"] = None if error is None or n < 2 else float(stdtrit(n - 1, 0.975)) * error


def with_factors(cells: list[Cell], taken: set[str]) -> list[str]:
    """Add a column per factor, `control` as its name and `failed`; returns the names of the columns."""
    levels = [json.loads(cell["levels"]) for cell in cells]
    names = _factor_names(levels, taken)
    for cell, labels in zip(cells, levels, strict=True):
        cell |= {name: labels.get(factor) for factor, name in names.items()}
        cell["control"] = cell["control"] and cell["cell"]
        cell["failed"] = ", ".join(f"{cell[s]} {s.replace('_', ' ')}" for s in STATUSES[1:] if cell[s])
    return list(names.values())


def ordered(cells: list[Cell], metric: str, *, reverse: bool = False) -> list[Cell]:
    """Best first within what compares, and ranked: cells that the data cannot separate share a rank, controls have none."""
    better = METRICS[metric].better if metric in METRICS else "none"
    descending = (better == "higher") != reverse
    measured = metric in METRICS and METRICS[metric].kind in ("speed", "memory")
    group = grouping(cells, metric)
    cells = sorted(cells, key=lambda cell: (
        *group(cell), cell["control"] != "", measured and not cell["exclusive"], *_order(cell[metric], descending), cell["cell"]
    ))  # fmt: skip
    for cell in cells:
        cell["rank"] = None
    for _, same in groupby([cell for cell in cells if not cell["control"]], group):
        rows = list(same)
        values = [by_seed(cell, metric) for cell in rows]
        places = ranks(values, lower_is_better=better == "lower") if better != "none" else [None] * len(rows)
        for cell, place in zip(rows, places, strict=True):
            cell["rank"] = place
    return cells


def grouping(cells: list[Cell], metric: str) -> Callable[[Cell], tuple[str, ...]]:
    """What tells cells apart that do not compare: suite, scale, environment, and what they were evaluated on.

    For bits per byte that is the held-out text, whatever the tokenizer, where all saw as much of it: a slice of so many tokens is
    another amount of text to each tokenizer, unless it is all that there is.
    """
    sizes: dict[tuple[str, ...], list[float]] = {}
    for cell in cells:
        sizes.setdefault(_text(cell), []).append(cell["validation_bytes"])
    known = {text: [size for size in found if size is not None] for text, found in sizes.items()}
    whole = {text for text, found in known.items() if found and max(found) <= (1 + SAME_TEXT) * min(found)}
    return lambda cell: _text(cell) if metric == "val_bpb" and _text(cell) in whole else group_of(cell)


def group_of(cell: Cell) -> tuple[str, ...]:
    return tuple(cell[name] for name in GROUP)


def _text(cell: Cell) -> tuple[str, ...]:
    return (*group_of(cell)[:-1], cell["text_fingerprint"])


def _order(value: float | None, descending: bool) -> tuple[bool, float]:
    """Sort key: missing values last either way."""
    return value is None, 0.0 if value is None else -value if descending else value


def _factor_names(labels: list[dict[str, str]], taken: set[str]) -> dict[str, str]:
    """Column names of factors: the last part of their path where that is free."""
    factors = list(dict.fromkeys(factor for row in labels for factor in row))
    count = Counter(factor.rpartition(".")[2] for factor in factors)
    short = {factor: factor.rpartition(".")[2] for factor in factors}
    return {f: s if count[s] == 1 and s not in taken else f.replace(".", "_") for f, s in short.items()}
