"""How a record lies in an MLflow run: its tags, params and metrics. Standard library only.

Everything but the curves is in tags, as JSON, so that reading back takes no request per run and no artifact. A run is
complete once it has the tag `ablate.complete`, whose value is the UTC day of writing (for "what is new since", which
MLflow cannot search).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeVar

from .record import DesignRecord, MarkRecord, RecordError, TrialRecord

Kind = Literal["trial", "design", "mark"]
ID, KIND, COMPLETE, WRITER = "ablate.record_id", "ablate.kind", "ablate.complete", "ablate.writer"
RECORD, CHUNKS = "ablate.record", "ablate.chunks"
CHUNK = 5000
"""Characters in one tag; MLflow's own limit has been 5,000 and is 8,000."""
CURVES, TOKENS = "curves/", "curves/tokens"
"""Metric names of the loss curves, and of the tokens trained on at each of their steps."""

R = TypeVar("R", TrialRecord, DesignRecord, MarkRecord)


@dataclass(frozen=True, slots=True)
class TaggedRun:
    """An MLflow run as far as it is needed here."""

    run_id: str
    tags: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContent:
    """All that is written into the MLflow run of a record."""

    record_id: str
    experiment: str
    name: str
    status: str
    span: tuple[int, int]
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[tuple[str, float, int]]
    artifact: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Loaded(Generic[R]):
    """Records by the run that holds them, one run per record id, and the (run id, reason) of runs that hold none."""

    records: dict[str, R] = field(default_factory=dict)
    damaged: list[tuple[str, str]] = field(default_factory=list)


def trial_run(record: TrialRecord, factors: dict[str, str]) -> RunContent:
    """The run of a trial, with the design's labels for the levels of its factors."""
    return RunContent(
        record_id=record.record_id,
        experiment=record.suite,
        name=run_name(record, factors),
        status={"finished": "FINISHED", "killed": "KILLED"}.get(record.status, "FAILED"),
        span=(milliseconds(record.started_at), milliseconds(record.finished_at)),
        tags=trial_tags(record),
        params=params(record, factors),
        metrics=metrics(record),
        artifact=("record.json", record.to_json()),
    )


def design_run(design: DesignRecord) -> RunContent:
    """The run of a design."""
    return RunContent(
        record_id=design.design_id,
        experiment=design.suite,
        name=f"design · {design.scale} · {len(design.trials)} trials",
        status="FINISHED",
        span=(milliseconds(design.created_at), milliseconds(design.created_at)),
        tags=design_tags(design),
        params={"kind": design.kind, "match": design.match},
        metrics=[],
        artifact=("design.json", design.to_json()),
    )


def mark_run(mark: MarkRecord) -> RunContent:
    """The run of a mark. All marks lie in one experiment: a mark outlives the run of the record that it speaks of."""
    return RunContent(
        record_id=mark.mark_id,
        experiment="marks",
        name=f"{mark.kind} · {mark.trial_id}",
        status="FINISHED",
        span=(milliseconds(mark.created_at), milliseconds(mark.created_at)),
        tags=mark_tags(mark),
        params={
            name: getattr(mark, name)[:6000]
            for name in ("kind", "record_id", "trial_id", "why", "author")
            if getattr(mark, name)
        },
        metrics=[],
        artifact=("mark.json", mark.to_json()),
    )


def trial_tags(record: TrialRecord) -> dict[str, str]:
    """The tags of a trial's run, except `ablate.complete`."""
    identity = {
        name: str(getattr(record, name))
        for name in (
            "record_id",
            "trial_id",
            "cell_id",
            "environment_id",
            "purpose",
            "status",
            "suite",
            "scale",
            "finished_at",
        )
    }
    tags = {f"ablate.{name}": value for name, value in identity.items()}
    tags |= {
        "ablate.exclusive": str(record.exclusive).lower(),
        "ablate.schema": str(record.schema_version),
        KIND: "trial",
    }
    bare = {name: value for name, value in record.values().items() if name != "curves"}
    return tags | _chunks(json.dumps(bare, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":")))


def design_tags(record: DesignRecord) -> dict[str, str]:
    """The tags of a design's run, except `ablate.complete`."""
    tags = {ID: record.design_id, KIND: "design", "ablate.suite": record.suite, "ablate.scale": record.scale}
    return tags | {"ablate.schema": str(record.schema_version)} | _chunks(record.to_json())


def mark_tags(mark: MarkRecord) -> dict[str, str]:
    """The tags of a mark's run, except `ablate.complete`."""
    tags = {ID: mark.mark_id, KIND: "mark", "ablate.schema": str(mark.schema_version)}
    return tags | _chunks(mark.to_json())


