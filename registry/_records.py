"""From the records of a suite to the table of its trials: one design, one scale, one environment, one evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from ._grid import ANALYSED, PASS, Frame
from ._summary import SIZES
from .home import home as default_home
from .leaderboard import SAME_TEXT, RegistryEmpty
from .mirror import Mirror, nothing_yet, sync
from .record import DesignRecord, cell_label
from .sql import Sandbox
from .store import Store

NUMBERS = (*ANALYSED, *SIZES, "train_seconds", "validation_bytes")
_FIELDS = """
    trial_id status cause exclusive record_id evaluation_fingerprint text_fingerprint finished_at
    git_revision git_dirty code_fingerprint
""".split()
_RECORDS = """
    SELECT trials.* FROM (SELECT DISTINCT trial_id FROM designs WHERE design_id = '{design}') JOIN trials USING (trial_id)
    WHERE trials.counts OR trials.purpose = 'speed' AND trials.status = 'finished' AND trials.exclusive AND trials.retracted = ''
"""


def read(home: Path | None, tracking_uri: str | None, offline: bool) -> Mirror:
    """The mirror of the store. Raises `RegistryEmpty` where nothing was recorded."""
    store = Store.open(home or default_home(), tracking_uri, create=False)
    mirror = sync(store, offline=offline)
    if not mirror.designs.count_rows():
        raise RegistryEmpty(nothing_yet(store, offline=offline))
    return mirror


def newest(mirror: Mirror) -> dict[str, dict[str, DesignRecord]]:
    """The newest design that has results, by suite and scale."""
    with Sandbox(mirror) as sandbox:
        rows = sandbox.rows("SELECT DISTINCT suite, scale, design_id FROM designs WHERE latest ORDER BY suite, scale")
    own = pc.field("design_id").isin(pa.array([row["design_id"] for row in rows], pa.string()))
    designs = mirror.designs.to_table(columns=["design_id", "design"], filter=own)
    texts = dict(zip(designs["design_id"].to_pylist(), designs["design"].to_pylist(), strict=True))
    found: dict[str, dict[str, DesignRecord]] = {}
    for row in rows:
        found.setdefault(row["suite"], {})[row["scale"]] = DesignRecord.from_json(texts[row["design_id"]])
    return found


def latest(mirror: Mirror, suite: str) -> dict[str, DesignRecord]:
    """The newest design of a suite that has results, by scale. Raises `RegistryEmpty` for a suite without."""
    found = newest(mirror)
    if suite not in found:
        raise RegistryEmpty(f'no results for suite "{suite}"; there are some for: {", ".join(found) or "none"}')
    return found[suite]


def trials_of(
    mirror: Mirror, design: DesignRecord, environment_id: str | None
) -> tuple[Frame, dict[str, Any], list[str]]:
    """The trials of a design in one environment (see `Effects.trials`), that environment, and what a reader must know.

    The environment is the one asked for, else that with the most finished trials, the newest of them. Raises `RegistryEmpty`.
    """
    with Sandbox(mirror) as sandbox:
        records: Frame = sandbox.frame(_RECORDS.format(design=design.design_id))
    chosen, notes = _environment(records, design, environment_id)
    records = records[records["environment_id"] == chosen]
    table = pd.DataFrame([_declared(design, trial) for trial in design.trials if trial.get("stage") != "tune"])
    table["environment_id"] = chosen
    primary = records[records["purpose"] == "primary"]
    wanted = [name for name in (*_FIELDS, *NUMBERS) if name in primary]
    table = table.merge(primary[wanted], on="trial_id", how="left")
    table["status"] = table["status"].fillna("missing")
    table["exclusive"] = table["exclusive"].fillna(False).astype(bool)
    table[[name for name in NUMBERS if name not in table]] = np.nan
    table[list(NUMBERS)] = table[list(NUMBERS)].astype(float)
    table = table.merge(_speed(records, design), on="trial_id", how="left")
    table, apart = _comparable(table, design)
    environment = json.loads(records["environment"].iloc[0]) | {"environment_id": chosen}
    return table, environment, notes + apart + _revisions(primary)


def _environment(records: Frame, design: DesignRecord, asked: str | None) -> tuple[str, list[str]]:
    if records.empty:
        raise RegistryEmpty(
            f"no results for suite {design.suite} at scale {design.scale} yet: run `ablate run {design.suite}`"
        )
    primary = records["purpose"] == "primary"
    finished = primary & (records["status"] == "finished")
    groups = pd.DataFrame({
        "finished": finished.groupby(records["environment_id"]).sum(), "runs": primary.groupby(records["environment_id"]).sum(),
        "last": records.groupby("environment_id")["finished_at"].max(),
    }).sort_values(["finished", "runs", "last"])  # fmt: skip
    if asked is not None and asked not in groups.index:
        raise RegistryEmpty(f'no results in environment "{asked}"; there are some in: {", ".join(groups.index)}')
    chosen = str(asked or groups.index[-1])
    others = [f"{name} ({row.finished} finished trials)" for name, row in groups.iterrows() if name != chosen]  # type: ignore[union-attr]
    seen = f"Only environment {chosen} is analysed ({groups['finished'][chosen]} finished trials); there is also {', '.join(others)}."
    return chosen, [seen] if others else []


def _declared(design: DesignRecord, trial: dict[str, Any]) -> dict[str, Any]:
    control = trial.get("control", "")
    label = trial.get("label") or ("A/A" if control == "aa" else "known-bad" if control else "")
    levels = trial["levels"] if control != "bad" else {}
    row = {"trial_id": trial["trial_id"], "cell_id": trial["cell_id"], "seed": trial["seed"], "control": control}
    row["cell"] = label or cell_label(design, levels)
    return row | {factor: levels.get(factor) for factor in design.factors}


def _speed(records: Frame, design: DesignRecord) -> Frame:
    """What the newest pass for speed of each trial measured against the baseline of this design, under `pass_...`."""
    baseline = {trial["cell_id"] for trial in design.trials if trial["levels"] == design.baseline}
    rows = records[records["purpose"] == "speed"].sort_values(["finished_at", "record_id"])
    made: dict[str, dict[str, Any]] = {}
    for row in rows.to_dict("records"):
        speed = json.loads(row["context"]).get("speed", {})
        if speed.get("baseline_cell_id") not in baseline:
            continue
        found: dict[str, Any] = {"trial_id": row["trial_id"], f"{PASS}rounds": speed["rounds"]}
        for metric in ("tokens_per_second", "peak_memory_gib"):
            if metric in speed["ratios"]:
                ends = dict(speed["ratios"][metric])
                found[PASS + metric] = ends.pop("estimate")
                found |= {f"{PASS}{metric}_{end}": value for end, value in ends.items()}
                found[f"{PASS}{metric}_value"] = row.get(metric)
        made[row["trial_id"]] = found
    return pd.DataFrame(list(made.values()), columns=None if made else ["trial_id"])


def _comparable(table: Frame, design: DesignRecord) -> tuple[Frame, list[str]]:
    """Losses over several held-out slices or tokenizers do not compare: then bits per byte do, over the same text."""
    seen = table.dropna(subset=["evaluation_fingerprint"])
    if seen["evaluation_fingerprint"].nunique() <= 1:
        return table.assign(val_bpb=np.nan), []
    own = np.logical_and.reduce([seen[factor] == label for factor, label in design.baseline.items()])
    base = (seen[own] if own.any() else seen).iloc[0]
    size = (table["validation_bytes"] / base["validation_bytes"] - 1.0).abs()
    same = (table["text_fingerprint"] == base["text_fingerprint"]) & (size <= SAME_TEXT)
    notes = ["Cells differ in tokenizer or held-out slice, so their losses do not compare: quality is in bits per byte, "
             "for which the suite names no margin."]  # fmt: skip
    left = table[~same & (table["status"] == "finished")]
    if len(left):
        notes.append(
            f"Evaluated on other text than the baseline, and so left out: {', '.join(sorted(set(left['cell'])))}."
        )
    return table.assign(val_loss=np.nan, val_bpb=table["val_bpb"].where(same)), notes


def _revisions(primary: Frame) -> list[str]:
    return ["Some records come from a working tree with uncommitted changes."] if primary["git_dirty"].any() else []
