"""What a person sees of suites, variants and plans, as text. Results are shown by `registry.tables`, runs by `ablate.display`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ablate.plan import Plan
    from ablate.variants import Variant
    from registry.record import TrialRecord

WIDE = 10_000
"""Columns where the output is no terminal: nothing is folded."""
SHOWN = 5e-4
"""The least share that a plan says a cell is off by."""


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
    for row in made.reported:
        cells.setdefault(row.trial.label, []).append(row)
    tuning = [row for row in made.rows if row.trial.stage]
    known = any(row.status for row in made.reported)
    lines = []
    for label, rows in cells.items():
        first, seconds = rows[0], sum(row.seconds for row in [*rows, *tuning] if row.trial.label == label)
        lines.append([
            label, str(len(rows)), *([_counts(row.status for row in rows if row.status) or "-"] if known else []),
            count(first.parameters), count(first.flops_per_token), count(first.tokens), f"{first.epochs:.2f}",
            duration(seconds) if seconds else "-", f"{first.memory_gib:.2g}",
        ])  # fmt: skip
    numbers = ["params", "FLOP/token", "tokens", "epochs", "time", "GiB"]
    table(["cell", "seeds", *(["recorded"] if known else []), *numbers], lines, right=["seeds", *numbers])
    _drift(made)
    _tuning(made)
    print(f"\n{summary(made)}")
    for warning in made.warnings:
        print(f"warning: {warning}")


def _drift(made: Plan) -> None:
    """Print how far cells are from the baseline on every axis, and what was adjusted to match them, where there is something to say."""
    adjusted = {
        row.trial.label: ", ".join(
            f"{field.rpartition('.')[2]}={value}"
            for field, value in made.design.arms.adjusted(row.trial.levels, row.trial.recipe).items()
        )
        for row in made.cells
    }  # fmt: skip
    axes = list(dict.fromkeys(axis for shares in made.drift.values() for axis in shares))
    lines = [
        [label, *(f"{100 * shares[axis]:+.1f} %" if axis in shares else "?" for axis in axes), adjusted[label]]
        for label, shares in made.drift.items()
        if adjusted[label] or any(abs(share) >= SHOWN for share in shares.values())
    ]
    if lines:
        print(f"\nmatched in {made.design.suite.match}; off the baseline:")
        table(["cell", *axes, "adjusted"], lines, right=axes)


def _tuning(made: Plan) -> None:
    """Print how far the search of each cell is."""
    from ablate.tune import value_of

    tune = made.design.suite.tune
    if tune is None:
        return
    lines = []
    for arm in made.arms:
        found = arm.search
        tried = [
            f"{value}: {'?' if loss is None else f'{loss:.4g}'}"
            for value, loss in zip(found.values, found.losses, strict=True)
        ]
        chosen = "" if found.chosen is None else f"{value_of(arm.trials[found.chosen][0].recipe, tune.field):.4g}"
        chosen = f"{found.chosen} = {chosen}" if isinstance(found.chosen, str) else chosen
        lines.append([arm.cell.label, ", ".join(tried), chosen, found.standing])
    seeds = f"{tune.seeds} seed{'s' if tune.seeds > 1 else ''} of its own"
    print(f"\n{tune.field} is tuned for each cell on {seeds}, with {tune.budget} values at most:")
    table(["cell", "val_loss by value", "chosen", ""], lines)


def summary(made: Plan) -> str:
    """One line: how many trials there are, how they stand, and what the rest takes."""
    suite, waiting = made.design.suite, len(made.pending)
    tuning = sum(row.trial.stage == "tune" for row in made.rows)
    total = f"{len(made.rows) + len(made.later)} trials"
    standing = _counts(row.status for row in made.rows if row.status)
    parts = [
        f"{suite.name} at {made.design.scale}: {total}{f', {tuning} of them to tune {suite.tune.field}' if suite.tune else ''}",
        *([standing] if standing else []),
        f"{waiting} to run, about {duration(made.seconds)} on {made.environment['device']}"
        if waiting
        else "nothing to run",
    ]
    if not made.last:
        parts.append(f"then about {duration(made.seconds_later)} more, if no grid has to be extended")
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
        "match": made.design.suite.match,
        "drift": made.drift,
        "trials": [
            {"cell": row.trial.label, "levels": dict(row.trial.levels), "seed": row.trial.seed, "stage": row.trial.stage,
             "tuned": row.trial.tuned, **{name: getattr(row, name) for name in names}, "pending": row.trial_id in pending}
            for row in made.rows
        ],
    }  # fmt: skip


def speed(records: Sequence[TrialRecord], labels: Mapping[str, str], form: str) -> None:
    """Print what a pass for speed found, a cell a row and its name by trial: two tables to read, or all numbers for programs."""
    import pandas as pd

    from registry.tables import render as show_frame

    rows = [_speed_row(record, labels[record.trial_id]) for record in records]
    notes = _speed_notes(records)
    if form in ("json", "csv"):
        show_frame(pd.DataFrame(rows), form, console(), notes)
        return
    counted = ("tokens_per_second", "parameters", "prefill_tokens_per_second", "decode_tokens_per_second")
    train = [
        "step_time_ms",
        "step_vs_baseline",
        "tokens_per_second",
        "mfu",
        "peak_memory_gib",
        "memory_vs_baseline",
        "parameters",
    ]
    serve = ["prefill_tokens_per_second", "prefill_vs_baseline", "decode_tokens_per_second", "decode_vs_baseline"]
    tables = [(["cell", "failed", *train], rows)]
    if served := [row for row in rows if "decode_tokens_per_second" in row]:
        tables.append((["cell", "kv_cache_bytes_per_token", *serve], served))
    for i, (names, chosen) in enumerate(tables, start=1):
        cells = {
            name: [_speed_cell(row, name, count if name in counted else _four) for row in chosen] for name in names
        }
        frame = pd.DataFrame({name: values for name, values in cells.items() if any(values)})
        show_frame(frame, form, console(), notes if i == len(tables) else [])
        if i < len(tables):
            print()


def _four(value: float) -> str:
    """To four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _speed_row(record: TrialRecord, label: str) -> dict[str, Any]:
    """What programs get of a record: its metrics, and `<metric>_ratio` to the baseline with `_low` and `_high` bounds."""
    found = record.context.get("speed", {})
    ratios = {
        f"{metric}_ratio" + ("" if part == "estimate" else f"_{part}"): value
        for metric, ratio in found.get("ratios", {}).items() for part, value in ratio.items()
    }  # fmt: skip
    failed = {} if record.status == "finished" else {"failed": f"{record.status}: {record.cause}"}
    rest = {name: found[name] for name in ("rounds", "steps_per_window") if name in found}
    return {"cell": label, **failed, **rest, **record.metrics, **ratios, "step_mode": record.step_mode,
            "exclusive": record.exclusive, "cell_id": record.cell_id, "record_id": record.record_id}  # fmt: skip


