"""How often does `ablate check` find what was planted, and how often does it call what was not there?

    python tests/benchmarks/gate_study.py -o gate-study.jsonl [--checks 20] [--untimed] [--lanes 1] [--seconds 3600] [CONDITION ...]
    python tests/benchmarks/gate_study.py -o gate-study.jsonl --summary gate-study.json

Each condition is an edit of a copy of the package in a repository of its own, in which the whole command `ablate check --against HEAD`
runs at nano; what its two sides measured is kept, a line a check. Each check has a learning rate of its own, so that no two are the same
trainings. With `--untimed` they do not look at the time, which takes the longest: that gives more losses and counts to draw from. Lanes
run at once, each on two cores that `--shared` of them have in common. The summary resamples whole checks from all that was measured
(`gate_resampled.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests")]
if os.environ.get("ABLATE_STUDIED") is None:  # else the copy's code is the one that counts
    sys.path.insert(0, str(ROOT))

import copied  # noqa: E402
from copied import Change  # noqa: E402

ATTENTION, FEED, MODEL, TRAIN = (f"ablate/{name}.py" for name in ("variants/_attend", "feed", "model", "train"))
IN_ATTENTION = "        q, k = q.to(v.dtype), k.to(v.dtype)\n"
IN_FEED = "        return self.corpus.tokens[self.starts[step][:, None] + np.arange(self.length + 1)]\n"
IN_LOOP = "        self.losses[self.done], self.norms[self.done] = loss, norm\n"
IN_EVALUATION = "self.done * self.recipe.batch_tokens, float(losses.mean())])"
IN_MODEL = "        hidden, targets = self.hidden(windows[:, :-1], blocks).flatten(0, 1), windows[:, 1:]\n"
REVERSED = Change(FEED, IN_FEED, IN_FEED.replace("starts[step][:, None]", "starts[step][::-1, None]"))
"""The sequences of a batch in another order: the same sums, rounded in another order."""
TENTH, MORE_MEMORY, MORE_LOSS = 0.10, 0.03, 1.01
AT_FIRST, ROUNDS = 100, 60
"""Copies, and rounds, with which it is measured how many slow a step down by a tenth."""


@dataclass(frozen=True)
class Condition:
    """Edits of the package, and the metric that they are to be found in; none for those that change nothing."""

    edits: Callable[[dict[str, float]], list[Change]]
    metric: str | None = None


def copies(number: float) -> list[Change]:
    """So many extra copies of the queries in each layer."""
    loop = f"        for _ in range({round(number)}):\n            q.clone()\n"
    return [Change(ATTENTION, IN_ATTENTION, IN_ATTENTION + loop)]


def kept(size: float) -> list[Change]:
    """So many bytes that nobody uses."""
    line = f"        self.kept = torch.empty({round(size)}, dtype=torch.uint8)\n"
    return [Change(MODEL, IN_MODEL, IN_MODEL + line)]


CONDITIONS = {
    "unchanged": Condition(lambda _: [Change(TRAIN, IN_LOOP, IN_LOOP.replace("\n", "  # as before\n"))]),
    "rounding": Condition(lambda _: [REVERSED]),
    "loss +1 %": Condition(
        lambda _: [REVERSED, Change(TRAIN, IN_EVALUATION, IN_EVALUATION.replace("mean()", f"mean()) * ({MORE_LOSS}"))], "val_loss"
    ),
    "step +10 %": Condition(lambda sizes: copies(sizes["copies"]), "step_time_ms"),
    "memory +3 %": Condition(lambda sizes: kept(sizes["bytes"]), "peak_memory_gib"),
    "graph break": Condition(lambda _: [Change(MODEL, IN_MODEL, IN_MODEL + "        torch._dynamo.graph_break()\n")], "graph_breaks"),
    "host sync": Condition(lambda _: [Change(TRAIN, IN_LOOP, IN_LOOP + "        float(loss)\n")], "host_syncs"),
}  # fmt: skip


class Lane:
    """Two cores, and a repository on which one check at a time runs."""

    def __init__(self, folder: Path, cores: set[int]) -> None:
        self.folder, self.cores, self._free = copied.repository(folder), cores, threading.Lock()

    def check(self, edits: list[Change], rate: float, once: str | None = None) -> dict[str, Any]:
        """Run a whole check of a planted change; see `studied`."""
        with self._free:
            return self._check(edits, rate, once)

    def _check(self, edits: list[Change], rate: float, once: str | None) -> dict[str, Any]:
        subprocess.run(["git", "-C", self.folder, "checkout", "--quiet", "."], check=True)
        for edit in edits:
            edit.make(self.folder)
        home = self.folder / ".home"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")]), "ABLATE_HOME": str(home),
            "ABLATE_STUDIED": "1", "CUDA_VISIBLE_DEVICES": "", "GITHUB_STEP_SUMMARY": "",
        }  # fmt: skip
        command = [sys.executable, __file__, "--one", f"{rate:.6f}", "--cores", ",".join(map(str, sorted(self.cores)))]
        done = subprocess.run(
            command + ([] if once is None else ["--once", once]),
            capture_output=True, text=True, cwd=self.folder, env=environment,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return json.loads(done.stdout.splitlines()[-1])


def studied(rate: float, once: str | None) -> dict[str, Any]:
    """In the child: run the check with the code of its folder, and tell what both sides answered.

    Its exit code, the verdict of each metric, each look at the time as logarithms of its rounds' ratios, and the losses: of the revision,
    of it nudged, and of the change, in the order of seeds. With `once`, only one look at the time (`time`), or all but the time (`count`).
    """
    from ablate import against, cli
    from registry import gate

    looks: list[list[float]] = []
    losses: dict[str, list[float]] = {"before": [], "nudged": [], "after": []}
    ask, judged = against.Process.ask, gate.time

    def heard(self: against.Process, what: str, **given: Any) -> Any:
        answer = ask(self, what, **given)
        if what == "run" and "val_loss" in answer:
            side = "nudged" if given.get("nudged") else "after" if self.name == "the working tree" else "before"
            losses[side].append(answer["val_loss"])
        return answer

    def time_heard(arm: str, metric: str, rounds: list[list[float]]) -> gate.Finding:
        looks.append([round(math.log(b * c / (a * d)) / 2, 5) for a, b, c, d in rounds])
        return judged(arm, metric, rounds)

    against.Process.ask, against.gate.time = heard, time_heard  # type: ignore[method-assign]
    if once == "time":
        against.ROUNDS = (ROUNDS,)
        against._loss = lambda *_: (gate.Finding("a", "val_loss", "pass"), [{}, {}])  # type: ignore[assignment]
    if once == "count":
        against._time = lambda *_: gate.Finding("a", "step_time_ms", "pass")  # type: ignore[assignment]
    out = StringIO()
    with redirect_stdout(out):
        try:
            code = cli.main(["check", "one-arm.yaml", "--against", "HEAD", "--json", "--set", f"optimizer.lr={rate}"])
        except SystemExit as error:
            code = error.code
    findings = json.loads(out.getvalue())["findings"]
    return {
        "exit": code, "verdicts": {one["metric"]: one["verdict"] for one in findings}, "looks": looks, "losses": losses,
        "counts": {one["metric"]: [one["before"], one["after"]] for one in findings if one["before"] is not None and one["low"] is None},
    }  # fmt: skip


def sizes(lanes: list[Lane], pool: ThreadPoolExecutor, names: list[str]) -> dict[str, float]:
    """How many bytes are 3 % of a step's peak memory, and how many copies slow it down by a tenth on this machine, if that is asked."""
    peak = lanes[0].check([], 0.001, once="count")["counts"]["peak_memory_gib"][0]
    found = {"bytes": MORE_MEMORY * peak * 2**30}
    if "step +10 %" in names:
        several = [*lanes] * math.ceil(3 / len(lanes))
        looks = pool.map(lambda lane: lane.check(copies(AT_FIRST), 0.001, once="time")["looks"][0], several)
        found["copies"] = AT_FIRST * TENTH / statistics.fmean(math.expm1(statistics.median(look)) for look in looks)
    return found


