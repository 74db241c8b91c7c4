"""The right to be measured alone on a device, held by one process at a time on a machine."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from registry.locks import FileLock


def lease_folder() -> Path:
    """Where this user's leases lie: on this machine, whatever `ABLATE_HOME` is, so that all drivers meet."""
    return Path(tempfile.gettempdir()) / f"ablate-leases-{os.getuid()}"


class Lease:
    """Held while a trial's steps are measured; the kernel frees it when the holder dies.

    `name` says which device (its UUID, or `cpu`). A `shared` lease is held by several at once and keeps out those that want the
    device to themselves. Without a name entering waits for nothing, and of either kind `exclusive` stays False. `on_wait` is
    called if somebody else holds it, `on_start` once the measured window begins, `on_end` when that is over. What needs the device
    to itself before that window may `acquire` it first.
    """

    def __init__(
        self,
        name: str | None,
        *,
        shared: bool = False,
        on_wait: Callable[[], None] = lambda: None,
        on_start: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._lock = FileLock(lease_folder() / f"{name}.lock") if name else None
        self._on_wait, self._on_start, self._on_end = on_wait, on_start, on_end
        self._shared = shared
        self._waited = 0.0
        self._since: float | None = None
        self.exclusive = False

    @property
    def waited(self) -> float:
        """Seconds spent waiting for another holder, also while that lasts."""
        return self._waited + (time.monotonic() - self._since if self._since is not None else 0.0)

    @property
    def held(self) -> bool:
        """Whether this process holds the device now."""
        return self._lock is not None and self._lock.held

    def acquire(self) -> None:
        """Hold the device from now on; waits for whoever has it."""
        if self._lock is None or self._lock.held:
            return
        if not self._lock.acquire(blocking=False, shared=self._shared):
            self._on_wait()
            self._since = time.monotonic()
            self._lock.acquire(shared=self._shared)
            self._waited, self._since = self.waited, None
        self.exclusive = not self._shared

    def release(self) -> None:
        """Let others have the device; nothing happens where it is not held."""
        if self._lock is not None and self._lock.held:
            self._lock.release()

    def __enter__(self) -> Self:
        self.acquire()
        self._on_start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._on_end()  # before the next holder's window can begin
        self.release()
