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
STOPPING_SECONDS = 3.0
CLOSING_SECONDS = 60.0


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
    ray_thread: threading.Thread, others: set[psutil.Process], *, started: threading.Event, closing: threading.Event
) -> None:
    """Have the Ray thread come to its end, and kill what is left of Ray. `others` are descendants that are not Ray's.

    `ray.shutdown` from here while `fit` runs there crashes the process. So an interrupted `fit` loses its workers, gets no more
    rows, and returns. On a cluster the workers go when this process does. Once the thread is `closing`, in `ray.shutdown`, it is
    let be: without its servers, which on a busy machine take seconds to say goodbye, Ray's core ends this process with status 1.
    """
    processes: set[psutil.Process] = set()
    began = time.monotonic()
    while ray_thread.is_alive() and time.monotonic() - began < (
        CLOSING_SECONDS if closing.is_set() else STOPPING_SECONDS
    ):
        # listed again and again: when parents die, their children become somebody else's
        processes |= set(psutil.Process().children(recursive=True)) - others
        _kill(process for process in processes if not closing.is_set() and _may_train(process))
        ray_thread.join(0.1)
    if ray_thread.is_alive() and not started.is_set():
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
