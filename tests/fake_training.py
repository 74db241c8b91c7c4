"""Jobs that train nothing, and a driver for them that tests can kill: `python fake_training.py HOME [N_JOBS [WORKERS]]`."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ablate import memory
from ablate.train import Progress, Result
from ablate.worker import Hooks, Job, Place


def job(seed: int = 0, *, finished_before: int = 0, shape: str = "", **recipe: Any) -> Job:
    """A job whose `recipe` says how `train` behaves: `seconds`, `gate` (a file to wait for), `raises`, `prints`, `dies`, `hangs`,
    `crowded`, `holds` (by seed, the phase in which to wait for the file `GATES-SEED`) with `gates`."""
    return Job(
        trial_id=f"{seed:016x}", cell_id="c" * 16, label="fake", suite="fake", scale="nano", seed=seed, recipe=recipe,
        levels={"model.norm": "fake"}, corpus_fingerprint="d" * 16, evaluation_fingerprint="f" * 16, text_fingerprint="a" * 16,
        code_fingerprint="e" * 16, shape=shape,
        estimated_seconds=1.0, purpose="primary", git_revision="", git_dirty=False, finished_before=finished_before,
        ablate_version="0",
    )  # fmt: skip


def train(job: Job, place: Place, hooks: Hooks) -> Result:
    """A trainer: notes beginning and end in `home/trainings`, one line each."""
    recipe = job.recipe
    _note(place.home, "begin", job, os.getpid())
    print(recipe.get("prints", ""))
    _hold(job, place, "prepare")
    hooks.phase("compile")
    _hold(job, place, "compile")
    if recipe.get("crowded") == job.seed and not place.alone:
        memory.held_by_others = lambda device: 5.0
        raise torch.OutOfMemoryError("CUDA out of memory")
    with hooks.exclusive:
        _note(place.home, "measure", job, os.getpid())
        _hold(job, place, "train")
        if recipe.get("dies") == job.seed:
            os.kill(os.getpid(), signal.SIGKILL)
        while recipe.get("hangs") == job.seed:
            time.sleep(0.1)
        steps = 10
        for step in range(1, steps + 1):
            time.sleep(recipe.get("seconds", 0.0) / steps)
            while "gate" in recipe and not Path(recipe["gate"]).exists():
                time.sleep(0.02)
            hooks.on_step(Progress(step, steps, step, 2.0, None, 100.0))
        if recipe.get("raises"):
            raise getattr(builtins, recipe["raises"])("as asked")
    _note(place.home, "end", job, os.getpid())
    metrics = {"val_loss": 2.0 + job.seed / 100}
    context = {
        "torch_threads": torch.get_num_threads(),
        "variables": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_CACHE_DIR")},
    }  # fmt: skip
    return Result(
        status="finished", metrics=metrics, curves={"val_loss": [[10, 10, 2.0]]}, step_mode="fake", context=context
    )


def notes(home: Path, kind: str) -> list[tuple[str, int]]:
    """Trial ids and workers of the trainings that came so far."""
    path = home / "trainings"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [(trial_id, int(pid)) for what, trial_id, pid in lines if what == kind]


def messages(home: Path) -> str:
    """What a driver told so far, a line each."""
    path = home / "messages"
    return path.read_text() if path.exists() else ""


def _hold(job: Job, place: Place, phase: str) -> None:
    if job.recipe.get("holds", {}).get(str(job.seed)) == phase:
        _note(place.home, f"holds-{phase}", job, os.getpid())
        while not Path(f"{job.recipe['gates']}-{job.seed}").exists():
            time.sleep(0.02)


def _note(home: Path, kind: str, job: Job, pid: int) -> None:
    with (home / "trainings").open("a") as file:
        file.write(f"{kind} {job.trial_id} {pid}\n")


def main(home: Path, options: dict[str, Any]) -> int:
    """Do what `ablate run` does: ask what is done, then run the rest. Prints the outcome as JSON; its exit codes are `ablate`'s."""
    from ablate import environment, scheduler
    from ablate.errors import UserError
    from registry.locks import TrialLock
    from registry.record import attempt_key
    from registry.spool import Spool
    from registry.store import Store

    workers = options.get("workers")
    place = environment.environment_id(environment.expected(workers=workers))
    first = options.get("first", 0)
    jobs = [job(seed, **options.get("recipe", {})) for seed in range(first, first + options.get("jobs", 8))]
    before = {j.trial_id: TrialLock(home, attempt_key(j.trial_id, place)).finished() for j in jobs}
    store = Store.open(home)
    done = {*store.statuses(place)} if not options.get("blind") else set()
    done |= {record.trial_id for record in Spool(home).records()}
    todo = [
        job(j.seed, finished_before=before[j.trial_id], **options.get("recipe", {}))
        for j in jobs
        if j.trial_id not in done
    ]
    events: list[Any] = []

    def heard(event: Any) -> None:
        events.append(event)
        if hasattr(event, "text"):
            with contextlib.suppress(OSError), (home / "messages").open("a") as file:
                file.write(f"{event.text}\n")

    try:
        outcome = scheduler.run(
            todo,
            home=home,
            open_store=lambda: store,
            workers_per_device=workers,
            timeout=options.get("timeout"),
            trainer="fake_training:train",
            on_event=heard,
        )
    except UserError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 2
    report = {
        "asked": len(todo), "records": [r.trial_id for r in outcome.records], "status": [r.status for r in outcome.records],
        "elsewhere": outcome.elsewhere, "missing": outcome.missing, "spooled": outcome.waiting_in_spool,
        "messages": [e.text for e in events if hasattr(e, "text")],
    }  # fmt: skip
    print(json.dumps(report), flush=True)
    if outcome.interrupted is not None:
        os._exit(128 + outcome.interrupted)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
