"""The templates of a report: every value is escaped for its format, unless the template says that it is markup."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from . import _escape, _wording
from ._blocks import Table
from ._wording import LONG

_FOLDER = Path(__file__).parent / "templates"


def template(format: str) -> Template:
    """The template of `html`, `markdown` or `latex`."""
    return {"html": html, "markdown": _markdown, "latex": _latex}[format]()


@functools.cache
def html(name: str = "report") -> Template:
    """A template of a page, which is a file of its own unless a `site` is given, whose root, crumbs and assets it has then."""
    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    made.globals |= {name: Markup(asset(f"report.{name}")) for name in ("css", "js")} | {"site": None, "w": _wording}
    made.filters["svg"] = Markup
    return made.get_template(f"{name}.html.j2")


def asset(name: str) -> str:
    """The text of a style sheet or script."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def _markdown() -> Template:
    made = Environment(
        loader=FileSystemLoader(_FOLDER), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else _escape.markdown(str(value)),
    )  # fmt: skip
    made.filters["fence"] = lambda text: Markup(_fenced(text))
    return made.get_template("report.md.j2")


def _latex() -> Template:
    made = Environment(
        loader=FileSystemLoader(_FOLDER), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>",
        finalize=lambda value: value if isinstance(value, Markup) else _escape.latex(str(value)),
    )  # fmt: skip
    made.globals["columns"] = lambda table: Markup(_columns(table))
    made.filters["code"] = lambda line: Markup(_escape.latex(line.expandtabs(4)).replace(" ", "~"))
    return made.get_template("report.tex.j2")


def _columns(table: Table) -> str:
    """How LaTeX sets the columns: numbers to the right, long texts in paragraphs."""
    kinds = []
    for place, column in enumerate(table.columns):
        long = max((len(row[place].text) for row in table.rows), default=0) > LONG
        kinds.append("r" if column.startswith("#") else "p{7cm}" if long else "l")
    return "".join(kinds)


def _fenced(text: str) -> str:
    """A block of code that no text in it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"
