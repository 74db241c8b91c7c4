"""SQL over the mirror, in a DuckDB that can read nothing else and change nothing."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

import duckdb
import pandas as pd
import pyarrow as pa

from .mirror import TRIALS, Mirror
from .record import DesignRecord, cell_label
from .standing import standing, unretracted

T = TypeVar("T")
TIME_LIMIT_S = 30.0
MEMORY_LIMIT = "2GB"

_COUNTS = """
purpose = 'primary' AND reason IS NULL AND row_number() OVER (
    PARTITION BY trial_id, environment_id, purpose, reason IS NULL
    ORDER BY CASE status WHEN 'finished' THEN 0 WHEN 'diverged' THEN 1 ELSE 2 END,
        CASE WHEN status IN ('finished', 'diverged') THEN finished_at END, finished_at DESC, record_id
) = 1
"""


class QueryError(ValueError):
    """An SQL query or expression that cannot be answered; one line that names the word."""


class Sandbox:
    """A locked DuckDB connection over a mirror.

    Views: `trials`, one row per record: its fields (`counts` marks the one primary record of a trial and environment
    that leaderboards count: the earliest that finished and was not retracted; `retracted` says why it was, or ''; `verified` and `refuted`
    how many attempts to reproduce it did, or did not), metrics under their names, and the recipe: each setting is a
    column named as the last part of its path (`n_layers` for `model.n_layers`; the whole path with `_` where two
    settings share a last part or it is taken), a variant's name is in the column of its factor (`attention`), its
    options are columns too and all together JSON in `attention_options`. `designs`, one row per suite, scale, design
    and trial (`latest` marks the newest design that has results; `control` is empty, or says what the trial is a control for:
    its cell is named for that). `marks`, one row per mark: its kind, the record and trial of which it speaks, why, author, created_at.
    """

    def __init__(self, mirror: Mirror, **tables: pa.Table | pd.DataFrame) -> None:
        self._connection = connection = duckdb.connect(":memory:", config={"enable_external_access": "false"})
        connection.register("_trials", mirror.trials)
        names = column_names(mirror.trials.column_names)
        selected = ", ".join(f'"{column}" AS "{name}"' for column, name in names.items())
        connection.register("_standing", standing(mirror).rename_columns(["of", "reason", "confirmed", "denied"]))
        connection.execute(f"""
            CREATE VIEW trials AS SELECT {selected}, {_COUNTS} AS counts, coalesce(reason, '') AS retracted,
                coalesce(confirmed, 0) AS verified, coalesce(denied, 0) AS refuted
            FROM _trials LEFT JOIN _standing ON record_id = "of"
        """)
        marks = mirror.marks.drop_columns(["mark"])
        for name, table in {
            "designs": exploded(mirror.designs, unretracted(mirror, ["trial_id", "purpose"])),
            "marks": marks,
            **tables,
        }.items():
            connection.register(name, table)
        for setting in (
            "python_enable_replacements = false",
            f"memory_limit = '{MEMORY_LIMIT}'",
            "max_temp_directory_size = '0KiB'",
            "threads = 1",  # enough here, and no thread of DuckDB's is left to meet the interpreter's end
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()

    def query(self, sql: str) -> pd.DataFrame:
        """The answer to one `SELECT` (or `WITH ... SELECT`)."""
        with _explained():
            statements = self._connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            found = ", ".join(statement.type.name for statement in statements) or "nothing"
            raise QueryError(f"expected one SELECT statement, found {found}")
        return self._within_limits(lambda: self._connection.execute(statements[0]).df())

    def frame(self, sql: str, conditions: tuple[str, ...] = ()) -> pd.DataFrame:
        """The answer to our own `sql`, restricted to the rows for which each of the user's `conditions` holds."""
        return self._within_limits(lambda: self._relation(sql, conditions).df())

    def rows(
        self, sql: str, conditions: tuple[str, ...] = (), aggregates: tuple[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """The same as plain dicts, aggregated first by `(expressions, groups)`."""

        def answer() -> list[dict[str, Any]]:
            relation = self._relation(sql, conditions)
            if aggregates:
                expressions, groups = aggregates
                relation = relation.aggregate(f"{groups}, {expressions}", groups)
            return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]

        return self._within_limits(answer)

    def _relation(self, sql: str, conditions: tuple[str, ...]) -> duckdb.DuckDBPyRelation:
        relation = self._connection.sql(sql)
        for condition in conditions:
            relation = relation.filter(condition)  # takes one expression, nothing else
        return relation

    def _within_limits(self, answer: Callable[[], T]) -> T:
        timer = threading.Timer(TIME_LIMIT_S, self._connection.interrupt)
        timer.daemon = True
        timer.start()
        try:
            with _explained():
                return answer()
        finally:
            timer.cancel()
            timer.join()  # it holds the connection, which must not outlive the interpreter


def column_names(columns: list[str]) -> dict[str, str]:
    """The SQL name of each column of the mirror's table of trials."""
    fixed = [name for name in columns if "." not in name]
    metrics = [name for name in columns if name.startswith("metrics.")]
    taken = {name.lower() for name in fixed} | {"counts", "retracted", "verified", "refuted"}
    names = {name: name for name in fixed}
    for column in metrics:
        short = _word(column.removeprefix("metrics."))
        names[column] = short if short.lower() not in taken else f"metric_{short}"
        taken.add(names[column].lower())
    paths = sorted({c.split(".", 1)[1] for c in columns if c.startswith(("recipe.", "options."))})
    leaves = Counter(_word(path.rpartition(".")[2]).lower() for path in paths)
    for path in paths:
        short = _word(path.rpartition(".")[2])
        if leaves[short.lower()] > 1 or short.lower() in taken:
            short = _word(path) if _word(path).lower() not in taken else f"recipe_{_word(path)}"
        taken.add(short.lower())
        for column, name in ((f"recipe.{path}", short), (f"options.{path}", f"{short}_options")):
            if column in columns:
                names[column] = name
    order = {column: place for place, column in enumerate(TRIALS.names)}
    return {column: names[column] for column in sorted(names, key=lambda column: order.get(column, len(order)))}


def exploded(designs: pa.Table, trials: pa.Table) -> pa.Table:
    """The view `designs`, of reported trials: those that only served to tune are in no design there. A design none of whose trials
    was trained is not the latest while some of another's were; nor is one none of whose trials has a record while another has some."""
    records = [DesignRecord.from_json(text) for text in designs["design"].to_pylist()]
    ids, purposes = trials["trial_id"].to_pylist(), trials["purpose"].to_pylist()
    known, trained = set(ids), {i for i, purpose in zip(ids, purposes, strict=True) if purpose == "primary"}
    newest: dict[tuple[str, str], tuple[bool, bool, str, str]] = {}
    for record in records:
        key, own = (record.suite, record.scale), {trial["trial_id"] for trial in _reported(record)}
        place = (not own.isdisjoint(trained), not own.isdisjoint(known), record.created_at, record.design_id)
        newest[key] = max(newest.get(key, (False, False, "", "")), place)
    rows = [
        {
            "suite": record.suite,
            "scale": record.scale,
            "design_id": record.design_id,
            "created_at": record.created_at,
            "latest": newest[record.suite, record.scale][-1] == record.design_id,
            "trial_id": trial["trial_id"],
            "cell_id": trial["cell_id"],
            "seed": trial["seed"],
            "kind": record.kind,
            "control": trial.get("control", ""),
            "cell": _control(trial) or cell_label(record, trial["levels"]),
            "levels": json.dumps(trial["levels"], ensure_ascii=False),
        }
        for record in records
        for trial in _reported(record)
    ]
    text, number, flag = pa.string(), pa.int64(), pa.bool_()
    fields = [(name, text) for name in ("suite", "scale", "design_id", "created_at")] + [("latest", flag)]
    fields += [
        ("trial_id", text),
        ("cell_id", text),
        ("seed", number),
        ("kind", text),
        ("control", text),
        ("cell", text),
        ("levels", text),
    ]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def _reported(design: DesignRecord) -> list[dict[str, Any]]:
    return [trial for trial in design.trials if trial.get("stage") != "tune"]


def _control(trial: dict[str, Any]) -> str:
    """What to call the cell of a control; nothing for an ordinary trial."""
    return {"aa": "A/A", "bad": trial.get("label", "known-bad")}.get(trial.get("control", ""), "")


@contextmanager
def _explained() -> Iterator[None]:
    """Turn DuckDB's errors into one line."""
    try:
        yield
    except duckdb.InterruptException:
        raise QueryError(f"the query took longer than {TIME_LIMIT_S:.0f} s") from None
    except duckdb.Error as error:
        text, _, where = str(error).partition("\n\nLINE ")
        what = ": ".join(line.strip().rstrip("!") for line in text.splitlines() if line.strip())
        what = re.sub(r"^[A-Z]\w+(?: \w+)* Error: ", "", what)
        lines = where.splitlines()
        if len(lines) >= 2 and "^" in lines[1]:
            start, end = lines[1].index("^"), lines[1].rindex("^") + 1
            source = f"LINE {lines[0]}"
            word = source[start:end] if end > start + 1 else re.split(r"[\s,;()]", source[start:] + " ")[0]
            if word and word not in what:
                what += f' (at "{word}")'
        raise QueryError(what) from None


def _word(name: str) -> str:
    return re.sub(r"\W", "_", name)
