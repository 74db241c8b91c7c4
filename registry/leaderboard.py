"""Ranked tables and SQL over everything in the registry."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from .home import home as default_home
from .mirror import Mirror, sync
from .rank import ranks
from .record import ALONE, METRICS, STATUSES
from .sql import QueryError, Sandbox, column_names
from .store import Store

__all__ = ["Leaderboard", "QueryError", "RegistryEmpty", "query"]

_GROUP = ("suite", "scale", "environment_id", "evaluation_fingerprint")
_CELL = (*_GROUP, "text_fingerprint", "cell_id", "kind", "control", "cell")
SAME_TEXT = 0.02
"""By which share of its bytes the evaluated text of two cells may differ: the last sequence ends elsewhere with each tokenizer."""
_SHOWN = ("val_loss", "val_bpb", "tokens_per_second", "mfu", "peak_memory_gib", "parameters")
_ENDS = ("failed", "verified", "refuted", "exclusive", "device", "environment_id", "evaluation_fingerprint", "cell_id")
_BOARD = """
    SELECT trials.* REPLACE (designs.suite AS suite, designs.scale AS scale), designs.kind, designs.control, designs.cell,
        designs.levels
    FROM designs JOIN trials USING (trial_id)
    WHERE designs.latest AND (trials.counts OR trials.purpose = 'speed' AND trials.status = 'finished' AND trials.retracted = '')
    QUALIFY trials.counts OR row_number() OVER (
        PARTITION BY design_id, trial_id, environment_id, trials.purpose
        ORDER BY exclusive DESC, trials.suite = designs.suite DESC, finished_at DESC, record_id
    ) = 1
