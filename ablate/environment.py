"""What a trial ran on, and the id of what decides its numbers there."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.recipe import digest

WORKERS_PER_GPU = 4
"""One trains while the others import, load, compile and warm up."""
MEMORY_SHARE, CORES_PER_WORKER, HOST_GIB_PER_WORKER = 0.8, 2, 6.0
"""What workers on a GPU may forecast of its memory all together, and what each needs of the machine to compile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How workers share a machine: `devices` GPUs, or the CPU as one device; torch threads per worker."""

    device: str
    devices: int
    per_device: int
    threads: int

    def workers(self, trials: int) -> int:
        """How many workers a run of so many trials starts."""
        return min(trials, self.devices * self.per_device)


def share(workers: int | None = None, *, pack: int | None = None, memory_gib: float = 0.0) -> Share:
    """As many workers per GPU as `workers_per_gpu` finds room for; without a GPU one single-threaded worker per core.

    `pack` trials are to train at once on each GPU. `memory_gib` is the largest forecast of a trial. The threads are part of a
    CPU's numbers, so they depend on the machine alone and never on how many trials there are. An explicit number of `workers` (per
    device) divides the cores of a machine without a GPU among them.

    Raises:
        UserError: fewer than one worker, more than there are cores, or `pack` without a GPU or beside `workers`.
    """
    import torch

    for name, number in (("workers per device", workers), ("trials packed on a GPU", pack)):
        if number is not None and number < 1:
            raise UserError(f"{name}: {number} is not a positive number")
    if pack is not None and workers is not None:
        raise UserError("--pack already says how many workers there are on each GPU: leave out --workers")
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        device_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        per_device = pack or workers or workers_per_gpu(
            device_gib=device_gib, trial_gib=memory_gib, cores=cores() // gpus, host_gib=host_gib() / gpus
        )  # fmt: skip
        return Share(device="cuda", devices=gpus, per_device=per_device, threads=1)
    if pack is not None:
        raise UserError("--pack trains several trials at once on a GPU, and there is none: use --workers on a CPU")
    if workers is not None and workers > cores():
        raise UserError(f"workers per device: {workers} is more than the {cores()} cores there are")
    threads = cores() // workers if workers else 1
    return Share(device="cpu", devices=1, per_device=workers or cores(), threads=threads)


def workers_per_gpu(*, device_gib: float, trial_gib: float, cores: int, host_gib: float) -> int:
    """How many workers a GPU has room for, at least one: by its memory, and its share of the machine's cores and memory."""
    room = MEMORY_SHARE * device_gib / trial_gib if trial_gib else WORKERS_PER_GPU
    limits = (WORKERS_PER_GPU, room, cores // CORES_PER_WORKER, host_gib / HOST_GIB_PER_WORKER)
    return max(1, int(min(limits)))


def for_workers(found: Share, home: Path) -> dict[str, str]:
    """The variables that a worker's process needs before it imports torch: threads as recorded, caches that outlive it.

    What the user set of caches and the compiler's threads stays as it is.
    """
    cache = home / "cache" / "inductor"
    compilers = max(1, cores() // (found.devices * found.per_device))
    wanted = {
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": str(compilers),
    }
    # Ray would give them the number of CPUs that it counts for a worker
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(found.threads))
    return {name: os.environ.get(name, value) for name, value in wanted.items()} | threads


@contextmanager
def exported(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started meanwhile inherit these environment variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def cores() -> int:
    """CPU cores that this process may use: those of its affinity, or what its control group is given of their time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _control_group("cpu.max").partition(" ")
    return max(1, min(count, round(int(quota) / int(period)))) if quota.isdigit() and period.isdigit() else count


def host_gib() -> float:
    """Memory of this machine that its processes may use, in GiB: all, or what their control group is given."""
    physical, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _control_group("memory.max")
    return (min(physical, int(limit)) if limit.isdigit() else physical) / 2**30


def _control_group(name: str) -> str:
    """What a container's control group (version 2) says; empty outside of one, `max` where it sets no limit."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""


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
        "memory_gib": round(host_gib(), 1),
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


def device_uuid(device: str) -> str:
    """What tells the device that this process works on (`cuda` or `cpu`) from the others of the machine."""
    import torch

    return str(torch.cuda.get_device_properties(0).uuid) if device == "cuda" else "cpu"


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
