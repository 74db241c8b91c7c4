"""Whether what was measured now is as good as what was measured before: a verdict for each metric of each arm.

Each kind of number has the test that fits it. Counts (parameters, FLOPs, operators, tracked memory, ...) are the same in each run of the
same code, so that they have bounds and no test. A loss is compared run by run over the seeds in common: equivalence and superiority by
one-sided t-tests at 0.5 %, against a margin from the noise that the baseline has measured (Schuirmann 1987). Times are ratios of
windows that were measured in turns, with the interval of their trimmed mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import fdtrc, stdtrit

from .baseline import Arm, Baseline, Noise

Verdict = Literal["pass", "improvement", "inconclusive", "rebaseline", "regression"]
ORDER: tuple[Verdict, ...] = ("pass", "improvement", "rebaseline", "inconclusive", "regression")
"""From the one that says least to the one that decides."""
EXIT: dict[Verdict, int] = {"pass": 0, "improvement": 0, "regression": 1, "inconclusive": 3, "rebaseline": 4}
ALPHA = 0.005
"""Of each one-sided test: a gate asks it of each arm on each change, and must hardly ever be wrong."""
MARGIN_SD = 3.0
"""A difference within so many standard deviations of the noise is none."""
LEAST_MARGIN = 0.001
"""Nor is one of this share of the value."""
ODD = 0.001
"""Differences that scatter more than the noise known would in so few cases have a noise of their own."""
BOUNDS: dict[str, float] = {
    "parameters": 0.0, "flops_per_token": 0.0, "graph_breaks": 0.0, "host_syncs": 0.0, "operators": 0.02, "calls": 0.02,
    "peak_memory_gib": 0.005, "parameters_gib": 0.005, "gradients_gib": 0.005, "optimizer_state_gib": 0.005, "activations_gib": 0.02,
}  # fmt: skip
"""By which share a count may grow. Less of each is better."""
TIME_MARGIN = 0.05
"""A step is slower from this share on."""
TRIM = 0.2
"""The share of rounds left out at each end."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict, with what it is from. `low` and `high` are those of an interval of `after` against `before`, where there is one."""

    arm: str
    metric: str
    verdict: Verdict
    before: float | None = None
    after: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    why: str = ""


def overall(findings: Iterable[Finding]) -> Verdict:
    """The verdict that decides."""
    found = {one.verdict for one in findings}
    for verdict in reversed(ORDER):
        if verdict in found:
            return verdict
    return "inconclusive"


def against_baseline(
    before: Baseline, after: Mapping[str, Arm], environment: Mapping[str, str], margin: float | None = None
) -> list[Finding]:
    """Hold the arms measured now in `environment` against a baseline. `margin` (of val_loss, nats/token) replaces the one from noise.

    Where the environment is another, its counts are no regressions: what they depend on changed. Parameters, FLOPs and the loss are
    held all the same, the loss only where the noise is known.
    """
    moved = [
        f"{name} {before.environment.get(name, 'unknown')} -> {environment.get(name, 'unknown')}"
        for name in sorted(before.environment.keys() | environment.keys())
        if before.environment.get(name) != environment.get(name)
    ]
    found: list[Finding] = []
    for name in [*before.arms, *(name for name in after if name not in before.arms)]:
        old, new = before.arms.get(name), after.get(name)
        if old is None or new is None:
            why = "it is not in the baseline" if old is None else "it was not measured now"
            found.append(Finding(name, "arm", "rebaseline", why=why))
        elif old.recipe != new.recipe:
            found.append(
                Finding(name, "arm", "rebaseline", why="its settings or its corpus are not those of the baseline")
            )
        else:
            found += counts(name, old.counts, new.counts, moved)
            if old.runs or new.runs:  # what does not train has counts alone
                found.append(loss(name, old, new, before.noise.get("val_loss"), margin))
    if moved:
        found.append(Finding("all", "environment", "rebaseline", why="; ".join(moved)))
    return found


def counts(arm: str, before: Mapping[str, float], after: Mapping[str, float], moved: list[str]) -> list[Finding]:
    """A finding for each count that either has."""
    found = []
    for metric, bound in BOUNDS.items():
        old, new = before.get(metric), after.get(metric)
        if old is None and new is None:
            continue
        verdict: Verdict = "pass"
        why = ""
        if old is None or new is None:
            verdict, why = "rebaseline", "it is not in the baseline" if old is None else "it was not measured now"
        elif abs(new - old) > bound * abs(old) + 1e-9 * max(abs(old), abs(new)):
            verdict = "regression" if new > old else "improvement"
            if moved and metric not in ("parameters", "flops_per_token"):
                verdict, why = "rebaseline", "the environment is another"
        found.append(Finding(arm, metric, verdict, old, new, why=why))
    return found


