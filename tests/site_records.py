"""A registry of many suites for the tests of the site: several scales and machines, failures, names that want to be run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from effects_frames import HOSTILE
from registry_records import design, record

from registry.record import DesignRecord, TrialRecord

FACTORS = {
    "model.attention": ["mha", "gqa", "mqa"],
    "model.activation": ["gelu", "swiglu", "relu2", "geglu"],
    "model.norm": ["layernorm", "rmsnorm"],
    "model.position": ["learned", "rope", "alibi", "none"],
    "optimizer": ["adamw", "lion", "muon", "adafactor"],
    "lr_schedule": ["cosine", "wsd", "linear"],
    "model.qk_norm": ["none", "rmsnorm"],
}
SUITES = {
    "attention": ["model.attention", "model.qk_norm"],
    "activation": ["model.activation", "model.norm"],
    "position": ["model.position", "model.attention"],
    "optimizer": ["optimizer", "lr_schedule"],
    "norms": ["model.norm", "model.qk_norm", "model.activation"],
}
SCALES = {"nano": (4.2, 123_456), "10m": (3.4, 10_400_000), "124m": (2.9, 124_300_000)}
DEVICES = {"env-h200": "NVIDIA H200", "env-cpu": "AMD EPYC 9654"}


def registry(trials: int) -> Iterator[DesignRecord | TrialRecord]:
    """Designs and as many trials: rounds of the suites at all scales, grown by seeds until there are enough; then a hostile suite."""
    made, plans = hostile(), list(itertools.product(SUITES, SCALES))
    share = max(1, (trials - len(made)) // len(plans))
    for place, (suite, scale) in enumerate(plans):
        made += _suite(suite, scale, share, np.random.default_rng(place), place)
    yield from made


def hostile() -> list[DesignRecord | TrialRecord]:
    """A suite each of whose names is an attack."""
    cells = [{f"model.{HOSTILE[0]}": name, "../../etc": "../x"} for name in HOSTILE]
    named: dict[str, Any] = {"suite": '../"><script>alert(1)</script>', "scale": "../../tmp/x'"}
    about = {"description": HOSTILE[1], "suite_text": "```\n" + "\n".join(HOSTILE), "command": "ablate run '<script>'"}
    runs = [
        record(
            cell, seed, loss=3 + number / 10 + seed / 100, cell_id=f"..:{number}", cause=name, **named,
            environment={"device": HOSTILE[1], "torch": name}, git_revision=name, status="crashed" if number == 3 else "finished",
        )
        for number, (name, cell) in enumerate(zip(HOSTILE, cells, strict=True))
        for seed in range(2)
    ]  # fmt: skip
    declared = design(cells, 2, **named, **about)
    ids = {(one.trial_id): one.cell_id for one in runs}
    trials = [trial | {"cell_id": ids[trial["trial_id"]]} for trial in declared.trials]
    return [DesignRecord(**(declared.to_dict() | {"trials": trials})), *runs]


def _suite(suite: str, scale: str, wanted: int, random: np.random.Generator, place: int) -> list[Any]:
    """One design with about as many trials as are `wanted`; some diverge, run out of memory, or were run on another machine too."""
    factors = {name: FACTORS[name] for name in SUITES[suite]}
    cells = [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]
    seeds = max(1, round(wanted / len(cells)))
    loss, parameters = SCALES[scale]
    device = "env-cpu" if scale == "nano" else "env-h200"
    corpus = f"corpus-{suite}-{scale}"
    words = " and ".join(name.rpartition(".")[2].replace("_", " ") for name in factors)
    about = {
        "description": f"What {words} do to quality, speed and memory at matched tokens.",
        "command": f"ablate run {suite} --scale {scale} --seeds {seeds}",
        "suite_text": f"name: {suite}\ndesign: full\nseeds: {seeds}\n",
    }
    date = f"2026-0{1 + place % 9}-{10 + place:02d}"
    made: list[Any] = [
        design(cells, seeds, suite=suite, scale=scale, corpus=corpus, created_at=f"{date}T03:00:00+00:00", **about)
    ]
    blocks = random.normal(0, 0.01, seeds)
    for cell in cells:
        steps = [factors[name].index(level) for name, level in cell.items()]
        adds = sum(0.006 * (step % 3) * (-1) ** (step + at) for at, step in enumerate(steps))
        speed = 1e6 / (parameters / 1e6) * 0.97 ** sum(steps)
        for seed in range(seeds):
            end = (
                "finished"
                if sum(steps) < 3
                else random.choice(["finished", "diverged", "out_of_memory"], p=[0.85, 0.1, 0.05])
            )
            value = loss + adds + blocks[seed] + random.normal(0, 0.003)
            curve = [[i, i * 4096 * 50, value + 4 * np.exp(-i / 4)] for i in range(20)]
            numbers = {"parameters": parameters, "tokens": 20 * parameters, "flops_per_token": 6.0 * parameters}
            if end == "finished":
                numbers |= {"tokens_per_second": speed * random.normal(1, 0.01), "mfu": 0.4 * 0.97 ** sum(steps)}
                numbers |= {
                    "peak_memory_gib": parameters * 18 / 2**30 * (1 + 0.05 * sum(steps)),
                    "train_seconds": 812.0,
                }
            made.append(record(
                cell, seed, loss=float(value), suite=suite, scale=scale, corpus=corpus, evaluation=corpus, text=corpus, status=str(end),
                environment_id=device, environment={"device": DEVICES[device], "torch": "2.13.0", "cuda": "13.0", "threads": 8},
                cause="" if end == "finished" else f"{str(end).replace('_', ' ')} at step 12",
                metrics={k: float(v) for k, v in numbers.items()},
                started_at=f"{date}T04:{seed:02d}:00+00:00", finished_at=f"{date}T05:{seed:02d}:00+00:00",
                curves={"val_loss": [[s, t, float(v) + 0.05] for s, t, v in curve[::3]],
                        "train_loss": [[s, t, float(v)] for s, t, v in curve]},
            ))  # fmt: skip
    return made
