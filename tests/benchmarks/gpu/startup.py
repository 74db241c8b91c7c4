"""From the start of a process to its third step, with cold and warm compile caches, and from one trial to the next in it: seconds.

A trial of 10M parameters and three steps by `ablate.train.train`, whose end (an evaluation of one micro-batch) counts too. Each
process then trains the same arm with another seed, and another arm. The tokens are prepared before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STEPS = 3
WARM_PROCESSES = 3
FORECAST = {"cold": 50, "warm": 25}
"""Seconds that a process may take; none is begun with less left."""


def recipes(tiny: bool) -> dict[str, Any]:
    """The trials of a process, in order."""
    import bench

    sizes: dict[str, Any] = {
        "train__steps": STEPS,
        "evaluation__points": 1,
        "evaluation__sequences": 32,
        "data__tokenizer": "bytes",
    }
    scale = "nano" if tiny else "10m"
    sizes |= {"data__seq_len": 32, "evaluation__sequences": 4} if tiny else {"model__vocab_size": 8192}
    first, same = (bench.recipe(scale, seed, **sizes) for seed in (0, 1))
    return {
        "first trial": first,
        "same arm": same,
        "another arm": bench.recipe(scale, model__activation="gelu", **sizes),
    }


def child(arguments: argparse.Namespace) -> None:
    """Train the trials, and print when each was ready and done, in seconds since the process began and since the last was done."""
    begun = arguments.begun
    from ablate.data import prepare
    from ablate.train import Kept, train

    marks: dict[str, dict[str, Any]] = {"process": {"imported": time.time() - begun}}
    trials, kept = recipes(arguments.tiny), Kept()
    corpus = prepare(next(iter(trials.values())).data, arguments.cache)
    for name, recipe in trials.items():
        entered: list[float] = []

        @contextmanager
        def ready(entered: list[float] = entered):
            entered.append(time.time())
            yield

        result = train(recipe, corpus=corpus, device=arguments.device, exclusive=ready(), kept=kept)
        done = time.time()
        marks[name] = {"ready": entered[0] - begun, "done": done - begun, "mode": result.step_mode}
        begun = done
    print(json.dumps(marks), flush=True)


def start(options: Any, cache: Path, tokens: Path) -> dict[str, dict[str, Any]]:
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
    command = [
        sys.executable,
        __file__,
        "--device",
        options.device,
        "--cache",
        str(tokens),
        "--begun",
        repr(time.time()),
    ]
    command += ["--tiny"] if options.tiny else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    if done.returncode:
        raise RuntimeError(done.stderr[-300:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    import bench

    from ablate.data import prepare

    parser = bench.parser(__doc__ or "", budget=120)
    parser.add_argument("--scratch", type=Path, help="where caches and tokens are put; a temporary folder without")
    options = parser.parse_args()
    results = bench.Results("startup", (__doc__ or "").partition("\n")[0], options)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        scratch = options.scratch or Path(folder)
        prepare(next(iter(recipes(options.tiny).values())).data, scratch / "tokens")
        found: dict[str, list[dict[str, dict[str, Any]]]] = {"cold": [], "warm": []}
        for kind in ("cold", *["warm"] * (1 if options.tiny else WARM_PROCESSES)):
            case = f"{kind} cache"
            if results.affords(0 if options.tiny else FORECAST[kind], case, "process"):
                with results.guard(case, "process"):
                    found[kind].append(start(options, scratch / "inductor", scratch / "tokens"))
        for kind, processes in found.items():
            if processes:
                report(results, f"{kind} cache", processes)
    return results.finish()


def report(results: Any, case: str, processes: list[dict[str, dict[str, Any]]]) -> None:
    imported = [marks["process"]["imported"] for marks in processes]
    results.add(case, "process start to imports done", {"seconds": imported})
    for name, about in {
        "first trial": "process start to third step", "same arm": "next trial to third step, same arm",
        "another arm": "next trial to third step, another arm",
    }.items():  # fmt: skip
        ready = [marks[name]["ready"] for marks in processes]
        done = {"seconds": [marks[name]["done"] for marks in processes]}
        results.add(case, about, done, ready_seconds=ready, mode=processes[0][name]["mode"])


if __name__ == "__main__":
    if "--begun" in sys.argv:
        inner = argparse.ArgumentParser()
        inner.add_argument("--begun", type=float)
        inner.add_argument("--device")
        inner.add_argument("--cache", type=Path)
        inner.add_argument("--tiny", action="store_true")
        sys.exit(child(inner.parse_args()))
    sys.exit(main())