"""


class RegistryEmpty(ValueError):
    """There is nothing to show yet; the message says how to get something."""


@dataclass(frozen=True)
class Leaderboard:
    """Cells of suites with their seeds aggregated, ranked; each method gives a new board.

    `Leaderboard().suite("attention").where("tokens > 1e6").sort("val_bpb").frame()`. By default it reads the store that
    `ABLATE_HOME` and `MLFLOW_TRACKING_URI` name, and all its suites, each in the newest design of each scale.
    `offline` reads the local mirror as it is.
    """

    home: Path | None = None
    tracking_uri: str | None = None
    offline: bool = False
    _suite: str | None = None
    _scale: str | None = None
    _where: tuple[str, ...] = ()
    _metric: str = "val_loss"
    _descending: bool | None = None

    def suite(self, name: str | None, scale: str | None = None) -> Leaderboard:
        """Only this suite (None: all of them), at this scale or at all."""
        return replace(self, _suite=name, _scale=scale)

    def where(self, expression: str) -> Leaderboard:
        """Only trials for which an SQL expression over the columns of `trials()` holds; several are joined by AND."""
        return replace(self, _where=(*self._where, expression))

    def sort(self, metric: str, descending: bool | None = None) -> Leaderboard:
        """Rank by this metric; rows are sorted best first, or as `descending` says."""
        return replace(self, _metric=metric, _descending=descending)

    def trials(self) -> pd.DataFrame:
        """The records behind the board, one a row: columns of the view `trials` (see `registry.sql`), `cell` and
        `levels`.

        Raises `RegistryEmpty` where nothing was recorded, `QueryError` for a `where` or a metric that does not fit.
        """
        mirror = self._mirror()
        with Sandbox(mirror) as sandbox:
            return sandbox.frame(_BOARD, self._conditions)

    def frame(self) -> pd.DataFrame:
        """One row per cell and environment, best first.

        Columns: `rank`; `suite` and `scale`; `cell`, its name; a column per factor; `control`, of those that
        are one, where there are any; `n` finished seeds; the mean of
        each metric, for val_loss and the metric sorted by with `<metric>_sd` over seeds and `<metric>_sem`, the standard error of the
        mean; `failed`, the other outcomes; how often runs of the cell were `verified` and `refuted`; and what identifies the row.
        Speed and memory come from records that had the device to themselves (those of the suite's newest pass for speed, where
        there was one). Where there are none, they come from the others, `exclusive` is false, and the row has no rank by them.
        `frame.attrs["notes"]` lists what a reader must know, `named` the columns that name a cell to a reader. Raises like `trials`.
        """
        mirror = self._mirror()
        cells, factors = self._cells(mirror)
        shown = [name for name in dict.fromkeys([self._metric, *_SHOWN]) if name in cells[0]]
        spread = {f"{metric}_{what}" for metric in ("val_loss", self._metric) for what in ("sd", "sem")}
        metrics = [name for metric in shown for name in (metric, f"{metric}_sd", f"{metric}_sem")]
        metrics = [name for name in metrics if name in shown or name in spread]
        controls = ["control"] if any(cell["control"] for cell in cells) else []
        columns = ["rank", "suite", "scale", "cell", *factors, *controls, "n", *metrics, *_ENDS]
        frame = pd.DataFrame(cells, columns=columns).astype({"rank": "Int64", **dict.fromkeys(metrics, float)})
        named = [*factors, *controls] if any(cell["kind"] not in ALONE for cell in cells) else ["cell"]
        frame.attrs = {"notes": self._notes(mirror, cells), "factors": factors, "named": named, "metric": self._metric}
        return frame

    @property
    def _conditions(self) -> tuple[str, ...]:
        chosen = {"suite": self._suite, "scale": self._scale}
        named = [f"{column} = {_literal(value)}" for column, value in chosen.items() if value is not None]
        return (*named, *self._where)

    def _cells(self, mirror: Mirror) -> tuple[list[dict[str, Any]], list[str]]:
        """Rows with every metric, sorted and ranked; and the names of the factors' columns."""
        metrics = _metrics(mirror)
        if self._metric not in metrics:
            near = difflib.get_close_matches(self._metric, metrics, 1)
            raise QueryError(f'no metric "{self._metric}"' + (f': did you mean "{near[0]}"?' if near else ""))
        with Sandbox(mirror) as sandbox:
            cells = sandbox.rows(_BOARD, self._conditions, (_aggregates(metrics, self._metric), ", ".join(_CELL)))
        if not cells:
            self._explain_empty(mirror)
        better = METRICS[self._metric].better if self._metric in METRICS else "none"
        descending = better == "higher" if self._descending is None else self._descending
        measured = self._metric in METRICS and METRICS[self._metric].kind in ("speed", "memory")
        group = _grouping(cells, self._metric)
        cells.sort(key=lambda cell: (
            *group(cell), cell["control"] != "", measured and not cell["exclusive"], *_order(cell[self._metric], descending), cell["cell"]
        ))  # fmt: skip
        for _, same in groupby([cell for cell in cells if not cell["control"]], group):
            _rank(list(same), better)
        levels = [json.loads(cell["levels"]) for cell in cells]
        names = _factor_names(levels, {*cells[0], "rank"})
        for cell, labels in zip(cells, levels, strict=True):
            cell |= {name: labels.get(factor) for factor, name in names.items()}
            cell["control"] = cell["control"] and cell["cell"]
            cell.setdefault("rank", None)
            cell["failed"] = ", ".join(f"{cell[s]} {s.replace('_', ' ')}" for s in STATUSES[1:] if cell[s])
        return cells, list(names.values())

    def _mirror(self) -> Mirror:
        store = Store.open(self.home or default_home(), self.tracking_uri, create=False)
        mirror = sync(store, offline=self.offline)
        if not mirror.trials.num_rows:
            raise RegistryEmpty("no results yet: run `ablate run quickstart`")
        return mirror

    def _explain_empty(self, mirror: Mirror) -> None:
        suites = sorted(set(mirror.designs["suite"].to_pylist()))
        if self._suite is not None and self._suite not in suites:
            raise RegistryEmpty(
                f'no results for suite "{self._suite}"; there are some for: {", ".join(suites) or "none"}'
            )
        scales = sorted({d for s, d in zip(mirror.designs["suite"].to_pylist(), mirror.designs["scale"].to_pylist(), strict=True)
                         if self._suite in (None, s)})  # fmt: skip
        if self._scale is not None and self._scale not in scales:
            raise RegistryEmpty(f'no results at scale "{self._scale}"; there are some at: {", ".join(scales)}')
        asked = [
            {"suite": s, "scale": d}
            for s, d in zip(mirror.designs["suite"].to_pylist(), mirror.designs["scale"].to_pylist(), strict=True)
            if self._suite in (None, s) and self._scale in (None, d)
        ]
        if not self._where and (left := self._retracted(mirror, asked)):
            raise RegistryEmpty(
                f'nothing stands: {left} records were retracted; `ablate query "SELECT * FROM marks"` says why'
            )
        if self._where:
            raise RegistryEmpty(f"no result fits {' AND '.join(self._where)}")
        raise RegistryEmpty(f"no results yet: run `ablate run {self._suite or 'quickstart'}`")

    def _notes(self, mirror: Mirror, cells: list[dict[str, Any]]) -> list[str]:
        meaning = METRICS.get(self._metric)
        notes = [f"{self._metric} in {meaning.unit}, {meaning.better} is better"] if meaning else []
        if any(cell["rank"] for cell in cells):
            if any(cell["n"] > 1 for cell in cells):
                notes.append(
                    "cells share a rank unless a t-test against its best, paired by seed, separates them "
                    "(two-sided, 5 %, Holm-corrected); ± is the standard deviation over seeds"
                )
            else:
                notes.append("one seed per cell separates nothing, so all share a rank")
        if any(cell["control"] for cell in cells):
            notes.append(
                "controls have no rank: A/A is the baseline again on seeds of its own, known-bad should be worse than it"
            )
        notes += _apart(cells, self._metric)
        notes += _scale_of_loss(cells)
        if any(cell["failed"] for cell in cells):
            notes.append("n and the means are over finished trials only; the others are listed under failed")
        if any(cell["verified"] or cell["refuted"] for cell in cells):
            notes.append(
                "verified, refuted: how often training a run of the cell again gave the same within the noise floor, or did not "
                "(ablate verify)"
            )
        if left := self._retracted(mirror, cells):
            notes.append(
                f"{left} retracted record{'s are' if left > 1 else ' is'} left out (retracted in the view trials says why)"
            )
        if not all(cell["exclusive"] for cell in cells):
            notes.append("~ measured while other trials shared the device: an indication, which is not ranked")
        if not self._where and (missing := self._missing(mirror, cells)):
            notes.append(missing)
        return notes + [f"left out, damaged: run {run_id} ({reason})" for run_id, reason in mirror.damaged]

    def _retracted(self, mirror: Mirror, cells: list[dict[str, Any]]) -> int:
        """How many records would be on these boards if they were not retracted."""
        if not mirror.marks.num_rows:
            return 0
        sql = f"""
            SELECT count(DISTINCT record_id) AS n FROM designs JOIN trials USING (trial_id)
            WHERE latest AND retracted <> '' AND purpose IN ('primary', 'speed') AND (designs.suite, designs.scale) IN ({_boards(cells)})
        """
        with Sandbox(mirror) as sandbox:
            (row,) = sandbox.rows(sql)
        return row["n"]

    def _missing(self, mirror: Mirror, cells: list[dict[str, Any]]) -> str:
        sql = f"""
            SELECT count(DISTINCT trial_id) AS declared,
                count(DISTINCT trial_id) FILTER (trial_id NOT IN (SELECT trial_id FROM trials WHERE counts)) AS missing
            FROM designs WHERE latest AND (suite, scale) IN ({_boards(cells)})
        """
        with Sandbox(mirror) as sandbox:
            (row,) = sandbox.rows(sql)
        return f"{row['missing']} of {row['declared']} trials have no result yet" if row["missing"] else ""


