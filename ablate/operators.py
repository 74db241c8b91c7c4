"""What torch's dispatcher shows of code that runs: its operators, and the memory of the tensors that they return."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SYNCHRONISING = frozenset({
    "aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.unique", "aten._unique2",
})  # fmt: skip
"""Operators whose result, or its shape, the host waits for."""


class Operators(TorchDispatchMode):
    """Counts operators by name within a context; views, which compute nothing, are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.found[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def host_syncs(self) -> int:
        """How often the host would wait for a device."""
        return sum(self.found[name] for name in SYNCHRONISING)

    def counts(self) -> dict[str, float]:
        """`operators` and `host_syncs`."""
        return {"operators": float(self.found.total()), "host_syncs": float(self.host_syncs)}


class Footprint(Operators):
    """Counts operators, and the most bytes at once of the tensors that they returned. What was there before is not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.devices: set[torch.device] = set()
        self._held = 0
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing counts meanwhile."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._paused:
            return func(*args, **(kwargs or {}))
        given = {id(storage) for storage in _storages([args, kwargs or {}])}
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for storage in _storages(out):
            if id(storage) not in given:
                self._record(storage)
        return out

    def _record(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._gone(key)), size
            self.devices.add(storage.device)
            self._held += size
            self.peak = max(self.peak, self._held)

    def _gone(self, key: int) -> None:
        self._held -= self._alive.pop(key)[1]

    def counts(self) -> dict[str, float]:
        """Those of `Operators`, and `peak_memory_gib`."""
        return super().counts() | {"peak_memory_gib": self.peak / 2**30}


def _storages(values: Any) -> Iterator[Any]:
    """Of the tensors in nested lists and mappings; a sparse one has none of its own."""
    if isinstance(values, Tensor):
        if values.layout == torch.strided:
            yield values.untyped_storage()
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _storages(value)
    elif isinstance(values, dict):
        yield from _storages(list(values.values()))