def loss(arm: str, before: Arm, after: Arm, noise: Noise | None, margin: float | None = None) -> Finding:
    """The finding of val_loss, over the seeds in common."""
    metric = "val_loss"
    old, new = before.values(metric), after.values(metric)
    ended = [seed for seed in before.runs if seed in old and seed in after.runs and seed not in new]
    common = sorted(old.keys() & new.keys())
    if ended:
        return Finding(arm, metric, "regression", n=len(common), why=f"no loss with seed {ended[0]}, which had one")
    if not common:
        return Finding(arm, metric, "inconclusive", why="no seed in common has a loss on both sides")
    base, now = (float(np.mean([side[seed] for seed in common])) for side in (old, new))
    margin = margin_of(base, noise) if margin is None else margin
    differences = np.array([new[seed] - old[seed] for seed in common])
    low, high = interval(differences, noise)
    verdict: Verdict = "inconclusive"
    if low > margin:
        verdict = "regression"
    elif high < -margin:
        verdict = "improvement"
    elif -margin <= low and high <= margin:
        verdict = "pass"
    why = f"margin {margin:.3g} nats/token" + ("" if noise else ", its noise was not measured")
    return Finding(arm, metric, verdict, base, now, low, high, len(common), why)


def margin_of(value: float, noise: Noise | None) -> float:
    """What difference of a loss is none."""
    return max(MARGIN_SD * noise.sd if noise else 0.0, LEAST_MARGIN * abs(value))


def interval(differences: np.ndarray, noise: Noise | None) -> tuple[float, float]:
    """Of the mean difference, at the two levels `ALPHA`; infinite where nothing tells how far it scatters.

    The variance is pooled from the differences and the noise known, unless they scatter far more than that. Differences that are all
    zero have no width: the runs were the same.
    """
    n, mean = len(differences), float(differences.mean())
    if not differences.any():
        return 0.0, 0.0
    own, df = (float(differences.var(ddof=1)), n - 1) if n > 1 else (0.0, 0)
    variance, total = own, df
    if noise is not None and noise.n > 0:
        known = noise.sd**2
        odd = df > 0 and (own > 0.0 if known == 0.0 else fdtrc(df, noise.n, own / known) < ODD)
        if not odd:
            total = df + noise.n
            variance = (df * own + noise.n * known) / total
    if total < 1:
        return -math.inf, math.inf
    half = float(stdtrit(total, 1.0 - ALPHA)) * math.sqrt(variance / n)
    return mean - half, mean + half


def time(arm: str, metric: str, rounds: Sequence[Sequence[float]]) -> Finding:
    """The finding of a time, from rounds of windows that were measured in turns, before, now, now, before: seconds of a step.

    A round gives one ratio of now to before, in which a drift of the machine cancels. Where others use the machine some rounds are far
    off, so that a fifth of the logarithms is left out at each end; the interval is that of their trimmed mean (Yuen 1974).
    """
    logs = np.log(np.asarray(rounds)) @ np.array([-0.5, 0.5, 0.5, -0.5])
    before, after = (
        float(np.median([one[place] for one in rounds for place in which])) * 1e3 for which in ((0, 3), (1, 2))
    )
    estimate, low, high = (math.exp(value) for value in trimmed(logs))
    margin = 1.0 + TIME_MARGIN
    verdict: Verdict = "inconclusive"
    if low > 1.0 and estimate > margin:
        verdict = "regression"
    elif high < 1.0 and estimate < 1.0 / margin:
        verdict = "improvement"
    elif 1.0 / margin <= low and high <= margin:
        verdict = "pass"
    why = f"{estimate - 1:+.1%} by the interval of the ratio; margin {TIME_MARGIN:.0%}"
    return Finding(arm, metric, verdict, before, after, low, high, len(rounds), why)


def trimmed(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of `values` without a share of `TRIM` at each end, and its interval at the two levels `ALPHA`."""
    n, cut = len(values), int(TRIM * len(values))
    ordered = np.sort(values)
    kept = ordered[cut : n - cut]
    mean = float(kept.mean())
    winsorized = np.clip(values, kept[0], kept[-1])
    error = float(winsorized.std(ddof=1)) / ((1.0 - 2.0 * cut / n) * math.sqrt(n))
    half = float(stdtrit(len(kept) - 1, 1.0 - ALPHA)) * error
    return mean, mean - half, mean + half
