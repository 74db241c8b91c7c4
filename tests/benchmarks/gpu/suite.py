"""A whole suite by `ablate run`, 8 arms x 4 seeds of 10M parameters and 20M tokens each: tokens over wall time.

The wall time is that of the command, from its start to its end. It is held against the rate that the same trials would have
without a second lost: each at its own steady tokens/s, one after the other. `--warm-from HOME` takes over the compiled code and the
tokens of a home that an earlier run left (`--home`), `--prime` makes one by a short run before, and leaves it beside `--home`.
`--alone HOME` does something else: it measures every arm of the suite in that home again, each alone, in a run with one worker.

Every trial evaluates 262,144 tokens twice: less than 1 % of the work of its training.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench
import handovers

from ablate.timeline import Timeline
from registry.record import TrialRecord
from registry.spool import Spool
from registry.store import Store

SUITE = "eight-arms"
FACTORS: dict[str, list[str]] = {
    "model.activation": ["swiglu", "gelu"], "model.norm": ["rmsnorm", "layernorm"],
    "train.precision": ["bf16", "bf16_activations"],
}  # fmt: skip
"""Every arm is compiled for itself."""
TINY_FACTORS = {"model.norm": FACTORS["model.norm"]}
EVALUATION = {"evaluation.tokens": 2**18, "evaluation.points": 2}
PRIMING_TOKENS = 500_000
UNSET = "MLFLOW_TRACKING_URI MLFLOW_EXPERIMENT_NAME RAY_ADDRESS TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR".split()
"""What the user may have set and would lead the run elsewhere."""
GRACE = 30.0
"""Seconds that an interrupted run has for its end."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the command: when, its exit code, and what it left in the registry."""

    start: float
    end: float
    code: int
    records: list[TrialRecord]

    @property
    def wall(self) -> float:
        return self.end - self.start


def suite_text(options: Any) -> str:
    """The suite, as JSON, which is YAML too."""
    factors = TINY_FACTORS if options.tiny else FACTORS
    base: dict[str, Any] = {"scale": "10m", "train.tokens": options.tokens, **EVALUATION}
    base["data.source"] = {"files": {"paths": str(options.data.absolute())}} if options.data else "synthetic"
    if options.tiny:
        base |= {"scale": "nano", "data.tokenizer": "bytes", "data.seq_len": 32, "evaluation.tokens": 256}
    return json.dumps({
        "name": SUITE, "description": "A benchmark of the run itself.", "base": base, "factors": factors, "design": "full",
        "baseline": {field: levels[0] for field, levels in factors.items()}, "match": "none", "seeds": options.seeds,
    })  # fmt: skip


def run(home: Path, options: Any, *arguments: str, limit: float) -> Run:
    """`ablate run` in `home`; interrupted, as by Ctrl-C, where it takes longer than `limit` seconds."""
    home.mkdir(parents=True, exist_ok=True)
    suite = home / f"{SUITE}.yaml"
    suite.write_text(suite_text(options), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in UNSET}
    environment["ABLATE_HOME"] = str(home)
    sets = [word for setting in options.set for word in ("--set", setting)]
    command = [sys.executable, "-m", "ablate", "run", str(suite), *sets, *arguments]
    with (home / "run.log").open("w", encoding="utf-8") as log:
        start = time.time()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(max(1.0, limit))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        end = time.time()
    if code:
        print("\n".join((home / "run.log").read_text(encoding="utf-8").splitlines()[-15:]), file=sys.stderr)
    return Run(start, end, code, records(home))


def records(home: Path) -> list[TrialRecord]:
    """All that a home has of trials, in the spool or in the store, in the order in which they began."""
    found = {record.record_id: record for record in Spool(home).records()}
    found |= {record.record_id: record for record in Store.open(home, create=False).trials()}
    return sorted(found.values(), key=lambda record: record.started_at)


def take_over(old: Path, new: Path) -> None:
    """Have a new home use the caches of an old one; linked, for compiled code knows by path where it lies."""
    new.mkdir(parents=True)
    (new / "cache").symlink_to((old / "cache").resolve(strict=True), target_is_directory=True)


def finished(records: list[TrialRecord]) -> list[TrialRecord]:
    return [r for r in records if r.status == "finished" and "tokens_per_second" in r.metrics]


