"""The schema of what the registry holds: one record per attempt at a trial, one per design of a suite, one per mark on an attempt.

Standard library only, so that any program can read and write records. Units are in `METRICS`.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, ClassVar, Literal, get_args

SCHEMA_VERSION = 3

Status = Literal["finished", "diverged", "out_of_memory", "timeout", "crashed", "killed"]
Purpose = Literal["primary", "verify", "speed", "check"]
STATUSES: tuple[str, ...] = get_args(Status)
PURPOSES: tuple[str, ...] = get_args(Purpose)
MARKS = ("retraction",)
"""What a mark may say of a record."""
REPRODUCES, REFUTED = "reproduces", "does not reproduce"
"""The verdicts of a verification."""
ALONE = ("one_at_a_time", "leave_one_out")
"""Kinds of design whose cells depart from the baseline by one level, and are named by that."""
CONTROLS = ("aa", "bad")
"""What a trial of a design may be beside an ordinary one: the baseline again on other seeds, or the known-bad."""
LARGEST = sys.float_info.max
ID = re.compile(r"[\w.:-]{1,200}", re.ASCII)
"""What names a record, a trial, a cell, an environment or a design."""
RETRYABLE = ("out_of_memory", "timeout", "crashed", "killed")
"""Failures that `--retry-failed` tries again; `finished` and `diverged` are final."""


class RecordError(ValueError):
    """A record that does not follow the schema; the message names the field."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number means: its unit, which way is better, and what it measures."""

    unit: str
    better: Literal["lower", "higher", "none"]
    doc: str
    kind: Literal["quality", "speed", "memory", "size"] = "quality"


METRICS: dict[str, Metric] = {
    "val_loss": Metric(
        "nats/token", "lower", "Mean cross-entropy over the fixed validation slice at the end of training."
    ),
    "best_val_loss": Metric(
        "nats/token",
        "lower",
        "The lowest of the evaluations in the course of training: an optimistic figure; runs are compared by the last.",
    ),
    "val_loss_se": Metric(
        "nats/token", "none", "Standard error of val_loss over the sequences of the validation slice."
    ),
    "val_bpb": Metric("bits/byte", "lower", "val_loss per byte of text: the one to compare across tokenizers."),
    "validation_bytes": Metric("bytes", "none", "UTF-8 bytes of the validation slice.", "size"),
    "train_loss": Metric("nats/token", "lower", "Mean training loss over the last twentieth of the steps."),
    "unigram_entropy": Metric("nats/token", "none", "Entropy of the token frequencies of the validation slice."),
    "entropy_rate": Metric(
        "nats/token", "none", "Known entropy rate of the source, where there is one: no loss can be below it."
    ),
    "loss_floor": Metric(
        "nats/token",
        "none",
        "Cross-entropy of the known source itself on the validation slice: no loss should be below it.",
    ),
    "diverged_at_step": Metric("steps", "none", "The step whose loss was not finite."),
    "tokens": Metric("tokens", "none", "Tokens trained on.", "size"),
    "epochs": Metric("passes", "none", "Tokens trained on over tokens in the corpus.", "size"),
    "parameters": Metric("parameters", "none", "Trainable parameters.", "size"),
    "flops_per_token": Metric("FLOP/token", "none", "Forward and backward, attention in full.", "size"),
    "kv_cache_bytes_per_token": Metric(
        "bytes/token", "lower", "Key and value cache at inference, 2 bytes a number.", "size"
    ),
    "tokens_per_second": Metric("tokens/s", "higher", "Per device, steady state.", "speed"),
    "step_time_ms": Metric("ms", "lower", "Median optimizer step, steady state.", "speed"),
    "step_time_ms_p10": Metric("ms", "lower", "10th percentile of the optimizer step.", "speed"),
    "step_time_ms_p90": Metric("ms", "lower", "90th percentile of the optimizer step.", "speed"),
    "mfu": Metric("share", "higher", "FLOP/s over the stated peak of the device.", "speed"),
    "mfu_measured": Metric(
        "share",
        "higher",
        "FLOP/s over the rate of a large matrix product, measured on this device in this process.",
        "speed",
    ),
    "prefill_tokens_per_second": Metric(
        "tokens/s", "higher", "Prompts read at inference, at the batch and context of the record.", "speed"
    ),
    "decode_tokens_per_second": Metric(
        "tokens/s", "higher", "Tokens generated with a KV cache, at the batch and context of the record.", "speed"
    ),
    "energy_wh": Metric("Wh", "lower", "Of the device over the training window, where it tells.", "speed"),
    "train_seconds": Metric("s", "lower", "Time in optimizer steps.", "speed"),
    "total_seconds": Metric(
        "s", "lower", "From the start of the trial to its record, waiting for the device excluded.", "speed"
    ),
    "peak_memory_gib": Metric(
        "GiB",
        "lower",
        "Peak of memory allocated by tensors of a training step on the device; its parts are of the same moment.",
        "memory",
    ),
    "parameters_gib": Metric("GiB", "lower", "Parameters and buffers.", "memory"),
    "gradients_gib": Metric("GiB", "lower", "Gradients.", "memory"),
    "optimizer_state_gib": Metric(
        "GiB", "lower", "Optimizer state, fp32 copies of rounded parameters included.", "memory"
    ),
    "activations_gib": Metric(
        "GiB", "lower", "All that a step allocates for itself: activations, logits, workspace.", "memory"
    ),
}


