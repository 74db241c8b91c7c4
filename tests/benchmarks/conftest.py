"""`pytest tests/benchmarks -o addopts= --benchmark-compare` gives the gate's verdicts, and fails where a count is worse.

Against a file only counts are held, which are the same in each process. Times are told: what another process on another day measured says
nothing of this one's speed (`ablate check --against` holds times).
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from counting import Held

    from registry.baseline import Arm
    from registry.gate import Finding, Verdict

AROUND = "surroundings"
"""In a file's `machine_info`: what counts depend on beside the code."""
LIBRARIES = ("duckdb", "numpy", "pandas", "pyarrow", "pydantic", "ruamel.yaml", "tokenizers")
"""Whose functions are among the calls that are counted."""


@pytest.fixture
def held(benchmark: Any) -> Held:
    """Times a call and holds what is counted of it."""
    from counting import Held

    return Held(benchmark)


@dataclass(frozen=True)
class Compared:
    """One file that this run is compared with."""

    name: str
    findings: list[Finding]
    ratios: dict[str, float]
    """Of the medians, now over then, by benchmark."""

    @property
    def verdict(self) -> Verdict:
        from registry.gate import overall

        return overall(self.findings)


FILES = pytest.StashKey[list[Mapping[str, Any]]]()
COMPARED = pytest.StashKey[list[Compared]]()
DESELECTED = pytest.StashKey[set[str]]()


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """As `ablate` describes a machine; in pytest-benchmark's own description the clock of the CPU is hardly ever the same twice."""
    from ablate import environment
    from ablate.check import surroundings

    found = environment.expected()
    libraries = {name: version(name) for name in LIBRARIES}
    return found | {AROUND: surroundings(found) | {"python": found["python"]} | libraries}


@pytest.hookimpl(wrapper=True)
def pytest_benchmark_compare_machine_info(
    config: pytest.Config, compared_benchmark: Mapping[str, Any]
) -> Generator[None, object, object]:
    """The one hook that is shown the files that `--benchmark-compare` names, before anything runs. That another machine is another is a
    verdict here and no warning, which would be an error."""
    config.stash.setdefault(FILES, []).append(compared_benchmark)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (yield)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        item.config.stash.setdefault(DESELECTED, set()).add(item.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hold what was measured against each file."""
    config: Any = session.config
    benchmarks = config.pluginmanager.get_plugin("pytest-benchmark")
    if benchmarks is None or benchmarks.disabled or not benchmarks.compared_mapping:
        return
    measured = [one for one in benchmarks.benchmarks if not one.has_error]
    around = benchmarks.get_machine_info()[AROUND]
    names = list(benchmarks.compared_mapping)
    found = [
        _compared(Path(name).name, stored, measured, around, config)
        for name, stored in zip(names, config.stash.get(FILES, []), strict=False)
    ]
    config.stash[COMPARED] = found
    if len(found) < len(names):
        session.exitstatus = pytest.ExitCode.USAGE_ERROR
    elif any(one.verdict == "regression" for one in found) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _compared(
    name: str, stored: Mapping[str, Any], measured: Sequence[Any], around: Mapping[str, str], config: pytest.Config
) -> Compared:
    from registry.baseline import Baseline
    from registry.gate import against_baseline

    known = {one["fullname"]: one for one in stored["benchmarks"]}
    now = {one.fullname: one for one in measured}
    asked = {one: known[one] for one in known if one in now or _was_asked(one, config)}
    before = Baseline(
        suite="benchmarks", scale="", settings=[], arms={one: _arm(found["extra_info"]) for one, found in asked.items()},
        environment=stored["machine_info"].get(AROUND, {}),
    )  # fmt: skip
    findings = against_baseline(before, {one: _arm(found.extra_info) for one, found in now.items()}, around)
    ratios = {one: now[one].stats.median / known[one]["stats"]["median"] for one in now if one in known}
    return Compared(name, findings, ratios)


def _arm(extra: Mapping[str, Any]) -> Arm:
    from registry.baseline import Arm
    from registry.gate import BOUNDS

    return Arm(extra.get("settings", ""), {}, {name: extra[name] for name in BOUNDS if name in extra})


def _was_asked(fullname: str, config: pytest.Config) -> bool:
    """Whether a benchmark of the file would have run if it were still there: it lies where pytest was to look, and was not deselected."""
    if fullname in config.stash.get(DESELECTED, set()):
        return False
    path = config.rootpath / fullname.partition("::")[0]
    asked = [config.invocation_params.dir / one for one in config.args if "::" not in one]
    return any(path.is_relative_to(one.resolve()) for one in asked)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(COMPARED, None)
    if found is None:
        return
    if not found:
        terminalreporter.section("ablate", sep="-")
        terminalreporter.line(
            "nothing is held: name tests/benchmarks on the command line, so that the files are read here"
        )
    for one in found:
        terminalreporter.section(f"ablate: held against {one.name}", sep="-")
        for line in _lines(one):
            terminalreporter.line(line)


def _lines(compared: Compared) -> Iterator[str]:
    from registry import gate_report

    told = [one for one in compared.findings if one.verdict != "pass"]
    yield from (gate_report.line(one) for one in told)
    yield f"{len(compared.findings) - len(told)} counts pass"
    if compared.ratios:
        least, most = (pick(compared.ratios, key=compared.ratios.__getitem__) for pick in (min, max))
        yield (
            f"times are told, not held, and without an interval, for two processes give one ratio: the median benchmark took "
            f"{statistics.median(compared.ratios.values()):.2f} times as long, from {compared.ratios[least]:.2f} ({least}) "
            f"to {compared.ratios[most]:.2f} ({most})"
        )
    yield f"verdict: {compared.verdict}"
