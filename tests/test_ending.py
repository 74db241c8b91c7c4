"""How the thread that runs Ray is waited for."""

from __future__ import annotations

import subprocess
import threading

import psutil
import pytest

from ablate import ending


def test_while_ray_shuts_down_its_servers_are_let_be_and_afterwards_none_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ending, "STOPPING_SECONDS", 0.0)
    others = set(psutil.Process().children(recursive=True))
    started, closing, alive = threading.Event(), threading.Event(), []
    server = subprocess.Popen(["sleep", "600"])

    def shut_down() -> None:
        try:
            psutil.Process(server.pid).wait(0.5)
        except psutil.TimeoutExpired:
            alive.append(True)

    started.set()
    closing.set()
    thread = threading.Thread(target=shut_down)
    thread.start()
    ending.end_ray(thread, others, started=started, closing=closing)
    assert (thread.is_alive(), alive) == (False, [True])
    assert not psutil.pid_exists(server.pid)
    server.wait()
