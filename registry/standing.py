"""What marks and verifications say of the records: which were retracted."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from .mirror import Mirror


def retracted(mirror: Mirror) -> dict[str, str]:
    """By record id, why it was retracted."""
    found = mirror.standing.filter(pc.field("retracted").is_valid())
    return dict(zip(found["record_id"].to_pylist(), found["retracted"].to_pylist(), strict=True))


def unretracted(mirror: Mirror, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
    """These columns of the mirror's table of trials, of the rows for which `where` holds, without what was retracted."""
    stands = ~pc.field("record_id").isin(pa.array(retracted(mirror), pa.string()))
    return mirror.trials.to_table(columns=list(columns), filter=stands if where is None else stands & where)
