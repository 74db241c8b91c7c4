"""`ablate report`: what a suite found, on one page, in Markdown or in LaTeX, all from the same tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from . import _escape
from . import _report_checks as checks
from . import _report_figures as figures
from . import _report_tables as tables
from . import _wording as w
from ._blocks import Block, Code, Figures, Section, Texts
from .home import home as default_home
from .mirror import Mirror, sync
from .sql import Sandbox
from .store import Store

if TYPE_CHECKING:
    from jinja2 import Environment

    from .effects import Effects

Format = Literal["html", "markdown", "latex"]
FORMATS: tuple[str, ...] = get_args(Format)
SUFFIXES = {"html": ".html", "markdown": ".md", "latex": ".tex"}
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Sources:
    """What a report shows beside effects: the records that they rest on, and curves by cell and record, where they could be read."""

    records: pd.DataFrame
    curves: dict[str, figures.Curves]
    tuning: pd.DataFrame


@dataclass(frozen=True)
class Report:
    """A suite's answers in sections that are the same for all formats."""

    found: Effects
    sources: Sources

    @cached_property
    def names(self) -> w.Names:
        return w.Names(self.found.design.factors)

    @property
    def title(self) -> str:
        return w.Labels()(self.found.design.suite).text

    @property
    def context(self) -> tuple[str, ...]:
        """What every number here is of."""
        design, found = self.found.design, self.found
        ordinary = found.trials[found.trials["control"] == ""] if len(found.trials) else found.trials
        seeds, cells = ordinary["seed"].nunique() if len(ordinary) else 0, len(found.cells)
        margin = f"margin ±{w.number(design.margin)} {w.unit('val_loss')}" if design.margin else "no margin of equivalence"
        matched = w.MATCHED.get(design.match, "budgets differ on purpose").removeprefix("at ")
        many = lambda n, what: f"{n:,} {what}{'' if n == 1 else 's'}"  # noqa: E731
        parts = (f"scale {design.scale}", f"{design.kind.replace('_', ' ')} design", many(cells, "cell"), many(seeds, "seed"), many(len(found.trials), "trial"),
                 matched, margin, str(found.environment.get("device", "")))  # fmt: skip
        return tuple(_escape.seen(part) for part in parts if part)

    @property
    def description(self) -> str:
        return _escape.seen(self.found.design.description)

    @property
    def verdicts(self) -> dict[str, int]:
        """How many contrasts came to which verdict."""
        metric = tables.primary(self.found.metrics)
        rows = [some[metric]["verdict"] for some in tables.by_contrast(self.found).values() if metric in some]
        return {verdict: rows.count(verdict) for verdict in w.SIGNS if verdict in rows}

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        parts = (self._answer(), self._caveats(), self._effects(), self._interactions(), self._tradeoff(), self._curves(), self._tuning(),
                 self._controls(), self._trust(), self._provenance())  # fmt: skip
        return tuple(section for section in parts if section.blocks)

    def render(self, format: str) -> str:
        """The report as `html` (one file that needs no network), `markdown` or `latex` (a whole document).

        Raises `ValueError` for another format.
        """
        if format not in FORMATS:
            raise ValueError(f'no format "{format}"; there are: {", ".join(FORMATS)}')
        return _environment(format).get_template(f"report{SUFFIXES[format]}.j2").render(report=self, w=w)

    def _answer(self) -> Section:
        blocks: list[Block] = [*tables.answers(self.found, self.names)]
        return Section("answer", "The answer", tuple(blocks) or (Texts(("There is nothing to compare: no contrast of this suite has results.",)),))

    def _caveats(self) -> Section:
        notes = tuple(_escape.seen(note) for note in self.found.notes)
        return Section("caveats", "Caveats", (Texts(notes, listed=True),) if notes else ())

    def _effects(self) -> Section:
        blocks: list[Block] = []
        if drawn := figures.effects(self.found, self.names):
            blocks.append(Figures(tuple(drawn), legend=True))
        if tables.by_contrast(self.found):
            blocks += [tables.contrasts(self.found, self.names), tables.every_contrast(self.found, self.names)]
        if len(self.found.main_effects):
            blocks.append(tables.main_effects(self.found, self.names))
        return Section("effects", "Effects", tuple(blocks))

    def _interactions(self) -> Section:
        found, names = self.found, self.names
        blocks: list[Block] = []
        if drawn := figures.interactions(found, names):
            blocks.append(Figures(tuple(drawn)))
        if len(found.interactions):
            blocks.append(tables.interactions(found, names))
        if len(found.simple_effects):
            blocks.append(tables.simple_effects(found, names))
        if any(one["aliases"] for one in found.design.aliases):
            blocks.append(tables.aliases(found, names))
        if len(found.variance):
            blocks.append(tables.variance(found, names))
        return Section("interactions", "Interactions", tuple(blocks))

    def _tradeoff(self) -> Section:
        drawn = figures.tradeoff(self.found, self.names)
        without = "Speed was not measured alone on the device, so it is not compared: ablate speed measures it."
        blocks: list[Block] = [Figures(tuple(drawn)) if drawn else Texts((without,))]
        return Section("tradeoff", "Trade-offs", (*blocks, tables.cells(self.found, self.names)))

    def _curves(self) -> Section:
        drawn = figures.curves(self.found, self.names, self.sources.curves)
        return Section("curves", "Curves", (Figures(tuple(drawn)),) if drawn else ())

    def _tuning(self) -> Section:
        if not self.found.design.tuning:
            return Section("tuning", "Tuning", ())
        drawn = figures.tuning(self.found, self.names, self.sources.tuning)
        blocks: list[Block] = [Figures(tuple(drawn))] if drawn else []
        return Section("tuning", "Tuning", (*blocks, checks.tuning(self.found, self.names)))

    def _controls(self) -> Section:
        if tables.by_contrast(self.found, controls=True):
            return Section("controls", "Controls", (checks.controls(self.found, self.names),))
        none = "This suite ran no controls: neither how often it raises a false alarm nor whether it sees a bad arm was tried."
        return Section("controls", "Controls", (Texts((none,)),))

    def _trust(self) -> Section:
        found = self.found
        blocks: list[Block] = []
        if len(found.noise):
            blocks.append(checks.noise(found))
        if len(found.divergence):
            blocks.append(checks.divergence(found, self.names))
        if found.design.drift:
            blocks.append(checks.drift(found, self.names))
        return Section("trust", "Trust", tuple(blocks))

    def _provenance(self) -> Section:
        design = self.found.design
        blocks: list[Block] = [Code("Run it again", checks.rerun(design)), checks.levels(design)]
        if len(self.sources.records):
            blocks += [checks.environments(self.sources.records), checks.versions(self.sources.records)]
        if design.suite_text:
            blocks.append(Code("The suite as it was declared", _escape.seen(design.suite_text), folded=True))
        return Section("provenance", "Provenance", tuple(blocks))


