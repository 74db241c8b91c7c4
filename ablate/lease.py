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

    `name` says which device (its UUID, or `cpu`). Without a name the device is shared: entering waits for nothing, and
    `exclusive` stays False. `on_wait` is called if somebody else holds it, `on_start` once the measured window begins.
    """

    def __init__(
        self,
        name: str | None,
        *,
        on_wait: Callable[[], None] = lambda: None,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._lock = FileLock(lease_folder() / f"{name}.lock") if name else None
        self._on_wait, self._on_start = on_wait, on_start
        self.exclusive = False
        self.waited = 0.0
        """Seconds spent waiting for another holder."""

    def __enter__(self) -> Self:
        if self._lock is not None:
            if not self._lock.try_acquire():
                self._on_wait()
                began = time.monotonic()
                self._lock.acquire()
                self.waited += time.monotonic() - began
            self.exclusive = True
        self._on_start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._lock is not None:
            self._lock.release()
