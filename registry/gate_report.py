"""What a gate found, for people and for programs: Markdown, JUnit XML, JSON."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from xml.etree import ElementTree

from . import _escape
from .baseline import Baseline
from .gate import Finding, Verdict, overall

WORDS: dict[Verdict, str] = {
    "pass": "passes", "improvement": "is better", "regression": "is worse", "inconclusive": "cannot be told",
    "rebaseline": "needs a new baseline",
}  # fmt: skip


def summary(baseline: Baseline) -> str:
    """What a baseline holds."""
    around = ", ".join(f"{name} {value}" for name, value in sorted(baseline.environment.items()))
    lines = [
        f"suite {baseline.suite} at {baseline.scale}{''.join(f' --set {one}' for one in baseline.settings)}",
        f"saved {baseline.created_at} at revision {baseline.git_revision or 'unknown'} by ablate {baseline.ablate_version}",
        f"on {around}",
    ]
    for metric, noise in sorted(baseline.noise.items()):
        lines.append(
            f"noise of {metric}: sd {noise.sd:.2g} of the difference of two runs that only round otherwise, n = {noise.n}"
        )
    if not baseline.noise:
        lines.append("its noise is not known: ablate baseline calibrate FILE")
    for name, arm in baseline.arms.items():
        lines += ["", f"{name} ({arm.recipe})"]
        if losses := arm.values("val_loss"):
            shown = ", ".join(f"{value:.4f}" for value in losses.values())
            lines.append(f"  val_loss {shown} (seeds {', '.join(map(str, losses))})")
        lines += [f"  {metric} {_shown(value)}" for metric, value in sorted(arm.counts.items())]
    return "\n".join(lines) + "\n"


def line(finding: Finding) -> str:
    """One finding in words."""
    return f"{finding.arm}: {finding.metric} {WORDS[finding.verdict]}{_numbers(finding)}"


def markdown(title: str, findings: Sequence[Finding]) -> str:
    """A table of what is not a pass, and a count of what is."""
    verdict = overall(findings)
    count = Counter(one.verdict for one in findings)
    parts = [
        f"## {_escape.markdown(title)}: {verdict}",
        "",
        ", ".join(f"{n} {name}" for name, n in sorted(count.items())),
        "",
    ]
    if told := [one for one in findings if one.verdict != "pass"]:
        parts += [
            "| arm | metric | verdict | before | now | change | interval | n | |",
            "|---|---|---|---:|---:|---:|---|---:|---|",
        ]
        for one in told:
            cells = (one.arm, one.metric, one.verdict, _shown(one.before), _shown(one.after), _change(one), _interval(one),
                     str(one.n or ""), one.why)  # fmt: skip
            parts.append(f"| {' | '.join(map(_escape.markdown, cells))} |")
        parts.append("")
    return "\n".join(parts)


def junit(title: str, findings: Sequence[Finding]) -> str:
    """A test case per finding; a regression is a failure, what cannot be told is skipped."""
    count = Counter(one.verdict for one in findings)
    undecided = count["inconclusive"] + count["rebaseline"]
    suite = ElementTree.Element(
        "testsuite",
        name=_plain(title),
        tests=str(len(findings)),
        failures=str(count["regression"]),
        skipped=str(undecided),
        errors="0",
    )
    for one in findings:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_plain(f"{title}.{one.arm}"), name=_plain(one.metric)
        )
        if one.verdict == "regression":
            ElementTree.SubElement(case, "failure", message=_plain(line(one)))
        elif one.verdict in ("inconclusive", "rebaseline"):
            ElementTree.SubElement(case, "skipped", message=_plain(line(one)))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def as_json(title: str, findings: Sequence[Finding]) -> str:
    """The verdict and every finding."""
    rows = [{name: _finite(value) for name, value in asdict(one).items()} for one in findings]
    return (
        json.dumps({"title": title, "verdict": overall(findings), "findings": rows}, indent=2, ensure_ascii=False)
        + "\n"
    )


def _numbers(one: Finding) -> str:
    parts = []
    if one.before is not None and one.after is not None:
        parts.append(f"{_shown(one.before)} -> {_shown(one.after)} ({_change(one)})")
    if interval := _interval(one):
        parts.append(f"interval {interval}, n = {one.n}")
    return f": {'; '.join([*parts, one.why] if one.why else parts)}" if parts or one.why else ""


def _change(one: Finding) -> str:
    if one.before is None or one.after is None:
        return ""
    if one.before == 0.0:
        return f"{one.after:+g}"
    return f"{one.after / one.before - 1.0:+.2%}"


def _interval(one: Finding) -> str:
    if one.low is None or one.high is None or not (math.isfinite(one.low) and math.isfinite(one.high)):
        return ""
    digits = "+.4f" if max(abs(one.low), abs(one.high)) >= 0.001 else "+.2g"
    return f"{one.low:{digits}} to {one.high:{digits}}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(text: str) -> str:
    """What XML can hold."""
    return "".join(c if c in "\t\n" or (c >= " " and c not in "\ufffe\uffff") else "\ufffd" for c in _escape.seen(text))
