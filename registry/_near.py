"""The known name that a wrong one was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(name: str, known: Iterable[str]) -> str:
    """`: did you mean "val_loss"?`, or nothing."""
    by_lower = {one.lower(): one for one in known if ":" not in one}
    found = difflib.get_close_matches(name.lower(), by_lower, 1)
    return f': did you mean "{by_lower[found[0]]}"?' if found else ""
