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
Positive = Annotated[float, Field(gt=0)]


def _about(description: str, reference: str = "", **constraints: Any) -> Any:
    """What a field is and where it comes from, for `ablate variants` and the schema."""
    return Field(description=description, json_schema_extra={"reference": reference}, **constraints)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Dropout(_Section):
    """The probability of zeroing, at four places."""

    attention_weights: Annotated[Probability, _about("dropout of the attention weights", "arXiv:1706.03762")] = 0.0
    attention_output: Annotated[Probability, _about("dropout of what attention adds", "arXiv:1706.03762")] = 0.0
    feed_forward_output: Annotated[
        Probability, _about("dropout of what the feed-forward block adds", "arXiv:1706.03762")
    ] = 0.0
    embedding: Annotated[Probability, _about("dropout of the embeddings with their positions", "arXiv:1706.03762")] = (
        0.0
    )


class Model(_Section):
    """The decoder: sizes, and one variant per factor."""

    dim: Annotated[Size, _about("width of the residual stream", "arXiv:1706.03762")]
    n_layers: Annotated[Size, _about("blocks", "arXiv:1706.03762")]
    n_heads: Annotated[Size, _about("query heads", "arXiv:1706.03762")]
    head_dim: Annotated[Size, _about("width of a head; dim / n_heads where nothing is said", "arXiv:1706.03762")]
    ffn_dim: Annotated[Size, _about("hidden width of the feed-forward block", "arXiv:1706.03762")]
    vocab_size: Annotated[
        Size, _about("rows of the embedding; the tokenizer's, rounded up, where nothing is said", "arXiv:2407.13623")
    ]
    attention: Annotated[Choice, _Variant("attention")]
    window: Annotated[Choice, _Variant("window")]
    qk_norm: Annotated[Choice, _Variant("qk_norm")]
    attention_soft_cap: Annotated[
        Positive | None, _about("bound c of the attention logits: c tanh(x / c)", "arXiv:2408.00118")
    ] = None
    output_soft_cap: Annotated[
        Positive | None, _about("bound c of the output logits: c tanh(x / c)", "arXiv:2408.00118")
    ] = None
    activation: Annotated[Choice, _Variant("activation")]
    block: Annotated[Choice, _Variant("block")]
    norm: Annotated[Choice, _Variant("norm")]
    placement: Annotated[Choice, _Variant("placement")]
    position: Annotated[Choice, _Variant("position")]
    init: Annotated[Choice, _Variant("init")]
    dropout: Dropout = Dropout()
    bias: Annotated[bool, _about("whether linear layers and layer norms have a bias", "arXiv:2204.02311")] = False
    tie_embeddings: Annotated[bool, _about("whether the head is the embedding", "arXiv:1608.05859")] = False


class Batch(_Section):
    """Sequences per optimizer step, and how many of them go through the model at once."""

    sequences: Annotated[Size, _about("sequences per optimizer step", "arXiv:1812.06162")]
    micro_sequences: Annotated[Size, _about("sequences that go through the model at once", "arXiv:1811.06965")]

    @property
    def accumulation(self) -> int:
        return self.sequences // self.micro_sequences


class Source(_Section):
    """A source of documents and the share of training sequences drawn from it (weights need not sum to 1)."""

    source: Annotated[Choice, _Variant("source")]
    weight: Annotated[float, Field(gt=0)] = 1.0


class Data(_Section):
    """What is trained on, and what is held out: `validation`, or the held-out part of `sources` where that is empty."""

    sources: Annotated[
        tuple[Source, ...],
        _about("what training sequences are drawn from, by weight", "arXiv:2305.10429", min_length=1, strict=False),
    ]
    validation: Annotated[
        tuple[Source, ...],
        _about("sources of the validation slice, instead of data.sources", "arXiv:2305.10429", strict=False),
    ] = ()
    curation: Annotated[Choice, _Variant("curation")]
    tokenizer: Annotated[Choice, _Variant("tokenizer")]
    seq_len: Annotated[Size, _about("tokens per sequence", "arXiv:2108.12409")]
    unique_sequences: Annotated[
        Count | None,
        _about(
            "train on this many sequences, over and over; on the whole corpus where nothing is said", "arXiv:2305.16264"
        ),
    ] = None
    document_masking: Annotated[bool, _about("whether attention stays within a document", "arXiv:2402.13991")] = False


