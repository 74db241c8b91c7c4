"""Recipe: everything that decides one training run, resolved, typed and frozen; and its identity."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic import ValidationError as PydanticError
from pydantic_core import core_schema

from ablate.errors import UserError
from ablate.variants import Choice, load_factors


class RecipeError(UserError):
    """A recipe that makes no sense. `path` is the dotted field at fault."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.message = path, message


def _integral(value: Any) -> Any:
    """`20e6` is a float to YAML and a whole number to everyone else."""
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


class _Variant:
    """Marks a field that holds a choice among the variants of a factor."""

    def __init__(self, factor: str) -> None:
        self.factor = factor

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: load_factors()[self.factor].choose(value),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda choice: choice.to_dict()),
        )


Count = Annotated[int, BeforeValidator(_integral), Field(ge=1)]
Size = Annotated[int, BeforeValidator(_integral), Field(ge=1, le=2**24)]
Seed = Annotated[int, BeforeValidator(_integral), Field(ge=0, lt=2**31)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Dropout(_Section):
    """The probability of zeroing, at four places."""

    attention_weights: Probability = 0.0
    attention_output: Probability = 0.0
    feed_forward_output: Probability = 0.0
    embedding: Probability = 0.0


class Model(_Section):
    """The decoder: sizes, and one variant per factor."""

    dim: Size
    n_layers: Size
    n_heads: Size
    head_dim: Size
    ffn_dim: Size
    vocab_size: Size
    attention: Annotated[Choice, _Variant("attention")]
    activation: Annotated[Choice, _Variant("activation")]
    norm: Annotated[Choice, _Variant("norm")]
    position: Annotated[Choice, _Variant("position")]
    dropout: Dropout = Dropout()
    bias: bool = False
    tie_embeddings: bool = False


class Batch(_Section):
    """Sequences per optimizer step, and how many of them go through the model at once."""

    sequences: Size
    micro_sequences: Size

    @property
    def accumulation(self) -> int:
        return self.sequences // self.micro_sequences


class Source(_Section):
    """A source of documents and the share of training sequences drawn from it (weights need not sum to 1)."""

    source: Annotated[Choice, _Variant("source")]
    weight: Annotated[float, Field(gt=0)] = 1.0


class Data(_Section):
    """What is trained on."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)]
    tokenizer: Annotated[Choice, _Variant("tokenizer")]
    seq_len: Size


class Train(_Section):
    """Length, warmup (a share of the steps), clipping (of the gradient's norm) and arithmetic."""

    steps: Count
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"
    deterministic: bool = False


class Evaluation(_Section):
    """The fixed validation slice, and at how many evenly spaced points it is evaluated (the last is the end)."""

    sequences: Size
    points: Count


class Recipe(_Section):
    """One training run. Build it with `ablate.spec.Spec.resolve`, or from the JSON that `to_dict` gives."""

    model: Model
    optimizer: Annotated[Choice, _Variant("optimizer")]
    lr_schedule: Annotated[Choice, _Variant("lr_schedule")]
    batch: Batch
    data: Data
    train: Train
    evaluation: Evaluation
    seed: Seed = 0

    @property
    def batch_tokens(self) -> int:
        """Tokens per optimizer step."""
        return self.batch.sequences * self.data.seq_len

    @property
    def tokens(self) -> int:
        """Tokens trained on, in all."""
        return self.train.steps * self.batch_tokens

    def choices(self) -> dict[str, Choice]:
        """The selected variants by dotted field."""
        found = {factor.field: value for factor in load_factors().values() if (value := self._at(factor.field))}
        for i, source in enumerate(self.data.sources):
            found[f"data.sources.{i}.source"] = source.source
        return found

    def _at(self, path: str) -> Any:
        value: Any = self
        for part in path.split("."):
            value = getattr(value, part, None)
        return value

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` described, checked again.

        Raises:
            RecipeError: a field that is missing, unknown, of the wrong type, or at odds with another.
        """
        try:
            recipe = cls.model_validate(data)
        except PydanticError as error:
            first = error.errors()[0]
            raise RecipeError(".".join(map(str, first["loc"])), _explain(first)) from None
        recipe.check()
        return recipe

    def check(self) -> None:
        """Refuse what cannot go together.

        Raises:
            RecipeError: naming the field and the reason.
        """
        model, batch = self.model, self.batch
        if batch.sequences % batch.micro_sequences:
            raise RecipeError(
                "batch.micro_sequences",
                f"{batch.micro_sequences} does not divide the {batch.sequences} sequences of a batch",
            )
        tokenizer_size = self.data.tokenizer.build().vocab_size
        if model.vocab_size < tokenizer_size:
            raise RecipeError(
                "model.vocab_size", f"{model.vocab_size} is smaller than the tokenizer's {tokenizer_size}"
            )
        for path, choice in self.choices().items():
            check = choice.variant.trait("check")
            if check is not None:
                try:
                    check(self, **choice.options)
                except UserError as error:
                    raise RecipeError(path, str(error)) from None

    def identity(self, corpus_fingerprint: str, code_fingerprint: str) -> dict[str, Any]:
        """What the trial id is a hash of: data by content and not by path, code by meaning."""
        fields = self.to_dict()
        fields["data"] = {"seq_len": self.data.seq_len, "corpus": corpus_fingerprint}
        fields["code"] = code_fingerprint
        return fields

    def trial_id(self, corpus_fingerprint: str, code_fingerprint: str) -> str:
        """16 hexadecimal digits that name this run wherever it is run."""
        return digest(self.identity(corpus_fingerprint, code_fingerprint))

    def cell_id(self, corpus_fingerprint: str, code_fingerprint: str) -> str:
        """The same without the seed: trials that differ in nothing else."""
        return digest(self.identity(corpus_fingerprint, code_fingerprint) | {"seed": None})


def canonical_json(value: Any) -> str:
    """JSON with one spelling: sorted keys, no blanks, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def _explain(error: Any) -> str:
    if error["type"] == "missing":
        return "is missing"
    if error["type"] == "extra_forbidden":
        return "is not a field of a recipe"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"must be {message}, not {error['input']!r}"
