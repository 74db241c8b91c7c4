"""What long trials keep of themselves, to go on from after an interruption."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path


def path(home: Path, attempt_key: str) -> Path:
    """Where an attempt keeps its state."""
    return home / "checkpoints" / f"{attempt_key}.pt"


def usable(home: Path, attempt_key: str) -> Path:
    """The same, with nothing there that is damaged or half written: that is removed, and the trial begins at its first step."""
    found = path(home, attempt_key)
    found.with_suffix(".partial").unlink(missing_ok=True)
    if found.exists() and not _whole(found):
        print(f"{found}: damaged, so the trial begins at its first step")
        found.unlink()
    return found


def _whole(path: Path) -> bool:
    """Whether the file is as it was written. It holds checksums, which `torch.load` does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError, zlib.error):
        return False
