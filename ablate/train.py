"""The one training loop. It knows neither Ray nor MLflow, and runs in a test, in a script and in a worker alike."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablate import measure, memory
from ablate.corpus import Corpus, Validation
from ablate.feed import Feed, resident
from ablate.model import Decoder, parameter_count, stream_seed
from ablate.recipe import Recipe, digest
from ablate.step import Step

REPORT_SECONDS = 0.5
"""How often losses are read back from a GPU between evaluations: reading waits for it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is; losses in nats per token."""

    step: int
    steps: int
    tokens: int
    train_loss: float | None
    val_loss: float | None
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where to keep the state of a run, and how often. A file that is there is resumed from."""

    path: Path
    every_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a run ended. Metrics have the names and units of `registry.record.METRICS`; curves are `[step, tokens, value]`."""

    status: str
    cause: str = ""
    metrics: dict[str, float]
    curves: dict[str, list[list[float]]]
    step_mode: str
    context: dict[str, Any] = field(default_factory=dict)


OnStep = Callable[[Progress], None]


def train(
    recipe: Recipe, on_step: OnStep | None = None, *, corpus: Corpus, device: str | None = None,
    exclusive: AbstractContextManager[Any] | None = None, checkpoint: Checkpoint | None = None, kept: Kept | None = None,
) -> Result:  # fmt: skip
    """Train `recipe` on `corpus` from its seed to its last step.

    `on_step` hears of progress at most a few times a second; what it raises ends the run. `exclusive` is entered when all is built and
    compiled, before the first measured step: a lease on the device. With `kept` of an earlier call nothing is compiled that was. A loss
    that is not finite ends the run as `diverged`, which is a result and not an error.

    Raises:
        UserError: a corpus too short for the recipe.
        torch.OutOfMemoryError: the device's memory is exhausted.
        ValueError: a checkpoint of another recipe.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kept = kept or Kept()
    try:
        with arithmetic(recipe):
            run = _Run(recipe, corpus, where, kept)
            if checkpoint is not None and checkpoint.path.exists():
                run.load(checkpoint.path)
            with exclusive or nullcontext():
                diverged_at = run.loop(on_step, checkpoint)
            return run.finish(diverged_at)
    except BaseException:
        kept.clear()
        raise