def query(sql: str, home: Path | None = None, tracking_uri: str | None = None, offline: bool = False) -> pd.DataFrame:
    """The answer to one read-only SQL query over `trials`, `designs` and `marks` (see `registry.sql.Sandbox`), `cells` and
    `curves`.

    `cells` is the leaderboard of all suites with every metric and its `_sd`; `curves` has record_id, metric, step,
    tokens and value. DuckDB's dialect; no files, no settings, 30 s. Raises `QueryError`, or `RegistryEmpty` where
    nothing was recorded.
    """
    board = Leaderboard(home, tracking_uri, offline)
    mirror = board._mirror()
    words = set(re.findall(r"\w+", sql.lower()))
    tables: dict[str, pa.Table | pd.DataFrame] = {}
    if "cells" in words:
        cells, _ = board._cells(mirror)
        numbers = [name for name in cells[0] if name.removesuffix("_sd").removesuffix("_sem") in _metrics(mirror)]
        frame = pd.DataFrame([{name: cell[name] for name in cell if name != "by_seed"} for cell in cells])
        tables["cells"] = frame.astype({"rank": "Int64", **dict.fromkeys(numbers, float)})
    if "curves" in words:
        if offline:
            raise QueryError("curves are not in the mirror: ask without offline")
        curves = Store.open(home or default_home(), tracking_uri, create=False).all_curves()
        tables["curves"] = _curves_table(curves)
    with Sandbox(mirror, **tables) as sandbox:
        return sandbox.query(sql)


