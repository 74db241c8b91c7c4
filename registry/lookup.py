"""From what a person types, the first digits of an id, to the records that are meant."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow.compute as pc

from ._rows import TRIALS
from .mirror import Mirror
from .record import TrialRecord

_IDS = {"trial": "trial_id", "record": "record_id", "cell": "cell_id"}
_SHOWN = 5


class LookupFailed(ValueError):
    """What was typed names nothing, or several things."""


def unique(given: str, known: Iterable[str], what: str) -> str:
    """The one of `known` that is `given` or begins with it. Raises `LookupFailed`, in which `what` is a word for them."""
    ids = set(known)
    found = sorted(one for one in ids if one.startswith(given)) if given else []
    if given in ids or len(found) == 1:
        return given if given in ids else found[0]
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise LookupFailed(f"{len(found)} of what is recorded begin with {given!r}: {', '.join(found[:_SHOWN])}{more}")
    raise LookupFailed(
        f'no {what} begins with {given!r}; ablate query "SELECT trial_id, suite, cause FROM trials" lists trials'
    )


def find(mirror: Mirror, given: str, kinds: tuple[str, ...] = ("trial", "record")) -> tuple[str, list[dict[str, Any]]]:
    """What of these kinds (`trial`, `record`, `cell`) `given` is the id of, or the first digits, and its rows of the mirror's table of
    trials, oldest first. Raises `LookupFailed`."""
    ids = mirror.trials.to_table(columns=[_IDS[kind] for kind in kinds])
    columns = {kind: set(ids[_IDS[kind]].to_pylist()) for kind in kinds}
    chosen = unique(given, set().union(*columns.values()), " or ".join(kinds))
    kind = next(kind for kind in kinds if chosen in columns[kind])
    rows = mirror.trials.to_table(filter=pc.field(_IDS[kind]) == chosen).to_pylist()
    return kind, sorted(rows, key=lambda row: (row["finished_at"], row["record_id"]))


def as_record(row: dict[str, Any]) -> TrialRecord:
    """The record, without curves, of a row of the mirror's table of trials."""
    plain = {name: row[name] for name in TRIALS.names if name != "run_id" and name != "device" and "." not in name}
    plain |= {name: json.loads(row[name]) for name in ("recipe", "environment", "context")}
    metrics = {
        name.removeprefix("metrics."): value
        for name, value in row.items()
        if name.startswith("metrics.") and value is not None
    }
    return TrialRecord(**plain, metrics=metrics)