class Kept:
    """What a process keeps from one trial to the next: the prepared step of the last shape, and tokens on a GPU.

    At most one step: another one's memory would count in the peak of the next.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._step: Step | None = None
        self._tokens: Tensor | None = None
        self._corpus = ""

    def step(self, recipe: Recipe, device: torch.device, windows: Callable[[], Tensor]) -> Step:
        """The step of `recipe`, at its beginning; `windows` gives some to prepare it on."""
        step, self._step = self._step, None
        if step is None or (step.device, step.recipe.shape()) != (device, recipe.shape()):
            step = None  # its memory is needed
            memory.give_back()
            # the compiler counts recompilations per function, not per model, and after eight of them silently runs eager
            torch.compiler.reset()
            step = Step(recipe, device)
            step.prepare(windows())
        step.begin(recipe)
        if recipe.capturable:
            self._step = step
        return step

    def tokens(self, corpus: Corpus, device: torch.device) -> Tensor | None:
        """As `feed.resident`."""
        if (self._corpus, self._tokens is None) != (corpus.fingerprint, False):
            self._tokens = None
            self._tokens, self._corpus = resident(corpus, device), corpus.fingerprint
        return self._tokens


class _Run:
    """The state of one run."""

    def __init__(self, recipe: Recipe, corpus: Corpus, device: torch.device, kept: Kept) -> None:
        self.recipe, self.device, self.corpus = recipe, device, corpus
        self.steps, self.length = recipe.train.steps, recipe.data.seq_len
        sequences = recipe.batch.sequences
        order = corpus.order(recipe.seed, self.length, self.steps * sequences, recipe.data.unique_sequences)
        self.feed = Feed(corpus, order, sequences, self.length, device, kept.tokens(corpus, device))
        self.step: Step = kept.step(recipe, device, lambda: self.feed.windows(0))
        _seed(recipe, device)
        self.slice: Validation = corpus.validation(self.length, recipe.evaluation.sequences)
        self.slice_tokens = torch.from_numpy(np.asarray(self.slice.tokens, dtype=np.int64)).to(device)
        self.factors = lr_factors(recipe)
        self.clock = measure.StepClock(device)
        self.losses = torch.full((self.steps,), math.nan, device=device)
        self.norms = torch.full((self.steps,), math.nan, device=device)
        self.points = evaluation_steps(recipe)
        self.done = 0
        self.curves: dict[str, list[list[float]]] = {"val_loss": []}
        self.val_se = math.nan
        self.resumed = 0
        self.earlier_seconds = 0.0
        self.ceiling: float | None = None
        self.energy: float | None = None

    def loop(self, on_step: OnStep | None, checkpoint: Checkpoint | None) -> int | None:
        """Steps until the end; returns the step (1 is the first) whose loss was not finite, if one was."""
        precision = self.recipe.train.precision.build()
        self.ceiling = measure.matmul_flops(self.device, measure.product_dtype(self.recipe), precision.tf32)
        energy = measure.Energy(self.device)
        reported = saved = time.monotonic()
        checked = self.done
        self.clock.start()
        while self.done < self.steps:
            self._one_step()
            evaluate, now = self.done in self.points, time.monotonic()
            due = evaluate or now - reported >= REPORT_SECONDS
            if due or self.device.type == "cpu":
                bad = (~torch.isfinite(self.losses[checked : self.done])).nonzero()
                if len(bad):
                    return checked + int(bad[0]) + 1
                checked = self.done
            if evaluate and not self._evaluate():
                return self.done
            if due and on_step:
                on_step(self._progress(evaluate))
            save = checkpoint is not None and now - saved >= checkpoint.every_seconds and self.done < self.steps
            if checkpoint and save:
                self.save(checkpoint.path)
                saved = now
            if due or save:
                reported = time.monotonic()
                self.clock.start()
        self.energy = energy.wh()
        return None

    def _one_step(self) -> None:
        windows = self.feed.windows(self.done, self.step.windows)
        loss, norm = self.step(windows, self.factors[self.done])
        self.losses[self.done], self.norms[self.done] = loss, norm
        self.clock.step()
        self.done += 1

    def _evaluate(self) -> bool:
        """Add a point to the validation curve; False if it is not finite: the last update left weights that are not."""
        losses = self.step.evaluate(self.slice_tokens).double()
        self.val_se = float(losses.std() / math.sqrt(len(losses))) if len(losses) > 1 else math.nan
        self.curves["val_loss"].append([self.done, self.done * self.recipe.batch_tokens, float(losses.mean())])
        return math.isfinite(self.curves["val_loss"][-1][2])

    def _progress(self, evaluated: bool) -> Progress:
        self.clock.read()
        recent = self.clock.seconds[-20:]
        return Progress(
            self.done, self.steps, self.done * self.recipe.batch_tokens, float(self.losses[self.done - 1]),
            self.curves["val_loss"][-1][2] if evaluated else None,
            self.recipe.batch_tokens * len(recent) / sum(recent) if recent else None,
        )  # fmt: skip

    def finish(self, diverged_at: int | None) -> Result:
        recipe, slice_ = self.recipe, self.slice
        model: Decoder = self.step.model
        flops = measure.flops_per_token(model, recipe)
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        peak = measure.peak_flops(name, recipe)
        metrics: dict[str, float] = {
            "tokens": self.done * recipe.batch_tokens,
            "epochs": self.done * recipe.batch_tokens / recipe.fresh_tokens(self.corpus.train_tokens),
            "parameters": parameter_count(model),
            "flops_per_token": flops,
            "kv_cache_bytes_per_token": measure.kv_cache_bytes_per_token(model),
            "unigram_entropy": slice_.unigram_entropy,
            "validation_bytes": slice_.bytes,
        }
        if slice_.loss_floor is not None:
            metrics["loss_floor"] = slice_.loss_floor
        if slice_.entropy_rate is not None:
            metrics["entropy_rate"] = slice_.entropy_rate
        metrics |= self.clock.metrics(recipe, flops, peak, self.ceiling)
        metrics["train_seconds"] = self.earlier_seconds + sum(self.clock.seconds)
        metrics |= self.step.memory
        if self.energy is not None:
            metrics["energy_wh"] = self.energy
        if diverged_at is not None:
            metrics["diverged_at_step"] = diverged_at
        else:
            val_loss = self.curves["val_loss"][-1][2]
            metrics["val_loss"], metrics["val_loss_se"] = val_loss, self.val_se
            metrics["best_val_loss"] = min(point[2] for point in self.curves["val_loss"])
            metrics["val_bpb"] = (val_loss * slice_.targets + slice_.lost) / (math.log(2) * slice_.bytes)
            metrics["train_loss"] = float(self.losses[-max(1, self.steps // 20) :].double().mean())
        context = {
            "flop_formula": measure.FLOP_FORMULA,
            "peak_flops": peak,
            "validation_sequences": len(slice_.tokens),
            "measured_matmul_flops": self.ceiling,
            "excluded_from_speed": f"compilation, evaluation, reports, the first {measure.WARM_UP_STEPS} steps",
            "resumed_at_step": self.resumed,
        }
        return Result(
            status="finished" if diverged_at is None else "diverged",
            cause="" if diverged_at is None else f"the loss was not finite at step {diverged_at} of {self.steps}",
            metrics={key: float(value) for key, value in metrics.items() if math.isfinite(value)},
            curves=self._thinned() | {key: [p for p in c if math.isfinite(p[2])] for key, c in self.curves.items()},
            step_mode=self.step.mode,
            context=context,
        )

    def _thinned(self, points: int = 100) -> dict[str, list[list[float]]]:
        """Means of training loss and gradient norm over at most `points` equal stretches of the run."""
        size = max(1, math.ceil(self.steps / points))
        curves = {}
        for name, values in (("train_loss", self.losses), ("gradient_norm", self.norms)):
            read = values[: self.done].double().cpu().tolist()
            chunks = [(end := min(i + size, self.done), read[i:end]) for i in range(0, self.done, size)]
            means = [[end, end * self.recipe.batch_tokens, sum(chunk) / len(chunk)] for end, chunk in chunks]
            curves[name] = [point for point in means if math.isfinite(point[2])]
        return curves

    def save(self, path: Path) -> None:
        """Write the whole state of the run, atomically."""
        self.clock.read()
        state = {
            "recipe": digest(self.recipe.to_dict()), "corpus": self.corpus.fingerprint, "done": self.done,
            "step": self.step.state_dict(),
            "losses": self.losses, "norms": self.norms, "curves": self.curves, "val_se": self.val_se,
            "seconds": self.earlier_seconds + sum(self.clock.seconds), "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        if (state["recipe"], state["corpus"]) != (digest(self.recipe.to_dict()), self.corpus.fingerprint):
            raise ValueError(f"{path} is a checkpoint of another recipe or corpus")
        self.step.load_state_dict(state["step"])
        self.losses, self.norms, self.curves = state["losses"], state["norms"], state["curves"]
        self.done = self.resumed = state["done"]
        # steps before the interruption may not have had the device to themselves: speed is that of the steps after it
        self.val_se, self.earlier_seconds = state["val_se"], state["seconds"]
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)


def lr_factors(recipe: Recipe) -> list[float]:
    """The learning rate of each step over its peak: linear warmup, then the schedule, which ends at the last step."""
    steps = recipe.train.steps
    warmup = round(recipe.train.warmup * steps)
    after, schedule = max(1, steps - warmup), recipe.lr_schedule.bind()
    return [
        (step + 1) / warmup if step < warmup else float(schedule((step + 1 - warmup) / after, warmup / steps))
        for step in range(steps)
    ]


def evaluation_steps(recipe: Recipe) -> set[int]:
    """After which steps the validation slice is evaluated: evenly spaced, the last step always."""
    points = min(recipe.evaluation.points, recipe.train.steps)
    return {round((i + 1) * recipe.train.steps / points) for i in range(points)}


def _seed(recipe: Recipe, device: torch.device) -> None:
    """Give the device's default generators, which serve dropout alone, their stream."""
    seed = stream_seed(recipe.seed, "dropout")
    torch.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def arithmetic(recipe: Recipe) -> Iterator[None]:
    """Deterministic kernels and TF32 where the recipe asks for them; the process is left as it was found."""
    before, products = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if recipe.train.precision.build().tf32 else "highest")
    if recipe.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(recipe.train.deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_float32_matmul_precision(products)
