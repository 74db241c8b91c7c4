"""`ablate check --against REF`: the code of a revision and that of the working tree, measured in turns on this machine in one go."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ablate
from ablate.check import LOSS, Say
from ablate.ending import signals
from ablate.errors import Interrupted, UserError
from ablate.scratch import scratch
from ablate.turns import MOST_STEPS, in_turns
from registry import gate
from registry.baseline import Arm, Noise
from registry.gate import Finding

ROUNDS = (40, 120, 240)
"""Of each look at the time of a step, in fresh processes: where a process has its memory makes some per cent, and ten or more in one
that has trained. One that is no pass is followed by another, and nothing is called that two in a row do not say."""
MORE_SEEDS = 6
"""A loss that did not pass at first is looked at again with so many seeds."""
WINDOW_SECONDS = 0.06
"""Longer ones are no less noisy where others use the machine, and more of them are less."""
TIME = "step_time_ms"
OLDER = "it is older than this comparison"
"""What is said of a side that does not know what it is asked."""


class Process:
    """A side (`ablate.side`) as a process over the code in `tree`."""

    def __init__(self, tree: Path, cache: Path, name: str) -> None:
        self.name = name
        path = os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._command = [sys.executable, "-m", "ablate.side", str(cache)]
        self._options: dict[str, Any] = {"cwd": tree, "env": os.environ | {"PYTHONPATH": path}}
        self._arms: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, encoding="utf-8", **self._options
        )  # fmt: skip

    def arms(self, **given: Any) -> dict[str, Any]:
        """Take up the arms of a suite, for as long as this is."""
        self._arms = given
        return self.ask("arms", **given)

    def renew(self) -> None:
        """End the process and start another."""
        self.end()
        self._start()
        self.arms(**self._arms)

    def ask(self, what: str, **given: Any) -> Any:
        """Raises `UserError` where the side fails or ends."""
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"ask": what, **given}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = ([line for line in self._log.read().splitlines() if line.strip()] or ["it ended"])[-1]
            if "No module named ablate.side" in last:
                last = f"{OLDER}, and has no ablate.side"
            raise UserError(f"{self.name}: {last.strip()}")
        said = json.loads(line)
        if "error" in said:
            unknown = said["error"].startswith("TypeError: Side.")
            raise UserError(f"{self.name}: {OLDER}" if unknown else f"{self.name}: {said['error']}")
        return said["answer"]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def compare(
    ref: str, suite: str, scale: str | None, settings: Sequence[str], only: str | None, margin: float | None, *, cache: Path, say: Say
) -> tuple[str, list[Finding]]:  # fmt: skip
    """The scale, and what the working tree's code does against that of `ref`.

    Raises:
        UserError: no such revision, code outside of a git checkout, a side that fails.
    """
    here = Path(ablate.__file__).resolve().parent.parent
    with checked_out(here, ref) as (tree, commit), sides(tree, here, cache, commit) as (old, new):
        wanted = {"suite": _suite(suite), "scale": scale, "settings": list(settings), "only": only}
        both = [side.arms(**wanted, seeds=None) for side in (old, new)]
        arms = [arm for arm in both[1]["arms"] if arm in both[0]["arms"]]
        findings = [
            Finding(arm, "arm", "rebaseline", why=f"{commit[:10]} does not have it" if arm in both[1]["arms"] else "it is gone")
            for arm in dict.fromkeys([*both[0]["arms"], *both[1]["arms"]]) if arm not in arms
        ]  # fmt: skip
        first = len(next(iter(both[1]["arms"].values()), ()))
        more = [side.arms(**wanted, seeds=max(first, MORE_SEEDS)) for side in (old, new)]
        for place, arm in enumerate(arms, start=1):
            say(f"[{place}/{len(arms)}] {arm}")
            findings += _of_arm(arm, old, new, more[1]["arms"][arm], first, margin, say)
    return both[1]["scale"], findings


def _of_arm(
    arm: str, old: Process, new: Process, seeds: list[int], first: int, margin: float | None, say: Say
) -> list[Finding]:
    counted = [side.ask("count", arm=arm) for side in (old, new)]
    found, recorded = _loss(arm, old, new, seeds, first, margin, say)
    numbers = [one | other for one, other in zip(recorded, counted, strict=True)]
    return [*gate.counts(arm, numbers[0], numbers[1], []), found, _time(arm, old, new, say)]


def _loss(
    arm: str, old: Process, new: Process, seeds: list[int], first: int, margin: float | None, say: Say
) -> tuple[Finding, list[dict[str, float]]]:
    """Of the loss; and what a run of each side is recorded to need.

    Where losses differ, what rounding alone does to those of the revision is measured.
    """
    runs: list[dict[int, dict[str, float]]] = [{}, {}]
    nudged: dict[int, dict[str, float]] = {}
    found = Finding(arm, LOSS, "inconclusive")
    for some in (seeds[:first], seeds[first:]):
        for seed in some:
            for kept, side in zip(runs, (old, new), strict=True):
                kept[seed] = side.ask("run", arm=arm, seed=seed)
        before, after = (Arm("", _losses(kept)) for kept in runs)
        if before.runs != after.runs:
            nudged |= {seed: old.ask("run", arm=arm, seed=seed, nudged=True) for seed in runs[0] if seed not in nudged}
        rounded = Arm("", _losses(nudged)).values(LOSS)
        noise = Noise.of(rounded[seed] - loss for seed, loss in before.values(LOSS).items() if seed in rounded)
        found = gate.loss(arm, before, after, noise, margin)
        if found.verdict == "pass":
            break
        say(f"  {LOSS} {found.verdict} over {len(runs[0])} seeds")
    return found, [{k: v for k, v in next(iter(kept.values())).items() if k != LOSS} for kept in runs]


def _losses(runs: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    return {seed: {LOSS: metrics[LOSS]} if LOSS in metrics else {} for seed, metrics in runs.items()}


def _time(arm: str, old: Process, new: Process, say: Say) -> Finding:
    """Of the time of a step."""
    found: list[Finding] = []
    for rounds in ROUNDS:
        for side in (old, new):
            side.renew()
        shorter = min(side.ask("warm_up", arm=arm) for side in (old, new))
        steps = min(math.ceil(WINDOW_SECONDS / shorter), MOST_STEPS)
        windows = in_turns(
            lambda: old.ask("window", arm=arm, steps=steps),  # noqa: B023
            lambda: new.ask("window", arm=arm, steps=steps),  # noqa: B023
            rounds,
        )
        one = gate.time(arm, TIME, [[window["step"] for window in some] for some in windows])
        if one.verdict == "pass" or (one.verdict != "inconclusive" and found and found[-1].verdict == one.verdict):
            return one
        say(f"  {TIME} {one.verdict} ({one.low:.3f} to {one.high:.3f} of before), looked at again")
        found.append(one)
    return replace(found[-1], verdict="inconclusive", why=f"{found[-1].why}; looks differ")


def _suite(given: str) -> str:
    """The whole path of a suite's file: both sides read the working tree's, which the revision may not have."""
    from ablate.suite import is_path, shipped

    return str(Path(given).absolute() if is_path(given) else shipped()[given][0])


@contextmanager
def sides(tree: Path, here: Path, cache: Path, commit: str) -> Iterator[tuple[Process, Process]]:
    """Both processes, ended afterwards."""
    old = Process(tree, cache, commit[:10])
    try:
        new = Process(here, cache, "the working tree")
        try:
            yield old, new
        finally:
            new.end()
    finally:
        old.end()


@contextmanager
def checked_out(here: Path, ref: str) -> Iterator[tuple[Path, str]]:
    """A folder with the files of a revision, gone afterwards, and its commit."""
    root = _git(here, "rev-parse", "--show-toplevel")
    if root is None or Path(root).resolve() != here:
        raise UserError(f"--against: the code that runs, in {here}, is not the top of a git checkout")
    commit = _git(here, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if commit is None:
        raise UserError(f'--against: there is no revision "{ref}" in {here}')
    with signals(_leave), scratch("checkout") as folder:
        tree = folder / "tree"
        _git(here, "worktree", "prune")  # of those that a killed command left
        if _git(here, "worktree", "add", "--detach", "--quiet", str(tree), commit) is None:
            raise UserError(f"--against: git cannot check out {commit}")
        try:
            yield tree, commit
        finally:
            _git(here, "worktree", "remove", "--force", str(tree))
            _git(here, "worktree", "prune")


def _leave(number: int, frame: object) -> None:
    """End at a signal as at an error: the checkout and the sides are taken away."""
    raise Interrupted(number, "nothing is kept")


def _git(folder: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
