"""Whether another attempt at a trial repeats what a record says. Standard library only, but for `claim`, which asks the registry.

Two runs of one trial differ, where they do, by what no seed fixes: the order in which numbers are added, another machine's
instructions. Runs that differ in their seed differ by at least that, so their noise floor is the limit: of two results the absolute
difference is below t sqrt(2) sd with probability `CONFIDENCE` (the repeatability limit of ISO 5725-6). Where too few runs are known for
that, the limit is a share of the recorded value (`SHARES`). Two speeds are not told apart where the rates of the steps of
both runs overlap, from the 10th percentile to the 90th: a machine that others load too slows some steps down, not all.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .record import METRICS, REFUTED, REPRODUCES, TrialRecord

if TYPE_CHECKING:
    import pandas as pd

    from .mirror import Mirror

CONFIDENCE = 0.99
"""Of a check: three of them blame a record by chance in less than one of thirty verifications."""
SHARES = {"val_loss": 0.001, "tokens_per_second": 0.2, "peak_memory_gib": 0.02}
"""By what share of its value a metric may differ where its noise is not known. The loss on one machine is the same to the last
digit or almost, and a thousandth is less than any margin that matters; a machine's speed drifts from one process to the next."""
_STEPS = ("step_time_ms", "step_time_ms_p10", "step_time_ms_p90")
VERIFIABLE = ("finished", "diverged")
"""How a record ended that says something of its recipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a record says, and by how much another attempt may differ: for each metric `{"limit", "from"}`, in its unit."""

    record_id: str
    status: str
    environment_id: str
    exclusive: bool
    code_fingerprint: str
    metrics: dict[str, float]
    limits: dict[str, dict[str, Any]]


def claim(record: TrialRecord, mirror: Mirror) -> Claim:
    """What `record` says of quality, speed and memory, with limits from the noise that `mirror` knows of."""
    import pyarrow.compute as pc
    from scipy.special import stdtrit

    from .noise import ENOUGH, noise_floor

    # a record that is wrong must not widen its own limits
    others = mirror.having(pc.field("record_id") != record.record_id)
    metrics = {name: record.metrics[name] for name in (*SHARES, *_STEPS) if name in record.metrics}
    limits = {}
    for name, value in metrics.items():
        if name not in SHARES:
            continue
        noise = noise_floor(
            others, name, scale=record.scale, environment_id=record.environment_id,
            evaluation_fingerprint=record.evaluation_fingerprint, cell_id=record.cell_id,
        )  # fmt: skip
        if noise is None or noise.df < ENOUGH or not noise.sd > 0.0:
            limits[name] = {
                "limit": SHARES[name] * value,
                "from": f"{SHARES[name]:.1%} of it, for its noise is not known",
            }
            continue
        widest = float(stdtrit(noise.df, (1.0 + CONFIDENCE) / 2.0)) * math.sqrt(2.0) * noise.sd
        limit = widest if METRICS[name].kind == "quality" else math.expm1(widest) * value
        limits[name] = {"limit": limit, "from": f"noise of {noise.n_runs} other runs of {noise.like}"}
    return Claim(
        record_id=record.record_id, status=record.status, environment_id=record.environment_id, exclusive=record.exclusive,
        code_fingerprint=record.code_fingerprint, metrics=metrics, limits=limits,
    )  # fmt: skip


def judge(said: Claim, again: TrialRecord) -> dict[str, Any]:
    """What a record's context says of it as a verification: `{"of", "verdict", "checks"}`.

    The verdict is "undecided" where the attempt did not come to an end. Each check has `metric`, `recorded`, `again`, `limit`, `from`
    (where the limit is from) and its own `verdict`: identical, reproduces, does not reproduce, or not compared, for the reason in
    `why`. Speed is compared where both had the same kind of device to themselves, memory on the same kind of device.
    """
    found: dict[str, Any] = {"of": said.record_id, "verdict": "undecided", "checks": []}
    if again.status not in VERIFIABLE:
        return found
    checks = found["checks"]
    if said.status != again.status:
        checks.append(_check("status", said.status, again.status, verdict=REFUTED))
    elif again.status == "diverged":
        checks.append(_check("status", said.status, again.status, verdict="identical"))
    else:
        checks += [_compared(said, again, name) for name in SHARES]
    verdicts = {check["verdict"] for check in checks}
    if REFUTED in verdicts:
        found["verdict"] = REFUTED
    elif verdicts != {"not compared"}:
        found["verdict"] = REPRODUCES
    if said.code_fingerprint != again.code_fingerprint:
        found["other_code"] = True
    return found


