"""What marks and verifications say of the records: which were retracted, and how often each was verified or refuted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .mirror import Mirror
from .record import REFUTED, REPRODUCES, MarkRecord, retractions

STANDING = pa.schema(
    [("record_id", pa.string()), ("retracted", pa.string()), ("verified", pa.int64()), ("refuted", pa.int64())]
)
"""Of a record: why it was retracted, or null; and how many attempts at it reproduced, or did not."""


def retracted(mirror: Mirror) -> dict[str, str]:
    """By record id, why it was retracted."""
    return retractions(MarkRecord.from_json(text) for text in mirror.marks["mark"].to_pylist())


def standing(mirror: Mirror) -> pa.Table:
    """The rows of `STANDING` of all records of which there is something to say. A retracted verification says nothing."""
    reasons = retracted(mirror)
    found: dict[str, dict[str, Any]] = {record_id: {"retracted": why} for record_id, why in reasons.items()}
    again = mirror.trials.filter(pc.field("purpose") == "verify")
    for record_id, text in zip(again["record_id"].to_pylist(), again["context"].to_pylist(), strict=True):
        said = json.loads(text).get("verification")
        column = {REPRODUCES: "verified", REFUTED: "refuted"}.get(
            said.get("verdict", "") if isinstance(said, dict) else ""
        )
        if column and record_id not in reasons:
            row = found.setdefault(str(said["of"]), {})
            row[column] = row.get(column, 0) + 1
    rows = [
        {"record_id": record_id, "retracted": row.get("retracted"), "verified": row.get("verified", 0), "refuted": row.get("refuted", 0)}
        for record_id, row in found.items()
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, STANDING)


def unretracted(mirror: Mirror, columns: Sequence[str] = ()) -> pa.Table:
    """The mirror's table of trials without what was retracted; of it only these `columns`, if any are named."""
    table = mirror.trials.select([*dict.fromkeys(["record_id", *columns])]) if columns else mirror.trials
    reasons = retracted(mirror)
    return table.filter(~pc.field("record_id").isin(list(reasons))) if reasons else table
