"""How a run is ended: by signals, and with no process of Ray's left behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHUTDOWN_SECONDS = 3.0


@contextmanager
def signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Take SIGINT and SIGTERM, and give them back at the end."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    handle(dict.fromkeys(SIGNALS, handler))
    try:
        yield
    finally:
        handle(before)


def handle(handlers: Mapping[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():  # nobody else may
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end_ray(
    ray_thread: threading.Thread, others: set[psutil.Process], *, interrupted: bool, started: Callable[[], bool]
) -> None:
    """Have the Ray thread come to its end, and kill what is left of Ray. `others` are descendants that are not Ray's.

    `ray.shutdown` from here while `fit` runs there crashes the process. So an interrupted `fit` loses its workers, gets no more
    rows, and returns. On a cluster the workers go when this process does.
    """
    processes: set[psutil.Process] = set()
    end = time.monotonic() + SHUTDOWN_SECONDS
    while ray_thread.is_alive() and time.monotonic() < end:
        # listed again and again: when parents die, their children become somebody else's
        processes |= set(psutil.Process().children(recursive=True)) - others
        _kill(process for process in processes if interrupted and _may_train(process))
        ray_thread.join(0.1)
    if ray_thread.is_alive() and not started():
        # `ray.init` waits minutes for a server that was killed, and lets no other thread of this process run meanwhile
        pids = [str(process.pid) for process in processes]
        subprocess.Popen(
            ["sh", "-c", 'sleep 0.5; kill -9 "$@"', "sh", *pids], start_new_session=True, stderr=subprocess.DEVNULL
        )
        return
    _kill(processes)
    psutil.wait_procs(processes, timeout=1)


def _may_train(process: psutil.Process) -> bool:
    """Whether it is a worker that is starting or busy, by the title that Ray gives it."""
    try:
        title = process.name()
    except psutil.Error:
        return False
    # without its agents Ray's own daemon dies too; names may be cut at 15 characters
    return title.startswith("ray::") and not title.startswith(("ray::IDLE", "ray::Dashboard", "ray::RuntimeEnv"))


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
