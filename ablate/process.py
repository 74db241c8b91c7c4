"""The process of a worker: what it keeps from one trial to the next, and the state that it brings each of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablate import memory

if TYPE_CHECKING:
    from ablate.corpus import Corpus
    from ablate.train import Kept


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


def forget() -> None:
    """Drop what is kept, and give the device's memory back."""
    _expensive.steps = _expensive.corpus = None
    memory.give_back()


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
