"""A folder for what a command writes while it runs and nobody needs afterwards."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from ablate.lease import lease_folder
from registry.locks import FileLock

Use = Literal["ray", "checkout"]
"""Files of Ray and Tune; the checkout of another revision."""


def abandoned() -> Iterator[Path]:
    """The folders that killed processes left, each locked while the caller has it."""
    with _making():
        for old in (path for use in get_args(Use) for path in _root().glob(f"ablate-{use}-*")):
            with contextlib.suppress(OSError):
                lock = FileLock(old / "lock")
                if lock.try_acquire():
                    try:
                        yield old
                    finally:
                        lock.release()


@contextmanager
def scratch(use: Use) -> Iterator[Path]:
    """A folder for one use. Those that killed processes left are removed."""
    for old in abandoned():
        shutil.rmtree(old, ignore_errors=True)
    with _making():
        folder = Path(tempfile.mkdtemp(prefix=f"ablate-{use}-", dir=_root()))
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
