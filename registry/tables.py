"""A frame as text: for a terminal, a program, a document."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import pandas as pd
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import _escape
from .record import METRICS

Format = Literal["table", "json", "csv", "markdown", "latex"]
FORMATS: tuple[str, ...] = get_args(Format)
Columns = dict[str, list[Any]]
_CONTEXT = ("suite", "scale", "device", "environment_id", "evaluation_fingerprint")
_HEADERS = {"tokens_per_second": "tok/s", "parameters": "params", "peak_memory_gib": "peak\nGiB"}


def render(frame: pd.DataFrame, format: str, console: Console | None = None, notes: Sequence[str] = ()) -> None:
    """Print `frame` on `console`.

    `json` (`{"rows": [...], "notes": [...]}`) and `csv` (no notes) have every column at full precision; `table`,
    `markdown` and `latex` are for reading: a leaderboard's mean and half-width become one column, and what is
    the same in all of its rows stands above them. Raises `ValueError` for an unknown format.
    """
    console = console or Console()
    out = console.file
    if format not in FORMATS:
        raise ValueError(f'no format "{format}"; there are: {", ".join(FORMATS)}')
    columns = {str(name): [_plain(v) for v in frame.iloc[:, i].tolist()] for i, name in enumerate(frame.columns)}
    if format == "json":
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        text = json.dumps({"rows": rows, "notes": list(notes)}, indent=2, ensure_ascii=False)
        out.write(_escape.coded(text) + "\n")
        return
    if format == "csv":
        out.write(_csv(columns))
        return
    context = ""
    if "metric" in frame.attrs:
        unnamed = set() if frame.attrs.get("chosen") else {"cell", "control", *frame.attrs["factors"]}
        unnamed = unnamed.difference(frame.attrs["named"])
        context, columns = _brief({n: values for n, values in columns.items() if n not in unnamed}, frame)
    numeric = [name in METRICS or _numbers(values) for name, values in columns.items()]
    cells = [[_shown(value) for value in row] for row in zip(*columns.values(), strict=True)]
    if format == "table":
        _print_table(console, context, list(columns), cells, numeric, notes)
    else:
        build = _markdown if format == "markdown" else _latex
        out.write(build(context, list(columns), cells, numeric, notes))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist") and getattr(value, "ndim", 0):
        value = value.tolist()
    if isinstance(value, (list, tuple, dict)):
        return value
    if hasattr(value, "item"):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _brief(columns: Columns, frame: pd.DataFrame) -> tuple[str, Columns]:
    """Of a leaderboard: what is the same in all rows, and the columns worth a reader's width; all that were asked for where some were."""
    chosen, places = frame.attrs.get("chosen", False), list(frame.index)
    half_widths = frame.attrs.get("half_widths", {})
    shared = [place in frame.attrs.get("shared", ()) for place in places]
    constant = [name for name in _CONTEXT if not chosen and len(set(columns.get(name, ()))) == 1]
    context = " · ".join(f"{name.partition('_')[0]} {columns[name][0]}" for name in constant if columns[name][0])
    said = {"failed": {""}, "verdict": {"", "baseline"}, "pareto": {False}, "verified": {0}, "refuted": {0}}
    brief = {
        name: values
        for name, values in columns.items()
        if chosen
        or (
            name not in {*constant, "cell_id", "exclusive"}
            and not name.endswith(("_sem", "_sd", "_half_width"))
            and not (name in METRICS and set(values) <= {None})
            and not (name in said and set(values) <= said[name])
        )
    }
    for name, values in brief.items():
        if name in half_widths:
            brief[name] = [
                _interval(mean, half) for mean, half in zip(values, map(half_widths[name].get, places), strict=True)
            ]
        elif name == "pareto":
            brief[name] = ["•" if best else "" for best in values]
        elif name in METRICS and METRICS[name].kind == "size":
            brief[name] = [_counted(value) for value in values]
        if name in METRICS and METRICS[name].kind in ("speed", "memory") and any(shared):
            texts = [_shown(value) for value in brief[name]]
            brief[name] = [
                f"~{text}" if text and inexact else text for text, inexact in zip(texts, shared, strict=True)
            ]
    return context, brief


