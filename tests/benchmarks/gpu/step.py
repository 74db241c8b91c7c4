"""Our step against a hand-written loop at 1M, 10M and 30M parameters, in turns: tokens/s.

`--yardstick FILE` is that loop: a module with `SIZES` (dim, layers, heads, key and value heads, feed-forward width by
size) and `Trial(size, vocabulary, T, sequences, device, mode)`, whose `step()` does all of a step. Shapes are its own:
RMSNorm, RoPE, grouped queries, SwiGLU, an untied head, vocabulary 8,192, T 512, 32 sequences a step in one micro-batch,
AdamW, clipping at 1.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import bench
import torch

from ablate.recipe import Recipe
from ablate.step import Step
from ablate.variants import load_factors

ROUNDS, WINDOW_SECONDS = 5, 0.5
SIZES = {
    "1m": (128, 4, 2, 1, 384), "10m": (384, 6, 6, 2, 1024), "30m": (512, 10, 8, 2, 1408), "tiny": (64, 2, 2, 1, 128),
}  # fmt: skip
"""dim, layers, heads, key and value heads, feed-forward width."""
PRECISIONS = ("bf16", "bf16_activations")
MODES = ("compile", "graph+compile")


def recipe_of(size: str, precision: str, *, vocabulary: int, seq_len: int, sequences: int) -> Recipe:
    dim, layers, heads, kv_heads, ffn = SIZES[size]
    return bench.recipe(
        "10m", model__dim=dim, model__n_layers=layers, model__n_heads=heads, model__ffn_dim=ffn,
        model__attention={"gqa": {"n_kv_heads": kv_heads}}, model__vocab_size=vocabulary, data__tokenizer="bytes",
        data__seq_len=seq_len, batch__sequences=sequences, batch__micro_sequences=sequences, train__precision=precision,
    )  # fmt: skip


def ours(recipe: Recipe, device: str) -> tuple[Step, Callable[[], object]]:
    """A prepared step, and what does one on the next of 16 batches."""
    windows = bench.random_windows(recipe, device, 16)
    step = Step(recipe, device)
    step.prepare(windows[0])
    step.begin(recipe)
    batches = bench.in_turn(windows)
    return step, lambda: step(next(batches), 1.0)


def compare(results: bench.Results, size: str, small: ModuleType | None, options: Any, dims: dict[str, int]) -> None:
    """All contenders of one size are alive at once, and take turns. Ours are first: preparing may drop what is compiled."""
    device = options.device
    bench.empty(device)
    steps: dict[str, Step] = {}
    contenders: dict[str, Callable[[], object]] = {}
    for precision in options.precisions:
        name = f"ablate, {precision}"
        steps[name], contenders[name] = ours(recipe_of(size, precision, **dims), device)
    theirs = [f"hand-written, {mode}" for mode in MODES]
    if small is not None:
        assert small.SIZES[size] == SIZES[size], "the yardstick has other shapes"
        for name, mode in zip(theirs, MODES, strict=True):
            trial = small.Trial(size, dims["vocabulary"], dims["seq_len"], dims["sequences"], device, mode)
            contenders[name] = trial.step
    seconds = bench.rounds(contenders, device, seconds=options.seconds, count=options.rounds)

    tokens = dims["sequences"] * dims["seq_len"]
    rates = bench.Rates.of(recipe_of(size, "bf16", **dims), device)
    for name, found in seconds.items():
        measurements = rates.speed(tokens, found)
        facts: dict[str, Any] = {}
        if name in steps:
            step = steps[name]
            facts = {"mode": step.mode, "memory": step.memory, **bench.described(step.recipe)}
            measurements["peak_memory_gib"] = [step.memory["peak_memory_gib"]]
            for other in set(theirs) & set(seconds):
                measurements[f"ratio: {other}"] = [a / b for a, b in zip(seconds[other], found, strict=True)]
        results.add(f"{size}, {tokens:,} tokens a step", name, measurements, **facts)


def main() -> int:
    parser = bench.parser(__doc__ or "", budget=150)
    parser.add_argument("--yardstick", type=Path, help="the module; only ours without")
    parser.add_argument("--sizes", nargs="+", default=["10m", "1m", "30m"], choices=SIZES)
    parser.add_argument(
        "--precisions", nargs="+", default=[p for p in PRECISIONS if p in load_factors()["precision"].variants]
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=WINDOW_SECONDS, help="of a window")
    options = parser.parse_args()
    dims = {"vocabulary": 8192, "seq_len": 512, "sequences": 32}
    if options.tiny:
        options.sizes, options.rounds, options.seconds = ["tiny"], 2, 0.05
        dims = {"vocabulary": 512, "seq_len": 32, "sequences": 2}
    torch.set_float32_matmul_precision("high")  # which the yardstick takes for granted
    small = None
    if options.yardstick is not None:
        sys.path.insert(0, str(options.yardstick.parent))
        small = importlib.import_module(options.yardstick.stem)
    results = bench.Results("step", (__doc__ or "").partition("\n")[0], options)
    took = 0.0
    for size in options.sizes:
        if results.affords(took, size, "all"):
            before = results.left
            with results.guard(size, "all"):
                compare(results, size, small, options, dims)
            took = before - results.left
    return results.finish()


if __name__ == "__main__":
    sys.exit(main())
