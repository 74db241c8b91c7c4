"""What a person sees of suites, variants and plans, as text. Results are shown by `registry.tables`, runs by `ablate.display`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ablate.plan import Plan
    from ablate.variants import Variant

WIDE = 10_000
"""Columns where the output is no terminal: nothing is folded."""


def console(*, stderr: bool = False) -> Console:
    """Plain text to stdout or stderr: nothing in a record is taken for markup."""
    file = sys.stderr if stderr else sys.stdout
    return Console(file=file, width=None if file.isatty() else WIDE, markup=False, highlight=False, emoji=False)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """Print a table. The columns named in `right` hold numbers; where it is narrow they are kept whole, or else the first is."""
    flush = set(right)
    whole = flush or {header[0]}
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in header:
        justify = "right" if name in flush else "left"
        made.add_column(Text(name), justify=justify, overflow="fold", no_wrap=name in whole)
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
            count = seconds / size
            return f"{count:,.0f} {unit}" if count >= 10 else f"{count:.2g} {unit}"
    return f"{seconds:.0f} s"


def plan(made: Plan) -> None:
    """Print the cells of a plan, what they cost, and what to know before running it."""
    cells: dict[str, list[Any]] = {}
    for row in made.rows:
        cells.setdefault(row.trial.label, []).append(row)
    pending = {row.trial_id for row in made.pending}
    known = any(row.status for row in made.rows)
    lines = []
    for label, rows in cells.items():
        first, waiting = rows[0], [row for row in rows if row.trial_id in pending]
        lines.append([
            label, str(len(rows)), *([_counts(row.status for row in rows if row.status) or "-"] if known else []),
            count(first.parameters), count(first.flops_per_token), count(first.tokens), f"{first.epochs:.2f}",
            duration(sum(row.seconds for row in waiting)) if waiting else "-", f"{first.memory_gib:.2g}",
        ])  # fmt: skip
    numbers = ["params", "FLOP/token", "tokens", "epochs", "time", "GiB"]
    table(["cell", "seeds", *(["recorded"] if known else []), *numbers], lines, right=["seeds", *numbers])
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
    names = ("trial_id", "cell_id", "status", "corpus_fingerprint", "evaluation_fingerprint", "text_fingerprint",
             "code_fingerprint", "parameters", "flops_per_token", "tokens", "epochs", "seconds", "memory_gib")  # fmt: skip
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
