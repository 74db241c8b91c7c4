"""`ablate check --against` in a repository of its own: what the working tree has planted is found, and names may change."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import copied
import psutil
import pytest

from ablate import against
from ablate.errors import UserError

ATTENTION, RIGHT = (
    "ablate/variants/_attend.py",
    "        q, k = q.to(v.dtype), k.to(v.dtype)\n        if seen.decoding:\n",
)
COPIES = 250
"""Of queries, in each of nano's layers: a tenth of its step, and more."""
NOISE = 0.003
"""What another order of rounding does to a loss of a fake side, in nats/token."""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The code of this checkout as the only commit of a repository."""
    return copied.repository(tmp_path / "repository")


def git(folder: Path, *argv: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *argv], check=True, capture_output=True, text=True).stdout


def check(folder: Path, *argv: str) -> tuple[int, str, str]:
    """Run `ablate check` with the code of `folder`: its exit code, and what it printed on both streams."""
    done = copied.ablate(folder, "check", *argv)
    return done.returncode, done.stdout, done.stderr


def edit(folder: Path, name: str, change: Callable[[str], str]) -> None:
    path = folder / name
    old = path.read_text(encoding="utf-8")
    new = change(old)
    assert new != old
    path.write_text(new, encoding="utf-8")


def findings(printed: str) -> dict[str, dict[str, Any]]:
    return {one["metric"]: one for one in json.loads(printed)["findings"]}


@pytest.mark.fire
@pytest.mark.timeout(900)
def test_a_slower_attention_is_found_with_its_interval_and_other_names_pass(home: Path, repository: Path) -> None:
    edit(repository, "ablate/model.py", lambda code: code.replace("hidden", "of_the_last_block"))
    code, printed, said = check(repository, "one-arm.yaml", "--against", "HEAD", "--json")
    assert code in (0, 3), printed + said
    found = findings(printed)
    time = found.pop("step_time_ms")
    assert {one["verdict"] for one in found.values()} == {"pass"}, printed
    assert found["val_loss"]["before"] == found["val_loss"]["after"]
    assert time["verdict"] == ("pass" if code == 0 else "inconclusive"), printed  # which a busy machine may leave it at
    assert time["low"] < 1.05 and time["high"] > 0.95

    edit(repository, ATTENTION, lambda code: code.replace(
        RIGHT, RIGHT.replace("        if", f"        for _ in range({COPIES}):\n            q.clone()\n        if")
    ))  # fmt: skip
    code, printed, said = check(repository, "one-arm.yaml", "--against", "HEAD", "--json")
    assert code == 1, printed + said
    slower = findings(printed)["step_time_ms"]
    assert slower["verdict"] == "regression", printed
    assert 1.0 < slower["low"] < slower["high"]
    assert findings(printed)["val_loss"]["verdict"] == "pass"
    assert len(git(repository, "worktree", "list").splitlines()) == 1, "the other tree is still there"


@pytest.mark.fire
@pytest.mark.timeout(600)
def test_a_suite_that_the_revision_does_not_have_is_compared_and_a_side_that_fails_says_which(
    home: Path, repository: Path
) -> None:
    (repository / "new.yaml").write_text(
        copied.ONE_ARM.replace("one-arm", "new").replace("40000", "4000"), encoding="utf-8"
    )
    edit(repository, ATTENTION, lambda code: code.replace(RIGHT, '        raise RuntimeError("here")\n' + RIGHT))
    code, printed, said = check(repository, "new.yaml", "--against", "HEAD")
    assert (code, printed) == (2, ""), said
    assert said.splitlines()[-1].startswith("error: the working tree: RuntimeError: here"), said


@pytest.mark.parametrize(
    ("ref", "says"),
    [("nowhere", 'there is no revision "nowhere"'), ("--help", 'there is no revision "--help"')],
)
def test_a_revision_that_is_not_there_is_named(home: Path, repository: Path, ref: str, says: str) -> None:
    code, printed, said = check(repository, "one-arm.yaml", f"--against={ref}")
    assert (code, printed) == (2, "") and says in said, said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_comparison_that_is_killed_leaves_no_process_and_no_checkout(
    home: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def checkouts() -> tuple[int, int]:
        return len(list(temporary.glob("ablate-checkout-*"))), len(git(repository, "worktree", "list").splitlines())

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        temporary = Path(folder)
        command = [sys.executable, "-m", "ablate", "check", "one-arm.yaml", "--against", "HEAD"]
        path = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
        options = {"env": os.environ | {"PYTHONPATH": path, "TMPDIR": folder}, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=repository, **options) as driver:
            assert driver.stderr is not None and "[1/1]" in driver.stderr.readline()
            sides = psutil.Process(driver.pid).children()
            assert (len(sides), checkouts()) == (2, (1, 2))
            driver.send_signal(number)
            killed = number == signal.SIGKILL
            assert driver.wait(60) == (-number if killed else 128 + number)
            assert driver.stderr.read() == ("" if killed else "interrupted; nothing is kept\n")
            assert psutil.wait_procs(sides, 30)[1] == []
        assert checkouts() == ((1, 2) if killed else (0, 1))
        monkeypatch.setattr("ablate.scratch._root", lambda: temporary)
        with against.checked_out(repository, "HEAD"):
            assert checkouts() == (1, 2)
        assert checkouts() == (0, 1)


BUSY = "import time, ablate.side as side; side.serve = lambda *_: print('busy', flush=True) or time.sleep(600); side.main()"
STARTS_IT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BUSY!r}, '.']).wait()"


def test_a_side_that_is_busy_ends_with_what_started_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_IT], stderr=subprocess.PIPE, text=True, cwd=copied.ROOT
    ) as comparison:
        assert comparison.stderr is not None and comparison.stderr.readline() == "busy\n"
        (side,) = psutil.Process(comparison.pid).children()
        comparison.kill()
    assert psutil.wait_procs([side], 30)[1] == []


def test_code_that_is_in_no_checkout_has_no_revisions(home: Path, repository: Path) -> None:
    shutil.rmtree(repository / ".git")
    code, printed, said = check(repository, "one-arm.yaml", "--against", "HEAD")
    assert (code, printed) == (2, "") and "is not the top of a git checkout" in said, said


class Fake:
    """A side whose steps take as long as is said, for one process after another, and whose losses are what is said of a seed."""

    name = "fake"

    def __init__(self, *seconds: float, loss: Callable[[int], float] = float) -> None:
        self.seconds, self.process, self.loss = seconds, 0, loss
        self.nudged: list[int] = []

    def ask(self, what: str, **given: Any) -> Any:
        if what == "run":
            seed, nudged = given["seed"], given.get("nudged", False)
            self.nudged += [seed] * nudged
            return {"val_loss": self.loss(seed) + (-1) ** seed * NOISE * nudged}
        seconds = self.seconds[min(self.process, len(self.seconds) - 1)]
        return {"step": seconds} if what == "window" else seconds

    def renew(self) -> None:
        self.process += 1


@pytest.mark.parametrize(
    ("seconds", "verdict", "looks"),
    [
        ([9.9, 1.0], "pass", 1),
        ([9.9, 1.1], "regression", 2),
        ([9.9, 0.9], "improvement", 2),
        ([9.9, 1.1, 1.0], "pass", 2),
        ([9.9, 1.1, 0.9, 1.1], "inconclusive", 3),
    ],
)
def test_a_time_is_called_where_two_looks_in_a_row_agree(seconds: list[float], verdict: str, looks: int) -> None:
    """Each in processes of its own: those that have trained (the first of `seconds`) are not timed."""
    old, new = Fake(1.0), Fake(*seconds)
    found = against._time("a", old, new, lambda text: None)  # type: ignore[arg-type]
    assert found.verdict == verdict
    assert old.process == new.process == looks


def apart(by: Callable[[int], float]) -> tuple[str, Fake, Fake]:
    """The verdict of losses that are so far apart, by seed, and both sides."""
    old, new = Fake(loss=lambda seed: 3.6 + seed / 100), Fake(loss=lambda seed: 3.6 + seed / 100 + by(seed))
    found, _ = against._loss("a", old, new, list(range(6)), 2, None, lambda text: None)  # type: ignore[arg-type]
    return found.verdict, old, new


def test_equal_losses_pass_with_the_first_seeds_and_no_noise_is_measured() -> None:
    verdict, old, new = apart(lambda seed: 0.0)
    assert verdict == "pass" and not old.nudged and not new.nudged


@pytest.mark.parametrize(
    ("by", "verdict"),
    [
        (lambda seed: NOISE * (-1) ** (seed // 2), "pass"),
        (lambda seed: 0.036 + NOISE * (-1) ** (seed // 2), "regression"),
        (lambda seed: -0.036 + NOISE * (-1) ** (seed // 2), "improvement"),
    ],
)
def test_losses_that_differ_are_held_against_the_noise_of_the_revision(
    by: Callable[[int], float], verdict: str
) -> None:
    found, old, new = apart(by)
    assert found == verdict
    assert old.nudged == list(range(6)) and not new.nudged


def test_a_revision_that_does_not_finish_leaves_the_loss_undecided() -> None:
    old, new = Fake(loss=lambda seed: math.nan), Fake()
    old.ask = lambda what, **given: {}  # type: ignore[method-assign]
    found, _ = against._loss("a", old, new, [0, 1], 2, None, lambda text: None)  # type: ignore[arg-type]
    assert found.verdict == "inconclusive"


@pytest.mark.parametrize(
    "text", ["TypeError: Side.run() got an unexpected keyword argument 'colour'", "RuntimeError: here"]
)
def test_a_side_that_does_not_know_what_it_is_asked_is_called_older(tmp_path: Path, text: str) -> None:
    (tmp_path / "ablate").mkdir()
    (tmp_path / "ablate" / "__init__.py").touch()
    (tmp_path / "ablate" / "side.py").write_text(f"import json\ninput()\nprint(json.dumps({{'error': {text!r}}}))\n")
    side = against.Process(tmp_path, tmp_path, "0123456789")
    says = against.OLDER if "Side" in text else "RuntimeError: here"
    try:
        with pytest.raises(UserError, match=f"^0123456789: {re.escape(says)}$"):
            side.ask("run", colour="red")
    finally:
        side.end()
