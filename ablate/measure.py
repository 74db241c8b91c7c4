"""Step time, throughput, FLOPs, MFU, and memory by category.

Formulas: FLOPs as in arXiv:2204.02311, appendix B (causality is not discounted, the head counts, embedding look-ups do not).
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ablate.model import Decoder
from ablate.recipe import Recipe

FLOP_FORMULA = (
    "6 x (weights of matrix products, the head's too + seq_len x heads x (query width + value width) summed over layers); "
    "attention counted in full, whatever its mask; nothing that is computed again, look-ups, norms and other pointwise work not counted"
)
WARM_UP_STEPS = 10
"""Steps at the start that no speed figure counts: caches, allocators and clocks settle in them."""

PEAK_FLOPS: dict[tuple[str, str], float] = {
    ("H200", "bf16"): 989.5e12,
    ("H100", "bf16"): 989.5e12,
    ("A100", "bf16"): 312e12,
    ("H200", "tf32"): 494.7e12,
    ("H100", "tf32"): 494.7e12,
    ("A100", "tf32"): 156e12,
    ("H200", "fp32"): 67e12,
    ("H100", "fp32"): 67e12,
    ("A100", "fp32"): 19.5e12,
}
"""FLOP/s by device and format of products (fp16 as bf16): dense, SXM form, from the vendor's datasheets."""


def flops_per_token(model: Decoder, recipe: Recipe) -> int:
    """Forward and backward, FLOP per trained token (`FLOP_FORMULA`).

    A product of a token with a matrix takes 2 FLOP per weight, and two such products more in the backward pass; so do the products
    of its query with seq_len keys and of its weights with seq_len values.
    """
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    scores = sum(block.attention.score_width for block in model.blocks)  # type: ignore[union-attr]
    return 6 * (weights + recipe.data.seq_len * scores)


def kv_cache_bytes_per_token(model: Decoder) -> int:
    """Bytes of keys and values that inference keeps per token, at 2 bytes a number."""
    return 2 * sum(block.attention.kv_width for block in model.blocks)  # type: ignore[union-attr]


def product_dtype(recipe: Recipe) -> torch.dtype:
    """The format of numbers in matrix products."""
    precision = recipe.train.precision.build()
    return precision.autocast or precision.parameters


def peak_flops(device_name: str, recipe: Recipe) -> float | None:
    """The stated peak of this device in FLOP/s at the recipe's precision, where it is known."""
    precision = recipe.train.precision.build()
    products = "tf32" if precision.tf32 else "fp32" if product_dtype(recipe).itemsize == 4 else "bf16"
    return next((v for (name, p), v in PEAK_FLOPS.items() if name in device_name and p == products), None)


def estimated_memory(recipe: Recipe, parameters: int) -> float:
    """A rough forecast of peak memory in bytes: weights, gradients, optimizer state, and what backward needs of a micro-batch.

    Per token and layer about 16 values of the model's width, two of them of the residual stream, and 4 of the feed-forward's
    (arXiv:2205.05198, section 4, without the attention matrix, which SDPA does not keep): all of them without checkpointing, the
    results of products with `selective`, the block's input with `full`, and one block's at a time in backward. The logits three
    times; in chunks, those of one at a time, and the head's gradient. Autocast copies the weights.
    """
    size, tokens, width = (
        recipe.model,
        recipe.batch.micro_sequences * recipe.data.seq_len,
        product_dtype(recipe).itemsize,
    )
    precision, chunks = recipe.train.precision.build(), recipe.train.loss_chunks
    kept = precision.parameters.itemsize
    stream = size.dim * (width if precision.narrow_stream else kept)
    copies = (4 if kept < 4 else 0) + (width if precision.autocast else 0)
    state = parameters * (2 * kept + copies + 4 * recipe.optimizer.variant.trait("state_numbers", 2.0))
    whole = 2 * stream + (14 * size.dim + 4 * size.ffn_dim) * width
    by_checkpointing = {"selective": stream + (6 * size.dim + 2 * size.ffn_dim) * width, "full": stream}
    layer = by_checkpointing.get(recipe.train.checkpointing.name)
    values = size.n_layers * whole if layer is None else size.n_layers * layer + whole
    head = 4 * size.vocab_size * size.dim if chunks > 1 else 0
    return state + tokens * (values + size.vocab_size * (8 + width) / chunks) + head


