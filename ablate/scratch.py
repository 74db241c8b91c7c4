"""A folder for what a run of Ray writes, which nobody needs afterwards."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ablate.lease import lease_folder
from registry.locks import FileLock

PREFIX = "ablate-ray-"


def abandoned() -> Iterator[Path]:
    """The folders that killed drivers left, each locked while the caller has it."""
    with _making():
        for old in _root().glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                lock = FileLock(old / "lock")
                if lock.try_acquire():
                    try:
                        yield old
                    finally:
                        lock.release()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the files of Ray and Tune. Those that killed drivers left are removed."""
    for old in abandoned():
        shutil.rmtree(old, ignore_errors=True)
    with _making():
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_root()))
        ours = FileLock(folder / "lock")
        ours.acquire()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        ours.release()


def _root() -> Path:
    root = Path(tempfile.gettempdir())
    # Ray puts Unix sockets there, whose paths may have 107 characters
    return root if len(str(root)) <= 25 else Path("/tmp")


def _making() -> FileLock:
    """Held until a new folder is locked by its owner, who must not be taken for dead before."""
    return FileLock(lease_folder() / "scratch.lock")
