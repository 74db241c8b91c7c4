"""The views that SQL sees, column by column: type, unit and what it means."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa

from .home import home as default_home
from .leaderboard import Leaderboard, cells_view
from .mirror import sync
from .record import METRICS, STATUSES
from .sql import Sandbox, column_names
from .store import Store

VIEWS = ("trials", "cells", "curves", "designs", "marks")
_IDENTITY = {
    "suite": "name of the suite", "scale": "preset: nano, 10m, ...", "trial_id": "recipe, seed, corpus and code", "seed": "the replicate",
    "cell_id": "trial_id without the seed", "environment_id": "device, library versions, threads", "device": "name of the device",
    "evaluation_fingerprint": "held-out text and tokenizer: losses compare where it is the same",
    "text_fingerprint": "held-out text: bits per byte compare where it is the same",
    "kind": "of the design: full, one_at_a_time, leave_one_out, fractional, optimal", "cell": "name of the cell",
    "control": "empty, or what it is a control for", "levels": "JSON: level by factor", "baseline": "whether it is the design's baseline",
    "tuned": "whether the search of its arm was bracketed, or there was none", "margin": "what the suite counts as equal",
}  # fmt: skip
_MEANING: dict[str, dict[str, str]] = {
    "trials": {
        **_IDENTITY, "suite": "that first asked for it", "run_id": "of MLflow", "record_id": "this attempt",
        "purpose": "primary, verify, speed or check", "status": "finished, diverged, out_of_memory, timeout, crashed or killed",
        "cause": "of a failure", "corpus_fingerprint": "training text and tokenizer",
        "code_fingerprint": "the code that computes its numbers",
        "git_revision": "of the working tree", "git_dirty": "whether that had uncommitted changes", "ablate_version": "that trained it",
        "started_at": "UTC, ISO 8601", "finished_at": "UTC, ISO 8601", "step_mode": "how steps ran: eager, compiled, captured",
        "exclusive": "whether it had the device to itself", "recipe": "JSON: every setting", "environment": "JSON: where it ran",
        "context": "JSON: what else is known of the numbers", "counts": "the one record of a trial and environment that boards count",
        "retracted": "why it was retracted, or empty", "verified": "attempts that reproduced it", "refuted": "attempts that did not",
    },
    "cells": {
        **_IDENTITY, "rank": "by val_loss; shared where the data separate nothing", "n": "finished seeds",
        "verdict": "of val_loss against the baseline: better, worse, equivalent, inconclusive", "failed": "the other outcomes",
        "verified": "times that a run of it reproduced", "refuted": "times that one did not",
        "pareto": "no cell measured alone is as good in loss, speed and memory and better in one",
        "exclusive": "whether speed and memory were measured alone",
        **dict.fromkeys(STATUSES[1:], "trials that ended so"),
    },
    "curves": {
        "record_id": "the attempt", "metric": "train_loss, val_loss, ...", "step": "optimizer steps", "tokens": "tokens trained on",
        "value": "in the unit of the metric",
    },
    "marks": {
        "run_id": "of MLflow", "mark_id": "this mark", "kind": "retraction", "record_id": "of what it speaks", "trial_id": "of that record",
        "why": "the reason", "author": "who", "created_at": "UTC, ISO 8601",
    },
    "designs": {
        **_IDENTITY, "design_id": "this declaration of the suite", "created_at": "UTC, ISO 8601",
        "latest": "whether it is the newest with results of its suite and scale",
    },
}  # fmt: skip
_SPREAD = {"_sd": "standard deviation over seeds of", "_sem": "standard error of the mean of",
           "_half_width": "half the width of the 95 % interval of the mean of"}  # fmt: skip


def schema(home: Path | None = None, tracking_uri: str | None = None, offline: bool = False) -> pd.DataFrame:
    """The views of `registry.query`, a row per column: view, column, type (DuckDB's), unit and meaning.

    Settings of recipes are columns once a trial has them; `cells` has columns once there are results.
    """
    mirror = sync(Store.open(home or default_home(), tracking_uri, create=False), offline=offline)
    recorded = {name: column for column, name in column_names(mirror.trials.schema.names).items()}
    curves = pa.table({"record_id": pa.array([], pa.string()), "metric": pa.array([], pa.string()), "step": pa.array([], pa.int64()),
                       "tokens": pa.array([], pa.float64()), "value": pa.array([], pa.float64())})  # fmt: skip
    tables = {"curves": curves}
    if mirror.trials.count_rows() and mirror.designs.count_rows():
        tables["cells"] = cells_view(Leaderboard(home, tracking_uri, offline), mirror)
    rows = []
    with Sandbox(mirror, **tables) as sandbox:
        for view in VIEWS:
            if view in ("trials", "designs", "marks", *tables):
                for column in sandbox.rows(f"SELECT column_name AS name, column_type AS type FROM (DESCRIBE {view})"):
                    unit, meaning = _about(view, column["name"], recorded)
                    rows.append((view, column["name"], column["type"], unit, meaning))
    return pd.DataFrame(rows, columns=["view", "column", "type", "unit", "meaning"])


def _about(view: str, name: str, recorded: dict[str, str]) -> tuple[str, str]:
    """Unit and meaning of a column."""
    if name in _MEANING[view]:
        return {"margin": "nats/token", "tokens": "tokens"}.get(name, ""), _MEANING[view][name]
    source = recorded.get(name, "")
    metric = source.removeprefix("metrics.")
    if metric in METRICS:
        mean = "mean over seeds. " if view == "cells" else ""
        return METRICS[metric].unit, mean + METRICS[metric].doc
    for ending, what in _SPREAD.items():
        base = name.removesuffix(ending)
        if name.endswith(ending) and recorded.get(base, "").startswith("metrics."):
            return METRICS[base].unit if base in METRICS else "", f"{what} {base}"
    if source.startswith("options."):
        return "", f"JSON: options of the variant chosen for {source.removeprefix('options.')}"
    if source.startswith("recipe."):
        return "", f"setting {source.removeprefix('recipe.')} of the recipe"
    return "", "a metric of somebody's own" if source.startswith("metrics.") else "level of this factor"
