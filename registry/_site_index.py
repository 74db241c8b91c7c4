"""The first page of a site: which suites there are, what won, how sure that is, on what and when; then every cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import _escape
from . import _wording as w
from ._blocks import Cell as Entry
from ._blocks import Section, Table, Texts, named, number, table
from ._site_data import Cell, suite_path
from .record import DesignRecord
from .report import Report

MOST_CELLS = 5000
"""Rows of the table of every cell; beyond, a browser takes more than a moment, and the pages of the suites have the rest."""


@dataclass(frozen=True)
class Page:
    """A page of the site that is no report. `figures` are numbers to stand out: name, value, unit, note."""

    kicker: str
    title: str
    sections: tuple[Section, ...]
    about: str = ""
    context: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    figures: tuple[tuple[str, str, str, str], ...] = ()
    footer: str = ""


def index(designs: Sequence[DesignRecord], reports: Mapping[tuple[str, str], Report], cells: Sequence[Cell]) -> Page:
    """The page over all suites."""
    devices = sorted({cell.device for cell in cells})
    records = {record["record_id"] for cell in cells for record in cell.records}
    newest = max((cell.newest for cell in cells), default="")
    shown = w.Labels()
    figures = (
        ("suites", f"{len({design.suite for design in designs}):,}", "", f"{len(designs):,} counting their scales"),
        ("cells", f"{len(cells):,}", "", "each at a scale, on a machine"),
        ("records", f"{len(records):,}", "", f"the newest of {day(newest)}"),
        ("hardware", f"{len(devices):,}", "", ", ".join(shown(one).text for one in devices[:3]) + (" …" if len(devices) > 3 else "")),
    )  # fmt: skip
    sections = [Section("suites", "Suites", (_suites(designs, reports, cells),))]
    note = (
        ()
        if len(cells) <= MOST_CELLS
        else (Texts((f"{MOST_CELLS:,} of {len(cells):,} cells: the pages of the suites have all.",)),)
    )
    everything = ranking("cells", "Every cell", cells[:MOST_CELLS], across=True)
    sections.append(Section("every-cell", "Every cell", (everything, *note)))
    footer = "Made by ablate site from the registry's records alone. All the cells as a table for programs: cells.csv."
    about = "What each choice in a pretraining recipe does to quality, speed and memory: every suite in this registry."
    return Page("Ablation registry", "Leaderboard", tuple(sections), about, figures=figures, footer=footer)


def _suites(designs: Sequence[DesignRecord], reports: Mapping[tuple[str, str], Report], cells: Sequence[Cell]) -> Table:
    told: set[str] = set()
    rows = []
    for design in designs:
        about = "" if design.suite in told else cut(design.description, 90)  # once for all of its scales
        told.add(design.suite)
        rows.append(_suite(design, about, reports.get((design.suite, design.scale)), cells))
    columns = ("suite", "scale", "best cell", "#loss, nats/token", "#against the baseline", "#▲ better", "#▼ worse", "#■ equivalent",
               "#○ inconclusive", "#trials", "hardware", "newest")  # fmt: skip
    notes = (
        "Best: the cell with the lowest loss, and how many others a test cannot tell from it. ▲▼■○: what became of the contrasts that the "
        "suite declared before it ran, Holm-corrected; inconclusive is not equal.",
        "± half the 95 % interval: of the mean over seeds; of the difference, paired by seed.",
    )
    return table("suite-table", "Suites, and what won", columns, rows, *notes)


def _suite(design: DesignRecord, about: str, report: Report | None, cells: Sequence[Cell]) -> list[Entry]:
    own = [cell for cell in cells if (cell.suite, cell.scale) == (design.suite, design.scale)]
    at = report.found.environment.get("environment_id") if report else None
    ranked = [cell for cell in own if cell.board and cell.board["rank"] == 1 and cell.environment_id == at]
    labels = w.Labels()
    name = labels(design.suite)
    first = Entry(
        name.text,
        full=name.full if name.full != name.text else "",
        href=suite_path(design.suite, design.scale) if report else "",
        note=about,
    )
    counted = [record for cell in own for record in cell.records if record["counts"]]
    failed = sum(record["status"] != "finished" for record in counted)
    trials = number(len(counted), f"{len(counted):,}")
    seeds = _many(len(design.seeds), "seed")
    trials = Entry(trials.text, trials.key, note=f"{seeds}, {failed} failed" if failed else seeds)
    tally = [_tally(verdict, report) for verdict in w.SIGNS]
    devices = sorted({cell.device for cell in own})
    hardware = named(labels(devices[0])) if devices else Entry("")
    if len(devices) > 1:
        hardware = Entry(hardware.text, full=hardware.full, note=f"and {len(devices) - 1} more")
    when = day(max((cell.newest for cell in own), default=""))
    return [first, named(labels(design.scale)), *_best(ranked), *tally, trials, hardware, Entry(when)]


def _best(ranked: Sequence[Cell]) -> list[Entry]:
    if not ranked:
        return [Entry("nothing finished"), Entry(""), Entry("")]
    best = min(ranked, key=lambda cell: cell.value("val_loss"))
    others = len(ranked) - 1
    note = (
        f"not told from {_many(others, 'other')}"
        if others
        else "alone at the top"
        if (best.board or {}).get("n", 0) > 1
        else ""
    )
    label = named(w.Labels()(best.name))
    note = ", ".join(filter(None, ["the baseline" if best.is_baseline else "", note]))
    return [Entry(label.text, full=label.full, href=best.path, note=note), loss(best), difference(best)]


def _tally(verdict: str, report: Report | None) -> Entry:
    n = report.verdicts.get(verdict, 0) if report else 0
    return Entry(str(n), float(n), verdict=verdict) if n else Entry("·", 0.0)


def ranking(id: str, caption: str, cells: Sequence[Cell], *, across: bool, root: str = "") -> Table:
    """A row per cell, those of one suite, scale and machine ranked among themselves; `across` suites, too."""
    several = len({cell.environment_id for cell in cells}) > 1
    rows, labels = [], w.Labels()
    quality = any(not math.isnan(cell.value("val_bpb")) for cell in cells)
    fast = not across and any(not math.isnan(cell.value("mfu")) for cell in cells)
    for cell in cells:
        label = labels(cell.name)
        kind = f"control, {'A/A' if cell.control == 'aa' else 'known-bad'}" if cell.control else ""
        first = Entry(label.text, full=label.full if label.full != label.text else "", href=root + cell.path, note=kind)
        where = [named(w.Labels()(cell.suite)), named(w.Labels()(cell.scale))] if across else []
        measured = [
            loss(cell),
            difference(cell),
            verdict(cell),
            *([fixed(cell, "val_bpb", 4)] if quality else []),
            speed(cell, "tokens_per_second", 0),
        ]
        measured += [speed(cell, "mfu", 3)] if fast else []
        sizes = [memory(cell), number(cell.value("parameters"), w.count(cell.value("parameters")))]
        n = int((cell.board or {}).get("n") or 0)
        machine = [named(w.Labels()(cell.device))] if across or several else []
        rows.append(
            [
                first,
                *where,
                rank(cell),
                *measured,
                *sizes,
                number(n, f"{n}"),
                standing(cell),
                *machine,
                Entry(day(cell.newest)),
            ]
        )
    columns = ["cell", *(["suite", "scale"] if across else []), "#rank", "#loss, nats/token", "#against the baseline", "verdict",
               *(["#bits/byte"] if quality else []), "#tokens/s", *(["#MFU"] if fast else []), "#peak GiB", "#params",
               "#seeds", "standing", *(["hardware"] if across or several else []), "newest"]  # fmt: skip
    facets = [
        *(("suite", "scale") if across else ()),
        "verdict",
        "standing",
        *(("hardware",) if across or several else ()),
    ]
    notes = (
        "Ranks are within one suite, scale and machine; cells share one (=) unless a t-test paired by seed, Holm-corrected, separates "
        "them. ± half the 95 % interval over seeds; the difference is paired by seed. "
        "Verdicts are on the loss against the baseline, Holm-corrected over the cells of the design; inconclusive is not equal.",
        "~ measured while other trials shared the device: an indication.",
    )
    return Table(id, caption, tuple(columns), tuple(map(tuple, rows)), notes, linked=True, facets=tuple(facets))


def rank(cell: Cell) -> Entry:
    place = cell.board["rank"] if cell.board else None
    return (
        Entry("")
        if place is None
        else Entry(f"{int(place)}{'=' if cell.shared_rank else ''}", float(place), strong=place == 1)
    )


def loss(cell: Cell) -> Entry:
    return plus_minus(cell.value("val_loss"), cell.half_width("val_loss"))


def difference(cell: Cell) -> Entry:
    """From the baseline's loss."""
    if cell.is_baseline:
        return Entry("baseline", 0.0)
    found = cell.against_baseline
    if found is None or math.isnan(found.value):
        return Entry("")
    low, high = found.interval()
    return plus_minus(found.value, (high - low) / 2.0, signed=True)