def _speed_cell(row: Mapping[str, Any], name: str, number: Callable[[float], str]) -> str:
    """`1.034 [1.031, 1.037]` for a ratio, where it has bounds; a number in few digits; text as it is."""
    what, ratio, _ = name.partition("_vs_baseline")
    if not ratio:
        value = row.get(name, "")
        return value if isinstance(value, str) else number(value)
    metric = {"step": "step_time_ms", "memory": "peak_memory_gib"}.get(what, f"{what}_tokens_per_second") + "_ratio"
    if metric not in row:
        return ""
    bounds = f" [{row[f'{metric}_low']:.3f}, {row[f'{metric}_high']:.3f}]" if f"{metric}_low" in row else ""
    return f"{row[metric]:.3f}{bounds}"


def _speed_notes(records: Sequence[TrialRecord]) -> list[str]:
    measured = [record.context["speed"] for record in records if "speed" in record.context]
    notes = []
    if measured:
        rounds = measured[0]["rounds"]
        notes.append(f"vs baseline: of times, memory and rates, with the 95 % interval over {rounds} rounds of four windows in turn; "
                     "of the baseline's row, against itself: what the pass can tell apart")  # fmt: skip
    if len({one["tokens_per_step"] for one in measured}) > 1:
        notes.append("cells differ in the tokens of a step: compare tokens per second")
    if served := next((one["inference"] for one in measured if "batch" in one["inference"]), None):
        notes.append(f"inference: {served['batch']} sequences, prompts of {served['prompt']} tokens, decoded up to "
                     f"{served['context']}, in {served['dtype']}")  # fmt: skip
    notes += [
        f"no inference: {cause}" for cause in dict.fromkeys(one["inference"].get("failed") for one in measured) if cause
    ]
    if any(record.status == "finished" and not record.exclusive for record in records):
        notes.append("not alone on the device")
    return notes


def _counts(statuses: Iterable[str]) -> str:
    return ", ".join(f"{number} {status.replace('_', ' ')}" for status, number in Counter(statuses).items())