def chunk_names(count: int) -> list[str]:
    return [RECORD, *(f"{RECORD}.{i}" for i in range(1, count))]


def _chunks(text: str) -> dict[str, str]:
    parts = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    return {CHUNKS: str(len(parts)), **dict(zip(chunk_names(len(parts)), parts, strict=True))}


def load(runs: Iterable[TaggedRun], record_type: type[R]) -> Loaded[R]:
    """The records of complete runs. Of several runs with one record id the one with the smallest run id counts."""
    loaded: Loaded[R] = Loaded()
    seen = set()
    for run in sorted(runs, key=lambda run: run.run_id):
        try:
            count = int(run.tags.get(CHUNKS, ""))
            record: R = record_type.from_json("".join(run.tags[name] for name in chunk_names(count)))
        except RecordError as error:
            loaded.damaged.append((run.run_id, str(error)))
        except (KeyError, ValueError):
            loaded.damaged.append((run.run_id, f"part of the tags {RECORD} is missing"))
        else:
            record_id = getattr(record, record.KEY)
            if record_id not in seen:
                seen.add(record_id)
                loaded.records[run.run_id] = record
    return loaded


def merge_statuses(attempts: Iterable[Sequence[str]]) -> dict[str, str]:
    """From (trial id, status, finished_at) of attempts: `finished`, else `diverged`, else how the latest one ended."""
    final = {"finished": 2, "diverged": 1}
    best: dict[str, tuple[int, str, str]] = {}
    for trial_id, status, finished_at in attempts:
        best[trial_id] = max(best.get(trial_id, (-1, "", "")), (final.get(status, 0), finished_at, status))
    return {trial_id: status for trial_id, (_, _, status) in sorted(best.items())}


def flatten(recipe: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, dict[str, Any] | None]]:
    """Walk a recipe down to `(dotted path, value, options)`.

    A choice of a variant, `{"gqa": {"n_kv_heads": 2}}` at `model.attention`, gives `("model.attention", "gqa",
    {"n_kv_heads": 2})` and then its options, without the variant's name: `("model.attention.n_kv_heads", 2, None)`.
    Lists are values.
    """
    for name, value in recipe.items():
        here = f"{path}{name}"
        if not isinstance(value, dict):
            yield here, value, None
            continue
        if len(value) == 1 and isinstance(options := next(iter(value.values())), dict):
            yield here, next(iter(value)), options
            value = options
        yield from flatten(value, f"{here}.")


def params(record: TrialRecord, factors: dict[str, str]) -> dict[str, str]:
    """What MLflow shows as params: each setting of the recipe, with the design's labels for its factors."""
    settings = {
        path: value if isinstance(value, str) else json.dumps(value) for path, value, _ in flatten(record.recipe)
    }
    return {_key(path): value[:6000] for path, value in (settings | factors).items() if value != ""}


def metrics(record: TrialRecord) -> list[tuple[str, float, int]]:
    """Final numbers and curves as `(key, value, step)`, one value for a key and step."""
    points = {(_key(name), 0): float(value) for name, value in record.metrics.items()}
    for name, curve in record.curves.items():
        for step, tokens, value in curve:
            points[_key(CURVES + name), round(step)] = float(value)
            points[TOKENS, round(step)] = float(tokens)
    return [(key, value, step) for (key, step), value in points.items()]


def curves(points: Iterable[tuple[str, int, float]]) -> dict[str, list[list[float]]]:
    """The curves back from `(key, step, value)`: metric to `[step, tokens, value]` points in order."""
    by_key: dict[str, dict[int, float]] = {}
    for key, step, value in points:
        by_key.setdefault(key, {})[step] = value
    tokens = by_key.pop(TOKENS, {})
    return {
        key.removeprefix(CURVES): [[step, tokens.get(step, 0.0), value] for step, value in sorted(curve.items())]
        for key, curve in sorted(by_key.items())
    }


def run_name(record: TrialRecord, factors: dict[str, str]) -> str:
    """For a person in MLflow's list of runs: `gqa · seed 3`."""
    return " · ".join([*factors.values(), f"seed {record.seed}"])[:240]


def milliseconds(timestamp: str) -> int:
    """Since 1970, of an ISO timestamp (UTC where it does not say)."""
    moment = datetime.fromisoformat(timestamp)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _key(name: str) -> str:
    return re.sub(r"[^\w/.\- ]", "_", name)[:250]
