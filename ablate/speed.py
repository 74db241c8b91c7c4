"""The pass for speed and memory alone: each cell of a suite against the baseline, which take turns on the device.

The baseline is set against itself too, which shows what the pass can tell apart.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablate import data, environment, measure, memory, process
from ablate.corpus import Corpus
from ablate.errors import UserError
from ablate.feed import resident
from ablate.inference import TimedInference
from ablate.lease import Lease
from ablate.model import parameter_count
from ablate.plan import Plan
from ablate.recipe import Recipe
from ablate.train import arithmetic
from ablate.turns import CONFIDENCE, MOST_STEPS, Contestant, Pair, in_turns, ratio
from ablate.worker import Job, make_record
from registry.record import TrialRecord

WINDOW_SECONDS, FEWEST_STEPS = 0.25, 3
"""What a window takes at least, where the number of its steps is not given."""
SERVED = ("attention", "window", "qk_norm", "position", "attention_soft_cap", "n_heads", "head_dim")
"""Fields of the model that decide what attention costs at inference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure. `steps` of a window are as many as `WINDOW_SECONDS` take where they are not given.

    `inference` is measured always, never, or (None) where the cells differ in what decides its cost; with `batch` sequences of
    `context` tokens, as long as those of training if that is not given.
    """

    rounds: int
    steps: int | None = None
    inference: bool | None = None
    batch: int
    context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Rounds of inference, the cell's metrics, and the conditions under which they hold or the cause why there are none."""

    rounds: list[list[dict[str, float]]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)


