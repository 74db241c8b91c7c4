"""The command line: parse, call, print. What a command needs is imported inside it, so that help is instant."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from ablate import __version__
from ablate.errors import UserError, near_miss

if TYPE_CHECKING:
    from ablate.design import Design

FAILED, WRONG, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
TRAIN_EXTRA = ("torch", "ray", "datasets", "tokenizers")
"""What only training needs."""


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    markdown = "markdown"
    latex = "latex"


class Document(StrEnum):
    html = "html"
    markdown = "markdown"
    latex = "latex"


# fmt: off
SuiteArg = Annotated[str, typer.Argument(metavar="SUITE", help="A shipped suite, or the path of a YAML file.")]
NamedSuite = Annotated[str, typer.Argument(metavar="SUITE", help="The name of a suite that was run, or its path.")]
Scale = Annotated[str | None, typer.Option("--scale", metavar="SCALE", help="Preset such as nano or 10m, instead of the suite's.")]
OnlyScale = Annotated[str | None, typer.Option("--scale", metavar="SCALE", help="Only this scale.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field; repeatable.")]
Seeds = Annotated[int | None, typer.Option("--seeds", metavar="N", help="So many seeds, instead of the suite's.")]
Only = Annotated[str | None, typer.Option("--only", metavar="CELL", help="Only cells with these levels: FACTOR=LEVEL,...")]
Match = Annotated[str | None, typer.Option("--match", metavar="AXIS", help="What arms are matched in, instead of the suite's axis.")]
Output = Annotated[Format, typer.Option("--format", help="How to print it.")]
Offline = Annotated[bool, typer.Option("--offline", help="Read the local mirror; ask no tracking server.")]
# fmt: on

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. What is the user's to mend is one line on stderr, and 2."""
    given = list(sys.argv[1:] if argv is None else argv)
    # a closed stream is None to Python, and everything that prints fails on it
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    command = get_command(app)
    try:
        with warnings.catch_warnings(), command.make_context("ablate", given or ["--help"]) as context:
            warnings.showwarning = _warn
            code = command.invoke(context)
        sys.stdout.flush()
        return code or 0
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "ablate"
        return _wrong(f"{error.format_message().rstrip('.')}; see {path} --help")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in (*TRAIN_EXTRA, "duckdb"):
            raise
        extra = "[train]" if name in TRAIN_EXTRA else ""
        return _wrong(f"this needs {name}, which is not installed: pip install 'ablate-bench{extra}'")
    except OSError as error:
        what = error.strerror or str(error)
        return _wrong(f"{error.filename}: {what.lower()}" if error.filename else what)
    except ValueError as error:
        if not isinstance(error, UserError) and not type(error).__module__.startswith("registry."):
            raise
        return _wrong(str(error))


def commands() -> list[str]:
    """The names of all commands."""
    return [info.callback.__name__ for info in app.registered_commands if info.callback]


