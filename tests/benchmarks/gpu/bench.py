"""What the benchmarks of a GPU share: the command line, timing, the file that keeps every single measurement, and its table."""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablate import environment, measure
from ablate.model import build
from ablate.recipe import Recipe
from ablate.spec import Spec
from ablate.step import Step

Measurements = dict[str, list[float]]
"""Every single measurement by metric, in the order in which they were made."""

METRICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "tokens_per_second": ("tokens/s", lambda value: f"{value:,.0f}"),
    "mfu": ("MFU", lambda value: f"{value:.1%}"),
    "mfu_measured": ("of a measured matmul", lambda value: f"{value:.1%}"),
    "peak_memory_gib": ("peak GiB", lambda value: f"{value:.2f}"),
    "allocated_gib": ("allocated GiB", lambda value: f"{value:.2f}"),
    "prepare_seconds": ("prepare s", lambda value: f"{value:.1f}"),
    "ms": ("ms", lambda value: f"{value:.3f}"),
    "seconds": ("s", lambda value: f"{value:.2f}"),
    "share": ("share", lambda value: f"{value:.3f}"),
    "ratio": ("ratio", lambda value: f"{value:.3f}"),
}
"""Header and format of each metric; `allocated_gib` is the allocator's peak from the start of a contender to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one contender came to in one case. `facts` say how it ran, where that is not in the names."""

    case: str
    contender: str
    measurements: Measurements
    facts: dict[str, Any] = field(default_factory=dict)


class Results:
    """The file of a benchmark, written anew with every row: what was measured outlives a run that is cut short."""

    def __init__(self, name: str, about: str, arguments: argparse.Namespace) -> None:
        self.path: Path = arguments.output
        self._began, self._budget = time.monotonic(), float(arguments.budget)
        revision, dirty = environment.git_revision()
        described = environment.describe(arguments.device, torch.get_num_threads())
        self.rows: list[Row] = []
        self.left_out: list[dict[str, str]] = []
        self.head: dict[str, Any] = {
            "benchmark": name, "about": about, "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "git_revision": arguments.revision or revision or None, "git_dirty": dirty if revision else None,
            "python": platform.python_version(),
            **{key: described.get(key) for key in ("device", "device_type", "torch", "cuda", "cudnn", "cpu", "cores")},
            "arguments": {key: _plain(value) for key, value in vars(arguments).items() if key != "output"},
        }  # fmt: skip

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self._budget - (time.monotonic() - self._began)

    def add(self, case: str, contender: str, measurements: Measurements, **facts: Any) -> None:
        """Keep a row, of what was measured at least once."""
        measurements = {name: values for name, values in measurements.items() if values}
        if not measurements:
            return
        self.rows.append(Row(case=case, contender=contender, measurements=measurements, facts=facts))
        print(f"{case}, {contender}: {_brief(measurements)} ({self.left:.0f} s left)", file=sys.stderr, flush=True)
        self.write()

    def skip(self, case: str, contender: str, reason: str) -> None:
        self.left_out.append({"case": case, "contender": contender, "reason": reason})
        print(f"{case}, {contender}: left out, {reason}", file=sys.stderr, flush=True)
        self.write()

    def affords(self, seconds: float, case: str, contender: str) -> bool:
        """Whether the budget lasts that much longer; what it does not last for is noted as left out."""
        if self.left >= seconds:
            return True
        self.skip(case, contender, f"the budget of {self._budget:.0f} s is spent")
        return False

    @contextmanager
    def guard(self, case: str, contender: str) -> Iterator[None]:
        """What goes wrong costs this case alone."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.skip(case, contender, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def compare(self, to: str) -> None:
        """Give every row the ratio of its tokens/s to those of a contender, medians both, where that ran the same case."""
        for base in [row for row in self.rows if row.contender == to]:
            for row in self.rows:
                if row.case == base.case and row is not base:
                    rates = [statistics.median(one.measurements["tokens_per_second"]) for one in (row, base)]
                    row.measurements[f"ratio: {to}"] = [rates[0] / rates[1]]

    def write(self) -> None:
        rows = [
            asdict(row) | {
                "n": max(map(len, row.measurements.values()), default=0),
                "median": {name: statistics.median(values) for name, values in row.measurements.items()},
            }
            for row in self.rows
        ]  # fmt: skip
        took = {"took_seconds": round(time.monotonic() - self._began, 1)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.head | took | {"rows": rows, "left_out": self.left_out}, indent=1, allow_nan=False)
        self.path.write_text(text + "\n", encoding="utf-8")

    def finish(self) -> int:
        """Write the file, print its table; 1 where something failed that should not have."""
        self.write()
        header, rows = table(json.loads(self.path.read_text(encoding="utf-8")))
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for line in (header, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return 1 if any("budget" not in left["reason"] for left in self.left_out) else 0


def table(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a result file: medians, with the lowest and highest of the first metric of a row."""
    metrics = list(dict.fromkeys(name for row in data["rows"] for name in row["measurements"]))
    rows = []
    for row in data["rows"]:
        cells = {
            name: _cell(name, values, spread=i == 0) for i, (name, values) in enumerate(row["measurements"].items())
        }
        rows.append([row["case"], row["contender"], str(row["n"]), *(cells.get(name, "") for name in metrics)])
    return ["case", "contender", "n", *(header(name) for name in metrics)], rows


