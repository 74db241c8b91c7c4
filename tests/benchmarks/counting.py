"""What is counted of a call beside its time. It is the same each time the same code runs, so that it can be held against a file."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from ablate.operators import Footprint

WARM_UP = 2
"""Calls before the one that is counted: what is prepared once and kept is prepared then, an optimizer's state in the first step."""
ROUNDS = 5
"""Of a call that needs something new each time."""


class Held:
    """Times a call with pytest-benchmark, and keeps what is counted of one more call in its `extra_info`.

    Where benchmarks are disabled, as by pytest-xdist, it is called once.
    """

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark

    def tensors(self, call: Callable[[], object], settings: str = "") -> None:
        """Hold `operators`, `host_syncs` and `peak_memory_gib`. Where `settings` are not those of the file, a new one is asked for."""
        if self._benchmark.enabled:
            for _ in range(WARM_UP):
                call()
            with _settled(), Footprint() as footprint:
                call()
            self._benchmark.extra_info |= footprint.counts() | {"settings": settings}
        self._benchmark(call if not torch.cuda.is_available() else lambda: (call(), torch.cuda.synchronize()))

    def python(self, call: Callable[..., object], setup: Callable[[], tuple[Any, ...]] = tuple) -> None:
        """Hold `calls`: how many Python functions `call(*setup())` enters, those of libraries included."""
        if self._benchmark.enabled:
            for _ in range(WARM_UP):
                call(*setup())
            self._benchmark.extra_info["calls"] = float(_calls(call, setup()))
        self._benchmark.pedantic(call, setup=lambda: (setup(), {}), rounds=ROUNDS)


def _calls(call: Callable[..., object], args: tuple[Any, ...]) -> int:
    """Functions entered in this thread."""
    entered = 0

    def seen(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal entered
        entered += event == "call"

    with _settled():
        before = sys.getprofile()
        sys.setprofile(seen)
        try:
            call(*args)
        finally:
            sys.setprofile(before)
    return entered


@contextmanager
def _settled() -> Iterator[None]:
    """The collector has done its work, and does none meanwhile: when it would depends on what ran before."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