def _wrong(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return WRONG


def _warn(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if category.__module__.partition(".")[0] in ("ablate", "registry"):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ablate {__version__}")
        raise typer.Exit


def _design(
    suite: str, scale: str | None, settings: list[str] | None, seeds: int | None, only: str | None, match: str | None = None,
    workers: int | None = None,
) -> Design:  # fmt: skip
    from ablate.design import expand, parse_set
    from ablate.known import Speeds
    from ablate.suite import load_suite
    from registry.home import home

    found, speeds = load_suite(suite), Speeds(home(), workers=workers)
    found = found if match is None else found.matched(match)
    return expand(found, scale=scale, overrides=parse_set(settings or ()), seeds=seeds, only=only, speeds=speeds)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _prepare(design: Design) -> None:
    """Have every corpus of the design in the cache."""
    from ablate import data
    from ablate.recipe import canonical_json
    from registry.home import home

    corpora = {canonical_json(trial.recipe.to_dict()["data"]): trial.recipe.data for trial in design.trials}
    for corpus in corpora.values():
        data.prepare(corpus, home() / "cache", _say)


def _name(suite: str) -> str:
    """The name under which a suite's results are recorded."""
    from ablate.suite import is_path, load_suite

    return load_suite(suite).name if is_path(suite) else suite


@app.callback()
def ablate(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What each choice in an LLM pretraining recipe does to quality, speed and memory, measured."""


@app.command()
def suites() -> None:
    """List the shipped suites and what each asks."""
    from ablate import render
    from ablate.suite import shipped

    rows = [[name, re.split(r"(?<=[.?!])\s", about)[0]] for name, (_, about) in shipped().items()]
    render.table(["suite", "what it asks"], rows)


@app.command()
def show(suite: SuiteArg) -> None:
    """Print a suite's YAML: a start for one of your own."""
    from ablate.suite import load_suite, shipped

    known = shipped()
    sys.stdout.write(known[suite][0].read_text(encoding="utf-8") if suite in known else load_suite(suite).text)


@app.command()
def variants(
    factor: Annotated[
        str | None, typer.Argument(metavar="FACTOR", help="Only this one, such as attention, train.z_loss or batch.")
    ] = None,
) -> None:
    """List all that a suite may vary.

    The variants of each factor with their options, then the plain fields with their defaults.
    """
    from ablate import render
    from ablate._words import words
    from ablate.variants import load_factors

    factors = load_factors()
    chosen = [one for name, one in factors.items() if factor in (None, name) or _within(one.field, factor)]
    plain = {path: word for path, word in words().items() if factor is None or _within(path, factor)}
    if not chosen and not plain:
        raise UserError(f"unknown factor {factor!r}{near_miss(str(factor), [*factors, *words()])}")
    rows = [[f"{one.field}: {v.name}", v.doc, render.options(v), v.reference] for one in chosen for v in one]
    rows += [[path, word.doc, f"default: {word.default}", word.reference] for path, word in plain.items()]
    about = [[name, f"{doc} ({'; '.join(filter(None, rest))})"] for name, doc, *rest in rows]
    render.table(["field", "what it is (options; reference)"], about)


def _within(path: str, field: str) -> bool:
    return path == field or path.startswith(f"{field}.")


@app.command()
def schema() -> None:
    """Print the JSON Schema of suites, for editors."""
    from ablate.suite import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
def doctor() -> int:
    """Check what is installed, the devices, and the registry."""
    from ablate.doctor import checks

    found = list(checks())
    for check in found:
        print(f"{'ok' if check.ok else 'WRONG':<6} {check.name:<12} {check.text}")
    return 0 if all(check.ok for check in found) else WRONG


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

    design = _design(suite, scale, settings, seeds, only, match)
    made = make_plan(design, home=home())
    whole = _design(suite, scale, settings, seeds, None, match) if only else design
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
    design = _design(suite, scale, settings, seeds, only, match, workers)
    environment.share(workers, pack=pack)  # what is asked for cannot be had, perhaps
    _prepare(design)
    # a board shows the whole design, also where only some of its cells are run now
    whole = _design(suite, scale, settings, seeds, None, match, workers) if only else design
    options = session.Options(address=address, retry_failed=retry_failed, workers=workers, pack=pack, timeout=timeout)
    ended = session.run(design, whole, options, home=home(), started=started, say=_say)
    if ended.interrupted:
        _say("interrupted; what is finished is kept, and the same command goes on from there")
        os._exit(128 + ended.interrupted)  # Ray's threads may hold up an orderly end for a minute
    for record in ended.failed:
        _say(f"what a failed trial wrote: ablate logs {record.trial_id}")
    _say(f"see the results with: ablate leaderboard {design.suite.name} --scale {design.scale}")
    records = (
        (f"{row.trial.name} seed {record.seed}", record.context, record.environment) for row, record in ended.ran
    )
    if found := timeline.Timeline.of(records):
        path = timeline.save(found, f"{design.suite.name} {design.scale}", home() / "timelines")
        _say(f"{found.summary()}: {path}")
    return 0 if ended.good else FAILED


@app.command()
def status(suite: NamedSuite, scale: OnlyScale = None) -> None:
    """Show how the trials of a suite stand: recorded, running, missing."""
    from ablate import render
    from ablate.status import log_path, running
    from registry import Leaderboard
    from registry.home import home
    from registry.leaderboard import RegistryEmpty

    name = _name(suite)
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

    name = _name(suite)
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
def logs(
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="Id of a trial, or its first digits.")],
) -> None:
    """Print what the last attempt at a trial wrote."""
    from ablate.status import log_path
    from registry.home import home

    known = log_path(home(), "").parent.glob("*.log")
    found = [path for path in known if path.stem.startswith(trial)]
    if len(found) != 1:
        what = f"{len(found)} logs begin with" if found else "no log here is of"
        raise UserError(f'{what} {trial!r}; ablate query "SELECT trial_id, suite, cause FROM trials" lists trials')
    sys.stdout.write(found[0].read_text(encoding="utf-8", errors="replace"))


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
    board = board.suite(None if suite is None else _name(suite), scale)
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

    made = make_report(_name(suite), scale, offline=offline)
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
        design = _design(suite, scale, settings, None, None, match)
    except SpeedUnknown:
        match = "none"  # what arms are matched by is what this measures
        design = _design(suite, scale, settings, None, None, match)
    chosen = {cell.label for cell in _design(suite, scale, settings, 1, only, match).cells}
    _prepare(design)
    made = make_plan(design, home=home())
    options = Options(rounds=rounds, steps=steps, inference=inference, batch=batch, context=context)
    measured = Pass(made, home(), options, chosen, _say)
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


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT over trials, designs, cells and curves.")],
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
