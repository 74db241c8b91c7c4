"""Records of as many trials as one likes, as the engine would write them: real recipes, every metric, a curve of 20 points."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from ablate.design import expand
from ablate.suite import load_suite
from registry.record import METRICS, DesignRecord, TrialRecord

SCALES = ("nano", "1m", "10m", "30m")
ATTENTION: dict[str, dict[str, Any]] = {"mha": {}, "gqa": {"n_kv_heads": 2}, "mqa": {}}
FACTORS = {
    "model.attention": list(ATTENTION),
    "optimizer.lr": [f"{lr:g}" for lr in (1e-4, 2e-4, 3e-4, 6e-4, 1e-3, 2e-3, 3e-3, 6e-3, 1e-2)],
}
CELLS = [
    {"model.attention": a, "optimizer.lr": lr} for a in FACTORS["model.attention"] for lr in FACTORS["optimizer.lr"]
]
SEEDS = 10
AGAIN = 100
"""Of so many trials one crashed at first."""
START = datetime(2026, 1, 1, tzinfo=UTC)
ENVIRONMENT = {
    "device": "NVIDIA H100 80GB HBM3", "device_type": "cuda", "device_count": 1, "torch": "2.13.0+cu130", "cuda": "13.0", "cudnn": 91900,
    "driver": "580.65.06", "python": "3.12.3", "cpu": "Intel(R) Xeon(R) Platinum 8480C", "cores": 16, "threads": 8, "memory_gib": 79.1,
    "platform": "Linux-6.8.0-x86_64", "ray": "2.60.0",
}  # fmt: skip


def boards(trials: int) -> Iterator[tuple[str, str, int]]:
    """(suite, scale, how many trials) of designs that have so many trials together: 270 each, of 27 cells and 10 seeds."""
    for number in range(-(-trials // (len(CELLS) * SEEDS))):
        size = min(len(CELLS) * SEEDS, trials - number * len(CELLS) * SEEDS)
        yield f"suite-{number // len(SCALES):03d}", SCALES[number % len(SCALES)], size


def design(suite: str, scale: str, size: int) -> DesignRecord:
    """What a suite declared."""
    return DesignRecord(
        design_id=_id("design", suite, scale) * 2, suite=suite, scale=scale, kind="full", factors=FACTORS, baseline=CELLS[0],
        seeds=list(range(SEEDS)), match="tokens", margin=0.005, created_at=START.isoformat(),
        trials=[
            {"trial_id": _id("trial", suite, scale, place), "cell_id": _id("cell", suite, scale, place // SEEDS),
             "levels": CELLS[place // SEEDS], "seed": place % SEEDS}
            for place in range(size)
        ],
    )  # fmt: skip


def records(suite: str, scale: str, size: int, first: int = 0) -> Iterator[TrialRecord]:
    """The records of its trials from `first` on; a trial that crashed at first has two."""
    base = expand(load_suite("attention"), scale=scale).trials[0].recipe.to_dict()
    for place in range(first, size):
        if place % AGAIN == AGAIN - 1:
            yield _record(base, suite, scale, place, "crashed")
        yield _record(base, suite, scale, place, "finished")


def _record(base: dict[str, Any], suite: str, scale: str, place: int, status: str) -> TrialRecord:
    levels, seed = CELLS[place // SEEDS], place % SEEDS
    chance = random.Random(f"{suite} {scale} {place} {status}")
    name = levels["model.attention"]
    recipe = base | {
        "model": base["model"] | {"attention": {name: ATTENTION[name]}},
        "optimizer": {"adamw": base["optimizer"]["adamw"] | {"lr": float(levels["optimizer.lr"])}}, "seed": seed,
    }  # fmt: skip
    loss = 3.0 + 0.1 * CELLS.index(levels) / len(CELLS) + chance.gauss(0, 0.01)
    began = START + timedelta(minutes=place, seconds=30 * (status == "finished"))
    metrics = {metric: chance.lognormvariate(3, 1) for metric in METRICS} | {"val_loss": loss, "val_bpb": loss / 2.5}
    curve = [[50.0 * step, 819200.0 * step, loss + 5 / (step + 1) + chance.gauss(0, 0.02)] for step in range(20)]
    return TrialRecord(
        record_id=_id("record", suite, scale, place, status) * 2, trial_id=_id("trial", suite, scale, place),
        cell_id=_id("cell", suite, scale, place // SEEDS), environment_id="e0c6bf4a1f7d2e35", status=status,
        cause="" if status == "finished" else "RuntimeError: CUDA error: unspecified launch failure", suite=suite, scale=scale,
        seed=seed, recipe=recipe, corpus_fingerprint=_id("corpus", scale), evaluation_fingerprint=_id("slice", scale),
        text_fingerprint=_id("text", scale), code_fingerprint=_id("code"), environment=ENVIRONMENT,
        git_revision=hashlib.sha1(b"").hexdigest(), ablate_version="0.1.0", started_at=began.isoformat(),
        finished_at=(began + timedelta(seconds=29)).isoformat(), exclusive=True, step_mode="compiled",
        metrics={metric: metrics[metric] for metric in metrics if metric != "diverged_at_step"} if status == "finished" else {},
        curves={"train_loss": curve} if status == "finished" else {},
        context={"levels": levels, "command": f"ablate run {suite} --scale {scale}", "hostname": "node-1", "visits": 1},
    )  # fmt: skip


def _id(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
