"""An end for what hangs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


class Watchdog:
    """Ends this process, after `expire`, when `elapsed` is past `limit` seconds and some more: what hangs does not report."""

    def __init__(self, limit: float | None, elapsed: Callable[[], float], expire: Callable[[], None]) -> None:
        self._limit = None if limit is None else limit + max(5.0, 0.1 * limit)
        self._elapsed, self._expire = elapsed, expire
        self._guard, self._over = threading.Lock(), threading.Event()

    def __enter__(self) -> None:
        if self._limit is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, *exc: object) -> None:
        with self._guard:
            self._over.set()

    def _watch(self) -> None:
        assert self._limit is not None
        while not self._over.wait(0.5):
            if self._elapsed() > self._limit:
                with self._guard:
                    if not self._over.is_set():
                        self._expire()
                        os._exit(1)
