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
    app,
    name_of,
)


@app.command()
def leaderboard(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="The name of a suite, or its path; all if not given.")
    ] = None,
    scale: OnlyScale = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="EXPR", help="Only trials for which this SQL holds; repeatable."),
    ] = None,
    sort: Annotated[str, typer.Option("--sort", metavar="METRIC", help="Rank by this metric.")] = "val_loss",
    form: Output = Format.table,
    offline: Offline = False,
) -> None:
    """Rank the cells of a suite, with their seeds aggregated.

    Cells that the data cannot separate share a rank.
    """
    from ablate import render
    from registry import Leaderboard
    from registry.tables import render as show_frame

    board = Leaderboard(offline=offline).sort(sort)
    board = board.suite(None if suite is None else name_of(suite), scale)
    for expression in where or ():
        board = board.where(expression)
    frame = board.frame()
    show_frame(frame, form, render.console(), frame.attrs["notes"])


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
) -> None:
    """Say what each level of a suite does, and how sure that is.

    The page needs no network: answers, effects with intervals, plots, controls, provenance and every caveat.
    """
    from registry.home import home
    from registry.report import report as make_report

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
        str, typer.Argument(metavar="SQL", help="One SELECT over trials, designs, marks, cells and curves.")
    ],
    form: Output = Format.table,
    offline: Offline = False,
) -> None:
    """Answer an SQL query over everything recorded.

    The dialect is DuckDB's. `SELECT * FROM trials LIMIT 1` shows what there is.
    """
    import registry
    from ablate import render
    from registry.tables import render as show_frame

    show_frame(registry.query(sql, offline=offline), form, render.console())
