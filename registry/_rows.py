"""Records as rows of the mirror's tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from .layout import flatten
from .record import METRICS, DesignRecord, MarkRecord, TrialRecord, cell_label

_TRIAL_TEXT = """
    record_id trial_id cell_id environment_id purpose status cause suite scale corpus_fingerprint evaluation_fingerprint text_fingerprint
    code_fingerprint git_revision ablate_version started_at finished_at step_mode
""".split()
TRIALS = pa.schema(
    [("run_id", pa.string()), *((name, pa.string()) for name in _TRIAL_TEXT)]
    + [("seed", pa.int64()), ("exclusive", pa.bool_()), ("git_dirty", pa.bool_()), ("device", pa.string())]
    + [(name, pa.string()) for name in ("recipe", "environment", "context", "verification.of", "verification.verdict")]
    + [(f"metrics.{name}", pa.float64()) for name in METRICS]
)
DESIGNS = pa.schema([(name, pa.string()) for name in ("run_id", "design_id", "suite", "scale", "created_at", "design")])
DECLARED = pa.schema(
    [(name, pa.string()) for name in ("run_id", "suite", "scale", "design_id", "created_at", "trial_id", "cell_id")]
    + [("seed", pa.int64())]
    + [(name, pa.string()) for name in ("kind", "control", "cell", "levels")]
    + [("baseline", pa.bool_()), ("tuned", pa.bool_()), ("margin", pa.float64())]
)
MARKS = pa.schema(
    [
        (name, pa.string())
        for name in ("run_id", "mark_id", "kind", "record_id", "trial_id", "why", "author", "created_at", "mark")
    ]
)


def trial_rows(records: dict[str, TrialRecord]) -> pa.Table:
    """One row per record, by run id; a column `recipe.<path>` for each setting and `options.<path>` for each variant."""
    return _table([_trial_row(run_id, record) for run_id, record in records.items()], TRIALS)


def design_rows(records: dict[str, DesignRecord]) -> pa.Table:
    """One row per design, by run id."""
    names = ("design_id", "suite", "scale", "created_at")
    rows = [
        {"run_id": run_id, **{name: getattr(record, name) for name in names}, "design": record.to_json()}
        for run_id, record in records.items()
    ]
    return _table(rows, DESIGNS)


def mark_rows(records: dict[str, MarkRecord]) -> pa.Table:
    """One row per mark, by run id."""
    rows = [
        {"run_id": run_id, **{name: getattr(mark, name) for name in MARKS.names[1:-1]}, "mark": mark.to_json()}
        for run_id, mark in records.items()
    ]
    return _table(rows, MARKS)


def declared_rows(records: dict[str, DesignRecord]) -> pa.Table:
    """One row per design and reported trial, by run id: those that only served to tune are left out."""
    return pa.concat_tables([DECLARED.empty_table(), *(_declared(run_id, one) for run_id, one in records.items())])


def _declared(run_id: str, design: DesignRecord) -> pa.Table:
    trials = [trial for trial in design.trials if trial.get("stage") != "tune"]
    same = {"run_id": run_id, "suite": design.suite, "scale": design.scale, "design_id": design.design_id,
            "created_at": design.created_at, "kind": design.kind, "margin": design.margin}  # fmt: skip
    columns: dict[str, Sequence[Any]] = {name: [value] * len(trials) for name, value in same.items()}
    columns |= {name: [trial[name] for trial in trials] for name in ("trial_id", "cell_id", "seed")}
    columns["control"] = [trial.get("control", "") for trial in trials]
    cells: dict[tuple[str, str], tuple[str, str, bool, bool]] = {}
    for trial in trials:
        key = trial["cell_id"], trial.get("control", "")
        if key not in cells:
            name = _control(trial) or cell_label(design, trial["levels"])
            search = design.tuning.get(name) or design.tuning.get(trial["cell_id"]) or {}
            cells[key] = (
                name, json.dumps(trial["levels"], ensure_ascii=False), not key[1] and trial["levels"] == design.baseline,
                not design.tuning or search.get("bracketed", False),
            )  # fmt: skip
    of_cells = list(zip(*(cells[key] for key in zip(columns["cell_id"], columns["control"], strict=True)), strict=True))
    columns |= dict(zip(("cell", "levels", "baseline", "tuned"), of_cells or [()] * 4, strict=True))
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in DECLARED})


def _control(trial: dict[str, Any]) -> str:
    """What to call the cell of a control; nothing for an ordinary trial."""
    return {"aa": "A/A", "bad": trial.get("label", "known-bad")}.get(trial.get("control", ""), "")


def _trial_row(run_id: str, record: TrialRecord) -> dict[str, Any]:
    row = {"run_id": run_id, **{name: getattr(record, name) for name in _TRIAL_TEXT}}
    row |= {name: getattr(record, name) for name in ("seed", "exclusive", "git_dirty")}
    row["device"] = str(record.environment.get("device", ""))
    row |= {name: json.dumps(getattr(record, name), sort_keys=True) for name in ("recipe", "environment", "context")}
    if isinstance(said := record.context.get("verification"), dict):
        row |= {f"verification.{name}": str(said.get(name, "")) for name in ("of", "verdict")}
    row |= {f"metrics.{name}": float(value) for name, value in record.metrics.items()}
    for path, value, options in flatten(record.recipe):
        row[f"recipe.{path}"] = json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value
        if options is not None:
            row[f"options.{path}"] = json.dumps(options, sort_keys=True)
    return row


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    names = dict.fromkeys([*schema.names, *(name for row in rows for name in row)])
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kind = schema.field(name).type if name in schema.names else _type_of(values)
        if kind == pa.string():
            values = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
        columns[name] = pa.array(values, kind)
    return pa.table(columns)


def _type_of(values: Iterable[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.null()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()
