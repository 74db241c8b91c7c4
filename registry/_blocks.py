"""What a report consists of, whatever the format: sections of answers, tables, figures and facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import _wording
from ._wording import Label, Phrase


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table. `key` sorts it (its text where None), `full` is what a shortened text stands for, `strong` marks a
    significant difference, `verdict` colours it, `bar` is a share to draw behind it, `href` is where it
    leads to, `note` a line in small print under it."""

    text: str
    key: float | None = None
    full: str = ""
    strong: bool = False
    verdict: str = ""
    bar: float | None = None
    href: str = ""
    note: str = ""

    @property
    def sorts(self) -> str:
        """What sorts it, where its text does not."""
        key = "" if self.key is None else f"{self.key:.6g}"
        return "" if key == self.text else key


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under `columns`; a column whose name starts with `#` holds numbers. `folded` tables wait to be opened. The sorting and
    filtering of a `linked` one is in the page's address, and a reader may choose among the values of its `facets` (columns)."""

    id: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    folded: bool = False
    linked: bool = False
    facets: tuple[str, ...] = ()
    kind: Literal["table"] = "table"


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with what there is to know for reading it."""

    title: str
    svg: str
    caption: str = ""
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    figures: tuple[Figure, ...]
    legend: bool = False
    kind: Literal["figures"] = "figures"


@dataclass(frozen=True, slots=True)
class Answer:
    verdict: str
    phrase: Phrase


@dataclass(frozen=True, slots=True)
class Answers:
    """Sentences under the factor that they are of; `folded` ones wait to be opened."""

    groups: tuple[tuple[Label, tuple[Answer, ...]], ...]
    folded: bool = False
    kind: Literal["answers"] = "answers"


@dataclass(frozen=True, slots=True)
class Texts:
    """Paragraphs, or the points of a list."""

    texts: tuple[str, ...]
    listed: bool = False
    kind: Literal["texts"] = "texts"


@dataclass(frozen=True, slots=True)
class Code:
    title: str
    text: str
    folded: bool = False
    kind: Literal["code"] = "code"


Block = Table | Figures | Answers | Texts | Code


@dataclass(frozen=True, slots=True)
class Section:
    id: str
    title: str
    blocks: tuple[Block, ...]


def named(label: Label) -> Cell:
    return Cell(label.text, full=label.full if label.full != label.text else "")


def told(text: Any, verdict: str = "") -> Cell:
    """A text from outside, shortened."""
    label = _wording.Labels()(str(text))
    return Cell(label.text, full=label.full if label.full != label.text else "", verdict=verdict)


def number(value: Any, text: str | None = None, *, strong: bool = False) -> Cell:
    """A number, as `text` where it is given; empty cells sort last."""
    if _wording.missing(value):
        return Cell(text or "")
    return Cell(_wording.number(value) if text is None else text, float(value), strong=strong)


def table(
    id: str, caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *notes: str, folded: bool = False
) -> Table:
    return Table(id, caption, tuple(columns), tuple(map(tuple, rows)), notes, folded)