def report(results: bench.Results, case: str, made: Run, picture: Path | None = None) -> None:
    """The rows of a whole suite: `share` is of the wall time, in which somebody trained."""
    records = finished(made.records)
    if not records:
        return
    tokens = sum(r.metrics["tokens"] for r in records)
    steady = tokens / sum(r.metrics["tokens"] / r.metrics["tokens_per_second"] for r in records)
    over_wall = tokens / made.wall
    facts = {
        "exit_code": made.code, "trials": len(made.records), "tokens": tokens,
        "statuses": dict(Counter(r.status for r in made.records)), "exclusive": sum(r.exclusive for r in records),
        "step_modes": dict(Counter(r.step_mode for r in records)), "trial_seconds": [r.metrics.get("total_seconds") for r in records],
    }  # fmt: skip
    whole: bench.Measurements = {
        "tokens_per_second": [over_wall], "seconds": [made.wall], "ratio: the trials' steady rate": [over_wall / steady],
    }  # fmt: skip
    names = {record.record_id: record.cell_id for record in made.records}
    told = Timeline.of((r.record_id, r.context, r.environment) for r in made.records)
    if told is not None:
        whole["share"] = [told.share * told.seconds / made.wall]
        facts |= {
            "phase_seconds": {phase: statistics.median(of) for phase, of in handovers.phase_seconds(told).items()},
            "overlapping_trainings": handovers.overlaps(told), "workers": len({bar.worker for bar in told.bars}),
            "seconds_before_first_training": min(bar.start for bar in told.bars if bar.phase == "train") - made.start,
            "seconds_after_last_training": made.end - max(bar.end for bar in told.bars if bar.phase == "train"),
            "bars": [[names[bar.trial], bar.worker[1], bar.phase, bar.start - made.start, bar.end - made.start] for bar in told.bars],
        }  # fmt: skip
    results.add(case, "the whole command", whole, **facts)
    rates = [r.metrics["tokens_per_second"] for r in records]
    results.add(case, "its trials, steady", {"tokens_per_second": rates})
    if told is not None:
        results.add(case, "device, between two trainings", {"seconds": handovers.idle(told)})
        for kind, seconds in handovers.turnarounds(told, names).items():
            results.add(case, f"worker, until the next is ready, {kind}", {"seconds": seconds})
        if picture is not None:
            picture.write_text(told.svg(case), encoding="utf-8")


def report_alone(results: bench.Results, case: str, inside: list[TrialRecord], alone: Run) -> None:
    """Speed and memory of arms measured alone against the same arms in the suite."""
    if not finished(alone.records):
        results.skip(case, "alone", f"exit code {alone.code}, no trial finished")
    for record in finished(alone.records):
        levels = record.context["levels"]
        same = [r for r in finished(inside) if r.context["levels"] == levels]
        if same:
            found: bench.Measurements = {}
            for metric in ("tokens_per_second", "peak_memory_gib"):
                suite, single = statistics.median(r.metrics[metric] for r in same), record.metrics[metric]
                found |= {metric: [single], f"ratio: {metric} in the suite": [single / suite]}
            results.add(
                case, f"alone, {', '.join(levels.values())}", found, exclusive=record.exclusive, suite_trials=len(same)
            )


def whole(results: bench.Results, options: Any, folder: Path) -> None:
    """A whole suite."""
    home, warm_from = options.home or folder / "home", options.warm_from
    if options.prime:
        warm_from = home.with_name(f"{home.name}-primed")
        shorter = ["--set", f"train.tokens={min(PRIMING_TOKENS, options.tokens)}", "--seeds", "1"]
        primed = run(warm_from, options, *shorter, limit=results.left)
        print(f"primed in {primed.wall:.0f} s, exit code {primed.code}", file=sys.stderr)
    if warm_from is not None:
        take_over(warm_from, home)
    arms = 2 ** len(TINY_FACTORS if options.tiny else FACTORS)
    case = f"{arms} arms x {options.seeds} seeds, {'warm' if warm_from else 'cold'} cache"
    workers = ["--workers", str(options.workers)] if options.workers else []
    made = run(home, options, *workers, limit=results.left)
    report(results, case, made, options.picture)
    if made.code:
        left_out = arms * options.seeds - len(finished(made.records))
        results.skip(case, f"{left_out} trials", f"exit code {made.code} after {made.wall:.0f} s")


def alone(results: bench.Results, options: Any, home: Path) -> None:
    """Every arm of a suite, alone."""
    take_over(options.alone, home)
    shorter = ["--set", f"train.tokens={options.tokens / 2:.0f}", "--seeds", "1", "--workers", "1"]
    report_alone(results, "one arm at a time", records(options.alone), run(home, options, *shorter, limit=results.left))


def main() -> int:
    parser = bench.parser(__doc__ or "", budget=330)
    parser.add_argument("--data", type=Path, help="a Parquet file with a column `text`; the synthetic source without")
    parser.add_argument("--tokens", type=float, default=20e6, help="of each trial")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--home", type=Path, help="where to leave what the run made; a temporary folder without")
    parser.add_argument("--warm-from", type=Path, metavar="HOME", help="take over compiled code and tokens")
    parser.add_argument("--prime", action="store_true", help="compile everything in a short run before")
    parser.add_argument("--alone", type=Path, metavar="HOME", help="measure the arms of that suite alone, half as long")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the timeline")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the suite; repeatable")
    parser.add_argument("--workers", type=int, help="per device; ablate's own choice without")
    options = parser.parse_args()
    if options.tiny:
        options.tokens, options.seeds = 2_000, 1
    results = bench.Results("suite", (__doc__ or "").partition("\n")[0], options)
    folder = Path(tempfile.mkdtemp(prefix="suite-"))
    try:
        if options.alone is not None:
            alone(results, options, folder / "alone")
        else:
            whole(results, options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return results.finish()


if __name__ == "__main__":
    sys.exit(main())
