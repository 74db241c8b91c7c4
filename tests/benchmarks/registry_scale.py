"""How fast the registry answers at a hundred thousand trials, beside MLflow on the same store.

    python tests/benchmarks/registry_scale.py --home /tmp/scale -o scale.json

`--home` is made where it is missing, which takes a quarter of an hour, and kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import scale_records  # noqa: E402

from ablate import environment  # noqa: E402
from registry import Leaderboard, Store, query  # noqa: E402
from registry.mirror import VERSION, sync  # noqa: E402
from registry.record import TrialRecord  # noqa: E402
from registry.segments import Segments  # noqa: E402

ABOUT = (
    "The registry at {trials:,} trials of {suites} suites ({records:,} records), beside MLflow on the same SQLite file."
)
SUITE = "suite-000"
LIMIT = "SELECT record_id, val_loss FROM trials WHERE attention = 'gqa' AND val_loss < 3.05 ORDER BY val_loss LIMIT 20"
GROUP = (
    "SELECT attention, lr, avg(val_loss) AS val_loss, count(*) AS n FROM trials WHERE counts GROUP BY ALL ORDER BY ALL"
)


class Found:
    """The measurements so far, kept in the file as they come."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.head, self.rows = path, head, []

    def add(self, case: str, contender: str, seconds: list[float]) -> None:
        load = round(os.getloadavg()[0], 1)
        self.rows.append({"case": case, "contender": contender, "n": len(seconds), "load": load, "seconds": seconds})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.head | {"rows": self.rows}, indent=1) + "\n", encoding="utf-8")
        print(f"{case} | {contender} | {min(seconds):.3f} to {max(seconds):.3f} s, n = {len(seconds)}", flush=True)


def timed(work: Callable[[], object], times: int = 1) -> list[float]:
    """Seconds that it takes, each time."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: what was asked, and by contender the median with how often it was asked."""
    ours_first = sorted(found["rows"], key=lambda row: row["contender"].startswith("mlflow"))
    contenders, cases = (list(dict.fromkeys(row[name] for row in ours_first)) for name in ("contender", "case"))
    cells = {(row["case"], row["contender"]): _shown(row["seconds"]) for row in found["rows"]}
    return ["what", *contenders], [[case, *(cells.get((case, one), "") for one in contenders)] for case in cases]


def _shown(seconds: list[float]) -> str:
    middle = statistics.median(seconds)
    text = f"{middle:,.1f} s" if middle >= 10 else f"{middle:.2f} s" if middle >= 1 else f"{1000 * middle:.0f} ms"
    return f"{text} (n={len(seconds)})"


def fill(store: Store, trials: int, home: Path) -> dict[str, Any]:
    """Write the trials through the bulk path, unless that was done; returns what it took."""
    told = home / "built.json"
    if not told.exists():
        boards = list(scale_records.boards(trials))
        for board in boards:
            store.write_design(scale_records.design(*board))
        began = time.perf_counter()
        count = store.write_trials(record for board in boards for record in scale_records.records(*board))
        built = {"trials": trials, "records": count, "seconds": time.perf_counter() - began}
        told.write_text(json.dumps(built), encoding="utf-8")
    return json.loads(told.read_text(encoding="utf-8"))


def mirror_bytes(store: Store) -> int:
    """What the mirror takes, without files that it no longer names and keeps for an hour."""
    (folder,) = (store.home / "mirror").iterdir()
    found = Segments.open(folder, VERSION)
    assert found is not None
    return sum(file.size for table in found.tables.values() for file in table.files)


def fresh(count: int) -> Iterator[TrialRecord]:
    """New trials of a suite of their own, other ones at each call."""
    scale = scale_records.SCALES[0]
    return islice(scale_records.records(f"new-{time.time_ns()}", scale, 2 * count), count)


