"""SQL over the mirror, in a DuckDB that can read nothing else and change nothing."""

from __future__ import annotations

import re
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import duckdb
import pandas as pd
import pyarrow as pa

from ._contained import FORKS, Refused, TooLong, TooMuch, contained
from ._rows import TRIALS
from .mirror import Mirror

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

_TRIALS = """
    {selected}, purpose = 'primary' AND reason IS NULL AND NOT coalesce(replaced, false) AS counts, coalesce(reason, '') AS retracted,
    coalesce(confirmed, 0) AS verified, coalesce(denied, 0) AS refuted
    FROM _trials LEFT JOIN _standing ON record_id = "of"
"""
_DESIGNS = """
    suite, scale, design_id, created_at, design_id IN (SELECT id FROM _latest) AS latest, trial_id, cell_id, seed, kind, control, cell,
    levels, baseline, tuned, margin FROM _declared
"""


_LOCK = threading.RLock()
"""Held while a connection is used, and while a process is made that inherits one."""
_kept: weakref.WeakKeyDictionary[Mirror, duckdb.DuckDBPyConnection] = weakref.WeakKeyDictionary()


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
        self._own: duckdb.DuckDBPyConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._own is not None:
            self._own.close()
            self._own = None

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
        if conditions:
            return self._answer(sql, conditions, aggregates).to_pylist()
        if aggregates:  # in one statement: each step of a relation is planned anew
            expressions, groups = aggregates
            sql = f"SELECT {groups}, {expressions} FROM ({sql}) GROUP BY {groups}"
        with _LOCK, _explained(self._timeout):
            answer = self._connection().execute(sql)
            names = [column[0] for column in answer.description or ()]
            return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

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
        with _LOCK, _explained(self._timeout):
            connection = self._connection()
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

        if not self._tables:
            with _LOCK:
                self._connection()  # made once, and inherited
        try:
            answer = contained(self._connection, work, seconds=self._timeout, memory=MEMORY_BYTES, forking=_LOCK)
        except Refused as refused:
            raise QueryError(str(refused)) from None
        except TooLong:
            raise QueryError(_too_long(self._timeout)) from None
        except TooMuch:
            raise QueryError(f"{_TOO_MUCH}, or is nested too deeply") from None
        return pa.ipc.open_stream(answer).read_all()

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """One for each mirror, kept as long as that; with tables of its own one for this sandbox alone."""
        if self._tables:
            self._own = self._own or self._connect()
            return self._own
        found = _kept.get(self._mirror)
        if found is None:
            found = _kept[self._mirror] = self._connect()
        return found

    def _connect(self) -> duckdb.DuckDBPyConnection:
        mirror, connection = self._mirror, duckdb.connect(f":memory:{uuid.uuid4().hex}", config=dict(_LOCKED))
        names = column_names(mirror.trials.schema.names)
        selected = ", ".join(f'"{column}" AS "{name}"' for column, name in names.items())
        for name, table in {
            "_trials": mirror.trials,
            "_standing": mirror.standing.rename_columns(["of", "reason", "confirmed", "denied", "replaced"]),
            "_declared": mirror.declared,
            "_latest": pa.table({"id": pa.array(mirror.derived.latest, pa.string())}),
            "marks": mirror.marks.drop_columns(["mark"]),
            **self._tables,
        }.items():
            connection.register(name, table)
        connection.execute(f"CREATE VIEW trials AS SELECT {_TRIALS.format(selected=selected)}")
        connection.execute(f"CREATE VIEW designs AS SELECT {_DESIGNS}")
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
