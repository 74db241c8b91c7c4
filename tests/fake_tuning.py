"""A trainer whose losses are planted: `val_loss` follows from how far the rate is from the optimizer's best, in octaves.

`python fake_tuning.py SUITE [STOP]` does what `ablate run SUITE` does, with it, and sends itself SIGINT after so many trials.
"""

from __future__ import annotations

import functools
import math
import os
import signal
import sys
from typing import Any

from ablate.train import Progress, Result
from ablate.worker import Hooks, Job, Place

BEST = {"adamw": 3e-3, "lion": 4 * 6e-4, "sgd": 0.0, "muon": 3e-3}
"""The best rate; SGD's is beyond any grid. AdamW's and Lion's own are 3e-3 and 6e-4 at nano."""
SUITE = """\
name: tuned
base: {data.source: synthetic, train.tokens: 8192}
factors: {optimizer: [adamw, lion, sgd]}
tune: {optimizer.lr: {values: [x0.5, x1, x2], seeds: 1, extend: 2}}
seeds: 2
"""


def loss(optimizer: str, lr: float, seed: int) -> float:
    """Infinite for Muon, which diverges above its best rate."""
    if optimizer == "muon" and lr > BEST["muon"]:
        return math.inf
    best = BEST[optimizer] or 1e-9
    return 2 + 0.1 * math.log2(lr / best) ** 2 + seed % 1000 / 1000


def train(job: Job, place: Place, hooks: Hooks) -> Result:
    """Notes each training in `home/trainings`: the trial's id and the seed."""
    with (place.home / "trainings").open("a") as file:
        file.write(f"{job.trial_id} {job.seed}\n")
    ((optimizer, options),) = job.recipe["optimizer"].items()
    value = loss(optimizer, options["lr"], job.seed)
    with hooks.exclusive:
        hooks.on_step(Progress(1, 1, 1, 2.0, None, 100.0))
    if math.isinf(value):
        return Result(status="diverged", cause="as planted", metrics={}, curves={}, step_mode="fake", context={})
    return Result(status="finished", metrics={"val_loss": value}, curves={}, step_mode="fake", context={})


def main(suite: str, stop: int | None = None) -> int:
    from ablate import cli, scheduler
    from ablate.status import Event, Finished

    left = [stop]

    def run(jobs: Any, *, on_event: Any, **given: Any) -> Any:
        def seen(event: Event) -> None:
            on_event(event)
            if isinstance(event, Finished) and left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGINT)

        return original(jobs, on_event=seen, trainer="fake_tuning:train", **given)

    original = functools.partial(scheduler.run)
    scheduler.run = run
    return cli.main(["run", suite])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
