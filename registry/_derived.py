"""What follows from all records together, worked out when the mirror changes and not at each question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from .record import REFUTED, REPRODUCES, MarkRecord, retractions

STANDING = pa.schema(
    [("record_id", pa.string()), ("retracted", pa.string()), ("verified", pa.int64()), ("refuted", pa.int64()),
     ("superseded", pa.bool_())]
)  # fmt: skip
"""Of a record of which there is something to say: why it was retracted, or null; how many attempts at it reproduced, or did not; whether
another record of its trial and environment counts, the first that finished."""

_TRIALS = """
    record_id trial_id environment_id suite purpose status finished_at verification.of verification.verdict
""".split()
_ENDED = ["finished", "diverged"]
"""What became of trials whose training ended by itself, the better first."""


@dataclass(frozen=True, slots=True)
class Derived:
    """The table of `STANDING`; the designs that are the newest of their suite and scale; by suite, under which suites its trials are
    recorded.

    A design none of whose trials was trained is not the newest while some of another's were; nor is one none of whose trials has a
    record while another has some.
    """

    standing: pa.Table
    latest: list[str]
    sources: dict[str, list[str]]


def derive(trials: ds.Dataset, declared: ds.Dataset, marks: pa.Table) -> Derived:
    """From the tables of a mirror."""
    retracted = retractions(MarkRecord.from_json(text) for text in marks["mark"].to_pylist())
    recorded = trials.to_table(columns=_TRIALS)
    standing = recorded.filter(~pc.field("record_id").isin(pa.array(list(retracted), pa.string())))
    designs = declared.to_table(columns=["suite", "scale", "design_id", "created_at", "trial_id"])
    return Derived(
        standing=_standing(retracted, standing), latest=_latest(designs, standing), sources=_sources(designs, recorded)
    )


def _standing(retracted: dict[str, str], trials: pa.Table) -> pa.Table:
    said: dict[str, dict[str, Any]] = {}

    def of(record_id: str) -> dict[str, Any]:
        return said.setdefault(
            record_id, {"record_id": record_id, "retracted": None, "verified": 0, "refuted": 0, "superseded": False}
        )

    for record_id, reason in retracted.items():
        of(record_id)["retracted"] = reason
    again = trials.filter(pc.field("purpose") == "verify").select(["verification.of", "verification.verdict"])
    for record_id, verdict in zip(*again.to_pydict().values(), strict=True):
        if verdict in (REPRODUCES, REFUTED):
            of(record_id)["verified" if verdict == REPRODUCES else "refuted"] += 1
    for record_id in _superseded(trials.filter(pc.field("purpose") == "primary")):
        of(record_id)["superseded"] = True
    return pa.Table.from_pylist(sorted(said.values(), key=lambda one: one["record_id"]), schema=STANDING)


def _superseded(trials: pa.Table) -> list[str]:
    """Records of which another of the same trial and environment counts: the first that finished, else the first that diverged, else
    the last."""
    first, last = ([("finished_at", order), ("record_id", "ascending")] for order in ("ascending", "descending"))
    ended = [trials.filter(pc.field("status") == status).sort_by(first) for status in _ENDED]
    failed = trials.filter(~pc.field("status").isin(_ENDED)).sort_by(last)
    ordered = pa.concat_tables([*ended, failed])
    counting = ordered.group_by(["trial_id", "environment_id"], use_threads=False).aggregate([("record_id", "first")])
    return ordered.filter(~_is_in("record_id", counting["record_id_first"]))["record_id"].to_pylist()


def _latest(designs: pa.Table, trials: pa.Table) -> list[str]:
    trained = trials.filter(pc.field("purpose") == "primary")
    columns = {name: pc.field(name) for name in ("suite", "scale", "design_id", "created_at")}
    found = {name: _is_in("trial_id", of["trial_id"]) for name, of in (("trained", trained), ("known", trials))}
    rows = ds.dataset(designs).to_table(columns=columns | found)
    by_design = rows.group_by(list(columns)).aggregate([(name, "any") for name in found])
    newest: dict[tuple[str, str], tuple[bool, bool, str, str]] = {}
    for one in by_design.to_pylist():
        rank = one["trained_any"], one["known_any"], one["created_at"], one["design_id"]
        at = one["suite"], one["scale"]
        newest[at] = max(newest.get(at, rank), rank)
    return sorted(design_id for *_, design_id in newest.values())


def _sources(designs: pa.Table, trials: pa.Table) -> dict[str, list[str]]:
    declared = designs.group_by(["suite", "trial_id"]).aggregate([])
    recorded = trials.group_by(["trial_id", "suite"]).aggregate([]).rename_columns(["trial_id", "source"])
    pairs = declared.join(recorded, "trial_id", join_type="inner").group_by(["suite", "source"]).aggregate([])
    sources: dict[str, list[str]] = {}
    for suite, source in sorted(zip(pairs["suite"].to_pylist(), pairs["source"].to_pylist(), strict=True)):
        sources.setdefault(suite, []).append(source)
    return sources


def _is_in(name: str, column: pa.ChunkedArray) -> pc.Expression:
    return pc.field(name).isin(column.combine_chunks())
