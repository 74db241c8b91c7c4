"""Shows that each test of tests/FAULTS.md fails once its safeguard is taken out: `python tests/safeguards.py [WORD ...] [-j N] [-o FILE]`.

For each of the chosen `safeguard_list.SAFEGUARDS` the checkout is copied, the change made, and the fault's test run on that copy. A test
that fails, or does not end, has caught it; one that passes has not, and then the exit code is 1. Where the test is skipped, or does not run
at all, there is no verdict.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

import psutil
from safeguard_list import SAFEGUARDS, Safeguard

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("ablate", "registry", "suites", "tests", "results", "pyproject.toml", "README.md")
LIMIT_SECONDS = 400.0
MARK = "ABLATE_SAFEGUARD_COPY"
"""Names the copy to all processes that work on it, by which those that are left of a run are found."""
UNDISTURBED = "test_fire.py::test_a_run_that_nothing_disturbs_completes"
CAUGHT, NEVER_ENDED, MISSED, UNKNOWN = "caught", "caught (did not end)", "not caught", "no verdict"
ROW = re.compile(r"^\| (?P<fault>[^|]+) \| [^|]+ \| `(?P<test>[^`|]+)` \|", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a test said of a copy without a safeguard; `said` is the first line of its failure."""

    fault: str
    safeguard: str
    test: str
    files: list[str]
    verdict: str
    said: str
    seconds: float


def rows() -> dict[str, str]:
    """The fault of each row of the table, by its test."""
    text = (ROOT / "tests" / "FAULTS.md").read_text(encoding="utf-8")
    return {found["test"]: found["fault"] for found in ROW.finditer(text)}


def copy_to(folder: Path) -> None:
    """What git knows of the checkout, or would take; of a tree without git all."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard", *NEEDED]
    if (ROOT / ".git").exists():
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    else:
        names = [str(path.relative_to(ROOT)) for name in NEEDED for path in (ROOT / name, *(ROOT / name).rglob("*"))]
    for name in names:
        if name and (ROOT / name).is_file() and "__pycache__" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def tested(safeguard: Safeguard, limit: float) -> Verdict:
    """Run the test on a copy without the safeguard."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="safeguard-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "copy"
        copy_to(folder)
        for change in safeguard.changes:
            change.make(folder)
        try:
            verdict, said = _ran(safeguard.test, folder, limit)
        finally:
            _cleared(folder)
    return Verdict(
        fault=rows().get(safeguard.row, ""), safeguard=safeguard.name, test=safeguard.test,
        files=sorted({change.file for change in safeguard.changes}), verdict=verdict, said=said.replace(name, "."),
        seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip


def _ran(test: str, folder: Path, limit: float) -> tuple[str, str]:
    report = folder.parent / "report.xml"
    command = [
        sys.executable, "-m", "pytest", f"tests/{test}", "-p", "no:cacheprovider", "-p", "no:benchmark", "-o", "addopts=", "-x", "-q",
        "--basetemp", str(folder.parent / "t"), f"--junitxml={report}",
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, MARK: str(folder)}
    with (folder.parent / "output").open("w+") as output:
        run = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )  # fmt: skip
        try:
            code = run.wait(limit)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            return NEVER_ENDED, f"not done after {limit:g} s"
        output.seek(0)
        last = (output.read().strip().splitlines() or [""])[-1]
    if not report.exists():
        return UNKNOWN, last
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [found for case in cases if (found := case.find("failure")) is not None]
    skipped = [found for case in cases if (found := case.find("skipped")) is not None]
    passed = [case for case in cases if case.find("*") is None]
    if code == 1 and failed:
        said = _line(failed[0].text or "")
        return NEVER_ENDED if re.search(r"TimeoutExpired|Timeout \(?>", said) else CAUGHT, said
    if code == 0 and passed:
        return MISSED, last
    return UNKNOWN, (skipped[0].get("message") or last) if skipped else last


def _line(failure: str) -> str:
    """The line of pytest's account that says most: the last error of a process that the test had started, or the test's own."""
    first, *rest = [line[1:].strip() for line in failure.splitlines() if line.startswith("E ")] or [""]
    theirs = [line for line in rest if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return theirs[-1] if theirs and re.search("Traceback|Exception in thread", first) else first


def _cleared(folder: Path) -> None:
    """End what is left of a run, and give back what it mounted."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder):
                process.kill()
    mounts = Path("/proc/self/mounts")
    for line in mounts.read_text().splitlines() if mounts.exists() else ():
        if (place := line.split()[1]).startswith(f"{folder.parent}/"):
            subprocess.run(["umount", "--lazy", place], check=False)


def chosen(words: Sequence[str]) -> list[Safeguard]:
    """The safeguards in whose name, fault, test or files one of the words is; without words all."""
    faults = rows()

    def text(one: Safeguard) -> str:
        return " ".join([one.name, faults[one.row], one.test, *(change.file for change in one.changes)]).lower()

    return [one for one in SAFEGUARDS if not words or any(word.lower() in text(one) for word in words)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only safeguards with a word in name, fault, test or file"
    )
    parser.add_argument("-j", type=int, default=1, metavar="N", dest="jobs", help="so many at once")
    parser.add_argument("-o", type=Path, metavar="FILE", dest="output", help="write the verdicts there, as JSON")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, metavar="SECONDS", help="for each test")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--untouched", action="store_true", help="run the tests on the code as it is: all should pass")
    ways.add_argument(
        "--undisturbed", action="store_true", help="run a run without a fault on the changed code: all should pass"
    )
    options = parser.parse_args()
    wanted, passing = chosen(options.words), options.untouched or options.undisturbed
    if options.untouched:
        wanted = [Safeguard("untouched", test) for test in dict.fromkeys(one.test for one in wanted)]
    elif options.undisturbed:
        wanted = [
            Safeguard(one.name, UNDISTURBED, *one.changes) for one in {one.changes: one for one in wanted}.values()
        ]
    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in as_completed([pool.submit(tested, one, options.limit) for one in wanted]):
            verdicts.append(one := done.result())
            what = {CAUGHT: "fails", NEVER_ENDED: "fails", MISSED: "passes"} if passing else {}
            print(
                f"{what.get(one.verdict, one.verdict)}: {one.safeguard} ({one.test}), {one.seconds:.0f} s: {one.said[:200]}",
                flush=True,
            )
    if options.output:
        options.output.write_text(json.dumps([asdict(one) for one in verdicts], indent=1) + "\n", encoding="utf-8")
    bad = (CAUGHT, NEVER_ENDED) if passing else (MISSED,)
    return int(any(one.verdict in bad for one in verdicts))


if __name__ == "__main__":
    sys.exit(main())
