"""From the spool to the store, in a thread of its own: the store may be slow, or away."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from registry.spool import Spool
from registry.store import Store

RETRY_SECONDS = 3.0
"""Between attempts to reach a store that does not answer."""


class Writer(threading.Thread):
    """The one writer of this run: opens the store, takes records from the spool to it, and answers questions that it knows.

    `failure` is what opening it raised; then nothing is written.
    """

    def __init__(self, open_store: Callable[[], Store], spool: Spool) -> None:
        super().__init__(name="writer", daemon=True)
        self._open, self.spool = open_store, spool
        self.failure: Exception | None = None
        self.trouble = ""
        self._opened = threading.Event()
        self._questions: deque[Callable[[], None]] = deque()
        self._woken, self._ending = threading.Event(), threading.Event()

    @property
    def store(self) -> Store:
        """The store; waits until it is open. Raises `failure`, if there is one."""
        self._opened.wait()
        if self.failure is not None:
            raise self.failure
        return self._store

    def wake(self) -> None:
        """There is a new record."""
        self._woken.set()

    def ask(self, question: Callable[[], None]) -> None:
        """Have `question` called once everything spooled is stored."""
        self._questions.append(question)
        self._woken.set()

    def finish(self, timeout: float) -> None:
        """Store what is left if that can be done in time; the rest stays in the spool."""
        self._ending.set()
        self._woken.set()
        self.join(timeout)

    def run(self) -> None:
        try:
            self._store = self._open()
        except Exception as error:
            self.failure = error
            return
        finally:
            self._opened.set()
        while True:
            last = self._ending.is_set()
            try:
                self._store.ingest(self.spool)
                while self._questions:
                    self._questions[0]()
                    self._questions.popleft()
                self.trouble = ""
            except Exception as error:  # without a writer a run would go on and store nothing
                self.trouble = " ".join(str(error).split())[:300]
            if last:
                return
            if self.trouble:
                self._ending.wait(RETRY_SECONDS)
            else:
                self._woken.wait()
                self._woken.clear()