def verdict(cell: Cell) -> Entry:
    """What the leaderboard says of it against the baseline."""
    word = str((cell.board or {}).get("verdict") or "")
    return Entry(f"{w.SIGNS[word]} {word}", verdict=word) if word in w.SIGNS else Entry(word)


def plus_minus(value: float, half: float, *, signed: bool = False) -> Entry:
    """`3.4121 ± 0.0060`: to four decimals all, so that they stand under each other."""
    if math.isnan(value):
        return Entry("")
    text = w.signed(value, 4) if signed else f"{value:.4f}"
    return Entry(text if math.isnan(half) else f"{text} ± {half:.4f}", value)


def fixed(cell: Cell, metric: str, decimals: int) -> Entry:
    value = cell.value(metric)
    return Entry("") if math.isnan(value) else Entry(f"{value:,.{decimals}f}", value)


def speed(cell: Cell, metric: str, decimals: int) -> Entry:
    made = fixed(cell, metric, decimals)
    shared = bool(made.text) and cell.board is not None and not cell.board["exclusive"]
    return Entry(f"~{made.text}", made.key) if shared else made


def memory(cell: Cell) -> Entry:
    value = cell.value("peak_memory_gib")
    return speed(cell, "peak_memory_gib", 2 if value >= 0.1 else 4)


def standing(cell: Cell) -> Entry:
    """How a cell ended, and what was said of it since."""
    ends = Counter(str(record["status"]) for record in cell.records if record["counts"])
    failures = [f"{n} {end.replace('_', ' ')}" for end, n in ends.items() if end != "finished"]
    marks = {what: n for what in ("retracted", "refuted", "verified") if (n := cell.marked(what))}
    word = next(iter(marks), "failures" if failures else "finished")
    parts = [*failures, *(f"{what} {n}×" for what, n in marks.items())]
    verdict = {"finished": "", "verified": "better"}.get(word, "worse")
    return Entry(word, verdict=verdict, note=", ".join(parts))


def day(when: str) -> str:
    return _escape.seen(when[:10])


def cut(text: str, most: int) -> str:
    line = " ".join(_escape.seen(text).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _many(n: Any, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