def new_record_id() -> str:
    """A fresh id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise RecordError(what)


class _Json:
    """JSON both ways, strictly: unknown or missing fields and non-finite numbers raise `RecordError`."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]

    def to_json(self) -> str:
        return json.dumps(self.values(), sort_keys=True, allow_nan=False, ensure_ascii=False)

    def values(self) -> dict[str, Any]:
        """The fields themselves, where `to_dict` copies what they hold."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls, data: Any) -> Any:
        _check(isinstance(data, dict), f"{cls.__name__}: expected an object, not {type(data).__name__}")
        data = _of_today(data)
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        extra = sorted(set(data) - known)
        _check(not extra, f"{cls.__name__}: unknown field {', '.join(extra)}")
        try:
            return cls(**data)
        except TypeError as error:
            raise RecordError(f"{cls.__name__}: {error}") from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Any:
        try:
            return cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RecordError(f"{cls.__name__}: not JSON: {error}") from None


def _of_today(data: dict[str, Any]) -> dict[str, Any]:
    """A record of an earlier version in today's schema: what was validated on is known by the training corpus alone in
    version 1, with its tokenizer alone in version 2."""
    version = data.get("schema_version")
    if version not in (1, 2):
        return data
    data = data | {"schema_version": SCHEMA_VERSION}
    if version == 1 and "corpus_fingerprint" in data:
        data["evaluation_fingerprint"] = data["corpus_fingerprint"]
    if "evaluation_fingerprint" in data:
        data["text_fingerprint"] = data["evaluation_fingerprint"]
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord(_Json):
    """One attempt at one trial, in one environment, for one purpose.

    `trial_id` says what was trained (recipe, seed, corpus, code), `cell_id` the same without the seed,
    `environment_id` on what, `record_id` which attempt. Losses compare where `evaluation_fingerprint` is the same: the
    held-out text and the tokenizer; bits per byte where `text_fingerprint` is: the text alone. `recipe`, `environment` and
    `context` are plain JSON objects; `metrics` maps names of `METRICS` (others are allowed) to finite numbers; `curves` maps a metric
    to `[step, tokens, value]` points. What trained a trial again to verify a record says so in its context, as `verification`:
    `{"of": record_id, "verdict": "reproduces" or "does not reproduce", "checks": [...]}`.
    """

    KEY: ClassVar[str] = "record_id"

    record_id: str
    trial_id: str
    cell_id: str
    environment_id: str
    purpose: str = "primary"
    status: str
    cause: str = ""
    suite: str
    scale: str
    seed: int
    recipe: dict[str, Any]
    corpus_fingerprint: str
    evaluation_fingerprint: str
    text_fingerprint: str
    code_fingerprint: str
    environment: dict[str, Any]
    git_revision: str = ""
    git_dirty: bool = False
    ablate_version: str
    started_at: str
    finished_at: str
    exclusive: bool
    step_mode: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for name in ("record_id", "trial_id", "cell_id", "environment_id", "suite", "scale", "corpus_fingerprint",
                     "evaluation_fingerprint", "text_fingerprint", "code_fingerprint", "ablate_version", "started_at",
                     "finished_at"):  # fmt: skip
            value = getattr(self, name)
            _check(isinstance(value, str) and value != "", f"{name}: expected a non-empty string, not {value!r}")
        _check_ids(self, "record_id", "trial_id", "cell_id", "environment_id")
        _check_names(self, "suite", "scale")
        _check_moments(self, "started_at", "finished_at")
        for name in ("cause", "git_revision", "step_mode"):
            _check(isinstance(getattr(self, name), str), f"{name}: expected a string, not {getattr(self, name)!r}")
        _check(
            self.schema_version == SCHEMA_VERSION, f"schema_version: {self.schema_version!r} is not {SCHEMA_VERSION}"
        )
        _check(self.status in STATUSES, f"status: {self.status!r} is not one of {', '.join(STATUSES)}")
        _check(self.purpose in PURPOSES, f"purpose: {self.purpose!r} is not one of {', '.join(PURPOSES)}")
        _check(_whole(self.seed), f"seed: {self.seed!r} is not a whole number")
        for name in ("exclusive", "git_dirty"):
            _check(isinstance(getattr(self, name), bool), f"{name}: {getattr(self, name)!r} is not true or false")
        for name in ("recipe", "environment", "metrics", "curves", "context"):
            _check(isinstance(getattr(self, name), dict), f"{name}: expected an object")
        _check(_texts(self.context.get("levels", {})), "context.levels: expected a string for each factor")
        for name, value in self.metrics.items():
            _check(_finite(value), f"metrics.{name}: {value!r} is not a finite number")
        for name, points in self.curves.items():
            _check(isinstance(points, list), f"curves.{name}: expected a list of points")
            for point in points:
                good = isinstance(point, (list, tuple)) and len(point) == 3 and all(map(_finite, point))
                _check(good, f"curves.{name}: {point!r} is not [step, tokens, value]")

    @property
    def attempt_key(self) -> str:
        """What makes a second attempt unnecessary: trial, environment and purpose."""
        return attempt_key(self.trial_id, self.environment_id, self.purpose)


def attempt_key(trial_id: str, environment_id: str, purpose: str = "primary") -> str:
    """The key under which an attempt is locked and looked up."""
    return f"{trial_id}-{environment_id}-{purpose}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DesignRecord(_Json):
    """A suite as it was declared and expanded: enough to analyse its trials without the suite file.

    `factors` maps a factor to its level labels in order; `baseline` maps each factor to one of them; each of `trials` is
    `{"trial_id", "cell_id", "levels": {factor: label}, "seed"}`. What is no ordinary trial says so: `"control": "aa"` the baseline
    again on seeds of its own, `"control": "bad"` with a `"label"` and without levels the known-bad, `"stage": "tune"` a trial of a search.

    `cells_stood_for` counts the cells of the full grid. `aliases` says of a design that confounds what the estimate of each effect holds
    beside it: `{"effect": [factors], "aliases": [{"effect": [factors], "coefficient"}]}`, an effect being the factors that interact,
    none for the mean, coded to sum to zero over the levels of a factor (of two, the first is +1). `drift` maps the
    label of a cell (`cell_label`) to how far, as a share, it is from the baseline in `tokens`, `parameters` and so on; `tuning` maps it
    to its search, `{"field", "values", "trials", "seeds", "chosen", "bracketed"}`: `trials` has the ids of the trials of each value, by
    seed, `chosen` is None while the search lasts, and an arm that is not bracketed is untuned.
    """

    KEY: ClassVar[str] = "design_id"

    design_id: str
    suite: str
    scale: str
    description: str = ""
    kind: str
    factors: dict[str, list[str]]
    baseline: dict[str, str]
    seeds: list[int]
    match: str
    margin: float | None = None
    contrasts: list[dict[str, Any]] = field(default_factory=list)
    trials: list[dict[str, Any]]
    suite_text: str = ""
    command: str = ""
    cells_stood_for: int = 0
    aliases: list[dict[str, Any]] = field(default_factory=list)
    tuning: dict[str, dict[str, Any]] = field(default_factory=dict)
    drift: dict[str, dict[str, float]] = field(default_factory=dict)
    created_at: str
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for name in ("design_id", "suite", "scale", "kind", "match", "created_at"):
            value = getattr(self, name)
            _check(isinstance(value, str) and value != "", f"{name}: expected a non-empty string, not {value!r}")
        _check_ids(self, "design_id")
        _check_names(self, "suite", "scale")
        _check_moments(self, "created_at")
        for name in ("description", "suite_text", "command"):
            _check(isinstance(getattr(self, name), str), f"{name}: expected a string, not {getattr(self, name)!r}")
        _check(
            self.schema_version == SCHEMA_VERSION, f"schema_version: {self.schema_version!r} is not {SCHEMA_VERSION}"
        )
        _check(
            isinstance(self.factors, dict) and isinstance(self.baseline, dict), "factors, baseline: expected objects"
        )
        _check(_texts(self.baseline), "baseline: expected a string for each factor")
        for factor, labels in self.factors.items():
            good = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
            _check(good, f"factors.{factor}: expected a list of strings")
        _check(isinstance(self.seeds, list) and all(map(_whole, self.seeds)), "seeds: expected a list of whole numbers")
        _check(self.margin is None or _finite(self.margin), f"margin: {self.margin!r} is not a finite number")
        for name in ("contrasts", "aliases", "trials"):
            good = isinstance(getattr(self, name), list) and all(isinstance(one, dict) for one in getattr(self, name))
            _check(good, f"{name}: expected a list of objects")
        for name in ("tuning", "drift"):
            value = getattr(self, name)
            good = isinstance(value, dict) and all(isinstance(one, dict) for one in value.values())
            _check(good, f"{name}: expected an object of objects")
        for trial in self.trials:
            # messages are made where they are needed: making one for each of thousands is most of the time that reading takes
            if not {"trial_id", "cell_id", "levels", "seed"} <= set(trial):
                raise RecordError(f"trials: {trial!r} lacks trial_id, cell_id, levels or seed")
            good = (
                _texts(trial["levels"])
                and _whole(trial["seed"])
                and all(isinstance(trial[name], str) and ID.fullmatch(trial[name]) for name in ("trial_id", "cell_id"))
            )
            if not good:
                raise RecordError(f"trials: {trial!r} has an id, levels or a seed that is none")
            if not isinstance(trial.get("label", ""), str):
                raise RecordError(f"trials: label {trial['label']!r} is not a string")
            control, stage = trial.get("control"), trial.get("stage")
            if control not in (None, *CONTROLS):
                raise RecordError(f"trials: control {control!r} is not one of {', '.join(CONTROLS)}")
            if stage not in (None, "tune"):
                raise RecordError(f"trials: stage {stage!r} is not tune")

    def says_the_same(self, other: DesignRecord) -> bool:
        """Whether the two differ in nothing but when they were recorded and how they were asked for."""
        own = {name: getattr(other, name) for name in ("design_id", "created_at", "command")}
        return self.to_dict() | own == other.to_dict()


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkRecord(_Json):
    """What somebody said of a record after it was written, for records are never changed: a `retraction`, and `why`."""

    KEY: ClassVar[str] = "mark_id"

    mark_id: str
    kind: str
    record_id: str
    trial_id: str
    why: str
    author: str = ""
    created_at: str
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for name in ("mark_id", "kind", "record_id", "trial_id", "why", "created_at"):
            value = getattr(self, name)
            good = isinstance(value, str) and value.strip() != ""
            _check(good, f"{name}: expected a non-empty string, not {value!r}")
        _check_ids(self, "mark_id", "record_id", "trial_id")
        _check_moments(self, "created_at")
        _check(isinstance(self.author, str), f"author: {self.author!r} is not a string")
        _check(self.kind in MARKS, f"kind: {self.kind!r} is not one of {', '.join(MARKS)}")
        _check(
            self.schema_version == SCHEMA_VERSION, f"schema_version: {self.schema_version!r} is not {SCHEMA_VERSION}"
        )


def retractions(marks: Iterable[MarkRecord]) -> dict[str, str]:
    """By record id, why it was retracted: the first reason that was given."""
    found: dict[str, str] = {}
    for mark in sorted(marks, key=lambda mark: (mark.created_at, mark.mark_id)):
        if mark.kind == "retraction":
            found.setdefault(mark.record_id, mark.why)
    return found


def cell_label(design: DesignRecord, levels: dict[str, str]) -> str:
    """What to call a cell: its levels; where factors vary one at a time, how it departs from the baseline."""
    if design.kind not in ALONE:
        return " · ".join(levels.values()) or "base"
    last = [factor.rpartition(".")[2] for factor in levels]
    names = [short if last.count(short) == 1 else factor for factor, short in zip(levels, last, strict=True)]
    changes = [
        f"{name}={label}" for name, (factor, label) in zip(names, levels.items(), strict=True)
        if label != design.baseline[factor]
    ]  # fmt: skip
    return " + ".join(changes) or "baseline"


def _check_ids(record: Any, *names: str) -> None:
    for name in names:
        _check(ID.fullmatch(getattr(record, name)) is not None, f"{name}: {getattr(record, name)!r} cannot be an id")


def _check_names(record: Any, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        _check(value.isprintable() and len(value) <= 200, f"{name}: {value[:200]!r} cannot be a name")


def _check_moments(record: Any, *names: str) -> None:
    for name in names:
        try:
            datetime.fromisoformat(getattr(record, name))
        except ValueError:
            raise RecordError(f"{name}: {getattr(record, name)!r} is not a timestamp") from None


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _whole(value: Any) -> bool:
    """Whether this is a whole number that a database takes."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
