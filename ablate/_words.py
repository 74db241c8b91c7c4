"""The words of a suite beyond the fields of a recipe: shorthands, the fields that they stand for, and multiples such as x2."""

from __future__ import annotations

import functools
import math
import re
import typing
from collections.abc import Container, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ablate.errors import UserError
from ablate.presets import DEFAULT_SCALE, SCALES
from ablate.recipe import Recipe
from ablate.variants import load_factors

MULTIPLE = r"x(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"
MOST = Decimal(10) ** 9
TOLERANCE = Decimal("0.01")
"""How far, as a share, a multiple of a whole number may be from the whole number that it is rounded to."""

BY_SCALE = "by scale"


@dataclass(frozen=True, slots=True)
class Word:
    """A field that a suite may set and that is no choice among variants.

    `default` is as it is shown; `number` is int or float where multiples make sense, else None.
    """

    doc: str
    default: str
    reference: str
    number: type | None


SHORTHANDS: dict[str, Word] = {
    "model.ffn_ratio": Word(
        "width of the feed-forward block over the model's, before the 2/3 of gated units; instead of model.ffn_dim",
        "4", "arXiv:2002.05202, section 2", float,
    ),
    "model.depth_ratio": Word(
        "so many times the blocks, narrower by its root (whole, even heads), with a feed-forward width that keeps the parameters "
        "of the blocks within 1 %", "1", "arXiv:2001.08361, section 3.1", float,
    ),
    "batch.tokens": Word("tokens per optimizer step, instead of batch.sequences", BY_SCALE, "arXiv:2001.08361, section 5.1", int),
    "batch.micro_limit": Word(
        "the most sequences that go through the model at once, of which the largest divisor of the batch is taken; instead of "
        "batch.micro_sequences", BY_SCALE, "arXiv:1811.06965", int,
    ),
    "batch.accumulation": Word(
        "micro-batches whose gradients are added up per step, instead of batch.micro_sequences", BY_SCALE, "arXiv:1706.02677", int
    ),
    "train.tokens": Word("tokens trained on, in whole steps, instead of train.steps", BY_SCALE, "arXiv:2203.15556", int),
    "train.tokens_per_parameter": Word(
        "tokens trained on over all parameters, in whole steps, instead of train.steps", BY_SCALE, "arXiv:2203.15556", float
    ),
    "train.epochs": Word(
        "passes over the data.unique_sequences or data.unique_tokens, in whole steps, instead of train.steps", BY_SCALE,
        "arXiv:2305.16264", float,
    ),
    "evaluation.tokens": Word(
        "tokens of the validation slice, instead of evaluation.sequences", BY_SCALE, "arXiv:2312.10523", int
    ),
    "data.source": Word("the only source, instead of data.sources", BY_SCALE, "arXiv:2305.10429", None),
    "data.unique_tokens": Word(
        "data.unique_sequences in tokens, in whole sequences", "null", "arXiv:2305.16264", int
    ),
    "data.repetitions": Word(
        "train on a k-th of the run's sequences k times, instead of data.unique_sequences; steps are rounded until k divides them",
        "null", "arXiv:2305.16264", int,
    ),
}  # fmt: skip
ALTERNATIVES = (
    ("model.ffn_dim", "model.ffn_ratio"),
    ("batch.sequences", "batch.tokens"),
    ("batch.micro_sequences", "batch.micro_limit", "batch.accumulation"),
    ("train.steps", "train.tokens", "train.tokens_per_parameter", "train.epochs"),
    ("evaluation.sequences", "evaluation.tokens"),
    ("data.sources", "data.source"),
    ("data.unique_sequences", "data.unique_tokens", "data.repetitions"),
)
"""Fields that say the same in other words: the one that is set last holds."""


def alternatives(path: str) -> tuple[str, ...]:
    """The field and those that it stands instead of."""
    return next((group for group in ALTERNATIVES if path in group), (path,))


@functools.cache
def words() -> dict[str, Word]:
    """Every field that a suite may set, without choices among variants, whole sections and the seed; shorthands too."""
    choices = {factor.field for factor in load_factors().values()}
    found = dict(_leaves(Recipe, "", choices)) | {
        path: word for path, word in SHORTHANDS.items() if path not in choices
    }
    return dict(sorted(found.items(), key=lambda item: item[0].split(".")[:-1]))


def _leaves(section: type[BaseModel], prefix: str, choices: Container[str]) -> Iterator[tuple[str, Word]]:
    for name, info in section.model_fields.items():
        path, kind = prefix + name, info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, path + ".", choices)
        elif path not in choices and path != "seed":
            given = info.default is PydanticUndefined or _given(SCALES[DEFAULT_SCALE], path)
            shown = BY_SCALE if given else _spell(info.default)
            extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
            yield path, Word(info.description or "", shown, str(extra.get("reference", "")), number_type(kind))


def _given(preset: Any, path: str) -> bool:
    """Whether a preset says something of this field."""
    for part in path.split("."):
        if not isinstance(preset, dict) or part not in preset:
            return False
        preset = preset[part]
    return True


def _spell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "[]" if value == () else str(value)


def number_type(annotation: Any) -> type | None:
    """int or float where values of this type, or of one member of the union, are numbers."""
    kinds = [annotation, *typing.get_args(annotation)]
    kinds += [inner for kind in kinds for inner in typing.get_args(kind)]
    return next((kind for kind in (float, int) if kind in kinds), None)


def is_multiple(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(MULTIPLE, value) is not None


def multiply(text: str, value: Any, kind: type) -> int | float:
    """`x2` of a value: exact in decimal digits; a whole number where `kind` is int.

    Raises:
        UserError: nothing to multiply, no whole number within 1 %, or a multiple beyond measure.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"has no value that {text} could be a multiple of")
    times = Decimal(text[1:])
    if times > MOST:
        raise UserError(f"{text} is too large a multiple; x1e9 is the most")
    product = Decimal(repr(value)) * times
    if kind is float:
        return float(product)
    whole = round(product)
    if abs(whole - product) > TOLERANCE * abs(product):
        raise UserError(f"{text} of {value:,} is {float(product):,g}, which is no whole number")
    return whole
