"""Ranked tables and SQL over everything in the registry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from . import _board_notes as notes_of
from ._cells import CELL, DISTINCT, FIELD, SAME_TEXT, aggregates, ordered, with_factors, with_half_widths
from ._groups import grouped
from ._near import near
from ._verdicts import PASSED, copy_to, with_pareto, with_verdicts
from .home import home as default_home
from .mirror import Mirror, nothing_yet, sync
from .record import ALONE, METRICS
from .sql import QueryError, Sandbox, column_names
from .store import Store

__all__ = ["SAME_TEXT", "Leaderboard", "QueryError", "RegistryEmpty", "query"]

_SHOWN = ("val_loss", "val_bpb", "tokens_per_second", "mfu", "peak_memory_gib", "parameters")
_ENDS = ("failed", "verified", "refuted", "exclusive", "device", "environment_id", "evaluation_fingerprint", "cell_id")
_NEEDED = ("validation_bytes", "unigram_entropy", "loss_floor")
_SPREAD = ("sd", "sem", "half_width")
_BOARD = """
    SELECT {columns}, designs.kind, designs.control, designs.cell, designs.levels, designs.baseline, designs.tuned, designs.margin
    FROM designs JOIN trials USING (trial_id)
    WHERE designs.latest AND (trials.counts OR trials.purpose = 'speed' AND trials.status = 'finished' AND trials.retracted = '')
    QUALIFY trials.counts OR row_number() OVER (
        PARTITION BY design_id, trial_id, environment_id, trials.purpose
        ORDER BY exclusive DESC, trials.suite = designs.suite DESC, finished_at DESC, record_id
    ) = 1
"""


_SUITE = "designs.suite AS suite, designs.scale AS scale"
_ALL = f"trials.* REPLACE ({_SUITE})"
_AGGREGATED = """
    environment_id evaluation_fingerprint text_fingerprint cell_id seed purpose status exclusive device context finished_at verified refuted
""".split()
"""Columns of `trials` that `aggregates` reads beside metrics."""


_DECLARED = """
    SELECT suite, scale, count(DISTINCT cell_id) FILTER (control = '') AS cells, count(DISTINCT trial_id) AS trials,
        count(DISTINCT trial_id) FILTER (trial_id NOT IN (SELECT trial_id FROM trials WHERE counts)) AS missing
    FROM designs WHERE latest GROUP BY ALL
