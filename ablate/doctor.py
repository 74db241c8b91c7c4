"""What must be in order before a run, checked one by one."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from registry import Spool, Store
from registry.home import home

LIBRARIES = ("torch", "ray", "mlflow", "datasets", "tokenizers", "duckdb", "pandas")
TRAINING = ("torch", "ray", "datasets", "tokenizers")
LITTLE_GIB = 2.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing, whether it is in order, and what was found."""

    name: str
    ok: bool
    text: str


def checks() -> Iterator[Check]:
    """Every check, in the order in which a run would meet the trouble."""
    yield Check("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}")
    for name in LIBRARIES:
        there = importlib.util.find_spec(name) is not None
        needed = "needed to train: pip install 'ablate-bench[train]'" if name in TRAINING else "reinstall ablate-bench"
        yield Check(name, there, importlib.metadata.version(name) if there else f"not installed, {needed}")
    if importlib.util.find_spec("torch") is not None:
        yield from _devices()
    yield _folder(home())
    yield _registry(home())


def _devices() -> Iterator[Check]:
    from ablate import environment
    from ablate.mps import control

    found, share = environment.expected(), environment.share()
    memory = f", {found['device_memory_gib']} GiB" if "device_memory_gib" in found else ""
    number = f"{share.devices} x " if share.devices > 1 else ""
    yield Check(
        "device",
        True,
        f"{found['device_type']}: {number}{found['device']}{memory}; {found['cores']} cores, {found['memory_gib']} GiB; "
        f"up to {share.per_device} workers{' on each' if share.devices > 1 else ''}",
    )
    if share.device == "cuda":
        yield Check("mps", True, control() or "not installed: trials that --pack runs at once take turns on the GPU")


def _folder(folder: Path) -> Check:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Check("ABLATE_HOME", False, f"{folder}: {there} cannot be written to")
    free = shutil.disk_usage(there).free / 2**30
    return Check("ABLATE_HOME", free >= LITTLE_GIB, f"{folder}, {free:.0f} GiB free")


def _registry(folder: Path) -> Check:
    try:
        store = Store.open(folder, create=False)
        trials, damaged = len(store.trials()), len(store.damaged())
    except ValueError as error:
        return Check("registry", False, str(error))
    waiting = len(Spool(folder).records())
    text = f"{store.name}: {trials} records, {waiting} waiting in the spool, {damaged} damaged"
    return Check("registry", not damaged, text)
