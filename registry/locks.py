"""Locks between processes, freed by the kernel when their holder dies.

`fcntl.lockf` belongs to a process and is dropped when *any* descriptor of the file is closed in it. So a lock file is
opened nowhere but here, once at a time in a process, and says nothing itself: what belongs to it is kept in a file
beside it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
from pathlib import Path
from typing import Self

UNFINISHED = ".*.tmp"
"""What `write_whole` has not finished."""
_guard = threading.Lock()
_in_process: dict[str, threading.Lock] = {}


def write_whole(path: Path, text: str) -> None:
    """Put `text` at `path` so that a reader, or a crash, sees all of it or nothing. A killed writer leaves an `UNFINISHED` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # of a failed write the system names none
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileLock:
    """One holder at a time among all threads and processes that name the same path; not reentrant."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        with _guard:
            self._threads = _in_process.setdefault(str(self.path), threading.Lock())
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, blocking: bool = True, *, shared: bool = False) -> bool:
        """Take the lock; False if it is another's and `blocking` is off. `shared` holders keep out only those that are not."""
        if not self._threads.acquire(blocking=blocking):
            return False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.lockf(
                    descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if blocking else fcntl.LOCK_NB)
                )
            except BaseException:
                os.close(descriptor)
                raise
        except BlockingIOError:
            self._threads.release()
            return False
        except BaseException:
            self._threads.release()
            raise
        self._descriptor = descriptor
        return True

    def try_acquire(self) -> bool:
        """Take the lock if it is free."""
        return self.acquire(blocking=False)

    def release(self) -> None:
        assert self._descriptor is not None, "released a lock that is not held"
        os.close(self._descriptor)
        self._descriptor = None
        self._threads.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class TrialLock(FileLock):
    """Held while a trial is trained, with a counter of the attempts that were finished under it.

    A driver reads `finished()` *before* it lists what is done. A worker that then gets the lock and finds the counter
    moved knows that somebody finished the trial in between, and must not train it again.
    """

    def __init__(self, home: Path, attempt_key: str) -> None:
        assert "/" not in attempt_key, attempt_key
        super().__init__(home / "locks" / f"{attempt_key}.lock")
        self._counter = self.path.with_suffix(".count")

    def finished(self) -> int:
        """How many attempts were finished; anyone may ask, at any time. A damaged counter begins again: the store and the spool
        say what is done."""
        try:
            return int(self._counter.read_bytes())
        except (FileNotFoundError, ValueError):
            return 0

    def mark_finished(self) -> None:
        """Count one more; only the holder may."""
        assert self.held, "only the holder of the lock counts an attempt as finished"
        write_whole(self._counter, str(self.finished() + 1))