def _metrics(mirror: Mirror) -> list[str]:
    names = column_names(mirror.trials.column_names)
    return [name for column, name in names.items() if column.startswith("metrics.")]


def _aggregates(metrics: list[str], ranked_by: str) -> str:
    """SQL that aggregates the rows of a cell: of each metric the mean, standard deviation and error, and `ranked_by`
    by seed."""
    primary, alone = "purpose = 'primary'", "status = 'finished' AND exclusive"
    finished = f"{primary} AND status = 'finished'"
    parts = ["any_value(device) AS device", "any_value(levels) AS levels", f"count(*) FILTER ({finished}) AS n"]
    parts += [f"count(*) FILTER ({primary} AND status = '{status}') AS {status}" for status in STATUSES[1:]]
    parts += [f"coalesce(sum({name}) FILTER ({primary}), 0)::INT AS {name}" for name in ("verified", "refuted")]
    parts.append(f"count(*) FILTER ({alone}) > 0 OR count(*) FILTER ({finished}) = 0 AS exclusive")
    for metric in metrics:
        kind = METRICS[metric].kind if metric in METRICS else "quality"
        measured = [f"{alone} AND purpose = 'speed'", f"{alone} AND {primary}"]
        ranked = {"quality": [finished], "size": [primary]}.get(kind, measured)
        shown = ranked if kind in ("quality", "size") else [*measured, finished]
        value = f'"{metric}"'
        parts.append(f'{_first(f"avg({value}) @", shown)} AS "{metric}"')
        parts.append(f'{_first(f"stddev_samp({value}) @", shown)} AS "{metric}_sd"')
        parts.append(f'{_first(f"stddev_samp({value}) @ / sqrt(count({value}) @)", shown)} AS "{metric}_sem"')
        if metric == ranked_by:
            pairs = _first(f"list({{'seed': seed, 'value': {value}}}) @", ranked)
            parts.append(f"{pairs} AS by_seed")
    return ", ".join(parts)


def _apart(cells: list[dict[str, Any]], metric: str) -> list[str]:
    """That cells of one suite, scale and environment are ranked apart, because not all were evaluated on the same."""
    groups = {_grouping(cells, metric)(cell) for cell in cells}
    if len(groups) == len({group[:-1] for group in groups}):
        return []
    if metric == "val_bpb":
        sizes = {cell["validation_bytes"] for cell in cells if cell["validation_bytes"]}
        seen = (
            f": evaluated on {min(sizes):,.0f} to {max(sizes):,.0f} bytes; more evaluation.tokens bring them together"
            if len(sizes) > 1
            else ""
        )
        return [f"cells are ranked apart where they do not share the whole held-out text{seen}"]
    return [
        "cells are ranked apart where held-out text or tokenizer differ; bits per byte compare across tokenizers: sort by val_bpb"
    ]


