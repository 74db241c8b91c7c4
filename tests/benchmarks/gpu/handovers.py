"""What the workers of a run did between one training and the next, from its timeline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

from ablate.timeline import Bar, Timeline


def overlaps(timeline: Timeline) -> int:
    """How many trainings began on a device where another had not ended."""
    return sum(after.start < before.end for before, after in _trainings(timeline))


def idle(timeline: Timeline) -> list[float]:
    """Seconds from the end of each training to the start of the next one on that device."""
    return [max(0.0, after.start - before.end) for before, after in _trainings(timeline)]


def turnarounds(timeline: Timeline, cells: Mapping[str, str]) -> dict[str, list[float]]:
    """Seconds from the end of a trial's training until that worker's next is ready to train, or trains.

    `cells` maps the names of trials to their arms: a worker goes on with the same arm, or takes another.
    """
    workers: dict[tuple[str, int], dict[str, list[Bar]]] = defaultdict(lambda: defaultdict(list))
    for bar in timeline.bars:
        workers[bar.worker][bar.trial].append(bar)
    found: dict[str, list[float]] = {"same arm": [], "another arm": []}
    for trials in workers.values():
        for (before, bars), (after, next_bars) in pairwise(trials.items()):
            trained = max((bar.end for bar in bars if bar.phase == "train"), default=None)
            ready = min((bar.start for bar in next_bars if bar.phase in ("wait", "train")), default=None)
            if trained is not None and ready is not None:
                found["same arm" if cells[before] == cells[after] else "another arm"].append(ready - trained)
    return found


def phase_seconds(timeline: Timeline) -> dict[str, list[float]]:
    """Seconds that each trial spent in each phase."""
    totals: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for bar in timeline.bars:
        totals[bar.phase][bar.trial] += bar.end - bar.start
    return {phase: list(of.values()) for phase, of in totals.items()}


def _trainings(timeline: Timeline) -> Iterable[tuple[Bar, Bar]]:
    """Successive trainings on each device."""
    for device in timeline.devices:
        yield from pairwise(bar for bar in timeline.bars if bar.phase == "train" and bar.device == device)
