"""What a person sees of plans and runs, as text. It computes nothing; results are shown by `registry.tables`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ablate.plan import Plan
    from ablate.status import Event, Snapshot
    from ablate.variants import Variant
    from registry.record import TrialRecord

WIDE = 10_000
"""Columns where the output is no terminal: nothing is folded."""


def console(*, stderr: bool = False) -> Console:
    """Plain text to stdout or stderr: nothing in a record is taken for markup."""
    file = sys.stderr if stderr else sys.stdout
    return Console(file=file, width=None if file.isatty() else WIDE, markup=False, highlight=False, emoji=False)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """Print a table; the columns named in `right` hold numbers."""
    flush = set(right)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in header:
        made.add_column(Text(name), justify="right" if name in flush else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    console().print(made)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a Markdown file."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"

    return line(header) + line("---" for _ in header) + "".join(map(line, rows))


def options(variant: Variant) -> str:
    """The options of a variant with their defaults, as `eps=1e-05, beta`; one without a default must be given."""
    fields = variant.options.model_fields.items()
    return ", ".join(name if field.is_required() else f"{name}={field.default!r}" for name, field in fields)


def count(value: float) -> str:
    """`1.24M`: a count to three digits."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """`4 s`, `12 min`, `3.5 h`, `2 d`; `?` where it is not known."""
    if seconds is None:
        return "?"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.0f} s"


def plan(made: Plan) -> None:
    """Print the cells of a plan, what they cost, and what to know before running it."""
    cells: dict[str, list[Any]] = {}
    for row in made.rows:
        cells.setdefault(row.trial.label, []).append(row)
    pending = {row.trial_id for row in made.pending}
    lines = []
    for label, rows in cells.items():
        first, waiting = rows[0], [row for row in rows if row.trial_id in pending]
        lines.append([
            label, str(len(rows)), _counts(row.status for row in rows if row.status) or "-",
            count(first.parameters), count(first.flops_per_token), count(first.tokens), f"{first.epochs:.2f}",
            duration(sum(row.seconds for row in waiting)) if waiting else "-", f"{first.memory_gib:.2g}",
        ])  # fmt: skip
    numbers = ["parameters", "FLOP/token", "tokens", "epochs", "time", "memory GiB"]
    table(["cell", "seeds", "recorded", *numbers], lines, right=["seeds", *numbers])
    print(f"\n{summary(made)}")
    for warning in made.warnings:
        print(f"warning: {warning}")


def summary(made: Plan) -> str:
    """One line: how many trials there are, how they stand, and what the rest takes."""
    suite, total, waiting = made.design.suite.name, len(made.rows), len(made.pending)
    standing = _counts(row.status for row in made.rows if row.status)
    parts = [f"{suite} at {made.design.scale}: {total} trials", *([standing] if standing else [])]
    parts.append(
        f"{waiting} to run, about {duration(made.seconds)} on {made.environment['device']}"
        if waiting
        else "nothing to run"
    )
    return "; ".join(parts)


def plan_data(made: Plan) -> dict[str, Any]:
    """A plan for programs: one object per trial."""
    pending = {row.trial_id for row in made.pending}
    names = ("trial_id", "cell_id", "status", "corpus_fingerprint", "code_fingerprint", "parameters", "flops_per_token",
             "tokens", "epochs", "seconds", "memory_gib")  # fmt: skip
    return {
        "suite": made.design.suite.name,
        "scale": made.design.scale,
        "environment_id": made.environment_id,
        "environment": made.environment,
        "seconds": made.seconds,
        "warnings": list(made.warnings),
        "trials": [
            {"cell": row.trial.label, "levels": dict(row.trial.levels), "seed": row.trial.seed,
             **{name: getattr(row, name) for name in names}, "pending": row.trial_id in pending}
            for row in made.rows
        ],
    }  # fmt: skip


def _counts(statuses: Iterable[str]) -> str:
    return ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in Counter(statuses).items())


def outcome(record: TrialRecord) -> str:
    """How a trial ended, on one line."""
    if record.status != "finished":
        return f"{record.status.replace('_', ' ')}: {' '.join(record.cause.split())}"
    return f"val_loss {record.metrics['val_loss']:.4f}, {duration(record.metrics.get('total_seconds'))}"


class Progress:
    """The events of a run on stderr: a line per finished trial, and on a terminal what runs now below them."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        from ablate.status import Finished, Message

        if isinstance(event, Message):
            self._console.print(Text(event.text))
        elif isinstance(event, Finished):
            record = event.record
            self._console.print(
                Text(f"{event.done}/{event.total}  {event.label}  seed {record.seed}  {outcome(record)}")
            )
        elif self._live.is_started:
            self._live.update(_now(event), refresh=True)


def _now(snapshot: Snapshot) -> Group:
    """The bar of a run and a line for each trial that a worker has."""
    head = Table.grid(padding=(0, 2))
    failed = f", {snapshot.failed} failed" if snapshot.failed else ""
    left = f", about {duration(snapshot.seconds_left)} left" if snapshot.seconds_left is not None else ""
    head.add_row(
        ProgressBar(total=snapshot.total, completed=snapshot.done, width=30),
        Text(f"{snapshot.done} of {snapshot.total} done{failed}, {len(snapshot.running)} running{left}"),
    )
    trials = Table.grid(padding=(0, 2))
    for trial in snapshot.running:
        steps = f"step {trial.step} of {trial.steps}" if trial.steps else ""
        loss = f"loss {trial.loss:.3f}" if trial.loss is not None else ""
        speed = f"{trial.tokens_per_second:,.0f} tokens/s" if trial.tokens_per_second else ""
        trials.add_row(*map(Text, (trial.label, trial.phase, steps, loss, speed)))
    return Group(head, trials)