def _counted(value: float | None) -> str | None:
    """A large count to three digits: `124M`."""
    if value is None or value < 1e4:
        return None if value is None else _shown(value)
    power = min(int(math.log10(value) / 3), 4)
    scaled = value / 1000**power
    return f"{scaled:.{max(0, 2 - int(math.log10(scaled)))}f}{' KMBT'[power]}"


def _interval(mean: float | None, half: float | None) -> str | None:
    """`3.202 ± 0.150`: to two digits of the half-width, or to three decimals, for paired differences are smaller."""
    if mean is None or not half or not math.isfinite(half):
        return None if mean is None else _shown(mean)
    digits = min(max(1 - math.floor(math.log10(half)), 3 if abs(mean) < 100 else 0), 6)
    return f"{mean:,.{digits}f} ± {half:,.{digits}f}"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    size = abs(value)
    if size >= 1e15 or size < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.{0 if size >= 1000 else 1 if size >= 100 else 4}f}"


def _numbers(values: list[Any]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present)


def _print_table(
    console: Console, context: str, names: list[str], cells: list[list[str]], numeric: list[bool], notes: Sequence[str]
) -> None:
    """Headers break at their underscores; where the terminal is too narrow metrics are left out, the last ones first."""
    headers = [_HEADERS.get(name, _escape.seen(name).replace("_", "\n")) for name in names]
    cells = [[_escape.seen(text) for text in row] for row in cells]
    columns = [[cell_len(word) for word in header.split("\n")] for header in headers]
    widths = [max([*column, *(cell_len(row[i]) for row in cells)]) for i, column in enumerate(columns)]
    kept = list(range(len(names)))
    spare = [i for i in kept if names[i] in METRICS][1:]
    while spare and sum(widths[i] + 2 for i in kept) - 2 > console.width:
        kept.remove(spare.pop())
    if context:
        console.print(Text(_escape.seen(context), style="dim"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i in kept:
        table.add_column(
            Text(headers[i]), justify="right" if numeric[i] else "left", overflow="fold", vertical="bottom"
        )
    for row in cells:
        table.add_row(*(Text(row[i]) for i in kept))
    console.print(table)
    hidden = [names[i] for i in range(len(names)) if i not in kept]
    for note in [*notes, *([f"not shown in {console.width} columns: {', '.join(hidden)}"] if hidden else [])]:
        console.print(Text(_escape.seen(note), style="dim"))


def _csv(columns: Columns) -> str:
    """Text that a spreadsheet would take for a formula gets a `'` in front; a carriage return, which it would take for a new row,
    and what else a terminal obeys, is replaced."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in [tuple(columns), *zip(*columns.values(), strict=True)]:
        writer.writerow([_harmless(value) if isinstance(value, str) else value for value in row])
    return out.getvalue()


def _harmless(text: str) -> str:
    return _escape.seen(f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text)


def _markdown(context: str, names: list[str], cells: list[list[str]], numeric: list[bool], notes: Sequence[str]) -> str:
    def line(row: Sequence[str]) -> str:
        return f"| {' | '.join(map(_escape.markdown, row))} |"

    rules = "|" + "|".join("---:" if right else "---" for right in numeric) + "|"
    parts = [f"{_escape.markdown(context)}\n"] if context else []
    parts += [line(names), rules, *map(line, cells)]
    parts += ["", *(f"- {_escape.markdown(note)}" for note in notes)] if notes else []
    return "\n".join(parts) + "\n"


def _latex(context: str, names: list[str], cells: list[list[str]], numeric: list[bool], notes: Sequence[str]) -> str:
    def line(row: Sequence[str]) -> str:
        return "  " + " & ".join(map(_escape.latex, row)) + r" \\"

    lines = [
        f"% {' '.join(_escape.seen(text).split())}"
        for text in ("needs \\usepackage{booktabs}", context, *notes)
        if text
    ]
    lines += [
        f"\\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}",
        "  \\toprule",
        line(names),
        "  \\midrule",
    ]
    lines += [*map(line, cells), "  \\bottomrule", "\\end{tabular}"]
    return "\n".join(lines) + "\n"
