"""The process of a worker: what it keeps from one trial to the next, and the state that it brings each of them."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablate.corpus import Corpus
    from ablate.train import Kept

NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "CUDA driver error: out of memory",
    "STATUS_ALLOC_FAILED",
)  # fmt: skip
"""What errors say whose class does not tell: of the CPU's allocator, and of libraries that allocate past torch."""
CROWD_SHARE = 0.1
"""What other processes hold of a device's memory counts from this share on."""


@dataclass(slots=True)
class _Expensive:
    """What takes seconds to make."""

    steps: Kept | None = None
    corpus: Corpus | None = None


_expensive = _Expensive()


def corpus(fingerprint: str, prepare: Callable[[], Corpus]) -> Corpus:
    """The corpus of the last trial, if it has this fingerprint, or else what `prepare` finds."""
    if _expensive.corpus is None or _expensive.corpus.fingerprint != fingerprint:
        _expensive.corpus = prepare()
    return _expensive.corpus


def steps() -> Kept:
    """The prepared step of the last trial, with the tokens on the device."""
    from ablate.train import Kept

    _expensive.steps = _expensive.steps or Kept()
    return _expensive.steps


def forget(device: str) -> None:
    """Drop what is kept, and give the device's memory back."""
    import torch

    _expensive.steps = _expensive.corpus = None
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def reset(device: str, threads: int) -> None:
    """Bring the process to the state in which every trial starts, however many it ran before; what is kept stays."""
    import numpy as np
    import torch

    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def usable(device: str) -> bool:
    """Whether this process can still train: after some CUDA errors every later call fails too."""
    import torch

    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that the memory of the device, or of the machine, is exhausted."""
    import torch

    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(text in str(error) for text in NO_MEMORY)


def held_by_others(device: str) -> float:
    """GiB of a GPU that other processes hold; 0 where that is so little that a trial fits or does not without it."""
    import torch

    if device != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info()
    others = total - free - torch.cuda.memory_reserved()
    return others / 2**30 if others > CROWD_SHARE * total else 0.0
