"""Step time, throughput, FLOPs, MFU, and memory by category.

Formulas: FLOPs as in arXiv:2204.02311, appendix B (causality is not discounted, the head counts, embedding look-ups do not).
"""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ablate.model import Decoder
from ablate.recipe import Recipe

FLOP_FORMULA = "6 x weights of matrix products (the head's too) + 12 x layers x heads x head_dim x seq_len"
WARM_UP_STEPS = 10
"""Steps at the start that no speed figure counts: caches, allocators and clocks settle in them."""

PEAK_FLOPS: dict[tuple[str, str], float] = {
    ("H200", "bf16"): 989.5e12,
    ("H100", "bf16"): 989.5e12,
    ("A100", "bf16"): 312e12,
    ("H200", "fp32"): 67e12,
    ("H100", "fp32"): 67e12,
    ("A100", "fp32"): 19.5e12,
}
"""FLOP/s by device and precision: dense, SXM form, from the vendor's datasheets."""


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def flops_per_token(model: Decoder, recipe: Recipe) -> int:
    """Forward and backward, FLOP per trained token (`FLOP_FORMULA`)."""
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    sizes = recipe.model
    return 6 * weights + 12 * sizes.n_layers * sizes.n_heads * sizes.head_dim * recipe.data.seq_len


def kv_cache_bytes_per_token(model: Decoder) -> int:
    """Bytes of keys and values that inference keeps per token, at 2 bytes a number."""
    return 2 * sum(block.attention.kv_width for block in model.blocks)  # type: ignore[union-attr]


def peak_flops(device_name: str, precision: str) -> float | None:
    """The stated peak of this device in FLOP/s, where it is known."""
    return next((v for (name, p), v in PEAK_FLOPS.items() if name in device_name and p == precision), None)


def estimated_memory(recipe: Recipe, parameters: int) -> float:
    """A rough forecast of peak memory in bytes: weights, gradients, optimizer state, and what backward needs of a micro-batch.

    Per token and layer about 16 values of the model's width and 4 of the feed-forward's (arXiv:2205.05198, section 4, without the
    attention matrix, which SDPA does not keep), and the logits three times.
    """
    size, tokens = recipe.model, recipe.batch.micro_sequences * recipe.data.seq_len
    width = 4 if recipe.train.precision.name in ("fp32", "tf32") else 2
    state = 4 * parameters * (2 + recipe.optimizer.variant.trait("state_numbers", 2.0))
    layers = tokens * size.n_layers * (16 * size.dim + 4 * size.ffn_dim) * width
    return state + layers + tokens * size.vocab_size * (8 + width)


class StepClock:
    """Times optimizer steps: by the host's clock on a CPU, by device events on a GPU, which are read when asked for."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds: list[float] = []
        self._pending: list[tuple[Any, Any]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        if self.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._pending.append((start, end))
        else:
            begin = time.perf_counter()
            yield
            self.seconds.append(time.perf_counter() - begin)

    def read(self) -> None:
        """Take in the events so far; waits for the device."""
        if self._pending:
            self._pending[-1][1].synchronize()
            self.seconds += [start.elapsed_time(end) / 1e3 for start, end in self._pending]
            self._pending.clear()

    def metrics(self, recipe: Recipe, flops: int, peak: float | None) -> dict[str, float]:
        """Speed over the steady state: the steps after `WARM_UP_STEPS` (after a tenth of them in a run that is shorter)."""
        self.read()
        steady = self.seconds[min(WARM_UP_STEPS, math.ceil(len(self.seconds) / 10)) :]
        if not steady:
            return {}
        median = statistics.median(steady)
        found = {
            "step_time_ms": 1e3 * median,
            "step_time_ms_p90": 1e3 * sorted(steady)[int(0.9 * (len(steady) - 1))],
            "tokens_per_second": recipe.batch_tokens / median,
        }
        if peak:
            found["mfu"] = found["tokens_per_second"] * flops / peak
        return found


class TensorMemory(TorchDispatchMode):
    """The peak of bytes in storages that came to be within this context: what a device without an allocator's count has."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(t.untyped_storage()) for t in _tensors(args)}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out if isinstance(out, (tuple, list)) else (out,)):
            storage = tensor.untyped_storage()
            if id(storage) not in inputs and storage not in self._known:
                self._known[storage] = None
                size = storage.nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, size)
        return out

    def _freed(self, size: int) -> None:
        self.live -= size


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def memory_metrics(model: nn.Module, optimizer: torch.optim.Optimizer, peak_bytes: int) -> dict[str, float]:
    """The peak in GiB and its split: parameters (with buffers), gradients, optimizer state, and the rest as activations."""
    parameters = sum(p.nbytes for p in model.parameters())
    state = sum(t.nbytes for entry in optimizer.state.values() for t in _tensors(entry.values()))
    buffers = sum(b.nbytes for b in model.buffers())
    parts = {
        "peak_memory_gib": peak_bytes,
        "parameters_gib": parameters + buffers,
        "gradients_gib": parameters,
        "optimizer_state_gib": state,
        "activations_gib": max(0, peak_bytes - 2 * parameters - buffers - state),
    }
    return {name: value / 2**30 for name, value in parts.items()}
