"""What the gate measures of a suite: its trials through the usual run, and the counts of a step of each arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ablate import __version__, data, environment, session
from ablate.design import Design
from ablate.errors import UserError
from ablate.plan import Row
from registry import Store
from registry.baseline import Arm, Baseline, Noise
from registry.record import TrialRecord

RECORDED = ("parameters", "flops_per_token", "peak_memory_gib", "parameters_gib", "gradients_gib", "optimizer_state_gib",
            "activations_gib")  # fmt: skip
"""Metrics of a record that are the same with each seed."""
LOSS = "val_loss"
Say = Callable[[str], None]


def surroundings(found: dict[str, Any]) -> dict[str, str]:
    """Of an environment, what numbers depend on that are held against a baseline: which CPU it is, and how many threads, moves a loss by
    its rounding alone."""
    version, _, build = str(found["torch"]).partition("+")
    device = found["device"] if found["device_type"] == "cuda" else "cpu"
    return {"device": device, "torch": version} | ({"cuda": str(found["cuda"] or build)} if device != "cpu" else {})


def run(
    design: Design, whole: Design, options: session.Options, *, home: Path, started: float, say: Say,
    counted: Mapping[str, Arm] = MappingProxyType({}),
) -> tuple[dict[str, Arm], dict[str, str]]:  # fmt: skip
    """Measure the arms of a design, a part of the `whole` that is declared, of which what is recorded is reused; and the surroundings.

    The counts of a step of arms that were `counted` before, by label, are taken from there.

    Raises:
        Interrupted: by SIGINT or SIGTERM.
        UserError: trials that no worker came to the end of.
    """
    ended = session.run(design, whole, options, home=home, started=started, say=say)
    if not ended.good:
        say("what failed is tried once more")  # a crowded machine is no regression
        ended = session.run(design, whole, replace(options, retry_failed=True), home=home, started=started, say=say)
    if ended.missing:
        raise UserError("the suite is not complete: run it again")
    records = _records(ended, home)
    arms = {}
    for row in ended.plan.cells:
        label = row.trial.label
        runs = {
            other.trial.seed: {LOSS: record.metrics[LOSS]} if LOSS in record.metrics and record.status == "finished" else {}
            for other in ended.plan.reported
            if other.trial.label == label and not other.trial.control and (record := records.get(other.trial_id))
        }  # fmt: skip
        counts = counted[label].counts if label in counted else _recorded(row, records) | _counted(row, home)
        arms[label] = Arm(_recipe(row), runs, counts)
    return arms, surroundings(ended.plan.environment)


def _records(ended: session.Ended, home: Path) -> dict[str, TrialRecord]:
    """The record that counts of each trial, by trial id."""
    from registry.lookup import as_record
    from registry.mirror import sync
    from registry.sql import Sandbox

    mirror = sync(Store.open(home))
    with Sandbox(mirror) as sandbox:
        counting = sandbox.frame(
            f"SELECT record_id FROM trials WHERE counts AND environment_id = '{ended.plan.environment_id}'"
        )["record_id"].tolist()  # as it is, an empty column has no type
    own = pa.array([row.trial_id for row in ended.plan.reported], pa.string())
    rows = mirror.trials.to_table(
        filter=pc.field("trial_id").isin(own) & pc.field("record_id").isin(pa.array(counting, pa.string()))
    )
    found = {row["trial_id"]: as_record(row) for row in rows.to_pylist()}
    return found | {record.trial_id: record for _, record in ended.ran if record.trial_id not in found}


def _recipe(row: Row) -> str:
    return row.trial.recipe.cell_id(row.corpus_fingerprint, "")


def _recorded(row: Row, records: dict[str, TrialRecord]) -> dict[str, float]:
    found = records.get(row.trial_id)
    return {} if found is None else {name: found.metrics[name] for name in RECORDED if name in found.metrics}


def _counted(row: Row, home: Path) -> dict[str, float]:
    from ablate import counts

    return counts.of_recipe(row.trial.recipe, data.prepare(row.trial.recipe.data, home / "cache"))


def baseline_of(
    design: Design, settings: Sequence[str], arms: dict[str, Arm], around: dict[str, str], noise: dict[str, Noise]
) -> Baseline:
    """What was measured, as a baseline."""
    revision, dirty = environment.git_revision()
    return Baseline(
        suite=design.suite.name, scale=design.scale, settings=list(settings), arms=arms, environment=around, noise=noise,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"), git_revision=revision + ("-dirty" if dirty else ""),
        ablate_version=__version__,
    )  # fmt: skip


def calibrated(design: Design, *, home: Path, say: Say) -> Noise:
    """The noise of the loss that rounding alone makes: each trial of the design is trained twice in this process, the second time from
    weights whose last bit is another."""
    from ablate.rounding import Nudged
    from ablate.train import Kept, train

    differences = []
    for place, trial in enumerate(design.trials, start=1):
        corpus = data.prepare(trial.recipe.data, home / "cache")
        losses = [
            train(trial.recipe, corpus=corpus, kept=kept).metrics.get(LOSS, math.nan) for kept in (Kept(), Nudged())
        ]
        differences.append(losses[1] - losses[0])
        say(f"[{place}/{len(design.trials)}] {trial.label} seed {trial.seed}  {differences[-1]:+.6f} nats/token")
    noise = Noise.of(differences)
    if noise is None:
        raise UserError("no trial of the suite finished, so that its noise is not known")
    return noise
