"""Ways from hidden states to the loss and the gradients of both its inputs, in bf16, in turns: time and peak memory.

The last one has GPT-2's vocabulary. `checkpointed`: pieces whose logits are computed again in the backward pass. torch's own
function is there where torch has it; its chunks do not compile. On a GPU every call is a replayed graph, without the host's time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import bench
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ablate._loss import bounded, chunked_cross_entropy, cross_entropy

SHAPES = {(65_536, 768, 50_304): (4, 8, 16), (16_384, 384, 8192): (4,), (16_384, 128, 8192): (4,)}
"""Tokens, width and vocabulary, and numbers of chunks to try."""
CHECKPOINTED_CHUNKS = 8
ROUNDS, WINDOW_SECONDS = 5, 0.1
FORECAST = 4
"""Seconds that compiling and timing a contender may take; none is begun with less left."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(bounded(F.linear(hidden, weight), 1.0, None), targets, 0.0, 0.0)[1]


def checkpointed(chunks: int) -> Loss:
    def piece(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        pieces = zip(hidden.chunk(chunks), targets.chunk(chunks), strict=True)
        return torch.stack([checkpoint(piece, h, weight, t, use_reentrant=False) for h, t in pieces]).sum() / len(
            targets
        )

    return loss


def ours(chunks: int) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return chunked_cross_entropy(hidden, weight, targets, chunks, scale=1.0, cap=None, smoothing=0.0, z_loss=0.0)[1]

    return loss


def torchs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    own: Any = F.linear_cross_entropy  # type: ignore[attr-defined] # since torch 2.13
    return own(hidden.bfloat16(), weight.bfloat16(), targets, options=torch.nn.LinearCrossEntropyOptions())  # type: ignore[attr-defined]


def added_gib(call: Callable[[], object], device: str) -> list[float]:
    """The peak of a call above what was there before it; nothing on a CPU."""
    if device == "cpu":
        return []
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return [(torch.cuda.max_memory_allocated() - before) / 2**30]


def replayed(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a graph, warmed up on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def compare(results: bench.Results, shape: tuple[int, int, int], chunks: tuple[int, ...], device: str) -> None:
    tokens, dim, vocabulary = shape
    case = f"{tokens:,} x {dim} x {vocabulary:,}"
    losses: dict[str, Loss] = {
        "plain": plain,
        f"checkpointed, {CHECKPOINTED_CHUNKS}": checkpointed(CHECKPOINTED_CHUNKS),
    }
    losses |= {f"ablate, {n}": ours(n) for n in chunks}
    backend = "inductor" if device == "cuda" else "eager"
    compiled = {
        name: torch.compile(loss, backend=backend, fullgraph=True, dynamic=False) for name, loss in losses.items()
    }
    if hasattr(F, "linear_cross_entropy"):
        compiled["torch's own"] = torchs
    bench.empty(device)
    hidden = torch.randn(tokens, dim, device=device, requires_grad=True)
    weight = (0.02 * torch.randn(vocabulary, dim, device=device)).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,), device=device)
    calls: dict[str, Callable[[], object]] = {}
    peaks: dict[str, list[float]] = {}
    objectives: dict[str, float] = {}
    for name, loss in compiled.items():
        if not results.affords(FORECAST, case, name):
            continue
        with results.guard(case, name):

            def call(loss: Loss = loss) -> Tensor:
                with torch.autocast(device, torch.bfloat16, cache_enabled=False):
                    objective = loss(hidden, weight, targets)
                torch.autograd.grad(objective, (hidden, weight))
                return objective.detach()

            objectives[name] = float(call())
            peaks[name] = added_gib(call, device)
            calls[name] = replayed(call) if device == "cuda" else call
    seconds = bench.rounds(calls, device, seconds=WINDOW_SECONDS, count=ROUNDS)
    for name, found in seconds.items():
        measurements = {"ms": [1e3 * one for one in found], "tokens_per_second": [tokens / one for one in found]}
        measurements |= {"peak_memory_gib": peaks[name]} if peaks[name] else {}
        results.add(case, name, measurements, objective=objectives[name], tokens=tokens, dim=dim, vocabulary=vocabulary)


def main() -> int:
    options = bench.parser(__doc__ or "", budget=60).parse_args()
    results = bench.Results("loss", (__doc__ or "").partition("\n")[0], options)
    for shape, chunks in ({(64, 16, 128): (4,)} if options.tiny else SHAPES).items():
        compare(results, shape, chunks, options.device)
    results.compare("plain")
    return results.finish()


if __name__ == "__main__":
    sys.exit(main())
