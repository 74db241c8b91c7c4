"""What trains and measures, and what became of it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ablate.errors import UserError

from . import (
    FAILED,
    Format,
    Match,
    NamedSuite,
    Only,
    OnlyScale,
    Output,
    Scale,
    Seeds,
    Settings,
    SuiteArg,
    app,
    expanded,
    name_of,
    prepare_corpora,
    say,
)


@app.command()
def plan(
    suite: SuiteArg,
    scale: Scale = None,
    settings: Settings = None,
    seeds: Seeds = None,
    only: Only = None,
    match: Match = None,
    effect: Annotated[
        float | None,
        typer.Option(
            "--effect",
            metavar="NATS",
            min=1e-6,
            max=100.0,
            help="Say how many seeds would show it, instead of the margin.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object per trial, for programs.")] = False,
) -> None:
    """Show what a run would do, what it can show, and what it costs; nothing is run."""
    from ablate import render, render_outlook
    from ablate.outlook import outlook
    from ablate.plan import make_plan
    from registry.home import home

    design = expanded(suite, scale, settings, seeds, only, match)
    made = make_plan(design, home=home())
    whole = expanded(suite, scale, settings, seeds, None, match) if only else design
    found = outlook(whole, made, home(), effect=effect)
    if as_json:
        print(json.dumps(render.plan_data(made) | {"design": render_outlook.data(found, made)}, indent=2))
    else:
        render.plan(made)
        print()
        render_outlook.outlook(found, made)


@app.command()
def run(
    suite: SuiteArg,
    scale: Scale = None,
    settings: Settings = None,
    seeds: Seeds = None,
    only: Only = None,
    match: Match = None,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="RAY", envvar="RAY_ADDRESS", help="A Ray cluster, instead of this machine."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what ran out of memory or time, or crashed.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="Trials at work at once on each device.")
    ] = None,
    pack: Annotated[
        int | None,
        typer.Option("--pack", metavar="N", min=1, help="Train so many at once on each GPU; speed is then shared."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", min=1, help="The longest that a trial may take.")
    ] = None,
) -> int:
    """Run the trials of a suite that have not been run here.

    Ctrl-C keeps what is finished; the same command goes on from there.
    """
    import time

    from ablate import environment, session, timeline
    from registry.home import home

    started = time.time()
    design = expanded(suite, scale, settings, seeds, only, match, workers)
    environment.share(workers, pack=pack)  # what is asked for cannot be had, perhaps
    prepare_corpora(design)
    # a board shows the whole design, also where only some of its cells are run now
    whole = expanded(suite, scale, settings, seeds, None, match, workers) if only else design
    options = session.Options(address=address, retry_failed=retry_failed, workers=workers, pack=pack, timeout=timeout)
    ended = session.run(design, whole, options, home=home(), started=started, say=say)
    for record in ended.failed:
        say(f"what a failed trial wrote: ablate logs {record.trial_id}")
    say(f"see the results with: ablate leaderboard {design.suite.name} --scale {design.scale}")
    records = (
        (f"{row.trial.name} seed {record.seed}", record.context, record.environment) for row, record in ended.ran
    )
    if found := timeline.Timeline.of(records):
        path = timeline.save(found, f"{design.suite.name} {design.scale}", home() / "timelines")
        say(f"{found.summary()}: {path}")
    return 0 if ended.good else FAILED


@app.command()
def status(suite: NamedSuite, scale: OnlyScale = None) -> None:
    """Show how the trials of a suite stand: recorded, running, missing."""
    from ablate import render
    from ablate.status import log_path, running
    from registry import Leaderboard
    from registry.home import home
    from registry.leaderboard import RegistryEmpty

    name = name_of(suite)
    active = [trial for trial in running(home()) if trial.suite == name]
    try:
        found = Leaderboard().suite(name, scale).trials().to_dict("records")
    except RegistryEmpty:
        if not active:
            raise
        found = []
    if not found and not active:
        raise UserError(f"no trial of suite {name!r} was run{f' at scale {scale!r}' if scale else ''} or is running")
    attempts = [one for one in found if one["purpose"] == "primary"]
    counts = Counter((one["scale"], one["cell"], one["status"]) for one in attempts)
    render.table(["scale", "cell", "status", "trials"], [[*key, str(n)] for key, n in counts.items()], right=["trials"])
    for one in attempts:
        if one["status"] != "finished":
            print(f"{one['trial_id']}  {one['cell']}  seed {one['seed']}  {one['status']}: {one['cause']}")
            print(f"  {log_path(home(), one['trial_id'])}")
    for trial in active:
        print(f"{trial.trial_id}  {trial.label}  {trial.phase}  step {trial.step} of {trial.steps}")


@app.command()
def timeline(
    suite: NamedSuite,
    scale: OnlyScale = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.svg", help="Where to write the picture.")
    ] = None,
) -> None:
    """Draw what each worker did in the last run of a suite, and how much of the time one was training."""
    from ablate import timeline
    from registry.home import home

    name = name_of(suite)
    found = timeline.recorded(name, scale)
    if found is None:
        raise UserError(f"the trials of suite {name!r} were recorded without a timeline")
    title = " ".join(filter(None, (name, scale)))
    if output is None:
        output = timeline.save(found, title, home() / "timelines")
    else:
        output.write_text(found.svg(title), encoding="utf-8")
    print(f"{found.summary()}: {output}")


@app.command()
def speed(
    suite: SuiteArg,
    scale: Scale = None,
    settings: Settings = None,
    only: Only = None,
    match: Match = None,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=2, help="Rounds of each cell with the baseline.")
    ] = 8,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", min=1, max=1000, help="Steps of a window, instead of a quarter second's."),
    ] = None,
    inference: Annotated[
        bool | None,
        typer.Option(
            "--inference/--no-inference",
            help="Measure inference in any case, or in none.",
            show_default="if attention varies",
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Sequences at inference.")] = 64,
    context: Annotated[
        int | None, typer.Option("--context", metavar="N", min=2, help="Tokens at inference, instead of training's.")
    ] = None,
    form: Output = Format.table,
) -> int:
    """Measure speed and memory alone, each cell in turn with the baseline.

    The device is kept to itself; quality is not measured. Ctrl-C keeps what is finished.
    """
    from ablate import render
    from ablate.match import SpeedUnknown
    from ablate.plan import make_plan
    from ablate.speed import Options, Pass
    from registry import Spool, Store
    from registry.home import home

    try:
        design = expanded(suite, scale, settings, None, None, match)
    except SpeedUnknown:
        match = "none"  # what arms are matched by is what this measures
        design = expanded(suite, scale, settings, None, None, match)
    chosen = {cell.label for cell in expanded(suite, scale, settings, 1, only, match).cells}
    prepare_corpora(design)
    made = make_plan(design, home=home())
    options = Options(rounds=rounds, steps=steps, inference=inference, batch=batch, context=context)
    measured = Pass(made, home(), options, chosen, say)
    store, spool = Store.open(home()), Spool(home())
    known = {trial["trial_id"] for declared in store.designs() for trial in declared.trials}
    if not known.issuperset(row.trial_id for row in made.reported):
        store.declare(made.design_record())
    records = []
    try:
        for record in measured.records():
            spool.put(record)
            records.append(record)
            if record.status != "finished":
                print(f"{record.status}: {record.cause}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"interrupted; {len(records)} of {len(measured.jobs)} cells are measured and kept", file=sys.stderr)
        raise
    finally:
        store.ingest(spool)
    render.speed(records, {row.trial_id: row.trial.label for row in made.reported}, form)
    return FAILED if any(record.status != "finished" for record in records) else 0
