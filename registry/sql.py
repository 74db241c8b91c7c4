"""SQL over the mirror, in a DuckDB that can read nothing else and change nothing."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute

from ._contained import FORKS, Refused, TooLong, TooMuch, contained
from .mirror import TRIALS, Mirror
from .record import DesignRecord, cell_label
from .standing import standing, unretracted

TIME_LIMIT_S = 30.0
MEMORY_LIMIT = "2GB"
_POSITION = "\n\nLINE "
_TOO_MUCH = f"the query needs more than {MEMORY_LIMIT} of memory"
MEMORY_BYTES = 3 << 30
"""Of the whole process that answers a query: DuckDB's limit, and what it does not count."""
MOST_ROWS, MOST_BYTES = 1_000_000, 256 << 20
"""Of an answer."""
_LOCKED = {
    "enable_external_access": "false",  # of files of its own name and in its temporary folder, too: so it has a name nobody knows,
    "temp_directory": "",  # and no such folder
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
}

_COUNTS = """
purpose = 'primary' AND reason IS NULL AND row_number() OVER (
    PARTITION BY trial_id, environment_id, purpose, reason IS NULL
    ORDER BY CASE status WHEN 'finished' THEN 0 WHEN 'diverged' THEN 1 ELSE 2 END,
        CASE WHEN status IN ('finished', 'diverged') THEN finished_at END, finished_at DESC, record_id
) = 1
"""


