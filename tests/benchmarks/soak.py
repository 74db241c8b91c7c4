"""Does a run leak? A suite of a thousand short trials, and what its processes hold meanwhile.

    python tests/benchmarks/soak.py --home /tmp/soak -o soak.json --plot soak.svg

Every few seconds: how many trials are recorded, the memory and open files of the driver and of all processes of the run, and how many
there are. At the end, which is Ctrl-C after `--minutes`: what is left of them. A home that has trials already is gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ablate import environment  # noqa: E402
from registry import plots  # noqa: E402

SUITE = """\
name: soak
description: Twenty cells of fifty seeds, each as short as a trial can be that still learns something.
base: {{scale: nano, data.source: synthetic, train.tokens: {tokens}}}
factors:
  model.attention: [mha, {{gqa: {{n_kv_heads: 2}}}}]
  model.activation: [gelu, swiglu]
  optimizer.lr: [0.0005, 0.001, 0.002, 0.004, 0.008]
seeds: {seeds}
"""
EVERY = 10.0
"""Seconds between two samples."""
GRACE = 10.0
"""Seconds that processes have to end after the command has."""


def processes(home: Path) -> list[psutil.Process]:
    """Those that were started with `home`, which all descendants of the command inherit."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("ABLATE_HOME") == str(home):
                found.append(process)
    return found


def recorded(home: Path) -> int:
    """Trials in the store."""
    store = home / "mlflow.db"
    if not store.exists():
        return 0
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=5)) as connection:
        return connection.execute("SELECT count(*) FROM tags WHERE key = 'ablate.trial_id'").fetchone()[0]
    return 0


def sample(home: Path, driver: psutil.Process, began: float) -> dict[str, float]:
    """What is held now: memory in MiB, that of all as the sum of what each has for itself."""
    found: dict[str, float] = {
        "minutes": (time.monotonic() - began) / 60,
        "trials": recorded(home),
        "load": os.getloadavg()[0],
    }
    own = {"memory": 0.0, "files": 0, "processes": 0, "threads": 0}
    for process in processes(home):
        with suppress(psutil.Error):
            with process.oneshot():
                memory, files, threads = (
                    process.memory_full_info().uss / 2**20,
                    process.num_fds(),
                    process.num_threads(),
                )
            for name, value in (("memory", memory), ("files", files), ("processes", 1), ("threads", threads)):
                own[name] += value
            if process.pid == driver.pid:
                found |= {"driver_memory": memory, "driver_files": files, "driver_threads": threads}
    shm = sum(one.stat().st_size for one in Path("/dev/shm").iterdir() if one.is_file()) / 2**20
    return {name: round(value, 2) for name, value in (found | own | {"shm": shm}).items()}


def run(home: Path, tokens: int, seeds: int, minutes: float) -> dict[str, Any]:
    """Run the suite for so long, and what was seen of it."""
    home.mkdir(parents=True, exist_ok=True)
    suite = home / "soak.yaml"
    suite.write_text(SUITE.format(tokens=tokens, seeds=seeds), encoding="utf-8")
    before, began, samples = recorded(home), time.monotonic(), []
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with open(home / "soak.log", "a", encoding="utf-8") as log:
        command = subprocess.Popen(
            [sys.executable, "-m", "ablate", "run", str(suite)], stdout=log, stderr=log,
            env=os.environ | {"ABLATE_HOME": str(home), "PYTHONPATH": path},
        )  # fmt: skip
        driver = psutil.Process(command.pid)
        while command.poll() is None:
            with suppress(psutil.NoSuchProcess):
                samples.append(sample(home, driver, began))
            with suppress(subprocess.TimeoutExpired):
                command.wait(EVERY)
            if time.monotonic() - began > 60 * minutes:
                command.send_signal(signal.SIGINT)
                command.wait()
    took = (time.monotonic() - began) / 60
    psutil.wait_procs(processes(home), GRACE)
    left = [" ".join(process.cmdline())[:200] for process in processes(home)]
    return {
        "about": f"`ablate run` on a suite of {20 * seeds} trials of {tokens} tokens, looked at every {EVERY:.0f} s.",
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "code": environment.git_revision()[0], "cores": os.cpu_count(),
        "exit_code": command.returncode, "minutes": round(took, 1), "trials_before": before, "trials": recorded(home),
        "left": left, "samples": samples,
    }  # fmt: skip


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the plot: trials a minute over windows of a minute, and what is held, over minutes."""
    samples = [one for one in found["samples"] if "driver_memory" in one]
    made = []
    for name, title in (
        ("driver_memory", "driver, MiB"), ("memory", "all processes, MiB"), ("driver_files", "driver, open files"),
        ("files", "all processes, open files"), ("processes", "processes"),
    ):  # fmt: skip
        made += [{"minutes": one["minutes"], "what": title, "value": one[name]} for one in samples]
    step = max(1, round(60 / EVERY))
    for one, other in pairwise(samples[::step]):
        rate = (other["trials"] - one["trials"]) / (other["minutes"] - one["minutes"])
        made.append({"minutes": other["minutes"], "what": "trials a minute", "value": round(rate, 2)})
    return made


def plot(found: dict[str, Any]) -> plots.Spec:
    """One small plot for each."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": rows(found)},
        "facet": {"field": "what", "type": "nominal", "title": None, "sort": None},
        "columns": 2,
        "resolve": {"scale": {"y": "independent"}},
        "spec": {
            "width": 320, "height": 120, "mark": {"type": "line", "color": plots.BLUE},
            "encoding": {
                "x": {"field": "minutes", "type": "quantitative", "title": "minutes"},
                "y": {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": True}},
            },
        },
        "config": {"background": plots.PAPER},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("-o", "--output", type=Path, default=Path("soak.json"))
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    found = run(given.home.absolute(), given.tokens, given.seeds, given.minutes)
    given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.plot:
        import vl_convert

        given.plot.write_text(vl_convert.vegalite_to_svg(plot(found)), encoding="utf-8")
    print(
        f"exit code {found['exit_code']}, {found['trials']} trials in {found['minutes']} minutes, left behind: {found['left'] or 'nothing'}"
    )


if __name__ == "__main__":
    main()