def header(metric: str) -> str:
    """A metric as a column; `ratio: X` is the ratio to X."""
    return METRICS[metric][0] if metric in METRICS else metric.replace("ratio: ", "ratio to ")


def _cell(metric: str, values: Sequence[float], *, spread: bool) -> str:
    show, several = METRICS.get(metric, METRICS["ratio"])[1], spread and len(values) > 1
    return show(statistics.median(values)) + (f" ({show(min(values))} to {show(max(values))})" if several else "")


def _brief(measurements: Measurements) -> str:
    return ", ".join(f"{header(name)} {_cell(name, values, spread=False)}" for name, values in measurements.items())


def _plain(value: Any) -> Any:
    """An argument as JSON has it; of a path its name, for where it lay matters to nobody."""
    return value.name if isinstance(value, Path) else value


# The command line


def parser(about: str, *, budget: float) -> argparse.ArgumentParser:
    """`budget` is in seconds of device time; cases for which it does not last are left out, and the file says which."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write")
    made.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    made.add_argument("--tiny", action="store_true", help="sizes that show on a CPU that this runs")
    made.add_argument("--budget", type=float, default=budget, help=f"seconds, {budget:.0f} by default")
    made.add_argument("--revision", help="the commit, where the checkout cannot tell")
    return made


# Recipes


def recipe(scale: str, seed: int = 0, **overrides: Any) -> Recipe:
    """The preset of a scale with overrides, `__` for the dot. The text does not matter: tokens are given to the step."""
    spec = Spec(scale)
    spec.set_all({"data.source": "synthetic", "train.steps": 1000})
    spec.set_all({name.replace("__", "."): value for name, value in overrides.items()})
    return spec.resolve(seed)


def random_windows(recipe: Recipe, device: str, count: int = 1) -> Tensor:
    """Random tokens of `count` steps, int32 [count, sequences, T + 1]."""
    shape = (count, recipe.batch.sequences, recipe.data.seq_len + 1)
    return torch.randint(0, recipe.model.vocab_size, shape, device=device, dtype=torch.int32)


# Timing


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: str, times: int) -> float:
    """Seconds per call, of so many in a row; the device is waited for before and after."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        call()
    synchronize(device)
    return (time.perf_counter() - begin) / times