class StepClock:
    """Times optimizer steps, each from the end of the one before, so that what the device waits for between them counts.

    By the host's clock on a CPU, by device events on a GPU, which are read when asked for. `start` begins a stretch of steps:
    what happened since the last step (an evaluation, a report) is in no step.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds: list[float] = []
        self._marks: list[Any] = []

    def start(self) -> None:
        self.read()
        self._marks = [self._mark()]

    def step(self) -> None:
        """A step has ended (on a GPU: has been asked for)."""
        self._marks.append(self._mark())
        if not self.cuda:
            self.read()

    def _mark(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> None:
        """Take in the steps so far; waits for the device."""
        if self.cuda and len(self._marks) > 1:
            self._marks[-1].synchronize()
        for before, after in itertools.pairwise(self._marks):
            self.seconds.append(before.elapsed_time(after) / 1e3 if self.cuda else after - before)
        self._marks = self._marks[-1:]

    def metrics(self, recipe: Recipe, flops: int, peak: float | None, ceiling: float | None) -> dict[str, float]:
        """Speed over the steady state: the steps after `WARM_UP_STEPS` (after a tenth of them in a run that is shorter).

        `flops` per token; `peak` and `ceiling` are the stated and the measured FLOP/s of the device.
        """
        self.read()
        steady = sorted(self.seconds[min(WARM_UP_STEPS, math.ceil(len(self.seconds) / 10)) :])
        if not steady:
            return {}
        median = statistics.median(steady)
        found = {
            "step_time_ms": 1e3 * median,
            "step_time_ms_p10": 1e3 * steady[int(0.1 * (len(steady) - 1))],
            "step_time_ms_p90": 1e3 * steady[int(0.9 * (len(steady) - 1))],
            "tokens_per_second": recipe.batch_tokens / median,
        }
        for name, most in (("mfu", peak), ("mfu_measured", ceiling)):
            if most:
                found[name] = found["tokens_per_second"] * flops / most
        return found


class Energy:
    """What a GPU uses up, in Wh, by NVIDIA's management library; None where it does not tell."""

    def __init__(self, device: torch.device) -> None:
        self._read = _energy_counter(device) if device.type == "cuda" else None
        self._start = self._read() if self._read else 0

    def wh(self) -> float | None:
        """Since this object was made."""
        return (self._read() - self._start) / 3.6e6 if self._read else None


def _energy_counter(device: torch.device) -> Callable[[], int] | None:
    """Millijoules since the driver was loaded."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)


@functools.cache
def matmul_flops(device: torch.device, dtype: torch.dtype, tf32: bool) -> float | None:
    """FLOP/s of a large product of random matrices on a GPU, in this process: the best of several, which nothing that trains beats.

    With nobody else on the device. `tf32` is the setting that it is called under. None on a CPU, where that would take minutes.
    """
    if device.type != "cuda":
        return None
    n = 8192
    x, y = torch.randn((2, n, n), device=device, dtype=dtype)
    clock = StepClock(device)
    for _ in range(3):
        torch.mm(x, y)
    clock.start()
    for _ in range(10):
        torch.mm(x, y)
        clock.step()
    clock.read()
    return 2 * n**3 / min(clock.seconds)


class StepMemory:
    """What lies on the device at the moment of a step's peak, by kind: parameters, gradients, optimizer state, activations.

    A context around one step, which shows its gradients to `watch`. Every storage that comes to be or goes is recorded, with the
    device's allocator on a GPU (so that compiled code is seen too), with the dispatcher's results elsewhere. A storage counts from its
    first moment as what it becomes: a gradient that is being computed is one. Masters of rounded parameters are optimizer state;
    activations are all that a step allocates for itself, workspace and copies in lower precision included. What else lay on the
    device before (the corpus) is not counted.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        device = next(model.parameters()).device
        self._recorder = _Allocator(device) if device.type == "cuda" else _Storages()
        held = [*model.parameters(), *model.buffers()]
        self._kinds = dict.fromkeys(self._recorder.hold(held), "parameters")
        for key in self._recorder.hold(self._state()):
            self._kinds.setdefault(key, "optimizer_state")

    def __enter__(self) -> StepMemory:
        self._recorder.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mark("optimizer_state", self._state())
        self._recorder.__exit__(*error)

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Take the gradients that these parameters have now for gradients."""
        self._mark("gradients", [p.grad for p in parameters if p.grad is not None])

    def _mark(self, kind: str, tensors: Iterable[Tensor]) -> None:
        for key in self._recorder.keys(tensors):
            self._kinds.setdefault(key, kind)

    def _state(self) -> list[Tensor]:
        """What the optimizer keeps, and what it updates: parameters of the model are known as such before."""
        kept = [t for state in self.optimizer.state.values() for t in _tensors(state.values())]
        return kept + [p for group in self.optimizer.param_groups for p in group["params"]]

    def metrics(self) -> dict[str, float]:
        """Peak and its split in GiB. The parts are counted one by one; on a GPU, the peak is the allocator's own."""
        total = most = moment = 0
        for i, (_, size) in enumerate(self._recorder.events, start=1):
            total += size
            if total > most:
                most, moment = total, i
        parts: dict[str, int] = dict.fromkeys(("parameters", "gradients", "optimizer_state", "activations"), 0)
        for key, size in self._recorder.events[:moment]:
            parts[self._kinds.get(key, "activations")] += size
        return {"peak_memory_gib": (self._recorder.peak or most) / 2**30} | {
            f"{kind}_gib": size / 2**30 for kind, size in parts.items()
        }


