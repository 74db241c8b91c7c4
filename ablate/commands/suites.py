"""What may be asked: suites, variants, the schema, and whether this machine is ready."""

from __future__ import annotations

import json
import re
import sys
from typing import Annotated

import typer

from ablate.errors import UserError, near_miss

from . import (
    WRONG,
    SuiteArg,
    app,
)


@app.command()
def suites() -> None:
    """List the shipped suites and what each asks."""
    from ablate import render
    from ablate.suite import shipped

    rows = [[name, re.split(r"(?<=[.?!])\s", about)[0]] for name, (_, about) in shipped().items()]
    render.table(["suite", "what it asks"], rows)


@app.command()
def show(suite: SuiteArg) -> None:
    """Print a suite's YAML: a start for one of your own."""
    from ablate.suite import load_suite, shipped

    known = shipped()
    sys.stdout.write(known[suite][0].read_text(encoding="utf-8") if suite in known else load_suite(suite).text)


@app.command()
def variants(
    factor: Annotated[
        str | None, typer.Argument(metavar="FACTOR", help="Only this one, such as attention, train.z_loss or batch.")
    ] = None,
) -> None:
    """List all that a suite may vary.

    The variants of each factor with their options, then the plain fields with their defaults.
    """
    from ablate import render
    from ablate._words import words
    from ablate.variants import load_factors

    factors = load_factors()
    chosen = [one for name, one in factors.items() if factor in (None, name) or _within(one.field, factor)]
    plain = {path: word for path, word in words().items() if factor is None or _within(path, factor)}
    if not chosen and not plain:
        raise UserError(f"unknown factor {factor!r}{near_miss(str(factor), [*factors, *words()])}")
    rows = [[f"{one.field}: {v.name}", v.doc, render.options(v), v.reference] for one in chosen for v in one]
    rows += [[path, word.doc, f"default: {word.default}", word.reference] for path, word in plain.items()]
    about = [[name, f"{doc} ({'; '.join(filter(None, rest))})"] for name, doc, *rest in rows]
    render.table(["field", "what it is (options; reference)"], about)


def _within(path: str, field: str) -> bool:
    return path == field or path.startswith(f"{field}.")


@app.command()
def schema() -> None:
    """Print the JSON Schema of suites, for editors."""
    from ablate.suite import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
def doctor() -> int:
    """Check what is installed, the devices, and the registry."""
    from ablate.doctor import checks

    found = list(checks())
    for check in found:
        print(f"{'ok' if check.ok else 'WRONG':<6} {check.name:<12} {check.text}")
    return 0 if all(check.ok for check in found) else WRONG