def theirs(home: Path) -> dict[str, Callable[[], Any]]:
    """The same questions to MLflow."""
    import mlflow

    mlflow.set_tracking_uri(Store.open(home).uri)
    (experiment,) = mlflow.search_experiments(filter_string=f"name = '{SUITE}'")
    ids = [one.experiment_id for one in mlflow.search_experiments()]
    where = "params.`model.attention` = 'gqa' AND metrics.val_loss < 3.05"

    def board() -> Any:
        runs: Any = mlflow.search_runs([experiment.experiment_id], "tags.`ablate.kind` = 'trial'", max_results=200_000)
        return runs.groupby("tags.ablate.cell_id")["metrics.val_loss"].agg(["mean", "std", "count"]).sort_values("mean")

    def limit() -> Any:
        return mlflow.search_runs(ids, where, max_results=20, order_by=["metrics.val_loss ASC"])

    def group() -> Any:
        runs: Any = mlflow.search_runs(ids, "tags.`ablate.kind` = 'trial'", max_results=200_000)
        return runs.groupby(["params.model.attention", "params.optimizer.lr"])["metrics.val_loss"].agg(
            ["mean", "count"]
        )

    return {"board of a suite": board, "filter, sort, limit": limit, "group by": group}


def ours(home: Path) -> dict[str, Callable[[], object]]:
    """The questions, by name."""
    return {
        "board of a suite": lambda: Leaderboard(home).suite(SUITE).frame(),
        "filter, sort, limit": lambda: query(LIMIT, home),
        "group by": lambda: query(GROUP, home),
    }


def in_a_process(home: Path, who: str, question: str) -> float:
    """Seconds of a question to `ours` or `theirs` that is a process's first, imports excluded."""
    code = f"""
import sys; sys.path[:0] = {sys.path[:2]!r}
import registry_scale, registry.leaderboard
ask = registry_scale.{who}(registry_scale.Path({str(home)!r}))[{question!r}]
print(registry_scale.timed(ask)[0])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def command(home: Path, *argv: str) -> Callable[[], object]:
    """A command in a new process."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    told = os.environ | {"ABLATE_HOME": str(home), "PYTHONPATH": path, "COLUMNS": "120"}
    told.pop("MLFLOW_TRACKING_URI", None)
    return lambda: subprocess.run([sys.executable, "-m", "ablate", *argv], check=True, capture_output=True, env=told)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=10, help="how often a short question is asked")
    parser.add_argument("--without-mlflow", action="store_true", help="it takes minutes")
    parser.add_argument("--without-processes", action="store_true", help="they take seconds each")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(argv)
    home: Path = options.home.absolute()
    store = Store.open(home)
    built = fill(store, options.trials, home)
    revision, dirty = environment.git_revision()
    found = Found(options.output, {
        "benchmark": "registry_scale", "about": "", "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_revision": revision, "git_dirty": dirty, "python": platform.python_version(), "cores": os.cpu_count(),
        "cpu": environment.describe("cpu", 1).get("cpu"), "trials": built["trials"],
    })  # fmt: skip
    found.head |= {"written": built["records"], "write_seconds": built["seconds"]}
    if not options.without_mlflow:
        for name in ours(home):  # in processes of their own, which take gigabytes
            found.add(name, "mlflow.search_runs, first in its process", [in_a_process(home, "theirs", name)])
    first = timed(lambda: sync(store, resync=True))
    records = sync(store).trials.count_rows()
    suites = len({suite for suite, _, _ in scale_records.boards(built["trials"])})
    found.head |= {"records": records, "about": ABOUT.format(trials=built["trials"], suites=suites, records=records)}
    found.head["mirror_mib"] = mirror_bytes(store) / 2**20
    found.head["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found.add("first sync", "ablate", first)
    new = []
    for _ in range(min(options.times, 5)):
        store.write_trials(fresh(10))
        new += timed(lambda: sync(store))
    found.add("sync with 10 new trials", "ablate", new)
    found.add("sync with nothing new", "ablate", timed(lambda: sync(store), options.times))
    for name, ask in ours(home).items():
        if not options.without_processes:
            again = min(options.times, 5)
            found.add(name, "ablate, first in its process", [in_a_process(home, "ours", name) for _ in range(again)])
        ask()
        found.add(name, "ablate", timed(ask, options.times))
    if not options.without_processes:
        few = min(options.times, 5)
        for argv in (["leaderboard", SUITE], ["leaderboard"], ["leaderboard", "--format", "csv"]):
            found.add(f"`ablate {' '.join(argv)}`", "ablate, a new process", timed(command(home, *argv), few))


if __name__ == "__main__":
    main()