class _Storages(TorchDispatchMode):
    """Records the storages of what operators return: of a device whose allocator keeps no history."""

    def __init__(self) -> None:
        super().__init__()
        self.peak: int | None = None
        """In bytes, where the device counts for itself."""
        self.events: list[tuple[int, int]] = []
        """(storage, bytes) in order, the bytes negative where a storage goes."""
        self._keys: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._known: list[weakref.ref[Any]] = []

    def hold(self, tensors: Iterable[Tensor]) -> list[int]:
        """Record the storages of tensors that are there already."""
        return [self._record(tensor.untyped_storage()) for tensor in tensors]

    def keys(self, tensors: Iterable[Tensor]) -> list[int]:
        return self.hold(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(tensor.untyped_storage()) for tensor in _tensors(args)}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors([out]):
            storage = tensor.untyped_storage()
            if id(storage) not in inputs:
                self._record(storage)
        return out

    def _record(self, storage: Any) -> int:
        if storage not in self._keys:
            key, size = len(self._known), storage.nbytes()
            self._keys[storage] = key
            self.events.append((key, size))
            self._known.append(weakref.ref(storage, lambda _: self.events.append((key, -size))))
        return self._keys[storage]


class _Allocator:
    """Reads what was allocated and freed from the history that CUDA's caching allocator keeps."""

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
        self.peak: int | None = None
        self.events: list[tuple[int, int]] = []
        self._held: dict[int, int] = {}

    def __enter__(self) -> None:
        torch._C._cuda_clearCublasWorkspaces()  # so that a step shows that it needs one
        self._before = torch.cuda.memory_allocated(self.device) - sum(size for _, size in self.events)
        torch.cuda.reset_peak_memory_stats(self.device)
        torch.cuda.memory._record_memory_history(context=None, clear_history=True)

    def __exit__(self, *error: Any) -> None:
        torch.cuda.memory._record_memory_history(enabled=None)
        self.peak = torch.cuda.max_memory_allocated(self.device) - self._before

    def hold(self, tensors: Iterable[Tensor]) -> list[int]:
        """Record the storages of tensors that are there already."""
        found = []
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage.data_ptr() not in self._held:
                self._held[storage.data_ptr()] = len(self._held)
                self.events.append((len(self.events), storage.nbytes()))
            found.append(self._held[storage.data_ptr()])
        return found

    def keys(self, tensors: Iterable[Tensor]) -> list[int]:
        """Read the history so far, which addresses the blocks; a block is known by the place of its allocation in it."""
        live, count = dict(self._held), len(self._held)
        events = self.events[:count]
        snapshot: Any = torch.cuda.memory._snapshot(self.device)
        for entry in snapshot["device_traces"][self.device.index]:
            if entry["action"] == "alloc":
                live[entry["addr"]] = count
                events.append((count, entry["size"]))
                count += 1
            elif entry["action"] == "free_requested" and entry["addr"] in live:
                events.append((live.pop(entry["addr"]), -entry["size"]))
        self.events = events
        addresses = [tensor.untyped_storage().data_ptr() for tensor in tensors]
        return [live[address] for address in addresses if address in live]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
