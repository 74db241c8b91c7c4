"""Results from one registry to another, and to readers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import NamedSuite, OnlyScale, app, name_of

# fmt: off
Where = Annotated[list[str] | None, typer.Option("--where", metavar="EXPR", help="Only trials for which this SQL holds; repeatable.")]
# fmt: on


@app.command(name="export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the records, such as records.ablate.")],
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="Only this suite: a name, or a path; all if not given.")
    ] = None,
    scale: OnlyScale = None,
    where: Where = None,
) -> None:
    """Write records to one file, for another registry.

    A zip of JSON lines and Parquet, with the designs of suites and the curves of trials.
    """
    from registry.exchange import export_records

    written = export_records(file, None if suite is None else name_of(suite), scale, tuple(where or ()))
    print(f"{file}: {_listed(written.counts)}")


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What ablate export has written.")],
) -> None:
    """Take over the records of a file.

    The file is checked first and taken as a whole or not at all; what the registry has already is left as it is.
    """
    from registry.exchange import import_records

    taken = import_records(file)
    for word, counts in (("new", taken.new), ("there before", taken.known)):
        if word == "new" or any(counts.values()):
            print(f"{word}: {_listed(counts)}")


@app.command()
def publish(
    suite: NamedSuite,
    scale: OnlyScale = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to put the folder.")] = Path(
        "results"
    ),
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Publish also what nobody can check, and say so in the files.")
    ] = False,
) -> None:
    """Write a suite's results as files: DIR/SUITE/SCALE/HARDWARE.

    Trials, effects and curves as CSV, the report as Markdown, the environment, and the records if they are small.
    Refused where records come from uncommitted changes, have no revision, are damaged, were retracted or did not
    reproduce.
    """
    from registry.publish import publish as make

    for publication in make(name_of(suite), scale, unverified=unverified):
        print(publication.write(output))


def _listed(counts: dict[str, int]) -> str:
    """`9 trials, 1 design`; marks only where there are any."""
    kinds = [kind for kind in ("trials", "designs", "marks") if counts[kind] or kind != "marks"]
    return ", ".join(f"{counts[kind]:,} {kind.removesuffix('s') if counts[kind] == 1 else kind}" for kind in kinds)
