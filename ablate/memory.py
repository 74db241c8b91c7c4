"""The memory of devices: when it is exhausted, who holds it, how it is given back."""

from __future__ import annotations

import gc

import torch

EXHAUSTED = (
    "DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "CUDA driver error: out of memory",
    "STATUS_ALLOC_FAILED",
)  # fmt: skip
"""What errors say whose class does not tell: of the CPU's allocator, and of libraries that allocate past torch."""
CROWD_SHARE = 0.1
"""What other processes hold of a device's memory counts from this share on."""


def is_exhausted(error: BaseException) -> bool:
    """Whether it says that the memory of the device, or of the machine, is exhausted."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(text in str(error) for text in EXHAUSTED)


def give_back() -> None:
    """Give back what nothing uses any more of the memory of a GPU, if one is in use."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def held_by_others(device: str) -> float:
    """GiB of a GPU that other processes hold; 0 where that is so little that a trial fits or does not without it."""
    if device != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info()
    others = total - free - torch.cuda.memory_reserved()
    return others / 2**30 if others > CROWD_SHARE * total else 0.0