def rounds(
    contenders: Mapping[str, Callable[[], object]], device: str, *, seconds: float, count: int
) -> dict[str, list[float]]:
    """Seconds per call of every contender in each round: A B C, A B C, ..., each in a window of about `seconds`.

    What drifts (clocks, temperature) meets all of them alike, and numbers of one round may be compared.
    """
    times = {}
    for name, call in contenders.items():
        seconds_of(call, device, 3)
        times[name] = max(1, math.ceil(seconds / seconds_of(call, device, 3)))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(count):
        for name, call in contenders.items():
            found[name].append(seconds_of(call, device, times[name]))
    return found


def empty(device: str) -> float:
    """Let go of what nobody holds any more, compiled code included, and start the peak anew; GiB that are still there."""
    gc.collect()
    torch.compiler.reset()
    if device != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**30


def allocated_gib(device: str) -> list[float]:
    """The allocator's peak since `empty`; nothing on a CPU."""
    return [torch.cuda.max_memory_allocated() / 2**30] if device == "cuda" else []


@dataclass(frozen=True, slots=True)
class Rates:
    """What turns tokens/s into shares of a GPU: FLOP per token, the stated peak and the measured ceiling, in FLOP/s."""

    flops: int
    peak: float | None
    ceiling: float | None

    @classmethod
    def of(cls, recipe: Recipe, device: str) -> Rates:
        flops = measure.flops_per_token(build(recipe, "meta"), recipe)
        if device == "cpu":
            return cls(flops, None, None)
        tf32 = recipe.train.precision.build().tf32
        ceiling = measure.matmul_flops(torch.device(device), measure.product_dtype(recipe), tf32)
        return cls(flops, measure.peak_flops(torch.cuda.get_device_name(), recipe), ceiling)

    def speed(self, tokens: int, seconds: Sequence[float]) -> Measurements:
        """Of steps of so many tokens."""
        rates = [tokens / one for one in seconds]
        shares = {"mfu": self.peak, "mfu_measured": self.ceiling}
        found = {name: [rate * self.flops / most for rate in rates] for name, most in shares.items() if most}
        return {"tokens_per_second": rates, **found}


def one_step(
    recipe: Recipe, device: str, *, warm: int, timed: int, prepare: bool = True
) -> tuple[Measurements, dict[str, Any]]:
    """Our step alone on the device: speed of each of `timed` steps, memory, and how long it took to prepare.

    Without `prepare` it is a plain eager loop.
    """
    rates, before = Rates.of(recipe, device), empty(device)
    windows = random_windows(recipe, device, 2)
    begin = time.perf_counter()
    step = Step(recipe, device)
    if prepare:
        step.prepare(windows[0])
        step.begin(recipe)
    synchronize(device)
    prepared = time.perf_counter() - begin
    batches = in_turn(windows)
    seconds_of(lambda: step(next(batches), 1.0), device, warm)
    seconds = [seconds_of(lambda: step(next(batches), 1.0), device, 1) for _ in range(timed)]
    allocated = allocated_gib(device)
    peak = [step.memory["peak_memory_gib"]] if prepare else allocated
    found = rates.speed(recipe.batch_tokens, seconds)
    found |= {"peak_memory_gib": peak, "allocated_gib": allocated, "prepare_seconds": [prepared] if prepare else []}
    loss = float(step(next(batches), 1.0)[0])
    facts = {"mode": step.mode, "memory": step.memory, "held_before_gib": before, "loss": loss, **described(recipe)}
    return found, facts


def described(recipe: Recipe) -> dict[str, Any]:
    """The settings that speed depends on most."""
    return {
        "batch_sequences": recipe.batch.sequences, "micro_sequences": recipe.batch.micro_sequences,
        "seq_len": recipe.data.seq_len, "precision": recipe.train.precision.name, "loss_chunks": recipe.train.loss_chunks,
    }  # fmt: skip


def in_turn(windows: Tensor) -> Iterator[Tensor]:
    """The batches of `windows`, over and over."""
    while True:
        yield from windows
