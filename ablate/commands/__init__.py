"""What the commands share: the application, options and exit codes. What a command needs is imported inside it, so that help is instant."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from .completion import scales, suites

if TYPE_CHECKING:
    from ablate.design import Design

FAILED, WRONG, INTERRUPTED = 1, 2, 130


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    markdown = "markdown"
    latex = "latex"


class Document(StrEnum):
    html = "html"
    markdown = "markdown"
    latex = "latex"


# fmt: off
SuiteArg = Annotated[str, typer.Argument(metavar="SUITE", help="A shipped suite, or the path of a YAML file.", autocompletion=suites)]
NamedSuite = Annotated[str, typer.Argument(metavar="SUITE", help="The name of a suite that was run, or its path.", autocompletion=suites)]
Scale = Annotated[str | None, typer.Option(metavar="SCALE", help="Preset such as nano or 10m, not the suite's.", autocompletion=scales)]
OnlyScale = Annotated[str | None, typer.Option("--scale", metavar="SCALE", help="Only this scale.", autocompletion=scales)]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field; repeatable.")]
Seeds = Annotated[int | None, typer.Option("--seeds", metavar="N", help="So many seeds, instead of the suite's.")]
Only = Annotated[str | None, typer.Option("--only", metavar="CELL", help="Only cells with these levels: FACTOR=LEVEL,...")]
Match = Annotated[str | None, typer.Option("--match", metavar="AXIS", help="What arms are matched in, instead of the suite's axis.")]
Output = Annotated[Format, typer.Option("--format", help="How to print it.")]
Offline = Annotated[bool, typer.Option("--offline", help="Read the local mirror; ask no tracking server.")]
Resync = Annotated[bool, typer.Option("--resync", help="Read the tracking store anew: what was deleted on a server shows at once.")]
# fmt: on

app = typer.Typer(
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def expanded(
    suite: str, scale: str | None, settings: list[str] | None, seeds: int | None, only: str | None, match: str | None = None,
    workers: int | None = None,
) -> Design:  # fmt: skip
    """The design of a suite as the options change it."""
    from ablate.design import expand, parse_set
    from ablate.known import Speeds
    from ablate.suite import load_suite
    from registry.home import home

    found, speeds = load_suite(suite), Speeds(home(), workers=workers)
    found = found if match is None else found.matched(match)
    return expand(found, scale=scale, overrides=parse_set(settings or ()), seeds=seeds, only=only, speeds=speeds)


def resynced(resync: bool, offline: bool) -> None:
    """Make the local mirror anew, if that was asked for."""
    if not resync:
        return
    if offline:
        raise ValueError("--resync reads the tracking store and --offline does not: give one of them")
    from registry import Store
    from registry.home import home
    from registry.mirror import sync

    sync(Store.open(home(), create=False), resync=True)


def say(text: str) -> None:
    """Tell the user how it goes, apart from what was asked for."""
    print(text, file=sys.stderr, flush=True)


def refusal(error: OSError) -> str:
    """What the system would not do, and what helps, in a line."""
    from ablate.errors import said
    from registry.home import home

    return said(error, home())


def prepare_corpora(design: Design) -> None:
    """Have every corpus of the design in the cache."""
    from ablate import data
    from ablate.recipe import canonical_json
    from registry.home import home

    corpora = {canonical_json(trial.recipe.to_dict()["data"]): trial.recipe.data for trial in design.trials}
    for corpus in corpora.values():
        data.prepare(corpus, home() / "cache", say)


def name_of(suite: str) -> str:
    """The name under which a suite's results are recorded."""
    from ablate.suite import is_path, load_suite

    return load_suite(suite).name if is_path(suite) else suite
