"""Where everything that outlives a run is kept."""

from __future__ import annotations

import hashlib
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


def mirrors(home: Path) -> Path:
    """The folder of mirrors of stores that are read through `home`: in it, or in the user's cache where it cannot be written to."""
    own = home / "mirror"
    if os.access(next(place for place in (own, *own.parents) if place.exists()), os.W_OK):
        return own
    if sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "ablate" / "mirror" / hashlib.sha256(str(home).encode()).hexdigest()[:16]
