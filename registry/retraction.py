"""To take a result back: with a mark, for what was recorded is never changed."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from pathlib import Path

from .lookup import as_record, find
from .mirror import sync
from .record import MarkRecord, TrialRecord, new_record_id
from .spool import Spool
from .standing import retracted
from .store import Store


class RetractionError(ValueError):
    """There is nothing to retract, or no reason."""


def retract(home: Path, given: str, why: str, tracking_uri: str | None = None) -> list[TrialRecord]:
    """Mark the record whose id begins with `given`, or all records of that trial, as retracted; returns those, oldest first.

    Raises `RetractionError` without a reason or where all are retracted already, `LookupFailed` for an id that names nothing, or several.
    """
    if not why.strip():
        raise RetractionError("--why: say what is wrong with it; the reason is all that readers will have")
    spool = Spool(home)
    store = Store.open(home, tracking_uri, create=bool(spool.records()))
    store.ingest(spool)
    mirror = sync(store)
    kind, rows = find(mirror, given)
    reasons, records = retracted(mirror), [as_record(row) for row in rows]
    left = [record for record in records if record.record_id not in reasons]
    if not left:
        raise RetractionError(f"{kind} {given!r} is retracted already: {reasons[records[0].record_id]}")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    for record in left:
        store.write_mark(
            MarkRecord(
                mark_id=new_record_id(), kind="retraction", record_id=record.record_id, trial_id=record.trial_id,
                why=why.strip(), author=_author(), created_at=now,
            )
        )  # fmt: skip
    return left


def _author() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return ""
