"""What a trial ran on, and the id of what decides its numbers there."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.recipe import digest

WORKERS_PER_GPU = 2
"""One trains while the other imports, loads, compiles and warms up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How workers share a machine: `devices` GPUs, or the CPU as one device; torch threads per worker."""

    device: str
    devices: int
    per_device: int
    threads: int


def share(workers: int | None = None) -> Share:
    """Two workers per GPU; without a GPU one single-threaded worker per core.

    The threads are part of a CPU's numbers, so they depend on the machine alone and never on how many trials there are. An
    explicit number of `workers` (per device) divides the cores of a machine without a GPU among them.

    Raises:
        UserError: fewer than one worker, or more than there are cores.
    """
    import torch

    if workers is not None and workers < 1:
        raise UserError(f"workers per device: {workers} is not a positive number")
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        return Share(device="cuda", devices=gpus, per_device=workers or WORKERS_PER_GPU, threads=1)
    if workers is not None and workers > cores():
        raise UserError(f"workers per device: {workers} is more than the {cores()} cores there are")
    threads = cores() // workers if workers else 1
    return Share(device="cpu", devices=1, per_device=workers or cores(), threads=threads)


def workers(per_device: int | None, trials: int) -> int:
    """How many workers a run of so many trials starts on this machine."""
    found = share(per_device)
    return min(trials, found.devices * found.per_device)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(device: str, threads: int) -> dict[str, Any]:
    """This machine as a trial on `device` (`cuda` or `cpu`) with so many torch threads sees it; memory in GiB."""
    import torch

    found: dict[str, Any] = {
        "device": _cpu_name(),
        "device_type": device,
        "torch": torch.__version__,
        "cuda": None,
        "threads": threads,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "device_memory_gib": round(properties.total_memory / 2**30, 1),
        }
    return found


def environment_id(environment: Mapping[str, Any]) -> str:
    """16 hexadecimal digits over the device's model, torch, CUDA and the threads; the rest of `describe` is context."""
    return digest({name: environment[name] for name in ("device", "torch", "cuda", "threads")})


def expected(*, workers: int | None = None) -> dict[str, Any]:
    """What the workers of a run on this machine will describe, found without starting any."""
    found = share(workers)
    return describe(found.device, found.threads)


def git_revision() -> tuple[str, bool]:
    """The commit of this code and whether tracked files differ from it; `("", False)` outside of a repository."""
    here = Path(__file__).resolve()
    # a virtual environment may lie inside somebody else's repository
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return "", False
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return _git(here.parent, "rev-parse", "HEAD") or "", bool(changed)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