def _scale_of_loss(cells: list[dict[str, Any]]) -> list[str]:
    """What a loss is to be seen against: the entropy of the tokens without context, and the floor of a known source."""
    notes = []
    for metric, what in (("unigram_entropy", "unigram entropy"), ("loss_floor", "loss of the true source")):
        found = sorted({round(value, 3) for cell in cells if (value := cell.get(metric)) is not None})
        if found:
            span = " to ".join(f"{value:.3f}" for value in dict.fromkeys((found[0], found[-1])))
            notes.append(f"{what} of the validation slice: {span} nats/token")
    return notes


def _first(aggregate: str, sources: list[str]) -> str:
    """SQL for `aggregate`, with `@` for its filter, over the first of `sources` that has rows."""
    return f"coalesce({', '.join(aggregate.replace('@', f'FILTER ({source})') for source in sources)})"


def _rank(cells: list[dict[str, Any]], better: str) -> None:
    """Set the rank of the cells of one environment and validation slice; None where the metric has no better."""
    by_seed = [{p["seed"]: p["value"] for p in cell["by_seed"] or () if p["value"] is not None} for cell in cells]
    places = ranks(by_seed, lower_is_better=better == "lower") if better != "none" else [None] * len(cells)
    for cell, place in zip(cells, places, strict=True):
        cell["rank"] = place


def _group(cell: dict[str, Any]) -> tuple[str, ...]:
    return tuple(cell[name] for name in _GROUP)


def _grouping(cells: list[dict[str, Any]], metric: str) -> Callable[[dict[str, Any]], tuple[str, ...]]:
    """What tells cells apart that do not compare: suite, scale, environment, and what they were evaluated on.

    For bits per byte that is the held-out text, whatever the tokenizer, where all saw as much of it: a slice of so many tokens is
    another amount of text to each tokenizer, unless it is all that there is.
    """
    sizes: dict[tuple[str, ...], list[float]] = {}
    for cell in cells:
        sizes.setdefault(_text(cell), []).append(cell["validation_bytes"])
    known = {text: [size for size in found if size is not None] for text, found in sizes.items()}
    whole = {text for text, found in known.items() if found and max(found) <= (1 + SAME_TEXT) * min(found)}
    return lambda cell: _text(cell) if metric == "val_bpb" and _text(cell) in whole else _group(cell)


def _text(cell: dict[str, Any]) -> tuple[str, ...]:
    return (*_group(cell)[:-1], cell["text_fingerprint"])


def _order(value: float | None, descending: bool) -> tuple[bool, float]:
    """Sort key: missing values last either way."""
    return value is None, 0.0 if value is None else -value if descending else value


def _factor_names(labels: list[dict[str, str]], taken: set[str]) -> dict[str, str]:
    """Column names of factors: the last part of their path where that is free."""
    factors = list(dict.fromkeys(factor for row in labels for factor in row))
    count = Counter(factor.rpartition(".")[2] for factor in factors)
    short = {factor: factor.rpartition(".")[2] for factor in factors}
    return {f: s if count[s] == 1 and s not in taken | {"rank"} else f.replace(".", "_") for f, s in short.items()}


def _curves_table(curves: dict[str, dict[str, list[list[float]]]]) -> pa.Table:
    rows = [(r, metric, *point) for r, some in curves.items() for metric, points in some.items() for point in points]
    names, types = (
        ["record_id", "metric", "step", "tokens", "value"],
        [pa.string(), pa.string(), pa.int64(), pa.float64(), pa.float64()],
    )
    columns = list(zip(*rows, strict=True)) or [()] * 5
    return pa.table([pa.array(column, kind) for column, kind in zip(columns, types, strict=True)], names=names)


def _boards(cells: list[dict[str, Any]]) -> str:
    """SQL for the suites and scales of cells."""
    return ", ".join(sorted({f"({_literal(cell['suite'])}, {_literal(cell['scale'])})" for cell in cells}))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