"""
Declared = dict[tuple[str, str], dict[str, Any]]


class RegistryEmpty(ValueError):
    """There is nothing to show yet; the message says how to get something."""


@dataclass(frozen=True)
class Leaderboard:
    """Cells of suites with their seeds aggregated, ranked; each method gives a new board.

    `Leaderboard().suite("attention").where("tokens > 1e6").sort("val_bpb").limit(5).frame()`. By default it reads the store that
    `ABLATE_HOME` and `MLFLOW_TRACKING_URI` name, and all its suites, each in the newest design of each scale.
    `offline` reads the local mirror as it is.
    """

    home: Path | None = None
    tracking_uri: str | None = None
    offline: bool = False
    _suite: str | None = None
    _scale: str | None = None
    _hardware: str | None = None
    _since: str | None = None
    _until: str | None = None
    _where: tuple[str, ...] = ()
    _metric: str = "val_loss"
    _reverse: bool = False
    _columns: tuple[str, ...] = ()
    _group_by: tuple[str, ...] = ()
    _limit: int | None = None

    def suite(self, name: str | None, scale: str | None = None) -> Leaderboard:
        """Only this suite (None: all of them), at this scale or at all."""
        return replace(self, _suite=name, _scale=scale)

    def hardware(self, name: str | None) -> Leaderboard:
        """Only trials on a device whose name holds this text, in either case, or in the environment whose id starts with it."""
        return replace(self, _hardware=name)

    def dates(self, since: date | str | None = None, until: date | str | None = None) -> Leaderboard:
        """Only trials that finished from the day `since` to the day `until`, both included, in UTC: 2026-01-31."""
        return replace(self, _since=since and str(since), _until=until and str(until))

    def where(self, expression: str) -> Leaderboard:
        """Only trials for which an SQL expression over the columns of `trials()` holds; several are joined by AND."""
        return replace(self, _where=(*self._where, expression))

    def sort(self, metric: str, *, reverse: bool = False) -> Leaderboard:
        """Rank by this metric, best first; with `reverse` worst first."""
        return replace(self, _metric=metric, _reverse=reverse)

    def columns(self, *names: str) -> Leaderboard:
        """Only these columns: of the frame, of any metric, or a field of the trials where all those of a row agree (else empty)."""
        return replace(self, _columns=names)

    def group_by(self, *fields: str) -> Leaderboard:
        """A row for each combination of these factors or other fields instead of one per cell: means over the cells, each with the same
        weight, never over several suites, scales, environments, texts or tokenizers. There are no verdicts then."""
        return replace(self, _group_by=fields)

    def limit(self, rows: int | None) -> Leaderboard:
        """Only the first so many rows."""
        return replace(self, _limit=rows)

    def trials(self) -> pd.DataFrame:
        """The records behind the board, one a row: columns of the view `trials` (see `registry.sql`), and of its design `cell`,
        `levels`, `kind`, `control`, `baseline`, `tuned` and `margin`.

        Raises `RegistryEmpty` where nothing was recorded, `QueryError` for a `where` that does not fit.
        """
        with Sandbox(self._narrow(self._mirror())) as sandbox:
            return sandbox.frame(self._board(), self._where)

    def frame(self) -> pd.DataFrame:
        """One row per cell and environment, best first.

        Columns: `rank`; `suite` and `scale`; `cell`, its name; a column per factor; `control`, of those that are one, where there are
        any; `n` finished seeds; `verdict` by the metric sorted by against the baseline (better, worse, equivalent, inconclusive; by the
        rules of `registry.effects`, over all seeds of the design whatever the filter); `pareto`, whether no cell measured alone is as
        good in loss, speed and memory and better in one; the mean of each metric, for val_loss and the metric sorted by with
        `<metric>_sd` over seeds, `<metric>_sem`, the standard error of the mean, and `<metric>_half_width` of its 95 % interval;
        `failed`, the other outcomes; how often runs of the cell were `verified` and `refuted`;
        and what identifies the row. Speed and memory come from records that had
        the device to themselves (those of the suite's newest pass for speed, where there was one). Where there are
        none, they come from the others, `exclusive` is false, and the row has no rank by them. Of `group_by`, see there: with
        `cells`, how many a row stands for, and without `verdict`, `pareto` and what tells of one cell.
        `frame.attrs["notes"]` lists what a reader must know, `named` the columns that name a row to a reader. Raises `RegistryEmpty`
        where nothing fits, `QueryError` for a `where`, a metric, a column or a field that does not.
        """
        if self._limit is not None and self._limit < 1:
            raise QueryError(f"limit: {self._limit} is not a number of rows")
        mirror = self._mirror()
        board = self._narrow(mirror)
        with Sandbox(board) as sandbox:
            return self._made(sandbox, board, mirror)

    def _made(self, sandbox: Sandbox, board: Mirror, mirror: Mirror) -> pd.DataFrame:
        cells, factors, declared = self._cells(sandbox, board, mirror)
        rows, notes = cells, [*notes_of.meaning(self._metric)]
        if self._group_by:
            self._check_groups(cells, factors)
            spread = self._spread(_metrics(mirror))
            rows = ordered(
                grouped(
                    cells, self._group_by, factors, [name for name in _metrics(mirror) if name in cells[0]], spread
                ),
                self._metric,
                reverse=self._reverse,
            )
            notes += notes_of.on_ranks(rows, self._metric) + notes_of.on_groups(rows, self._group_by)
        else:
            filtered = bool(self._where or self._hardware or self._since or self._until)
            notes += notes_of.on_ranks(rows, self._metric)
            notes += notes_of.on_verdicts(rows, self._metric, filtered, self._columns or ("verdict", "pareto"))
        notes += [*notes_of.apart(rows, self._metric), *notes_of.scale_of_loss(rows), *notes_of.on_values(rows)]
        if left := self._retracted(sandbox, board, rows):
            notes.append(
                f"{left} retracted record{'s are' if left > 1 else ' is'} left out (retracted in the view trials says why)"
            )
        notes += self._missing(declared, rows) + self._cut(rows)
        notes += [f"left out, damaged: run {run_id} ({reason})" for run_id, reason in mirror.damaged]
        return self._shown(rows[: self._limit], factors, notes)

    def _shown(self, rows: list[dict[str, Any]], factors: list[str], notes: list[str]) -> pd.DataFrame:
        metrics = [name for name in dict.fromkeys([self._metric, *_SHOWN]) if name in rows[0]]
        spread = {f"{metric}_{what}" for metric in ("val_loss", self._metric) for what in _SPREAD}
        numbers = [one for metric in metrics for one in (metric, *(f"{metric}_{what}" for what in _SPREAD))]
        numbers = [name for name in numbers if name in metrics or (name in spread and name in rows[0])]
        controls = ["control"] if any(row["control"] for row in rows) else []
        if self._group_by:
            named = list(self._group_by)
            names = ["rank", "suite", "scale", *named, "cells", "n", *numbers, *_ENDS[:-1]]
        else:
            named = [*factors, *controls] if any(row["kind"] not in ALONE for row in rows) else ["cell"]
            names = ["rank", "suite", "scale", "cell", *factors, *controls, "n", "verdict", "pareto", *numbers, *_ENDS]
        for name in self._columns:
            if name not in rows[0] or ":" in name:
                raise QueryError(f'no column "{name}"{near(name, [*names, *rows[0], *METRICS])}')
        names = list(dict.fromkeys(self._columns or names))
        types = {name: float for name in names if name in numbers}
        frame = pd.DataFrame(rows, columns=names).astype({**({"rank": "Int64"} if "rank" in names else {}), **types})
        half = {
            name: {place: row[f"{name}_half_width"] for place, row in enumerate(rows)}
            for name in names if f"{name}_half_width" in rows[0]
        }  # fmt: skip
        frame.attrs = {
            "notes": notes, "factors": factors, "named": named, "metric": self._metric, "chosen": bool(self._columns),
            "half_widths": half, "shared": [place for place, row in enumerate(rows) if not row["exclusive"]],
        }  # fmt: skip
        return frame

    def _board(self, filtered: bool = True, columns: Iterable[str] | None = None) -> str:
        """SQL of the records of the board, but for the user's own conditions, with these columns of `trials` beside those that tell
        them apart: of all, planning takes longer than the answer."""
        chosen = _ALL if columns is None else ", ".join([_SUITE, *(f'trials."{name}"' for name in columns)])
        board = _BOARD.format(columns=chosen)
        conditions = [
            f"{name} = {_literal(value)}"
            for name, value in (("suite", self._suite), ("scale", self._scale))
            if value is not None
        ]
        if filtered and self._hardware is not None:
            text = _literal(self._hardware)
            conditions.append(f"(contains(lower(device), lower({text})) OR starts_with(environment_id, {text}))")
        if filtered and self._since:
            conditions.append(f"finished_at >= {_literal(_day('since', self._since).isoformat())}")
        if filtered and self._until:
            conditions.append(f"finished_at < {_literal((_day('until', self._until) + timedelta(1)).isoformat())}")
        return f"SELECT * FROM ({board}) WHERE {' AND '.join(conditions)}" if conditions else board

    def _spread(self, metrics: list[str]) -> list[str]:
        """The metrics whose values by seed are wanted."""
        named = {name.removesuffix(f"_{what}") for name in self._columns for what in _SPREAD} | set(self._columns)
        asked = [name for name in metrics if name in named]
        return list(dict.fromkeys(["val_loss", self._metric, *asked]))

    def _cells(
        self, sandbox: Sandbox, board: Mirror, mirror: Mirror, every: bool = False
    ) -> tuple[list[dict[str, Any]], list[str], Declared]:
        """Rows, sorted and ranked, with the metrics that the board shows or `every` one; the names of the factors' columns; and what
        each suite and scale declares."""
        known = _metrics(board)
        if self._metric not in known:
            raise QueryError(f'no metric "{self._metric}"{near(self._metric, known)}')
        wanted = {self._metric, *_SHOWN, *_NEEDED, *self._columns, *self._group_by}
        wanted |= {name.removesuffix(f"_{what}") for name in self._columns for what in _SPREAD}
        metrics = (
            known if every else [name for name in known if name in wanted]
        )  # planning an aggregate takes longer than computing it
        fields = [name for name in dict.fromkeys((*self._columns, *self._group_by)) if name in _fields(board)]
        spread = self._spread(metrics)
        sql = aggregates(metrics, spread, fields, self._metric in PASSED, every), ", ".join(CELL)
        needed = dict.fromkeys((*_AGGREGATED, *metrics, *fields))
        whole = cells = sandbox.rows(self._board(filtered=False, columns=needed), (), sql)
        if whole and (self._where or self._board() != self._board(filtered=False)):
            cells = sandbox.rows(self._board(columns=None if self._where else needed), self._where, sql)
        declared = {(row["suite"], row["scale"]): row for row in sandbox.rows(_DECLARED)}
        if not cells:
            self._explain_empty(sandbox, mirror, whole)
        with_verdicts(whole, self._metric, {board: row["cells"] for board, row in declared.items()})
        with_pareto(whole, self._metric)
        if cells is not whole:
            copy_to(cells, whole)
        with_half_widths(cells, spread)
        factors = with_factors(cells, {*cells[0], *known, "rank"})
        for cell in cells:
            for name in fields:
                value = cell[FIELD + name] if cell[DISTINCT + name] == 1 else None
                cell.setdefault(name, value)
        return ordered(cells, self._metric, reverse=self._reverse), factors, declared

    def _check_groups(self, cells: list[dict[str, Any]], factors: list[str]) -> None:
        known = [*factors, *CELL, "device", *_fields_of(cells)]
        for field in self._group_by:
            if field not in known or (field in METRICS and METRICS[field].kind != "size"):
                raise QueryError(f'cannot group by "{field}"{near(field, known)}')
            if any(cell.get(DISTINCT + field, 1) > 1 for cell in cells) and field not in factors:
                raise QueryError(f'cannot group by "{field}", of which one cell has several: seeds are always inside')

    def _mirror(self) -> Mirror:
        store = Store.open(self.home or default_home(), self.tracking_uri, create=False)
        mirror = sync(store, offline=self.offline)
        if not mirror.trials.count_rows():
            raise RegistryEmpty(nothing_yet(store, offline=self.offline))
        return mirror

    def _narrow(self, mirror: Mirror) -> Mirror:
        return mirror if self._suite is None else mirror.of_suite(self._suite)

    def _explain_empty(self, sandbox: Sandbox, mirror: Mirror, whole: list[dict[str, Any]]) -> None:
        boards = _scales(mirror)
        suites = sorted({suite for suite, _ in boards})
        if self._suite is not None and self._suite not in suites:
            raise RegistryEmpty(_nothing("for suite", self._suite, "for", suites))
        scales = sorted({scale for suite, scale in boards if self._suite in (None, suite)})
        if self._scale is not None and self._scale not in scales:
            raise RegistryEmpty(_nothing("at scale", self._scale, "at", scales))
        devices = sorted({cell["device"] for cell in whole})
        text = (self._hardware or "").lower()
        ids = {cell["environment_id"] for cell in whole}
        if whole and not any(text in one.lower() for one in devices) and not any(one.startswith(text) for one in ids):
            raise RegistryEmpty(_nothing("on hardware", self._hardware or "", "on", devices))
        asked = [
            {"suite": suite, "scale": scale}
            for suite, scale in boards if self._suite in (None, suite) and self._scale in (None, scale)
        ]  # fmt: skip
        if not whole and (left := self._retracted(sandbox, mirror, asked)):
            raise RegistryEmpty(
                f'nothing stands: {left} records were retracted; `ablate query "SELECT * FROM marks"` says why'
            )
        if whole:
            dates = [f"{name} {day}" for name, day in (("since", self._since), ("until", self._until)) if day]
            raise RegistryEmpty(f"no result fits {' AND '.join([*dates, *self._where])}")
        raise RegistryEmpty(f"no results yet: run `ablate run {self._suite or 'quickstart'}`")

    def _cut(self, rows: list[dict[str, Any]]) -> list[str]:
        cut = self._limit is not None and self._limit < len(rows)
        return [f"the first {self._limit} of {len(rows)} rows"] if cut else []

    def _retracted(self, sandbox: Sandbox, mirror: Mirror, cells: list[dict[str, Any]]) -> int:
        """How many records would be on these boards if they were not retracted."""
        if not mirror.marks.num_rows or not cells:
            return 0
        sql = f"""
            SELECT count(DISTINCT record_id) AS n FROM designs JOIN trials USING (trial_id)
            WHERE latest AND retracted <> '' AND purpose IN ('primary', 'speed') AND (designs.suite, designs.scale) IN ({_boards(cells)})
        """
        (row,) = sandbox.rows(sql)
        return row["n"]

    def _missing(self, declared: Declared, rows: list[dict[str, Any]]) -> list[str]:
        if self._where or self._hardware or self._since or self._until:
            return []
        boards = [declared[board] for board in {(row["suite"], row["scale"]) for row in rows}]
        missing, trials = (sum(board[name] for board in boards) for name in ("missing", "trials"))
        return [f"{missing} of {trials} trials have no result yet"] if missing else []


def query(
    sql: str,
    home: Path | None = None,
    tracking_uri: str | None = None,
    offline: bool = False,
    timeout: float | None = None,
) -> pd.DataFrame:
    """The answer to one read-only SQL query over the views `trials`, `designs`, `marks`, `cells` and `curves` (see `registry.schema`).

    DuckDB's dialect; no files, no network, no settings; at most `timeout` seconds (30), 3 GiB of memory and a million rows. Raises
    `QueryError`, or `RegistryEmpty` where nothing was recorded.
    """
    board = Leaderboard(home, tracking_uri, offline)
    mirror = board._mirror()
    words = set(re.findall(r"\w+", sql.lower()))
    tables: dict[str, pa.Table] = {}
    if "cells" in words:
        tables["cells"] = cells_view(board, mirror)
    if "curves" in words:
        if offline:
            raise QueryError("curves are not in the mirror: ask without offline")
        curves = Store.open(home or default_home(), tracking_uri, create=False).all_curves()
        tables["curves"] = _curves_table(curves)
    with Sandbox(mirror, timeout=timeout, **tables) as sandbox:
        return sandbox.query(sql)


def cells_view(board: Leaderboard, mirror: Mirror) -> pa.Table:
    """The view `cells`: all columns of a board, of each metric mean, standard deviation and error."""
    with Sandbox(mirror) as sandbox:
        cells, _, _ = board._cells(sandbox, mirror, mirror, every=True)
    numbers = {name for metric in _metrics(mirror) for name in (metric, *(f"{metric}_{what}" for what in _SPREAD))}
    names = [name for name in cells[0] if ":" not in name and name != "pass"]
    frame = pd.DataFrame(cells, columns=names)
    types: dict[str, Any] = {"rank": "Int64", **{name: float for name in names if name in numbers or name == "margin"}}
    return pa.Table.from_pandas(frame.astype(types), preserve_index=False).replace_schema_metadata(None)


def _scales(mirror: Mirror) -> list[tuple[str, str]]:
    """Suite and scale of each design."""
    found = mirror.designs.to_table(columns=["suite", "scale"])
    return list(zip(found["suite"].to_pylist(), found["scale"].to_pylist(), strict=True))


def _metrics(mirror: Mirror) -> list[str]:
    names = column_names(mirror.trials.schema.names)
    return [name for column, name in names.items() if column.startswith("metrics.")]


def _fields(mirror: Mirror) -> set[str]:
    """The columns of trials that are no aggregates of a board."""
    fixed = {*CELL, *METRICS, "device", "exclusive", "levels"}
    return set(column_names(mirror.trials.schema.names).values()) - fixed - set(_metrics(mirror))


def _fields_of(cells: list[dict[str, Any]]) -> Iterable[str]:
    return (name.removeprefix(FIELD) for name in cells[0] if name.startswith(FIELD))


def _day(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise QueryError(f'{option}: "{text}" is not a day such as 2026-01-31') from None


def _nothing(what: str, name: str, at: str, known: list[str]) -> str:
    meant = near(name, known)
    there = f"{'There' if meant else 'there'} are some {at}: {', '.join(known) or 'none'}"
    return f'no results {what} "{name}"{meant} {there}' if meant else f'no results {what} "{name}"; {there}'


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