def study(output: Path, names: list[str], checks: int, untimed: bool, lanes: int, shared: int, seconds: float) -> None:
    """Add checks to the file until each condition has so many, `untimed` ones or whole ones, or the time is over."""
    ends, lock = time.monotonic() + seconds, threading.Lock()
    known = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    counts = {
        name: sum(one["condition"] == name and one.get("untimed", False) == untimed for one in known) for name in names
    }
    wanted: Iterator[tuple[int, str]] = iter(
        [(place, name) for place in range(checks) for name in names if place >= counts[name]]
    )
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(lanes) as pool:
        own = [Lane(Path(folder) / str(i), set(cores[i // shared * 2 :][:2])) for i in range(lanes)]
        size = next((one["sizes"] for one in known), None) or sizes(own, pool, names)

        def work(lane: Lane) -> None:
            while time.monotonic() < ends:
                with lock:
                    place, name = next(wanted, (0, ""))
                if not name:
                    return
                began = time.monotonic()
                found = lane.check(
                    CONDITIONS[name].edits(size), 0.001 * (1.0 + place / 100), "count" if untimed else None
                )
                took = round(time.monotonic() - began, 1)
                said = {
                    "condition": name, "place": place, "seconds": took, "load": round(os.getloadavg()[0], 1), "lanes": lanes,
                    "shared": shared, "sizes": size, "machine": f"{platform.machine()}, {len(cores)} cores", "untimed": untimed,
                    "at": datetime.now(UTC).isoformat(timespec="seconds"),
                }  # fmt: skip
                with lock, output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(said | found) + "\n")
                print(f"{name} {place}: exit code {found['exit']}, {len(found['looks'])} looks, {took} s", flush=True)

        list(pool.map(work, own))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("conditions", nargs="*", metavar="CONDITION", help=", ".join(CONDITIONS))
    parser.add_argument("-o", "--output", type=Path, default=Path("gate-study.jsonl"))
    parser.add_argument("--checks", type=int, default=20)
    parser.add_argument("--untimed", action="store_true")
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--shared", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--summary", type=Path)
    for hidden in ("--one", "--cores", "--once"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        os.sched_setaffinity(0, set(map(int, given.cores.split(","))))
        print(json.dumps(studied(float(given.one), given.once)))
    elif given.summary:
        import gate_resampled

        lines = [json.loads(line) for line in given.output.read_text(encoding="utf-8").splitlines()]
        found = gate_resampled.summary(lines, {name: one.metric for name, one in CONDITIONS.items()}, MORE_LOSS)
        given.summary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    else:
        study(
            given.output,
            given.conditions or list(CONDITIONS),
            given.checks,
            given.untimed,
            given.lanes,
            given.shared,
            given.seconds,
        )


if __name__ == "__main__":
    main()