class Pass:
    """Measures the baseline of a plan, then the cells with a label in `chosen`, by their trials of the first seed.

    `say` is told how far it is.

    Raises:
        UserError: a context that is longer than what some cell is trained on.
    """

    def __init__(
        self,
        made: Plan,
        home: Path,
        options: Options,
        chosen: Collection[str],
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.home, self.options, self.say = home, options, say
        self.share = environment.share()
        self.device = torch.device(self.share.device)
        self.environment = made.environment
        suite, shortest = made.design.suite, min(row.trial.recipe.data.seq_len for row in made.reported)
        if options.context is not None and options.context > shortest:
            raise UserError(f"--context {options.context} is longer than the {shortest} tokens of a training sequence")
        first = [row for row in made.reported if row.trial.seed == made.design.seeds[0] and not row.trial.control]
        wanted = [row for row in first if row.trial.levels == suite.baseline or row.trial.label in chosen]
        rows = sorted(wanted, key=lambda row: row.trial.levels != suite.baseline)
        jobs = replace(made, pending=tuple(rows)).jobs()
        self.jobs = [replace(job, purpose="speed") for job in jobs]
        self.recipes = {job.trial_id: row.trial.recipe for job, row in zip(jobs, rows, strict=True)}
        self.baseline = self.jobs[0]
        self.baseline_memory: float | None = None
        self._corpora: dict[str, Corpus] = {}
        self._tokens: dict[str, Tensor | None] = {}

    def records(self) -> Iterator[TrialRecord]:
        """One of each cell. What goes wrong with a cell is its record's status; without a baseline there is nothing to go on with."""
        wanted = environment.for_workers(self.share, self.home)
        wanted["CUBLAS_WORKSPACE_CONFIG"] = os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as workers have it
        with environment.exported(wanted):
            for number, job in enumerate(self.jobs, start=1):
                self.say(f"[{number}/{len(self.jobs)}] {job.label}")
                process.reset(self.share.device, self.share.threads)
                record = self._record(job)
                memory.give_back()
                yield record
                if job is self.baseline and record.status != "finished":
                    return

    def _record(self, job: Job) -> TrialRecord:
        started = datetime.now(UTC).isoformat(timespec="milliseconds")
        lease = Lease(
            environment.device_uuid(self.share.device),
            on_wait=lambda: self.say("waiting for another trial to leave the device"),
        )
        try:
            step_mode, metrics, context = self._measured(job, lease)
        except Exception as error:
            status = "out_of_memory" if memory.is_exhausted(error) else "crashed"
            return make_record(
                job, self.environment, status=status, cause=_one_line(error), started=started, exclusive=lease.exclusive
            )
        record = make_record(
            job, self.environment, status="finished", cause="", started=started, exclusive=lease.exclusive, metrics=metrics,
            context=context,
        )  # fmt: skip
        return replace(record, step_mode=step_mode)

    def _measured(self, job: Job, lease: Lease) -> tuple[str, dict[str, float], dict[str, Any]]:
        """How its step runs, metrics and context of a cell."""
        recipe, baseline = self.recipes[job.trial_id], self.recipes[self.baseline.trial_id]
        pair = Pair(lambda: self._contestant(self.baseline), lambda: self._contestant(job))
        # alone: memory is measured with no other step alive
        cell = pair[1]
        memory, mode, flops = cell.step.memory, cell.step.mode, measure.flops_per_token(cell.step.model, recipe)
        sizes = {
            "parameters": parameter_count(cell.step.model), "flops_per_token": flops,
            "kv_cache_bytes_per_token": measure.kv_cache_bytes_per_token(cell.step.model),
        }  # fmt: skip
        del cell
        with lease:
            with arithmetic(recipe):
                tf32 = recipe.train.precision.build().tf32
                ceiling = measure.matmul_flops(self.device, measure.product_dtype(recipe), tf32)
            fill = math.ceil(WINDOW_SECONDS / pair.warm_up())
            steps = self.options.steps or min(max(fill, FEWEST_STEPS), MOST_STEPS)
            clock = measure.StepClock(self.device)
            rounds = in_turns(
                lambda: pair[0].window(steps, []), lambda: pair[1].window(steps, clock.seconds), self.options.rounds
            )  # fmt: skip
            together = pair.together
            pair.clear()
            served = self._served(recipe, baseline)
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        peak = measure.peak_flops(name, recipe)
        metrics = clock.metrics(recipe, flops, peak, ceiling) | memory | sizes | served.metrics
        if job is self.baseline:
            self.baseline_memory = memory["peak_memory_gib"]
        assert self.baseline_memory is not None
        step_time = ratio(rounds, "step")
        ratios = {
            "step_time_ms": step_time,
            "tokens_per_second": recipe.batch_tokens / baseline.batch_tokens / step_time,
            **{
                f"{name}_tokens_per_second": 1 / ratio(served.rounds, name)
                for name in ("prefill", "decode")
                if served.rounds
            },
        }
        memory_ratio = memory["peak_memory_gib"] / self.baseline_memory
        context = {
            "flop_formula": measure.FLOP_FORMULA, "peak_flops": peak, "measured_matmul_flops": ceiling,
            "excluded_from_speed": "compilation, capture, evaluation, the steps before the first window",
            "speed": {
                "baseline_cell_id": self.baseline.cell_id, "baseline_trial_id": self.baseline.trial_id,
                "rounds": self.options.rounds, "steps_per_window": steps, "tokens_per_step": recipe.batch_tokens, "confidence": CONFIDENCE,
                "ratios": {name: asdict(found) for name, found in ratios.items()} | {"peak_memory_gib": {"estimate": memory_ratio}},
                "both_in_memory": together, "inference": served.conditions,
            },
        }  # fmt: skip
        return mode, metrics, context

    def _contestant(self, job: Job) -> Contestant:
        recipe, fingerprint = self.recipes[job.trial_id], job.corpus_fingerprint
        if fingerprint not in self._corpora:
            self._corpora[fingerprint] = data.prepare(recipe.data, self.home / "cache")
        corpus = self._corpora[fingerprint]
        if fingerprint not in self._tokens:
            self._tokens = {
                known: kept for known, kept in self._tokens.items() if known == self.baseline.corpus_fingerprint
            }
            self._tokens[fingerprint] = resident(corpus, self.device)
        return Contestant(recipe, corpus, self.device, self._tokens[fingerprint])

    def _served(self, recipe: Recipe, baseline: Recipe) -> Served:
        """Inference of both, where it is wanted."""
        differs = [_served_fields(other) != _served_fields(baseline) for other in (recipe, *self.recipes.values())]
        wanted = differs[0] or (any(differs) and recipe is baseline)
        if not (wanted if self.options.inference is None else self.options.inference):
            return Served()
        context = self.options.context or min(recipe.data.seq_len, baseline.data.seq_len)
        try:
            a, b = (
                TimedInference(one, self.device, batch=self.options.batch, context=context)
                for one in (baseline, recipe)
            )
            for first in (a, b):
                first.seconds()
            rounds = in_turns(a.seconds, b.seconds, self.options.rounds)
            windows = [window for _, *both, _ in rounds for window in both]
            return Served(rounds=rounds, metrics=b.metrics(windows), conditions=b.conditions)
        except Exception as error:  # it does not take the figures of training along
            return Served(conditions={"failed": _one_line(error)})


def _served_fields(recipe: Recipe) -> list[Any]:
    return [getattr(recipe.model, name) for name in SERVED]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
