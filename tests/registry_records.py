"""Records as the engine writes them, for the tests of everything that reads records."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from registry import layout
from registry.record import DesignRecord, MarkRecord, TrialRecord
from registry.store import Store

ENVIRONMENT = "env-cpu"


def _id(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def recipe(attention: str = "mha", norm: str = "layernorm", **settings: Any) -> dict[str, Any]:
    """A resolved recipe, with variant choices spelled as `{name: options}`."""
    options = {"gqa": {"n_kv_heads": 2}}.get(attention, {})
    model = {"dim": 64, "n_layers": 2, "n_heads": 4, "attention": {attention: options}, "norm": {norm: {"eps": 1e-5}}}
    return {
        "model": model,
        "optimizer": {"adamw": {"lr": 1e-3, "weight_decay": 0.1}},
        "lr_schedule": {"cosine": {"warmup": 0.02}},
        "batch_tokens": 4096,
        "data": {"sources": [{"name": "stdlib", "weight": 1.0}], "seq_len": 128},
        **settings,
    }


def cell_id(levels: dict[str, str], corpus: str = "corpus-a") -> str:
    return _id("cell", sorted(levels.items()), corpus)


def trial_id(levels: dict[str, str], seed: int, corpus: str = "corpus-a") -> str:
    return _id("trial", sorted(levels.items()), corpus, seed)


def record(
    levels: dict[str, str] | None = None,
    seed: int = 0,
    *,
    loss: float = 3.0,
    attempt: int = 0,
    curve: int = 5,
    corpus: str = "corpus-a",
    evaluation: str = "slice-a",
    text: str = "text-a",
    metrics: dict[str, float] | None = None,
    **fields: Any,
) -> TrialRecord:
    """A finished attempt of the cell with these levels; `fields` replaces any field of the record."""
    levels = levels or {"model.attention": "mha"}
    environment_id = fields.get("environment_id", ENVIRONMENT)
    purpose = fields.get("purpose", "primary")
    status = fields.get("status", "finished")
    numbers = {"tokens": 81920, "parameters": 123456}
    if status == "finished":
        numbers |= {"val_loss": loss, "val_bpb": loss / 2.5, "tokens_per_second": 1e4 + seed, "peak_memory_gib": 0.25}
    base: dict[str, Any] = {
        "record_id": _id("record", sorted(levels.items()), seed, corpus, environment_id, purpose, attempt) * 2,
        "trial_id": trial_id(levels, seed, corpus),
        "cell_id": cell_id(levels, corpus),
        "environment_id": environment_id,
        "status": status,
        "suite": "attention",
        "scale": "nano",
        "seed": seed,
        "recipe": recipe(levels.get("model.attention", "mha"), levels.get("norm", "layernorm")),
        "corpus_fingerprint": corpus,
        "evaluation_fingerprint": evaluation,
        "text_fingerprint": text,
        "code_fingerprint": "code-1",
        "environment": {"device": "cpu", "torch": "2.13.0", "threads": 1},
        "git_revision": "0123456789abcdef",
        "ablate_version": "0.1.0",
        "started_at": f"2026-01-02T03:{seed % 60:02d}:{attempt:02d}+00:00",
        "finished_at": f"2026-01-02T04:{seed % 60:02d}:{attempt:02d}+00:00",
        "exclusive": True,
        "metrics": numbers | (metrics or {}),
        "curves": {"train_loss": [[i, i * 4096, loss + 1 / (i + 1)] for i in range(curve)]} if curve else {},
        "context": {"levels": levels},
    }
    return TrialRecord(**(base | fields))


def design(
    cells: list[dict[str, str]],
    seeds: int | list[int] = 2,
    *,
    suite: str = "attention",
    scale: str = "nano",
    corpus: str = "corpus-a",
    created_at: str = "2026-01-02T03:00:00+00:00",
    **fields: Any,
) -> DesignRecord:
    """The design with these cells (each a mapping of factor to label), the first one the baseline."""
    numbers = list(range(seeds)) if isinstance(seeds, int) else seeds
    factors = {name: list(dict.fromkeys(levels[name] for levels in cells)) for name in cells[0]}
    base: dict[str, Any] = {
        "design_id": _id("design", suite, scale, cells, numbers, corpus, created_at) * 2,
        "suite": suite,
        "scale": scale,
        "kind": "full",
        "factors": factors,
        "baseline": cells[0],
        "seeds": numbers,
        "match": "tokens",
        "margin": 0.005,
        "trials": [
            {
                "trial_id": trial_id(levels, seed, corpus),
                "cell_id": cell_id(levels, corpus),
                "levels": levels,
                "seed": seed,
            }
            for levels in cells
            for seed in numbers
        ],
        "created_at": created_at,
    }
    return DesignRecord(**(base | fields))


def retraction(of: TrialRecord, why: str = "wrong data", number: int = 0, **fields: Any) -> MarkRecord:
    """The mark that retracts a record."""
    base: dict[str, Any] = {
        "mark_id": _id("mark", of.record_id, number) * 2,
        "kind": "retraction",
        "record_id": of.record_id,
        "trial_id": of.trial_id,
        "why": why,
        "author": "ada",
        "created_at": f"2026-01-03T03:{number:02d}:00+00:00",
    }
    return MarkRecord(**(base | fields))


def verification(of: TrialRecord, verdict: str, attempt: int = 1) -> TrialRecord:
    """The record of an attempt to reproduce another."""
    said = {"of": of.record_id, "verdict": verdict, "checks": []}
    levels = of.context["levels"]
    return record(levels, of.seed, purpose="verify", attempt=attempt, context={"levels": levels, "verification": said})


@functools.cache
def _empty_database() -> bytes:
    """An empty store's database: MLflow takes seconds to make one, so the tests of a session share it."""
    with tempfile.TemporaryDirectory() as folder:
        Store.open(Path(folder))
        return (Path(folder) / "mlflow.db").read_bytes()


def empty_store(home: Path) -> Store:
    """A new local store in `home`."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "mlflow.db").write_bytes(_empty_database())
    return Store.open(home)


def as_api(store: Store) -> Store:
    """The same store, read through MLflow's API."""
    slow = Store(store.home, store.uri)
    slow.__dict__["_fast"] = None
    return slow


def write_at_once(store: Store, records: Sequence[TrialRecord | DesignRecord]) -> None:
    """Put records into a local store's database as they would lie there one by one; MLflow takes seconds for a hundred."""
    runs, tags, points = [], [], []
    for one in records:
        content = (
            layout.design_run(one) if isinstance(one, DesignRecord) else layout.trial_run(one, one.context["levels"])
        )
        run_id = content.record_id
        runs.append((run_id, content.name, "FINISHED", "active", "0"))
        marks = {layout.COMPLETE: "2026-01-02"} | content.tags
        tags += [(key, value, run_id) for key, value in marks.items()]
        points += [(key, value, 0, run_id, step, 0) for key, value, step in content.metrics]
    with contextlib.closing(sqlite3.connect(store.home / "mlflow.db")) as database, database:
        database.executemany(
            "INSERT INTO runs (run_uuid, name, status, lifecycle_stage, experiment_id) VALUES (?, ?, ?, ?, ?)", runs
        )
        database.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", tags)
        database.executemany(
            "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)", points
        )
