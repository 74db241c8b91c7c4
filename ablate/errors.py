"""What ends a command early: an error that is the user's to mend, printed as a single line, with exit code 2; and a signal."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DISK = FULL | {errno.EROFS, errno.EIO}
"""What the system says of a disk that takes no more."""


class UserError(ValueError):
    """Wrong input. The message is one line: where, what, and what would be right."""


class Interrupted(Exception):
    """A signal came, and everything is left in order. The message is what is kept; the exit code is 128 more than the signal's number."""

    def __init__(self, number: int, kept: str) -> None:
        super().__init__(kept)
        self.number = number


def near_miss(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the known words where none is near and they are few, or nothing."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(words)}" if 0 < len(words) <= 12 else ""


def of_the_disk(error: BaseException) -> OSError | None:
    """The disk's refusal that an error is, or came of: a library may say something else of it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and (found.errno in DISK or _cut_short(found)):
            return found
        found = found.__cause__ or found.__context__
    return None


def said(error: OSError, home: Path) -> str:
    """What the system would not do, where, and what helps, in a line; `home` is where everything is kept."""
    cut = _cut_short(error)
    what = "no space left on device" if cut else (error.strerror or str(error)).lower()
    text = f"{error.filename}: {what}" if error.filename else what
    if error.errno in FULL or cut:
        return f"{text}; make room and give the same command again"
    if error.errno in (errno.EROFS, errno.EACCES) and str(error.filename).startswith(str(home)):
        return f"{text}; set ABLATE_HOME to a folder that can be written to"
    return text


def _cut_short(error: OSError) -> bool:
    """Whether it is numpy's way to say that the disk is full, which has no number."""
    return error.errno is None and "requested and" in str(error)
