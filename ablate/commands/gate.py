"""What CI asks: is this change as good as what was there before?"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from ablate.errors import UserError

from . import Only, Scale, Seeds, Settings, SuiteArg, app, expanded, name_of, prepare_corpora, say

if TYPE_CHECKING:
    from ablate.design import Design
    from registry.baseline import Arm, Baseline
    from registry.gate import Finding

baselines = typer.Typer(rich_markup_mode=None, help="Baselines: what `check` compares against.")
app.add_typer(baselines, name="baseline")
BaselineFile = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")]
SavedFile = Annotated[Path, typer.Argument(metavar="FILE", help="A baseline that was saved.")]


def _measured(
    whole: Design, labels: Collection[str] = (), counted: Mapping[str, Arm] = MappingProxyType({})
) -> tuple[dict[str, Arm], dict[str, str]]:
    """All arms of a design, or those of some labels, with the counts of those that were `counted` before."""
    from ablate import check, session
    from registry.home import home

    prepare_corpora(whole)
    design = whole.part(labels) if labels else whole
    return check.run(design, whole, session.Options(), home=home(), started=time.time(), say=say, counted=counted)


@baselines.command("save")
def save(
    suite: SuiteArg, output: BaselineFile, scale: Scale = None, settings: Settings = None, seeds: Seeds = None
) -> None:
    """Run what is missing of a suite and keep what it measures, without noise: `ablate baseline calibrate` adds that."""
    from ablate import check

    design = expanded(suite, scale, settings, seeds, None)
    _write(output, check.baseline_of(design, settings or (), *_measured(design), {}))


@baselines.command("update")
def update(file: SavedFile) -> None:
    """Measure the suite of a baseline again, with its settings and seeds, and keep that instead; the noise stays."""
    from ablate import check
    from registry.baseline import Baseline

    known = Baseline.read(file)
    most = max((len(arm.runs) for arm in known.arms.values()), default=1)
    design = expanded(known.suite, known.scale, known.settings, most, None)
    _write(file, check.baseline_of(design, known.settings, *_measured(design), known.noise))


@baselines.command("calibrate")
def calibrate(file: SavedFile, seeds: Seeds = None) -> None:
    """Measure the noise of the loss on this machine, and put it into a baseline: what another order of rounding does to it."""
    from dataclasses import replace

    from ablate import check
    from registry.baseline import Baseline
    from registry.home import home

    known = Baseline.read(file)
    design = expanded(known.suite, known.scale, known.settings, seeds, None)
    prepare_corpora(design)
    _write(file, replace(known, noise=known.noise | {check.LOSS: check.calibrated(design, home=home(), say=say)}))


@baselines.command("show")
def show(file: SavedFile) -> None:
    """Print what a baseline holds."""
    from registry.baseline import Baseline
    from registry.gate_report import summary

    print(summary(Baseline.read(file)), end="")


@app.command("check")
def check_command(
    suite: SuiteArg,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="FILE", help="Hold it against this baseline.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="REF", help="Hold it against the code of this git revision.")
    ] = None,
    scale: Scale = None,
    settings: Settings = None,
    only: Only = None,
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="NATS", min=0.0, max=100.0, help="Differences of loss that are none, instead of 3 sd of noise."
        ),
    ] = None,
    summary: Annotated[
        Path | None, typer.Option("--summary", metavar="FILE", help="Write the findings as Markdown.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write the findings as JUnit XML.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Say whether a suite still learns as well, in as little memory, with as few operators (and, against a revision, as fast).

    The verdict is pass or improvement (exit code 0), regression (1), inconclusive (3) or rebaseline (4: what the numbers depend on beside
    the code has changed). A difference is looked at again, with fresh seeds or rounds, before it is called.
    """
    from registry import gate, gate_report
    from registry.baseline import Baseline
    from registry.home import home

    if (baseline is None) == (against is None):
        raise UserError(
            "check needs something to hold the suite against: --baseline FILE or --against REF, one of them"
        )
    if baseline is not None:
        if scale is not None or settings:
            raise UserError("--scale and --set are the baseline's: leave them out")
        known = Baseline.read(baseline)
        name, scale, findings = known.suite, known.scale, _held(suite, known, only, margin)
    else:
        from ablate.against import compare

        expanded(suite, scale, settings, None, only)  # what is wrong with it is said at once
        scale, findings = compare(
            against or "", suite, scale, settings or (), only, margin, cache=home() / "cache", say=say
        )
        name = name_of(suite)
    title = f"ablate check {name} at {scale}"
    text = gate_report.markdown(title, findings)
    for path, made in ((summary, text), (junit, gate_report.junit(title, findings))):
        if path is not None:
            path.write_text(made, encoding="utf-8")
    if told := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(told, "a", encoding="utf-8") as file:
            file.write(text)
    if as_json:
        print(gate_report.as_json(title, findings), end="")
    else:
        for one in findings:
            if one.verdict != "pass":
                print(gate_report.line(one))
        print(f"{title}: {gate.overall(findings)}")
    return gate.EXIT[gate.overall(findings)]


def _held(suite: str, known: Baseline, only: str | None, margin: float | None) -> list[Finding]:
    """The findings; of arms whose loss did not pass with the suite's seeds, over all that the baseline has."""
    from dataclasses import replace

    from ablate import check
    from registry.gate import against_baseline

    if name_of(suite) != known.suite:
        raise UserError(f"that is a baseline of {known.suite}, not of {name_of(suite)}")
    most = max((len(arm.runs) for arm in known.arms.values()), default=1)
    design = expanded(suite, known.scale, known.settings, None, only)
    arms: dict[str, Arm] = {}
    doubtful: list[str] = []
    findings: list[Finding] = []
    for seeds in dict.fromkeys((min(len(design.seeds), most), most)):
        measured, around = _measured(expanded(suite, known.scale, known.settings, seeds, only), doubtful, arms)
        arms |= measured
        own = {name: arm for name, arm in known.arms.items() if name in arms} if only else known.arms
        findings = against_baseline(replace(known, arms=own), arms, around, margin)
        doubtful = [one.arm for one in findings if one.metric == check.LOSS and one.verdict != "pass"]
        if not doubtful:
            break
        if seeds < most:
            say(f"{', '.join(doubtful)}: the loss is looked at again with {most} seeds")
    return findings


def _write(path: Path, made: Baseline) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made.to_json(), encoding="utf-8")
    say(f"wrote {path}")
