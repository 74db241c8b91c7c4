"""What follows from all records together, worked out when the mirror changes and not at each question."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import pyarrow as pa
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
_STANDING = f"""
    WITH superseded AS (
        SELECT record_id FROM standing WHERE purpose = 'primary'
        QUALIFY row_number() OVER (
            PARTITION BY trial_id, environment_id
            ORDER BY CASE status WHEN 'finished' THEN 0 WHEN 'diverged' THEN 1 ELSE 2 END,
                CASE WHEN status IN ('finished', 'diverged') THEN finished_at END, finished_at DESC, record_id
        ) > 1
    ), again AS (
        SELECT "verification.of" AS record_id, "verification.verdict" AS verdict FROM standing WHERE purpose = 'verify'
    ), tested AS (
        SELECT record_id, count(*) FILTER (verdict = '{REPRODUCES}') AS verified, count(*) FILTER (verdict = '{REFUTED}') AS refuted
        FROM again WHERE verdict IN ('{REPRODUCES}', '{REFUTED}') GROUP BY record_id
    )
    SELECT record_id, reason AS retracted, coalesce(verified, 0) AS verified, coalesce(refuted, 0) AS refuted,
        superseded.record_id IS NOT NULL AS superseded
    FROM retracted FULL JOIN tested USING (record_id) FULL JOIN superseded USING (record_id) ORDER BY record_id
"""
_LATEST = """
    WITH known AS (SELECT trial_id, bool_or(purpose = 'primary') AS trained FROM standing GROUP BY trial_id), designs AS (
        SELECT suite, scale, design_id, created_at, bool_or(coalesce(trained, false)) AS trained, count(known.trial_id) > 0 AS known
        FROM declared LEFT JOIN known USING (trial_id) GROUP BY ALL
    )
    SELECT design_id FROM designs QUALIFY row_number() OVER (
        PARTITION BY suite, scale ORDER BY trained DESC, known DESC, created_at DESC, design_id DESC
    ) = 1 ORDER BY design_id
"""
_SOURCES = "SELECT DISTINCT declared.suite, trials.suite FROM declared JOIN trials USING (trial_id) ORDER BY ALL"


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
    reasons = retractions(MarkRecord.from_json(text) for text in marks["mark"].to_pylist())
    retracted = pa.table([pa.array(list(column), pa.string()) for column in (reasons.keys(), reasons.values())],
                         names=["record_id", "reason"])  # fmt: skip
    with _connection() as connection:
        connection.register("trials", trials.to_table(columns=_TRIALS))
        connection.register(
            "declared", declared.to_table(columns=["suite", "scale", "design_id", "created_at", "trial_id"])
        )
        connection.register("retracted", retracted)
        connection.execute("CREATE VIEW standing AS FROM trials ANTI JOIN retracted USING (record_id)")
        sources: dict[str, list[str]] = {}
        for suite, source in connection.execute(_SOURCES).fetchall():
            sources.setdefault(suite, []).append(source)
        return Derived(
            standing=connection.sql(_STANDING).to_arrow_table().cast(STANDING),
            latest=[design_id for (design_id,) in connection.execute(_LATEST).fetchall()],
            sources=sources,
        )


@contextmanager
def _connection() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect(":memory:", config={"threads": 1, "enable_external_access": "false"})
    try:
        yield connection
    finally:
        connection.close()