def report(suite: str, scale: str | None = None, *, home: Path | None = None, tracking_uri: str | None = None, offline: bool = False) -> Report:
    """The report of a suite at one scale, from its records.

    `offline` reads the local mirror alone, which has no curves. Raises `RegistryEmpty` where nothing was recorded.
    """
    from .effects import effects

    found = effects(suite, scale, home=home, tracking_uri=tracking_uri, offline=offline)
    store = Store.open(home or default_home(), tracking_uri, create=False)
    mirror = sync(store, offline=True)  # analysing has brought it up to date
    records = _records(mirror, found)
    curves = {} if offline else _curves(store, found, records)
    return Report(found, Sources(records, curves, _tuning_losses(mirror, found)))


def _records(mirror: Mirror, found: Effects) -> pd.DataFrame:
    """The records behind the trials of `found`, one for each trial and environment."""
    with Sandbox(mirror, shown=found.trials[["trial_id", "environment_id"]].drop_duplicates()) as sandbox:
        return sandbox.frame("SELECT trials.* FROM trials JOIN shown USING (trial_id, environment_id) WHERE counts")


def _curves(store: Store, found: Effects, records: pd.DataFrame) -> dict[str, figures.Curves]:
    cells = figures.shown_cells(found)
    trials = found.trials[(found.trials["control"] == "") & (found.trials["status"] == "finished")]
    cell_of = dict(zip(trials["trial_id"], trials["cell"], strict=True))
    wanted = {record_id: cell_of.get(trial_id) for record_id, trial_id in zip(records["record_id"], records["trial_id"], strict=True)}
    wanted = {record_id: cell for record_id, cell in wanted.items() if cell in cells}
    points = store.all_curves(list(wanted))
    return {
        cell: {record_id: points[record_id] for record_id, its in wanted.items() if its == cell and record_id in points}
        for cell in cells if any(its == cell for its in wanted.values())
    }  # fmt: skip


def _tuning_losses(mirror: Mirror, found: Effects) -> pd.DataFrame:
    """cell, value and loss of each finished tuning trial; the value is the recipe's."""
    design, rows = found.design, []
    columns = mirror.trials.column_names
    by_field: dict[str, dict[str, tuple[Any, Any]]] = {}
    for field in {str(one["field"]) for one in design.tuning.values()} if design.tuning else ():
        column = f"recipe.{field}"
        if column in columns:
            parts = (mirror.trials[name].to_pylist() for name in ("trial_id", "purpose", "status", column, "metrics.val_loss"))
            by_field[field] = {t: (value, loss) for t, purpose, status, value, loss in zip(*parts, strict=True) if (purpose, status) == ("primary", "finished")}
    labels = dict(zip(found.trials["trial_id"], found.trials["cell"], strict=True))
    by_levels = {tuple(sorted(t["levels"].items())): labels[t["trial_id"]] for t in design.trials if t["trial_id"] in labels}
    for trial in design.trials:
        cell = trial.get("label") or by_levels.get(tuple(sorted(trial["levels"].items())))
        if trial.get("stage") == "tune" and cell in design.tuning:
            value, loss = by_field.get(str(design.tuning[cell]["field"]), {}).get(trial["trial_id"], (None, None))
            rows.append({"cell": cell, "value": value, "loss": loss})
    return pd.DataFrame(rows, columns=["cell", "value", "loss"]).dropna()


def _environment(format: str) -> Environment:
    """A template engine in which every value is escaped for the format unless it says otherwise."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(_TEMPLATES)
    if format == "html":
        made = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
        made.globals |= {"css": Markup(_asset("report.css")), "js": Markup(_asset("report.js"))}
        made.filters["svg"] = Markup
        return made
    escape = {"markdown": _escape.markdown, "latex": _escape.latex}[format]
    signs = {"block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<", "variable_end_string": ">>",
             "comment_start_string": "<#", "comment_end_string": "#>"}  # fmt: skip
    made = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
                       finalize=lambda value: value if isinstance(value, Markup) else escape(str(value)), **(signs if format == "latex" else {}))  # fmt: skip
    made.filters["raw"] = Markup
    made.filters["spaced"] = lambda line: Markup(_escape.latex(line.expandtabs(4)).replace(" ", "~") or "~")
    made.globals["wide"] = lambda table, column: max((len(row[column].text) for row in table.rows), default=0) > w.LONG
    made.filters["fence"] = lambda text: Markup(_fenced(text))
    return made


def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _fenced(text: str) -> str:
    """A block of code that no text in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