DESIGNS_VIEW = pa.schema(
    [(name, pa.string()) for name in ("suite", "scale", "design_id", "created_at")]
    + [("latest", pa.bool_()), ("trial_id", pa.string()), ("cell_id", pa.string()), ("seed", pa.int64())]
    + [(name, pa.string()) for name in ("kind", "control", "cell", "levels")]
    + [("baseline", pa.bool_()), ("tuned", pa.bool_()), ("margin", pa.float64())]
)


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

    def __init__(self, mirror: Mirror, *, timeout: float | None = None, **tables: pa.Table | pd.DataFrame) -> None:
        self._mirror, self._tables, self._timeout = mirror, tables, timeout or TIME_LIMIT_S
        self._opened: duckdb.DuckDBPyConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def query(self, sql: str) -> pd.DataFrame:
        """The answer to one `SELECT` (or `WITH ... SELECT`)."""

        def ask(connection: duckdb.DuckDBPyConnection) -> pa.Table:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                found = ", ".join(statement.type.name for statement in statements) or "nothing"
                raise QueryError(f"expected one SELECT statement, found {found}")
            try:
                return _fetched(connection.sql(statements[0]).limit(MOST_ROWS + 1))
            except duckdb.Error as error:
                if _POSITION in str(error) or isinstance(
                    error, (duckdb.InterruptException, duckdb.OutOfMemoryException)
                ):
                    raise
                connection.execute(f"EXPLAIN {sql}")  # fails likewise, and says where
                raise

        return _pandas(self._apart(ask))

    def frame(self, sql: str, conditions: tuple[str, ...] = ()) -> pd.DataFrame:
        """The answer to our own `sql`, restricted to the rows for which each of the user's `conditions` holds."""
        return _pandas(self._answer(sql, conditions))

    def rows(
        self, sql: str, conditions: tuple[str, ...] = (), aggregates: tuple[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """The same as plain dicts, aggregated first by `(expressions, groups)`."""
        return self._answer(sql, conditions, aggregates).to_pylist()

    def _answer(
        self, sql: str, conditions: tuple[str, ...] = (), aggregates: tuple[str, str] | None = None
    ) -> pa.Table:
        def ask(connection: duckdb.DuckDBPyConnection) -> pa.Table:
            relation = connection.sql(sql)
            for condition in conditions:
                relation = relation.filter(condition)  # takes one expression, nothing else
            if aggregates:
                expressions, groups = aggregates
                relation = relation.aggregate(f"{groups}, {expressions}", groups)
            return _fetched(relation)

        return self._apart(ask) if conditions else self._here(ask)

    def _here(self, ask: Callable[[duckdb.DuckDBPyConnection], pa.Table], timeout: float | None = None) -> pa.Table:
        self._opened = connection = self._opened or self._connect()
        with _explained(self._timeout):
            if timeout is None:  # our own SQL ends
                return ask(connection)
            timer = threading.Timer(timeout, connection.interrupt)
            timer.daemon = True
            timer.start()
            try:
                return ask(connection)
            finally:
                timer.cancel()
                timer.join()  # it holds the connection, which must not outlive the interpreter

    def _apart(self, ask: Callable[[duckdb.DuckDBPyConnection], pa.Table]) -> pa.Table:
        """The same for what a user wrote: where the system can, in a process of its own."""
        if not FORKS:
            return self._here(ask, self._timeout)

        def work(connection: duckdb.DuckDBPyConnection) -> bytes:
            with _explained(self._timeout):
                table = ask(connection)
            out = pa.BufferOutputStream()
            with pa.ipc.new_stream(out, table.schema) as writer:
                writer.write_table(table)
            return out.getvalue().to_pybytes()

        try:
            answer = contained(self._connect, work, seconds=self._timeout, memory=MEMORY_BYTES)
        except Refused as refused:
            raise QueryError(str(refused)) from None
        except TooLong:
            raise QueryError(_too_long(self._timeout)) from None
        except TooMuch:
            raise QueryError(f"{_TOO_MUCH}, or is nested too deeply") from None
        return pa.ipc.open_stream(answer).read_all()

    def _connect(self) -> duckdb.DuckDBPyConnection:
        mirror, connection = self._mirror, duckdb.connect(f":memory:{uuid.uuid4().hex}", config=dict(_LOCKED))
        connection.register("_trials", mirror.trials)
        names = column_names(mirror.trials.column_names)
        selected = ", ".join(f'"{column}" AS "{name}"' for column, name in names.items())
        connection.register("_standing", standing(mirror).rename_columns(["of", "reason", "confirmed", "denied"]))
        connection.execute(f"""
            CREATE VIEW trials AS SELECT {selected}, {_COUNTS} AS counts, coalesce(reason, '') AS retracted,
                coalesce(confirmed, 0) AS verified, coalesce(denied, 0) AS refuted
            FROM _trials LEFT JOIN _standing ON record_id = "of"
        """)
        for name, table in {
            "designs": exploded(mirror.designs, unretracted(mirror, ["trial_id", "purpose"])),
            "marks": mirror.marks.drop_columns(["mark"]),
            **self._tables,
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
        return connection


def _fetched(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    table = relation.to_arrow_table()
    if table.num_rows > MOST_ROWS:
        raise QueryError(f"the answer has more than {MOST_ROWS:,} rows: aggregate, or say LIMIT")
    if table.nbytes > MOST_BYTES:
        raise QueryError(f"the answer is larger than {MOST_BYTES >> 20} MiB: select less of it")
    return table


def _pandas(table: pa.Table) -> pd.DataFrame:
    """With plain floats for DuckDB's decimals, which are what it makes of a sum of whole numbers."""
    fields = [field.with_type(pa.float64()) if pa.types.is_decimal(field.type) else field for field in table.schema]
    try:
        return table.cast(pa.schema(fields)).to_pandas()
    except NotImplementedError:  # a type that pandas lacks, such as a union
        return pd.DataFrame(dict(enumerate(column.to_pylist() for column in table.columns))).set_axis(
            table.column_names, axis=1
        )


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
    tables = [_rows(record, newest[record.suite, record.scale][-1] == record.design_id) for record in records]
    return pa.concat_tables([DESIGNS_VIEW.empty_table(), *tables])


def _rows(design: DesignRecord, latest: bool) -> pa.Table:
    """A row for each trial of a design."""
    trials = _reported(design)
    same = {"suite": design.suite, "scale": design.scale, "design_id": design.design_id, "created_at": design.created_at,
            "latest": latest, "kind": design.kind, "margin": design.margin}  # fmt: skip
    columns: dict[str, Sequence[Any]] = {name: [value] * len(trials) for name, value in same.items()}
    columns |= {name: [trial[name] for trial in trials] for name in ("trial_id", "cell_id", "seed")}
    columns["control"] = [trial.get("control", "") for trial in trials]
    cells: dict[tuple[str, str], tuple[str, str, bool, bool]] = {}
    for trial in trials:
        key = trial["cell_id"], trial.get("control", "")
        if key not in cells:
            name = _control(trial) or cell_label(design, trial["levels"])
            search = design.tuning.get(name) or design.tuning.get(trial["cell_id"]) or {}
            cells[key] = (
                name, json.dumps(trial["levels"], ensure_ascii=False), not key[1] and trial["levels"] == design.baseline,
                not design.tuning or search.get("bracketed", False),
            )  # fmt: skip
    of_cells = list(zip(*(cells[key] for key in zip(columns["cell_id"], columns["control"], strict=True)), strict=True))
    columns |= dict(zip(("cell", "levels", "baseline", "tuned"), of_cells or [()] * 4, strict=True))
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in DESIGNS_VIEW})


def of_suite(mirror: Mirror, suite: str) -> Mirror:
    """What belongs to the designs of one suite: the same answers about it from a fraction of the rows."""
    compute: Any = pyarrow.compute  # its functions are made at import, so that a type checker sees none

    designs = mirror.designs.filter(compute.equal(mirror.designs["suite"], suite))
    found = [json.loads(text)["trials"] for text in designs["design"].to_pylist()]
    ids = pa.array([trial["trial_id"] for trials in found for trial in trials], pa.string())
    return replace(mirror, designs=designs, trials=mirror.trials.filter(compute.is_in(mirror.trials["trial_id"], ids)))


def _reported(design: DesignRecord) -> list[dict[str, Any]]:
    return [trial for trial in design.trials if trial.get("stage") != "tune"]


def _control(trial: dict[str, Any]) -> str:
    """What to call the cell of a control; nothing for an ordinary trial."""
    return {"aa": "A/A", "bad": trial.get("label", "known-bad")}.get(trial.get("control", ""), "")


@contextmanager
def _explained(timeout: float) -> Iterator[None]:
    """Turn DuckDB's errors into one line."""
    try:
        yield
    except duckdb.InterruptException:
        raise QueryError(_too_long(timeout)) from None
    except (duckdb.OutOfMemoryException, MemoryError):
        raise QueryError(_TOO_MUCH) from None
    except duckdb.Error as error:
        text, _, where = str(error).partition(_POSITION)
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


def _too_long(timeout: float) -> str:
    return f"the query took longer than {timeout:g} s"


def _word(name: str) -> str:
    return re.sub(r"\W", "_", name)