class Train(_Section):
    """Length, rate, objective and arithmetic of training."""

    steps: Annotated[Count, _about("optimizer steps", "arXiv:2203.15556")]
    warmup: Annotated[
        float, _about("share of the steps in which the rate rises linearly", "arXiv:1706.02677", ge=0, lt=1)
    ] = 0.02
    clipping: Annotated[Choice, _Variant("clipping")]
    decay_skips: Annotated[
        Literal["nothing", "vectors", "vectors_and_embeddings"],
        _about(
            "what weight decay leaves alone: norms and biases (vectors), embeddings too, or nothing", "arXiv:2501.00656"
        ),
    ] = "vectors_and_embeddings"
    z_loss: Annotated[
        float, _about("weight of the squared log of the softmax's normalizer", "arXiv:2204.02311", ge=0)
    ] = 0.0
    label_smoothing: Annotated[
        Probability, _about("share of the target spread over the vocabulary", "arXiv:1512.00567")
    ] = 0.0
    precision: Annotated[Choice, _Variant("precision")]
    checkpointing: Annotated[Choice, _Variant("checkpointing")]
    loss_chunks: Annotated[
        Size,
        _about(
            "pieces in which logits and loss are computed, one at a time in memory; 1 is all at once",
            "arXiv:2411.09009",
        ),
    ] = 1
    deterministic: Annotated[bool, _about("only deterministic kernels", "torch.use_deterministic_algorithms")] = False


class Evaluation(_Section):
    """The fixed validation slice, and at how many evenly spaced points it is evaluated (the last is the end)."""

    sequences: Annotated[Size, _about("sequences of the validation slice", "arXiv:2312.10523")]
    points: Annotated[Count, _about("evaluations in the course of training", "arXiv:2304.01373")]


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

    def fresh_tokens(self, corpus_tokens: int) -> int:
        """Tokens that are not repetitions, of a corpus of so many: all, or those of `data.unique_sequences`."""
        unique = self.data.unique_sequences
        return corpus_tokens if unique is None else min(corpus_tokens, unique * self.data.seq_len)

    def choices(self) -> dict[str, Choice]:
        """The selected variants by dotted field."""
        found = {factor.field: value for factor in load_factors().values() if (value := self._at(factor.field))}
        for i, source in enumerate(self.data.sources):
            found[f"data.sources.{i}.source"] = source.source
        for i, source in enumerate(self.data.validation):
            found[f"data.validation.{i}.source"] = source.source
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

    @property
    def capturable(self) -> bool:
        """Whether every variant that runs in a step may be part of a captured one."""
        factors = load_factors()
        return all(c.variant.capturable for c in self.choices().values() if factors[c.factor].in_step)

    def shape(self) -> str:
        """Equal for recipes that one prepared step can serve: all that it is compiled for, without seed, length and schedule.

        Of rates and limits it matters only whether they are zero, and so cost nothing.
        """
        fields = self.to_dict()
        for path, choice in self.choices().items():
            if tensors := choice.variant.tensors:
                options = {k: v == 0 if k in tensors else v for k, v in choice.options.items()}
                _put(fields, path, {choice.name: options})
        data = {"seq_len": self.data.seq_len, "document_masking": self.data.document_masking}
        if self.data.document_masking:
            data["tokenizer"] = fields["data"]["tokenizer"]
        train = {key: value for key, value in fields["train"].items() if key not in ("steps", "warmup")}
        return digest(
            {
                "model": fields["model"],
                "optimizer": fields["optimizer"],
                "batch": fields["batch"],
                "data": data,
                "train": train,
            }
        )

    def identity(self, corpus_fingerprint: str, code_fingerprint: str) -> dict[str, Any]:
        """What the trial id is a hash of: data by content and not by path, code by meaning."""
        fields = self.to_dict()
        data = self.data
        fields["data"] = {
            "seq_len": data.seq_len, "unique_sequences": data.unique_sequences, "document_masking": data.document_masking,
            "corpus": corpus_fingerprint,
        }  # fmt: skip
        fields["code"] = code_fingerprint
        return fields

    def trial_id(self, corpus_fingerprint: str, code_fingerprint: str) -> str:
        """16 hexadecimal digits that name this run wherever it is run."""
        return digest(self.identity(corpus_fingerprint, code_fingerprint))

    def cell_id(self, corpus_fingerprint: str, code_fingerprint: str) -> str:
        """The same without the seed: trials that differ in nothing else."""
        return digest(self.identity(corpus_fingerprint, code_fingerprint) | {"seed": None})


def _put(fields: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        fields = fields[part]
    fields[last] = value


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
