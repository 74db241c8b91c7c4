"""The rows of a run: which job a worker gets next, and what became of each."""

from __future__ import annotations

import queue
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from ablate.worker import Contended, Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a row: a `record`, in JSON; `contended` or `crowded`; `trouble` with the disk; or nothing, for its worker was lost
    because of `reason`."""

    index: int
    record: str | None = None
    contended: Contended | None = None
    crowded: bool = False
    trouble: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """What a worker is given: the index of a job, its `finished_before`, and how many workers died over it so far."""

    index: int
    finished_before: int
    deaths: int


class Rows:
    """Hands out jobs, by index, as workers come free; with `by_shape` a worker gets the shape that it compiled last.

    A row is open until it is settled. What became of it is told in `answers`, and whoever reads them settles it, has it done
    `again`, or sets it `aside` for a round in which no other worker takes its memory. The thread that runs Tune calls `take`,
    `answer` and `lost`; a turn of theirs is known by Tune's trial id.

    Workers prepare one shape each, and take turns on a device in the order in which they come to it. So their shapes are done at
    different times, and while one prepares the next shape the others train.
    """

    def __init__(self, jobs: Sequence[Job], answers: queue.Queue[Answer]) -> None:
        self.open = set(range(len(jobs)))
        self.deaths: Counter[int] = Counter()
        self._aside: set[int] = set()
        self._shapes = [job.shape for job in jobs]
        self._finished_before = [job.finished_before for job in jobs]
        self._waiting = deque(range(len(jobs)))
        self._live: dict[str, int] = {}
        self._answers = answers
        self._freed: str | None = None
        self._stopped = False

    def begin(self, workers: int, *, by_shape: bool) -> None:
        """For so many workers at once. What an earlier round left unanswered is to be done."""
        self._workers, self._by_shape = workers, by_shape
        self._waiting.extendleft(self._live.values())
        self._live.clear()

    @property
    def over(self) -> bool:
        """Whether nothing is to be handed out any more in this round."""
        return self._stopped or self.open <= self._aside

    def stop(self) -> None:
        self._stopped = True

    def settle(self, index: int) -> None:
        self.open.discard(index)

    def again(self, index: int, finished_before: int | None = None) -> None:
        if finished_before is not None:
            self._finished_before[index] = finished_before
        self._waiting.append(index)

    def aside(self, index: int) -> None:
        self._aside.add(index)

    def resume(self) -> int:
        """Let what was set aside wait again; returns how many rows that are."""
        count = len(self._aside)
        self._waiting.extend(sorted(self._aside))
        self._aside.clear()
        return count

    def take(self, turn: str) -> Row | None:
        """A row; None while all workers are busy or no open row waits."""
        waiting = [index for index in self._waiting if index in self.open]
        if len(self._live) >= self._workers or not waiting:
            return None
        chosen = waiting[0]
        if self._by_shape:
            # the shape it has compiled, else one that no other worker has, else any
            rank = dict.fromkeys((self._shapes[index] for index in self._live.values()), 2) | {self._freed: 0}
            chosen = min(waiting, key=lambda index: rank.get(self._shapes[index], 1))
            self._freed = None
        self._waiting.remove(chosen)
        self._live[turn] = chosen
        return Row(chosen, self._finished_before[chosen], self.deaths[chosen])

    def answer(
        self, turn: str, record: str | None = None, contended: Contended | None = None, crowded: bool = False,
        trouble: str = "",
    ) -> None:  # fmt: skip
        """A worker came back, and is free."""
        index = self._live.pop(turn)
        self._freed = self._shapes[index]
        self._answers.put(Answer(index=index, record=record, contended=contended, crowded=crowded, trouble=trouble))

    def lost(self, turn: str, reason: str) -> None:
        """A worker did not come back."""
        index = self._live.pop(turn)
        self.deaths[index] += 1
        self._answers.put(Answer(index=index, reason=reason))
