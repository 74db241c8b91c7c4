"""Disks, clocks, locks and servers that fail as real ones do."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0

PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


def in_one_line(ended: tuple[int, str, str], says: str) -> None:
    """A command ended with 2, and said why in a line."""
    code, _, err = ended
    assert code == 2 and err.startswith("error: ") and says in err and len(err.splitlines()) == 1, (code, err)


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Something mounted at a folder, where this process may do so."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"may not mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    with mounted(folder, "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs") as disk:
        yield disk


def fill(disk: Path) -> Path:
    """Leave not a byte on a disk."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (2**20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return ballast


CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static time_t back(void) {
    int before = errno;
    const char *path = getenv("CLOCK_IS_BACK");
    time_t seconds = path && access(path, F_OK) == 0 ? 7200 : 0;
    errno = before;
    return seconds;
}
int clock_gettime(clockid_t id, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    if (!failed && id == CLOCK_REALTIME) now->tv_sec -= back();
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec t;
    int failed = clock_gettime(CLOCK_REALTIME, &t);
    now->tv_sec = t.tv_sec;
    now->tv_usec = t.tv_nsec / 1000;
    return failed;
}
time_t time(time_t *to) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (to) *to = t.tv_sec;
    return t.tv_sec;
}
"""


def held(path: Path) -> subprocess.Popen[str]:
    """Another process that has locked a database, for as long as its stdin is open."""
    code = (
        "import sqlite3, sys; d = sqlite3.connect(sys.argv[1], isolation_level=None); d.execute('BEGIN EXCLUSIVE'); "
        "print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


class Cut(ThreadingHTTPServer):
    """Passes calls on to a server until `left` is used up: the next one reaches it, and its answer is lost with all that follow."""

    def __init__(self, port: int) -> None:
        self.left = 0

        class Pass(BaseHTTPRequestHandler):
            server: Cut

            def do_POST(self) -> None:
                self.server.left -= 1
                if self.server.left < -1:
                    self.connection.close()
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as real:
                    real.request(self.command, self.path, body, headers)
                    answer = real.getresponse()
                    text = answer.read()
                if self.server.left >= 0:
                    self.send_response(answer.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                self.close_connection = True

            do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Pass)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def without_room(job: Any, place: Any, hooks: Any) -> Any:
    """A trainer whose disk is full; what it calls says something else of that."""
    try:
        with open("/dev/full", "w") as file:
            file.write("x")
    except OSError:
        raise RuntimeError("unexpected position") from None
