"""Writes the generated parts of README.md: `make docs`. `test_readme.py` fails where they have drifted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path
from unittest import mock

from benchmarks.gpu import bench

from ablate import render
from ablate._words import words
from ablate.cli import commands, main
from ablate.suite import load_suite, shipped
from ablate.variants import load_factors

README = Path(__file__).resolve().parent.parent / "README.md"
MEASURED = README.parent / "results" / "benchmarks"
COLUMNS = "100"
SECTION = re.compile(r"(<!-- generated: (\w+), by make docs -->\n).*?(<!-- end -->)", re.DOTALL)


def suites() -> str:
    rows = []
    for name, (_, description) in shipped().items():
        suite = load_suite(name)
        factors = "<br>".join(
            f"`{field}`: {', '.join(v.label for v in levels)}" for field, levels in suite.factors.items()
        )
        rows.append([f"`{name}`", description, factors, str(len(suite.seeds))])
    return render.markdown(["suite", "what it asks", "factors and levels", "seeds"], rows)


def variants() -> str:
    rows = []
    for factor in load_factors().values():
        for variant in factor:
            rows.append(
                [f"`{factor.field}`", f"`{variant.name}`", variant.doc, render.options(variant), variant.reference]
            )
    return render.markdown(["field", "variant", "what it is", "options", "reference"], rows)


def fields() -> str:
    rows = [[f"`{path}`", word.doc, word.default, word.reference] for path, word in words().items()]
    return render.markdown(["field", "what it is", "default", "reference"], rows)


def measured() -> list[Path]:
    """The published results of the benchmarks."""
    return sorted(MEASURED.glob("*.json"))


def speed() -> str:
    """A table of each published benchmark."""
    parts = []
    for path in measured():
        found = json.loads(path.read_text(encoding="utf-8"))
        where = f"{found['device']}, torch {found['torch']}, {found['date'][:10]}, revision {found['git_revision'][:7]}"
        left_out = "".join(
            f"Left out: {one['case']}, {one['contender']} ({one['reason']}).\n" for one in found["left_out"]
        )
        about = f"`{path.stem}`: {' '.join([found['about'], f'{where}.', *filter(None, [found.get('note')])])}\n"
        parts.append("\n".join(filter(None, [about, render.markdown(*bench.table(found)), left_out])))
    return "\n".join(parts) or "No results are published yet.\n"


def help_of(*argv: str) -> str:
    """What `ablate ARGV --help` prints at a fixed width, without colour."""
    with (
        mock.patch.dict(os.environ, {"COLUMNS": COLUMNS, "NO_COLOR": "1"}),
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        assert main([*argv, "--help"]) == 0
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def help() -> str:
    pages = [help_of(), *(help_of(name) for name in commands())]
    return "".join(f"```text\n{page}\n```\n\n" for page in pages).rstrip("\n") + "\n"


def generate(text: str) -> str:
    """`text` with its generated parts made anew."""
    makers = {"speed": speed, "suites": suites, "variants": variants, "fields": fields, "help": help}
    return SECTION.sub(lambda found: found[1] + "\n" + makers[found[2]]() + "\n" + found[3], text)


if __name__ == "__main__":
    README.write_text(generate(README.read_text(encoding="utf-8")), encoding="utf-8")
