"""`ablate report`: what a suite found, on one page, in Markdown or in LaTeX, all from the same tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from . import _escape, _pages
from . import _report_checks as checks
from . import _report_figures as figures
from . import _report_tables as tables
from . import _wording as w
from ._blocks import Block, Code, Figures, Section, Texts
from .analysis import Effects, across_scales, effects, scales
from .home import home as default_home
from .mirror import Mirror, sync
from .record import ALONE, cell_label
from .sql import Sandbox
from .standing import unretracted
from .store import Store

Format = Literal["html", "markdown", "latex"]
FORMATS: tuple[str, ...] = get_args(Format)
MOST_SCALES = 3
"""Other scales that a report holds its contrasts against."""
MOST_TIMED = 500
"""Runs up to which all curves are read for what they say of time."""


@dataclass(frozen=True)
class Sources:
    """What a report shows beside effects: the records that they rest on, curves by cell and record where they could be read, the runs of a
    search, and the contrasts at other scales."""

    records: pd.DataFrame
    curves: dict[str, figures.Curves]
    tuning: figures.Losses
    scales: pd.DataFrame


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


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
        design = self.found.design
        trials = self.found.trials[self.found.trials["control"] == ""]
        finished = list(trials["status"]).count("finished")
        parts = [
            f"scale {design.scale}",
            f"{design.kind.replace('_', ' ')} design",
            _many(len(set(trials["cell_id"])), "cell"),
        ]
        parts += [_many(len(set(trials["seed"])), "seed"), f"{finished:,} of {_many(len(trials), 'trial')} finished"]
        parts.append(w.MATCHED.get(design.match, "budgets differ on purpose").removeprefix("at "))
        parts.append(
            f"margin ±{w.number(design.margin)} {w.unit('val_loss')}" if design.margin else "no margin of equivalence"
        )
        parts.append(str(self.found.environment.get("device", "")))
        return tuple(_escape.seen(part) for part in parts if part)

    @property
    def file_name(self) -> str:
        """Of the suite and scale, for a file without its ending."""
        return (
            re.sub(r"[^\w.-]+", "-", f"{self.found.design.suite}-{self.found.design.scale}")[:100].strip("-.")
            or "report"
        )

    @property
    def description(self) -> str:
        return _escape.seen(self.found.design.description)

    @cached_property
    def verdicts(self) -> dict[str, int]:
        """How many contrasts came to which verdict."""
        metric = tables.primary(self.found.metrics)
        rows = [row["verdict"] for some in tables.judged(self.found, metric).values() for row in some] if metric else []
        return {verdict: rows.count(verdict) for verdict in w.SIGNS if verdict in rows}

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        parts = (self._answer(), self._caveats(), self._effects(), self._interactions(), self._scales(), self._tradeoff(), self._curves(),
                 self._tuning(), self._controls(), self._trust(), self._provenance())  # fmt: skip
        return tuple(section for section in parts if section.blocks)

    def render(self, format: str) -> str:
        """The report as `html` (one file that needs no network), `markdown` or `latex` (a whole document).

        Raises `ValueError` for another format.
        """
        if format not in FORMATS:
            raise ValueError(f'no format "{format}"; there are: {", ".join(FORMATS)}')
        return _pages.template(format).render(report=self, page=self, w=w)

    def _answer(self) -> Section:
        blocks: list[Block] = [*tables.answers(self.found, self.names)]
        if not blocks:
            ends = self.found.trials["status"].value_counts()
            if "finished" in ends:
                why = "There is nothing to compare: no contrast of this suite has results."
            else:
                counts = ", ".join(f"{count} {str(end).replace('_', ' ')}" for end, count in ends.items())
                why = f"No trial of this suite has finished: {counts}."
            blocks.append(Texts((why,)))
        return Section("answer", "The answer", tuple(blocks))

    def _caveats(self) -> Section:
        notes = tuple(_escape.seen(note) for note in self.found.notes)
        return Section("caveats", "Caveats", (Texts(notes, listed=True),) if notes else ())

    def _effects(self) -> Section:
        blocks: list[Block] = []
        if drawn := figures.effects(self.found, self.names):
            blocks.append(Figures(tuple(drawn), legend=True))
        if tables.by_contrast(self.found):
            blocks += [tables.contrasts(self.found, self.names), tables.every_contrast(self.found, self.names)]
        if (
            len(self.found.main_effects) and self.found.design.kind not in ALONE
        ):  # there the contrasts say all that is known
            blocks.append(tables.main_effects(self.found, self.names))
        if len(self.found.variance):
            blocks.append(tables.variance(self.found, self.names))
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
        return Section("interactions", "Interactions", tuple(blocks))

    def _scales(self) -> Section:
        frame = self.sources.scales
        return Section("scales-section", "Scales", (checks.across_scales(frame, self.names),) if len(frame) else ())

    def _tradeoff(self) -> Section:
        drawn = figures.tradeoff(self.found, self.names)
        without = "Speed was not measured alone on the device, so it is not compared: ablate speed measures it."
        blocks: list[Block] = [Figures(tuple(drawn)) if drawn else Texts((without,))]
        return Section("tradeoff", "Trade-offs", (*blocks, tables.cells(self.found, self.names), *self._time()))

    def _time(self) -> list[Block]:
        if self.found.store is None or len(self.found.trials) > MOST_TIMED:
            return []
        reached = self.found.time_to_target()
        return [checks.time(reached, self.found.loss_at_equal_time(), self.names)] if len(reached) else []

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


def report(
    suite: str,
    scale: str | None = None,
    *,
    home: Path | None = None,
    tracking_uri: str | None = None,
    offline: bool = False,
    environment_id: str | None = None,
) -> Report:
    """The report of a suite at one scale (that of its newest design, if none is given) in one environment (that with the most finished
    trials, if none is given), from its records.

    `offline` reads the local mirror alone, which has no curves. Raises `RegistryEmpty` where nothing was recorded.
    """
    found = effects(suite, scale, home=home, tracking_uri=tracking_uri, offline=offline, environment_id=environment_id)
    place = home or default_home(), tracking_uri
    mirror = sync(Store.open(*place, create=False), offline=True)  # analysing has brought it up to date
    designs = mirror.of_suite(suite).designs.to_table(columns=["scale"])
    several = len(set(designs["scale"].to_pylist())) > 1
    others = scales(suite, home=home, tracking_uri=tracking_uri, offline=True) if several else []
    others = [name for name in others if name != found.design.scale][:MOST_SCALES]
    elsewhere = [effects(suite, name, home=home, tracking_uri=tracking_uri, offline=True) for name in others]
    return report_of(mirror, found, elsewhere)


def report_of(mirror: Mirror, found: Effects, elsewhere: Sequence[Effects]) -> Report:
    """The report of effects, held against those of the same suite at other scales."""
    compared = across_scales([found, *elsewhere])
    return Report(found, Sources(_records(mirror, found), _curves(found), _tuning_losses(mirror, found), compared))


def _records(mirror: Mirror, found: Effects) -> pd.DataFrame:
    """The records behind the trials of `found`."""
    known = (
        found.trials[["record_id"]].dropna()
        if "record_id" in found.trials
        else pd.DataFrame({"record_id": []}, dtype=str)
    )
    with Sandbox(mirror, shown=known) as sandbox:
        return sandbox.frame(f"SELECT {', '.join(checks.RECORDED)} FROM trials JOIN shown USING (record_id)")


def _curves(found: Effects) -> dict[str, figures.Curves]:
    """The curves of the cells that are drawn."""
    if found.store is None:
        return {}
    trials = found.trials[(found.trials["control"] == "") & (found.trials["status"] == "finished")]
    by_cell = {cell: trials.loc[trials["cell"] == cell, "record_id"].tolist() for cell in figures.shown_cells(found)}
    points = found.store.all_curves([record_id for some in by_cell.values() for record_id in some])
    return {cell: {one: points[one] for one in some if one in points} for cell, some in by_cell.items() if some}


def _tuning_losses(mirror: Mirror, found: Effects) -> figures.Losses:
    """Of the finished runs of a search; the value tried is the one that the design names, or else the one in the recipe."""
    tuning = found.design.tuning
    arm_of = {cell: arm for arm, label in checks.labels_of(found, tuning).items() for cell in (arm, label)}
    searching = {
        trial["trial_id"]: arm for trial in found.design.trials
        if trial.get("stage") == "tune" and (arm := arm_of.get(cell_label(found.design, trial["levels"])))
    }  # fmt: skip
    if not searching:
        return {}
    values = {
        trial_id: value for one in tuning.values() for value, ids in zip(one["values"], one.get("trials", ()), strict=False)
        for trial_id in ids
    }  # fmt: skip
    losses: dict[str, dict[float, list[float]]] = {}
    settings = {f"recipe.{one['field']}" for one in tuning.values()} & set(mirror.trials.schema.names)
    finished = (pc.field("purpose") == "primary") & (pc.field("status") == "finished")
    those = finished & pc.field("trial_id").isin(pa.array(searching, pa.string()))
    for record in unretracted(mirror, ["trial_id", "metrics.val_loss", *sorted(settings)], those).to_pylist():
        arm = searching[record["trial_id"]]
        value = values.get(record["trial_id"], record.get(f"recipe.{tuning[arm]['field']}"))
        if value is not None:
            losses.setdefault(arm, {}).setdefault(float(value), []).append(record["metrics.val_loss"])
    return losses
