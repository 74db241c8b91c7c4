"""Where everything that outlives a run is kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """`ABLATE_HOME`, or the user's data directory; it is not created here."""
    chosen = os.environ.get("ABLATE_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "ablate"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "ablate"
