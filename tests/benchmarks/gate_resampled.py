"""Whole checks resampled from what `gate_study.py` has measured: the gate's own code, over drawn losses and drawn rounds.

A drawn check takes the processes of each look from one look that was measured (what a process adds to its times stays), its rounds from
that look's rounds, and its losses from the triples (revision, revision nudged, change) of a condition, all with replacement.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ablate import against
from ablate.check import LOSS
from registry import gate

DRAWN = 10_000
ARM = "a"
SAME_STEP = ("unchanged", "rounding", "loss +1 %")
"""Conditions that train with the same operators in the same order: their looks are looks at the same."""
Check = Mapping[str, Any]


class Drawn:
    """A side whose answers are drawn: of the two that share `look`, the new one is as much slower as the round says."""

    def __init__(
        self, generator: np.random.Generator, looks: Sequence[np.ndarray], losses: np.ndarray, new: bool
    ) -> None:
        self.generator, self.looks, self.losses, self.new = generator, looks, losses, new
        self.own: np.ndarray = np.empty(0)
        self._again: float | None = None

    def renew(self) -> None:
        """Take the processes of another look."""
        self.own = self.looks[self.generator.integers(len(self.looks))]

    def ask(self, what: str, **given: Any) -> Any:
        if what == "run":
            before, nudged, after = self.losses[given["seed"]]
            return {LOSS: after if self.new else nudged if given.get("nudged") else before}
        if what == "warm_up" or not self.new:
            return {"step": 1.0} if what == "window" else 1.0
        if self._again is None:  # both of its windows in a round have the round's ratio
            self._again = math.exp(self.generator.choice(self.own))
            return {"step": self._again}
        ratio, self._again = self._again, None
        return {"step": ratio}


def triples(checks: Iterable[Check]) -> np.ndarray:
    """Losses [n, 3] of all seeds of some checks: of the revision, of it nudged, of the change."""
    found = []
    for one in checks:
        before, nudged, after = (one["losses"][name] for name in ("before", "nudged", "after"))
        found += zip(before, nudged or before, after, strict=True)
    return np.array(found)


def drawn(
    counts: Sequence[Mapping[str, Any]], looks: Sequence[np.ndarray], losses: np.ndarray, seed: int
) -> list[dict[str, str]]:
    """The verdicts by metric of so many drawn checks."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(DRAWN):
        some = losses[generator.integers(len(losses), size=against.MORE_SEEDS)]
        old, new = (Drawn(generator, looks, some, new) for new in (False, True))
        sides: Any = (old, new)
        counted = counts[generator.integers(len(counts))]
        before, after = ({name: pair[i] for name, pair in counted.items()} for i in (0, 1))
        loss, _ = against._loss(ARM, *sides, list(range(len(some))), 2, None, lambda text: None)
        time = against._time(ARM, *sides, lambda text: None)
        found.append({one.metric: one.verdict for one in [*gate.counts(ARM, before, after, []), loss, time]})
    return found


def rates(verdicts: Sequence[Mapping[str, str]], metric: str | None) -> dict[str, float | None]:
    """Shares of checks: in which the planted metric is a regression, in which loss or time is one that is not planted, or undecided."""
    wrong = [name for name in (LOSS, against.TIME) if name != metric]
    return {
        "found": sum(one[metric] == "regression" for one in verdicts) / len(verdicts) if metric else None,
        "false": sum(any(one[name] == "regression" for name in wrong) for one in verdicts) / len(verdicts),
        "undecided": sum(any(one[name] == "inconclusive" for name in (*wrong, metric or LOSS)) for one in verdicts) / len(verdicts),
    }  # fmt: skip


def summary(lines: Sequence[Check], planted: Mapping[str, str | None], more_loss: float) -> dict[str, Any]:
    """Of each condition, of which it is known in what metric it is `planted`: what whole checks said, and what drawn ones say.

    Untimed checks are no whole ones, but their losses and counts are drawn from. The losses of "loss +1 %", which is `more_loss` times
    what rounding made of them, are looks at rounding, too.
    """
    by_name = {name: [one for one in lines if one["condition"] == name] for name in planted}
    looks = {name: [np.array(look) for one in checks for look in one["looks"]] for name, checks in by_name.items()}
    rows = []
    for seed, (name, metric) in enumerate(planted.items()):
        checks, counts = by_name[name], [one["counts"] for one in by_name[name]]
        whole = [one for one in checks if not one.get("untimed")]
        pool = [look for other in SAME_STEP for look in looks[other]] if name in SAME_STEP else looks[name]
        losses = triples(checks)
        if name == "rounding":
            losses = np.concatenate((losses, triples(by_name["loss +1 %"]) / np.array([1.0, 1.0, more_loss])))
        rows.append(
            {
                "condition": name, "metric": metric, "checks": len(whole), "looks": len(pool), "losses": len(losses), "counts": len(counts),
                "step": math.exp(float(np.mean([gate.trimmed(look)[0] for look in pool]))),
                "whole": rates([one["verdicts"] for one in whole], metric),
                "exit": dict(Counter(str(one["exit"]) for one in whole)),
                "drawn": rates(drawn(counts, pool, losses, seed), metric),
            }
        )  # fmt: skip
    machines = sorted(
        {f"{one['machine']}, {one['lanes']} checks at a time, {one['shared']} on each two cores" for one in lines}
    )
    return {"about": f"{DRAWN:,} drawn checks of each condition.", "machines": machines, "rows": rows}
