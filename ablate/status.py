"""What runs right now, in small files under `home/status`; and what a run tells whoever watches it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from registry.record import TrialRecord

Phase = Literal["prepare", "compile", "wait", "train"]
WRITE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStatus:
    """One trial in one worker. `loss` in nats per token."""

    trial_id: str
    label: str
    suite: str
    phase: Phase
    pid: int
    host: str
    started_at: float
    updated_at: float
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None


class StatusFile:
    """A worker's report on the trial that it has; at most two writes a second, and every change of phase."""

    timeline: list[list[Any]]
    """The phases that are over, as `[phase, start, end]` in seconds since the epoch."""

    def __init__(self, home: Path, *, trial_id: str, label: str, suite: str) -> None:
        now, pid = time.time(), os.getpid()
        self.path = status_folder(home) / f"{trial_id}.{pid}.json"
        self._status = TrialStatus(
            trial_id=trial_id, label=label, suite=suite, phase="prepare", pid=pid, host=platform.node(),
            started_at=now, updated_at=now,
        )  # fmt: skip
        self.timeline = []
        self._since: float | None = now
        self._write()

    def phase(self, phase: Phase) -> None:
        self.rest()
        self._since = time.time()
        self._status = replace(self._status, phase=phase)
        self._write()

    def rest(self) -> None:
        """The phase is over, and none begins that a timeline shows."""
        if self._since is not None:
            self.timeline.append(
                [self._status.phase, self._since, max(self._since, time.time())]
            )  # clocks are set back
            self._since = None

    def progress(self, *, step: int, steps: int, loss: float | None, tokens_per_second: float | None) -> None:
        self._status = replace(self._status, step=step, steps=steps, loss=loss, tokens_per_second=tokens_per_second)
        if time.monotonic() - self._written >= WRITE_SECONDS or step == steps:
            self._write()

    def close(self) -> None:
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._status, self._written = replace(self._status, updated_at=time.time()), time.monotonic()
        partial = self.path.with_suffix(".partial")
        with contextlib.suppress(OSError):  # a full disk ends no trial for want of a report
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(asdict(self._status)), encoding="utf-8")
            partial.replace(self.path)


def status_folder(home: Path) -> Path:
    return home / "status"


def log_path(home: Path, trial_id: str) -> Path:
    """What the last attempt at a trial printed."""
    return home / "logs" / f"{trial_id}.log"


def running(home: Path) -> list[TrialStatus]:
    """The trials that workers have now, oldest first. Files of workers of this machine that died are removed."""
    found = []
    for path in status_folder(home).glob("*.json"):
        try:
            status = TrialStatus(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            continue  # gone in the meantime, or of another version
        if status.host == platform.node() and not _alive(status.pid):
            path.unlink(missing_ok=True)
            continue
        found.append(status)
    return sorted(found, key=lambda status: status.started_at)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Where a run is. `failed` counts among `done`."""

    total: int
    done: int
    failed: int
    running: tuple[TrialStatus, ...]
    seconds_left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A trial came to its end, whichever; it is the `done`-th of `total`."""

    record: TrialRecord
    label: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Message:
    """Something a person should know, in one line."""

    text: str


Event = Snapshot | Finished | Message


class Pace:
    """How long a run takes yet, from what it did since it began to train."""

    def __init__(self, work: Mapping[str, float]) -> None:
        self._work = work
        self._began: float | None = None

    def seconds_left(self, done: Collection[str], now: Collection[TrialStatus]) -> float | None:
        """`done` are trial ids; None until there is something to go by. `work` is in any unit, by trial id."""
        if self._began is None and (done or any(status.phase == "train" for status in now)):
            self._began = time.monotonic()
        partly = sum(self._work[status.trial_id] * status.step / status.steps for status in now if status.steps)
        finished = sum(self._work[trial_id] for trial_id in done) + partly
        if self._began is None or not finished:
            return None
        return (sum(self._work.values()) - finished) * (time.monotonic() - self._began) / finished
