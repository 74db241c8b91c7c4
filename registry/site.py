"""`ablate site`: everything in the registry as pages that any web server can hold, and that open from a folder, too."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console

from . import _pages, _site_cell, _site_index
from . import _wording as w
from ._blocks import Section
from ._curves import Curves
from ._records import newest
from ._site_data import Cell, cells, suite_path
from .analysis import Effects, effects_of
from .home import home as default_home
from .leaderboard import Leaderboard, RegistryEmpty
from .mirror import Mirror, sync
from .record import DesignRecord
from .report import MOST_SCALES, Report, report_of
from .store import Store
from .tables import render

MARKER = "ablate-site.json"
_OURS = {MARKER, "index.html", "cells.csv", "assets", "suites", "cells"}
_ASSETS = {
    "site.css": ("report.css", "site.css"),
    "site.js": ("report.js",),
    "theme.js": ("theme.js",),
}
"""Files that all pages share, and the templates that each is made of."""


class SiteError(ValueError):
    """A folder that cannot become the site; the message says why."""


@dataclass(frozen=True)
class Place:
    """A page's place in the site: `root` is the way to the first page, `crumbs` (text, address) the way from there; `scales` (text,
    address, whether it is this one) are the pages of the same suite."""

    kind: str
    root: str = ""
    crumbs: tuple[tuple[str, str], ...] = ()
    scales: tuple[tuple[str, str, bool], ...] = ()


@dataclass(frozen=True)
class Built:
    """What was built: where, and how many pages of which kind."""

    folder: Path
    suites: int
    cells: int
    left_out: tuple[str, ...] = field(default=())


def build(
    folder: Path,
    *,
    home: Path | None = None,
    tracking_uri: str | None = None,
    offline: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Built:
    """Build the site of everything in the registry in `folder`, which is replaced when the new site is whole, and not before.

    `offline` reads the local mirror alone, which has no curves. Raises `RegistryEmpty` where nothing was recorded and `SiteError` for a
    folder that holds anything but a site of ours.
    """
    folder = folder.expanduser().absolute()
    _check(folder)
    home = home or default_home()
    store = Store.open(home, tracking_uri, create=False)
    mirror = sync(store, offline=offline)
    designs = newest(mirror)
    if not designs:
        raise RegistryEmpty("no results yet: run `ablate run quickstart`")
    found = cells(mirror, Leaderboard(home, tracking_uri, offline=True), designs)
    with _replacing(folder) as new:
        site = _Site(new, mirror, None if offline else store, designs, found, progress)
        site.write()
    return Built(folder, len(site.reports), len(found), tuple(site.left_out))


class _Read:
    """Curves that were read before."""

    def __init__(self, curves: Curves) -> None:
        self._curves = curves

    def all_curves(self, record_ids: list[str] | None = None) -> Curves:
        wanted = self._curves if record_ids is None else record_ids
        return {record_id: self._curves[record_id] for record_id in wanted if record_id in self._curves}


class _Site:
    """The pages as they are written one after the other; the curves of one suite and scale at a time are in memory."""

    def __init__(
        self, folder: Path, mirror: Mirror, store: Store | None, designs: dict[str, dict[str, DesignRecord]], found: Sequence[Cell],
        progress: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.folder, self.mirror, self.store, self.designs, self.cells, self.progress = (
            folder,
            mirror,
            store,
            designs,
            found,
            progress,
        )
        self.reports: dict[tuple[str, str], Report] = {}
        self.left_out: list[str] = []

    def write(self) -> None:
        for name in ("assets", "suites", "cells"):
            (self.folder / name).mkdir()
        for name, parts in _ASSETS.items():
            self._put(f"assets/{name}", "\n".join(map(_pages.asset, parts)))
        for place, by_scale in enumerate(self.designs.values(), 1):
            self.progress(f"suite {place} of {len(self.designs)}")
            self._suite(by_scale)
        designs = [design for by_scale in self.designs.values() for design in by_scale.values()]
        designs.sort(key=lambda design: (design.suite, *self._size(design.suite, design.scale)))
        first = _site_index.index(designs, self.reports, self.cells)
        self._put(
            "index.html",
            _pages.html("site").render(page=first, site=Place("index", "", (("All suites", "index.html"),))),
        )
        self._put("cells.csv", self._csv())
        self._put(MARKER, json.dumps({"site": 1, "suites": len(self.reports), "cells": len(self.cells)}) + "\n")

    def _suite(self, by_scale: dict[str, DesignRecord]) -> None:
        found: dict[str, Effects] = {}
        for scale, design in by_scale.items():
            own = [cell for cell in self.cells if (cell.suite, cell.scale) == (design.suite, scale)]
            ids = sorted({str(record["record_id"]) for cell in own for record in cell.records})
            points = self.store.all_curves(ids) if self.store else {}
            try:
                found[scale] = effects_of(self.mirror, design, None, _Read(points) if self.store else None)
            except RegistryEmpty as error:
                self.left_out.append(str(error))
            for cell in own:
                self._cell(cell, design, points, has_suite=scale in found)
        for scale, effects in found.items():
            others = [other for name, other in found.items() if name != scale][:MOST_SCALES]
            scales = sorted(found, key=lambda name: self._size(effects.design.suite, name))
            self._report(report_of(self.mirror, effects, others), scales)

    def _report(self, report: Report, scales: list[str]) -> None:
        design = report.found.design
        labels = w.Labels()
        suite, scale = labels(design.suite).text, w.Labels()(design.scale).text
        shown = [
            (w.Labels()(name).text, Path(suite_path(design.suite, name)).name, name == design.scale) for name in scales
        ]
        place = Place("suite", "../", (("All suites", "../index.html"), (f"{suite} at {scale}", "")), tuple(shown))
        own = [cell for cell in self.cells if (cell.suite, cell.scale) == (design.suite, design.scale)]
        table = _site_index.ranking("ranking", "Cells, best first", own, across=False, root="../")
        first, *rest = report.sections
        sections = (first, Section("ranked", "Ranking", (table,)), *rest)
        text = _pages.html("report").render(report=report, page=_Sections(sections), site=place)
        self._put(suite_path(design.suite, design.scale), text)
        self.reports[design.suite, design.scale] = report

    def _size(self, suite: str, scale: str) -> tuple[float, str]:
        """What orders scales: 10m before 124m."""
        return max((c.parameters for c in self.cells if (c.suite, c.scale) == (suite, scale)), default=0.0), scale

    def _cell(self, cell: Cell, design: DesignRecord, points: Curves, *, has_suite: bool) -> None:
        made = _site_cell.page(cell, design, points)
        suite = f"{w.Labels()(cell.suite).text} at {w.Labels()(cell.scale).text}"
        crumbs = (
            ("All suites", "../index.html"),
            *(((suite, f"../{suite_path(cell.suite, cell.scale)}"),) if has_suite else ()),
            (made.title, ""),
        )
        self._put(cell.path, _pages.html("site").render(page=made, site=Place("cell", "../", crumbs)))

    def _csv(self) -> str:
        """The cells for programs, at full precision."""
        rows = [
            {"suite": cell.suite, "scale": cell.scale, "cell": cell.name, "page": cell.path} | {
                name: value for name, value in (cell.board or {}).items() if name not in ("suite", "scale", "cell")
            }
            for cell in self.cells
        ]  # fmt: skip
        out = io.StringIO()
        render(pd.DataFrame(rows), "csv", Console(file=out))
        return out.getvalue()

    def _put(self, path: str, text: str) -> None:
        (self.folder / path).write_text(_escape_surrogates(text), encoding="utf-8", newline="\n")


@dataclass(frozen=True)
class _Sections:
    sections: tuple[Section, ...]


def _escape_surrogates(text: str) -> str:
    """What UTF-8 cannot hold is shown as such."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _check(folder: Path) -> None:
    """That `folder` may be replaced."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise SiteError(f"{folder} is not a folder")
    if not folder.exists():
        return
    there = {entry.name for entry in folder.iterdir()}
    if there and MARKER not in there:
        raise SiteError(f"{folder} is not empty and holds no site of ours: give a new folder")
    if others := sorted(there - _OURS):
        raise SiteError(
            f"{folder} also holds {', '.join(others[:3])}, which a new site would not: give a folder of its own"
        )


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place at the end; nothing is left of it where something fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}.", dir=folder.parent))
    try:
        new, old = work / "new", work / "old"
        new.mkdir(mode=0o777)
        yield new
        _check(folder)
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


__all__ = ["Built", "RegistryEmpty", "SiteError", "build"]
