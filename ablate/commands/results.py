"""What the registry answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import (
    Document,
    Format,
    NamedSuite,
    Offline,
    OnlyScale,
    Output,
    Resync,
    app,
    name_of,
    resynced,
)
from .completion import columns, fields, metrics, suites

# fmt: off
OnlySuite = Annotated[str | None, typer.Argument(metavar="SUITE", help="Name of a suite, or its path; else all.", autocompletion=suites)]
Where = Annotated[list[str] | None, typer.Option("--where", metavar="EXPR", help="Only trials for which this SQL holds; repeatable.")]
Hardware = Annotated[str | None, typer.Option("--hardware", metavar="TEXT", help="Only devices whose name holds it; or environment id.")]
Since = Annotated[str | None, typer.Option("--since", metavar="DATE", help="Only trials finished on this day (UTC) or later.")]
Until = Annotated[str | None, typer.Option("--until", metavar="DATE", help="Only trials finished on this day (UTC) or earlier.")]
Sort = Annotated[str, typer.Option("--sort", metavar="METRIC", help="Rank by this metric, best first.", autocompletion=metrics)]
Reverse = Annotated[bool, typer.Option("--reverse", help="Worst first.")]
GroupBy = Annotated[str | None, typer.Option("--group-by", metavar="FIELDS", help="A row for each FIELD[,FIELD].", autocompletion=fields)]
Columns = Annotated[str | None, typer.Option("--columns", metavar="NAMES", help="Only these columns: NAME[,NAME].", autocompletion=columns)]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first so many rows.")]
# fmt: on


@app.command()
def leaderboard(
    suite: OnlySuite = None,
    scale: OnlyScale = None,
    hardware: Hardware = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    sort: Sort = "val_loss",
    reverse: Reverse = False,
    group_by: GroupBy = None,
    columns: Columns = None,
    limit: Limit = None,
    form: Output = Format.table,
    offline: Offline = False,
    resync: Resync = False,
) -> None:
    """Rank the cells of a suite, with their seeds aggregated.

    Cells that the data cannot separate share a rank; a verdict says how each compares with the baseline.
    """
    from ablate import render
    from registry import Leaderboard
    from registry.tables import render as show_frame

    resynced(resync, offline)
    board = Leaderboard(offline=offline).sort(sort, reverse=reverse)
    board = board.suite(None if suite is None else name_of(suite), scale).hardware(hardware).dates(since, until)
    for expression in where or ():
        board = board.where(expression)
    frame = board.group_by(*_names(group_by)).columns(*_names(columns)).limit(limit).frame()
    show_frame(frame, form, render.console(), frame.attrs["notes"])


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",")] if text is not None else []


@app.command()
def report(
    suite: NamedSuite,
    scale: OnlyScale = None,
    form: Annotated[Document, typer.Option("--format", help="A page, or its tables alone.")] = Document.html,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write it, instead of ABLATE_HOME/reports (a page) or stdout.",
        ),
    ] = None,
    offline: Offline = False,
    resync: Resync = False,
) -> None:
    """Say what each level of a suite does, and how sure that is.

    The page needs no network: answers, effects with intervals, plots, controls, provenance and every caveat.
    """
    from registry.home import home
    from registry.report import report as make_report

    resynced(resync, offline)
    made = make_report(name_of(suite), scale, offline=offline)
    text = made.render(form)
    if output is None and form is not Document.html:
        sys.stdout.write(text)
        return
    path = output or home() / "reports" / f"{made.file_name}.html"
    if output is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(path)


@app.command()
def query(
    sql: Annotated[
        str | None, typer.Argument(metavar="SQL", help="One SELECT over trials, designs, marks, cells and curves.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=86400.0, help="The longest that it may take.")
    ] = 30.0,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the views instead: columns, types, units, meaning.")
    ] = False,
    form: Output = Format.table,
    offline: Offline = False,
    resync: Resync = False,
) -> None:
    """Answer an SQL query over everything recorded.

    The dialect is DuckDB's. It reads the registry and nothing else: no files, no network, no settings.
    """
    import registry
    from ablate import render
    from ablate.errors import UserError
    from registry.tables import render as show_frame

    if (sql is None) != schema:
        raise UserError("say either a query or --schema: ablate query 'SELECT * FROM cells'")
    resynced(resync, offline)
    asked = registry.schema(offline=offline) if sql is None else registry.query(sql, offline=offline, timeout=timeout)
    show_frame(asked, form, render.console())
