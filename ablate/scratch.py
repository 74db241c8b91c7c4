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


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the files of Ray and Tune. Those that killed drivers left are removed."""
    root = Path(tempfile.gettempdir())
    if len(str(root)) > 25:  # Ray puts Unix sockets there, whose paths may have 107 characters
        root = Path("/tmp")
    with FileLock(lease_folder() / "scratch.lock"):
        for old in root.glob("ablate-ray-*"):
            with contextlib.suppress(OSError):
                lock = FileLock(old / "lock")
                if lock.try_acquire():
                    shutil.rmtree(old, ignore_errors=True)
                    lock.release()
        folder = Path(tempfile.mkdtemp(prefix="ablate-ray-", dir=root))
        ours = FileLock(folder / "lock")
        ours.acquire()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        ours.release()
