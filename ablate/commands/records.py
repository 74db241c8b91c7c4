"""What is asked of single trials and records, and done about them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ablate.errors import UserError

from . import FAILED, Format, Offline, Output, app, say

# fmt: off
TrialArg = Annotated[str, typer.Argument(metavar="TRIAL", help="Id of a trial, or its first digits.")]
RecordArg = Annotated[str, typer.Argument(metavar="TRIAL", help="Id of a trial or of one of its records, or the first digits.")]
# fmt: on


@app.command()
def logs(trial: TrialArg) -> None:
    """Print what the last attempt at a trial wrote."""
    from ablate.status import log_path
    from registry.home import home
    from registry.lookup import LookupFailed, unique

    here = {path.stem for path in log_path(home(), "").parent.glob("*.log")}
    try:
        chosen = unique(trial, here, "log here")
    except LookupFailed:
        if any(one.startswith(trial) for one in here):
            raise
        raise UserError(_without_log(trial)) from None
    sys.stdout.write(log_path(home(), chosen).read_text(encoding="utf-8", errors="replace"))


def _without_log(trial: str) -> str:
    """Why there is no log of a trial."""
    import json

    from registry import Store
    from registry.home import home
    from registry.lookup import find
    from registry.mirror import sync

    _, rows = find(sync(Store.open(home(), create=False)), trial, ("trial",))
    hosts = {json.loads(row["environment"]).get("host") or "another machine" for row in rows}
    return (
        f"no log of trial {rows[0]['trial_id']} here: it was recorded on {', '.join(sorted(hosts))}, and logs stay "
        "where a trial ran until ablate gc clears them"
    )


@app.command()
def verify(
    trial: RecordArg,
    other_code: Annotated[
        bool, typer.Option("--other-code", help="Also where the code differs from what made the record.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=1, help="The longest that it may take.")
    ] = None,
    form: Output = Format.table,
) -> int:
    """Train a trial again, and say whether it reproduces.

    Quality, speed and memory are held against the noise floor; both records are kept.
    """
    from ablate import render
    from ablate.verify import verify as run_again
    from registry.home import home
    from registry.record import REPRODUCES
    from registry.tables import render as show_frame
    from registry.verification import frame

    ended = run_again(trial, home=home(), other_code=other_code, timeout=timeout, say=say)
    if ended.again is None:
        raise UserError(
            f"trial {ended.recorded.trial_id} was not trained: "
            + ("another process verifies it at the same time" if ended.elsewhere else "no worker came to its end")
        )
    shown = frame(ended.recorded, ended.again)
    show_frame(shown, form, render.console(), shown.attrs["notes"])
    return 0 if ended.again.context["verification"]["verdict"] == REPRODUCES else FAILED


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Id of a trial, record or cell, or its first digits.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    form: Output = Format.table,
    offline: Offline = False,
) -> None:
    """Show in what two trials or cells differ.

    Settings, environment, versions, code, corpus and results, side by side; what is the same is left out.
    """
    from ablate import render
    from registry.compare import compare as side_by_side
    from registry.compare import readable
    from registry.tables import render as show_frame

    frame = side_by_side(a, b, offline=offline)
    shown = frame if form in (Format.json, Format.csv) else readable(frame)
    show_frame(shown, form, render.console(), frame.attrs["notes"])


@app.command()
def retract(
    trial: RecordArg,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="What is wrong with it, for everybody to read.")],
) -> None:
    """Mark all records of a trial, or one of them, as wrong.

    Nothing is deleted: boards, reports and effects leave them out, and the next run trains the trial again.
    """
    from registry.home import home
    from registry.retraction import retract as mark

    for record in mark(home(), trial, why):
        print(
            f"retracted: record {record.record_id} of trial {record.trial_id} ({record.purpose}, {record.status}), suite {record.suite}"
        )


@app.command()
def gc(
    retracted: Annotated[
        bool, typer.Option("--retracted", help="Also delete the MLflow runs of retracted records; their marks stay.")
    ] = False,
    days: Annotated[
        float, typer.Option("--days", metavar="N", min=0, help="How old logs and checkpoints have to be.")
    ] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be cleared.")] = False,
) -> None:
    """Clear caches and what runs left behind.

    No result goes: prepared corpora and compiled steps are made again when they are needed.
    """
    from ablate import render
    from ablate.housekeeping import clear
    from registry.home import home

    heaps = clear(home(), days=days, retracted=retracted, dry_run=dry_run)
    rows = [[heap.what, f"{heap.count:,}", f"{heap.bytes:,}"] for heap in heaps]
    render.table(["would be cleared" if dry_run else "cleared", "number", "bytes"], rows, right=["number", "bytes"])
    print(f"{sum(heap.bytes for heap in heaps):,} bytes {'would be' if dry_run else 'are'} free")
