"""The pytest plugin: `ablate_check` holds a trainer, whoever's it is, against a baseline file beside the test.

Loaded by every run of pytest where ablate is installed, so it imports nothing but pytest until a test asks for it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ablate.foreign import Trainer
    from registry.gate import Finding

FOLDER = "ablate-baselines"
PROPERTY = "ablate"
"""Of a test, in reports: what the summary of the run, and JUnit XML, say of its checks."""
LONGEST_NAME = 100


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ablate", "gate a trainer (ablate)")
    group.addoption(
        "--ablate-update", action="store_true", help="Write the baselines of the ablate_check tests that run."
    )  # fmt: skip
    group.addoption(
        "--ablate-baselines", metavar="DIR", help=f"Where the baselines are; by default {FOLDER} beside each test file."
    )
    parser.addini(
        "ablate_baselines", f"Where the baselines are, from rootdir; by default {FOLDER} beside each test file."
    )


@pytest.fixture
def ablate_check(request: pytest.FixtureRequest) -> AblateCheck:
    """Train with several seeds; fail if loss, operators, host synchronisations or memory are worse than in a baseline."""
    return AblateCheck(request)


class AblateCheck:
    """What the fixture `ablate_check` is."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._node, self._config = request.node, request.config
        self._files: set[Path] = set()

    def __call__(
        self,
        train: Callable[..., Any],
        *,
        seeds: Iterable[int] = (0, 1, 2),
        fresh: Iterable[int] | None = None,
        settings: Mapping[str, Any] | None = None,
        margin: float | None = None,
        name: str | None = None,
    ) -> dict[int, Any]:
        """Call `train(seed, **settings)` with each of the seeds and hold what comes of it against the baseline of this test.

        Args:
            train: Gives back the loss, or a mapping with `val_loss` or `loss`; less is better. Of the mapping, `parameters`,
                `flops_per_token`, `peak_memory_gib` and the other counts that `ablate check` knows are held, too; the rest is not.
            seeds: Operators, synchronisations and memory are counted with the last; a single one is trained twice for that.
            fresh: More seeds, for when the loss did not pass with the first; by default as many, from the largest on.
            settings: JSON values. Where they are not the baseline's it is asked for another, instead of a verdict.
            margin: Differences of the loss, in its unit, that are none. By default three standard deviations of the noise that
                was measured with the baseline, or 0.1 % of the loss if that is more.
            name: Of this check, where a test has several.

        Returns:
            What `train` gave back, by seed.

        Raises:
            TypeError, ValueError: `train` gives no loss, or arguments that cannot be.
        """
        __tracebackhide__ = True
        from ablate import foreign

        try:
            trainer = foreign.Trainer(train, settings or {})
        except (TypeError, ValueError) as error:
            raise TypeError(f"settings: {error}") from None
        first, more = _seeds(seeds, fresh)
        label = ".".join([*self._names, *([name] if name else [])])
        path = self._folder / f"{plain(label)}.json"
        if path in self._files:
            raise ValueError("two checks in a test need a name each: ablate_check(train, name=...)")
        self._files.add(path)
        if self._config.getoption("ablate_update"):
            made, notes = foreign.baseline(trainer, label, first, more)
            foreign.registry("locks").write_whole(path, made.to_json())
            self._tell("; ".join([f"wrote {self._short(path)}", *notes]))
        else:
            self._hold(trainer, label, path, first, more, margin)
        return trainer.results

    def _hold(
        self, trainer: Trainer, label: str, path: Path, first: list[int], more: list[int], margin: float | None
    ) -> None:
        __tracebackhide__ = True
        from ablate import foreign

        option = self._config.getoption("ablate_baselines")
        where = ["--ablate-baselines", option] if option else []
        update = shlex.join(["pytest", "--ablate-update", *where, self._id])
        module, gate = foreign.registry("baseline"), foreign.registry("gate")
        if not path.exists():
            pytest.fail(f"{label} has no baseline yet. To write {self._short(path)}:\n  {update}", pytrace=False)
        known, wrong = None, f"{self._short(path)} is not the baseline of {label}"
        try:
            known = module.Baseline.read(path)
        except module.BaselineError as error:
            wrong = str(error)
        if known is None or list(known.arms) != [label]:
            pytest.fail(f"{wrong}. To write it anew:\n  {update}", pytrace=False)
        findings = foreign.held(trainer, known, label, first, more, margin)
        verdict = gate.overall(findings)
        lines = _lines(findings)
        self._tell(f"{label}: {verdict}", *lines)
        if verdict == "inconclusive":
            pytest.skip("; ".join(lines))
        if verdict in ("regression", "rebaseline"):
            passed = sum(one.verdict == "pass" for one in findings)
            lines.append(f"({passed} of {len(findings)} pass; {self._short(path)}, saved {known.created_at})")
            meant = "If that is meant:" if verdict == "regression" else "To measure it anew:"
            pytest.fail("\n".join([*lines, meant, f"  {update}"]), pytrace=False)

    @property
    def _names(self) -> list[str]:
        """Of the test, within its file."""
        return [node.name for node in self._node.listchain() if isinstance(node, (pytest.Class, pytest.Function))]

    @property
    def _id(self) -> str:
        return "::".join([self._short(self._node.path), *self._names])

    @property
    def _folder(self) -> Path:
        file, root = self._node.path, self._config.rootpath
        option, setting = self._config.getoption("ablate_baselines"), self._config.getini("ablate_baselines")
        if not option and not setting:
            return file.parent / FOLDER / file.stem
        base = self._config.invocation_params.dir / option if option else root / setting
        return base / (file.parent.relative_to(root) if file.is_relative_to(root) else "") / file.stem

    def _short(self, path: Path) -> str:
        root = self._config.rootpath
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    def _tell(self, *lines: str) -> None:
        self._node.user_properties += [(PROPERTY, line) for line in lines]


def plain(name: str) -> str:
    """A name of a test as one of a file; what a file could not be called is replaced, with a hash so that no two are the same."""
    bare = name.replace("[", "-").removesuffix("]")
    safe = re.sub(r"[^\w.+=,-]", "_", bare)[:LONGEST_NAME]
    return safe if safe == bare else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _seeds(seeds: Iterable[int], fresh: Iterable[int] | None) -> tuple[list[int], list[int]]:
    __tracebackhide__ = True
    first = list(seeds)
    if not first:
        raise ValueError("a check needs a seed")
    more = list(fresh) if fresh is not None else [max(first) + 1 + place for place in range(len(first))]
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in (*first, *more)):
        raise ValueError("seeds are whole numbers from 0 on")
    if len({*first, *more}) < len(first) + len(more):
        raise ValueError("no seed twice, and none of the fresh ones among the first")
    return first, more


def _lines(findings: list[Finding]) -> list[str]:
    from ablate import foreign

    return [foreign.registry("gate_report").line(one) for one in findings if one.verdict != "pass"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was written, and checks that neither failed nor are a plain pass, whichever process they ran in."""
    told = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call" and not report.failed
        for name, value in report.user_properties
        if name == PROPERTY and not str(value).endswith(": pass")
    ]
    if told:
        terminalreporter.section("ablate", sep="-")
        for line in told:
            terminalreporter.line(str(line))
