"""How long a report over 5,000 records takes: `pytest -m slow tests/benchmarks -n 0`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from effects_frames import planted_design, simulated
from registry_records import empty_store, record, write_at_once

from registry.report import report


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_report_of_5000_records(tmp_path: Path, benchmark: Any) -> None:
    """From a mirror that is up to date, as for every report but the first."""
    store = empty_store(tmp_path)
    declared = planted_design({f"model.{a}": [f"{a}_{n}" for n in range(10)] for a in "abc"}, 5)
    write_at_once(store, [declared])
    rows = zip(declared.trials, simulated(declared).to_dict("records"), strict=True)
    write_at_once(store, [
        record(trial["levels"], trial["seed"], loss=row["val_loss"], suite="activation", curve=20,
               metrics={name: row[name] for name in ("tokens_per_second", "peak_memory_gib")})
        for trial, row in rows
    ])  # fmt: skip
    report("activation", home=tmp_path)
    text = benchmark.pedantic(lambda: report("activation", home=tmp_path).render("html"), rounds=3)
    assert len(text.encode()) < 3_000_000
