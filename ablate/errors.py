"""The one error that is the user's to mend: the command line prints it as a single line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input. The message is one line: where, what, and what would be right."""


def near_miss(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the known words where none is near and they are few, or nothing."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(words)}" if 0 < len(words) <= 12 else ""