def with_verdict(record: TrialRecord, said: dict[str, Any] | None) -> TrialRecord:
    """`record`, which says in its context how it judges the claim `said` (a `Claim` as a dict), if there is one."""
    if said is None:
        return record
    return TrialRecord.from_dict(
        record.to_dict() | {"context": record.context | {"verification": judge(Claim(**said), record)}}
    )


def plain(said: Claim) -> dict[str, Any]:
    """A claim as plain data."""
    return asdict(said)


def _compared(said: Claim, again: TrialRecord, name: str) -> dict[str, Any]:
    kind = METRICS[name].kind
    recorded, now = said.metrics.get(name), again.metrics.get(name)
    if recorded is None or now is None:
        return _check(name, recorded, now, why="not recorded" if recorded is None else "not measured here")
    if kind != "quality" and said.environment_id != again.environment_id:
        return _check(name, recorded, now, why="another environment")
    if kind == "speed" and not (said.exclusive and again.exclusive):
        whose = "the record" if not said.exclusive else "this attempt"
        return _check(name, recorded, now, why=f"{whose} shared its device")
    limit = said.limits[name]
    close = abs(now - recorded) <= limit["limit"]
    if not close and kind == "speed" and _overlap(said.metrics, again.metrics):
        close, limit = True, {"limit": None, "from": "the steps of both overlap"}
    verdict = "identical" if now == recorded else REPRODUCES if close else REFUTED
    return _check(name, recorded, now, verdict=verdict, **limit)


def _overlap(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether steps of two runs had the same rate, the slowest and the fastest tenth of each run apart."""
    if not all(metrics.get(name) for metrics in (one, other) for name in _STEPS):
        return False
    (slow, fast), (slowest, fastest) = _rates(one), _rates(other)
    return slow <= fastest and slowest <= fast


def _rates(metrics: dict[str, float]) -> tuple[float, float]:
    """Of the steps, in tokens per second, by what the record says of its median."""
    median, p10, p90 = (metrics[name] for name in _STEPS)
    return metrics["tokens_per_second"] * median / p90, metrics["tokens_per_second"] * median / p10


def _check(
    metric: str, recorded: Any, again: Any, *, verdict: str = "not compared", why: str = "", **limit: Any
) -> dict[str, Any]:
    return {"metric": metric, "recorded": recorded, "again": again, "verdict": verdict, "why": why} | limit


def frame(recorded: TrialRecord, again: TrialRecord) -> pd.DataFrame:
    """What a verification found, a row per check; `attrs["notes"]` ends with the verdict."""
    import pandas as pd

    said = again.context["verification"]
    rows = [
        {
            "metric": check["metric"], "recorded": check["recorded"], "again": check["again"],
            "difference": _difference(check), "limit": check.get("limit"), "verdict": check["verdict"],
            "why": check["why"] or check.get("from", ""),
        }
        for check in said["checks"]
    ]  # fmt: skip
    made = pd.DataFrame(rows, columns=["metric", "recorded", "again", "difference", "limit", "verdict", "why"])
    notes = [f"record {again.record_id} is held against {recorded.record_id}; both are kept"]
    if said.get("other_code"):
        notes.append(f"by other code: {recorded.code_fingerprint} then, {again.code_fingerprint} now")
    if again.status not in VERIFIABLE:
        notes.append(f"the attempt ended as {again.status}: {again.cause}")
    made.attrs["notes"] = [*notes, f"{said['verdict']}: trial {recorded.trial_id}"]
    return made


def _difference(check: dict[str, Any]) -> float | None:
    both = check["recorded"], check["again"]
    return both[1] - both[0] if all(isinstance(value, (int, float)) for value in both) else None
