"""Work on text from outside, in a process of its own that can open nothing and is ended when it takes too much.

DuckDB's own limits are not enough: one call of a function cannot be interrupted, and what it allocates for its strings and lists is not
counted (`levenshtein` of two long strings, `repeat('x', 4000000000)`); SQL that is nested deeply enough takes the whole process with it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
FORKS = sys.platform == "linux"
"""Whether this system can do so: elsewhere a fork does not survive the system's libraries, or the memory of a process has no limit."""
ANSWER, REFUSAL = b"A", b"R"


class Refused(Exception):
    """What the work raised, in one line."""


class TooLong(Exception):
    """It was ended after its time."""


class TooMuch(Exception):
    """It ended by itself: for want of memory, or of stack."""


def contained(
    prepare: Callable[[], T], work: Callable[[T], bytes], *, seconds: float, memory: int, forking: AbstractContextManager[Any]
) -> bytes:  # fmt: skip
    """What `work(prepare())` returns. `forking` is entered while the process is made.

    Both run in a forked process of at most `memory` bytes more than this one has; `work` can open no file and no socket there, and has
    all that it imports imported before. What either raises comes back as `Refused`.
    """
    reader, writer = os.pipe()
    with forking, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: no lock of theirs is taken here
        pid = os.fork()
        if not pid:
            _child(reader, writer, prepare, work, memory)
    os.close(writer)
    try:
        answer = _read(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not answer:
        raise TooMuch
    if answer[:1] == REFUSAL:
        raise Refused(answer[1:].decode())
    return answer[1:]


def _read(reader: int, end: float) -> bytes:
    """All that comes, until the other side closes. Raises `TooLong` at `end`."""
    parts: list[bytes] = []
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while poll.poll(max(0.0, end - time.monotonic()) * 1000.0):
        part = os.read(reader, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)
    raise TooLong


def _child(reader: int, writer: int, prepare: Callable[[], T], work: Callable[[T], bytes], memory: int) -> None:
    """Never returns; says nothing on the terminal, whatever happens."""
    try:
        os.close(reader)
        faulthandler.disable()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        prepared = prepare()
        _lock(memory)
        said = ANSWER + work(prepared)
    except MemoryError:
        os._exit(1)
    except Exception as error:
        said = REFUSAL + " ".join(str(error).split()).encode()
    except BaseException:
        os._exit(1)
    rest = memoryview(said)
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(writer, rest) :]
    os._exit(0)


def _lock(memory: int) -> None:
    """No more memory than that beside what there is, no file or socket opened from now on, nothing written to one, no core."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {resource.RLIMIT_AS: pages * resource.getpagesize() + memory, resource.RLIMIT_NOFILE: 0}
    for name, limit in (limits | {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}).items():
        _, most = resource.getrlimit(name)
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(name, (limit, limit))
