"""From what a spec says to a recipe: sizes, steps and sequences are worked out where they are said in other words, or not at all."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from ablate._words import SHORTHANDS
from ablate.errors import UserError
from ablate.recipe import Recipe, RecipeError
from ablate.variants import load_factors

VOCAB_MULTIPLE = 64
FFN_MULTIPLE = 8
SAME_PARAMETERS = 0.01
"""By which share `model.depth_ratio` may change the parameters of the blocks."""


def resolve(values: Mapping[str, Any], choices: Mapping[str, dict[str, Any]], seed: int) -> Recipe:
    """The recipe of values by dotted field, shorthands among them, and the chosen variant of each factor.

    Raises:
        RecipeError: a value of the wrong type or range, or choices that cannot go together.
    """
    data: dict[str, Any] = {"seed": seed}
    for path, value in values.items():
        if path not in SHORTHANDS:
            _put(data, path, value)
    for field, choice in choices.items():
        if field != "data.source":
            _put(data, field, choice)
    if "data.sources" not in values:
        _put(data, "data.sources", [{"source": choices["data.source"]}])
    said = _Said(values)
    _shape(data, said, choices)
    _batch(data, said)
    _length(data, said)
    return Recipe.from_dict(data)


def read(recipe: Recipe, path: str) -> Any:
    """What a field or shorthand of a resolved recipe comes to."""
    model, batch, data, train = recipe.model, recipe.batch, recipe.data, recipe.train
    gated = model.activation.variant.trait("gated", False)
    unique = data.unique_sequences
    known = {
        "model.ffn_ratio": lambda: model.ffn_dim / model.dim * (3 / 2 if gated else 1),
        "model.depth_ratio": lambda: 1,
        "batch.tokens": lambda: recipe.batch_tokens,
        "batch.micro_limit": lambda: batch.micro_sequences,
        "batch.accumulation": lambda: batch.accumulation,
        "train.tokens": lambda: recipe.tokens,
        "train.tokens_per_parameter": lambda: recipe.tokens / _parameters(recipe),
        "train.epochs": lambda: unique and train.steps * batch.sequences / unique,
        "evaluation.tokens": lambda: recipe.evaluation.sequences * data.seq_len,
        "data.unique_tokens": lambda: unique and unique * data.seq_len,
        "data.repetitions": lambda: unique and round(train.steps * batch.sequences / unique),
    }
    if path in known:
        return known[path]()
    value: Any = recipe
    for part in path.split("."):
        value = getattr(value, part)
    return value


class _Said:
    """The values of a spec, as positive numbers."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __contains__(self, path: str) -> bool:
        return self.values.get(path) is not None

    def whole(self, path: str, default: Any = None) -> int:
        value = self.number(path, default, "positive whole number")
        if value != int(value):
            raise RecipeError(path, f"must be a whole number, not {value!r}")
        return int(value)

    def number(self, path: str, default: Any = None, what: str = "positive number") -> float:
        value = self.values.get(path, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
            raise RecipeError(path, f"must be a {what}, not {value!r}")
        if value > 2**24 and not path.endswith(("tokens", "steps", "unique_sequences")):
            raise RecipeError(path, f"must be at most {2**24:,}, not {value!r}")
        return value


def _shape(data: dict[str, Any], said: _Said, choices: Mapping[str, dict[str, Any]]) -> None:
    dim, heads = said.whole("model.dim"), said.whole("model.n_heads")
    if "model.head_dim" not in said:
        if dim % heads:
            raise RecipeError("model.n_heads", f"{heads} heads do not divide a width of {dim}")
        _put(data, "model.head_dim", dim // heads)
    if "model.ffn_dim" not in said:
        gated = load_factors()["activation"][next(iter(choices["model.activation"]))].trait("gated", False)
        exact = said.number("model.ffn_ratio", 4.0) * dim * (2 / 3 if gated else 1)
        _put(data, "model.ffn_dim", max(FFN_MULTIPLE, round(exact / FFN_MULTIPLE) * FFN_MULTIPLE))
    if "model.vocab_size" not in said:
        try:
            tokenizer = load_factors()["tokenizer"].choose(choices["data.tokenizer"]).build()
        except UserError as error:
            raise RecipeError("data.tokenizer", str(error)) from None
        _put(data, "model.vocab_size", -(-tokenizer.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE)


def _batch(data: dict[str, Any], said: _Said) -> None:
    seq_len = said.whole("data.seq_len")
    if "batch.tokens" in said:
        tokens = said.whole("batch.tokens")
        if tokens % seq_len:
            raise RecipeError("batch.tokens", f"{tokens} tokens are no whole number of sequences of {seq_len}")
        sequences = tokens // seq_len
    else:
        sequences = said.whole("batch.sequences")
    _put(data, "batch.sequences", sequences)
    if "batch.accumulation" in said:
        pieces = said.whole("batch.accumulation")
        if sequences % pieces:
            raise RecipeError("batch.accumulation", f"{pieces} does not divide the {sequences} sequences of a batch")
        _put(data, "batch.micro_sequences", sequences // pieces)
    elif "batch.micro_sequences" not in said:
        limit = min(said.whole("batch.micro_limit"), sequences)
        _put(data, "batch.micro_sequences", next(n for n in range(limit, 0, -1) if sequences % n == 0))
    if "evaluation.sequences" not in said:
        _put(data, "evaluation.sequences", max(1, said.whole("evaluation.tokens") // seq_len))


def _length(data: dict[str, Any], said: _Said) -> None:
    """Steps and unique sequences. The shape is final before, since the number of parameters may decide the steps."""
    sequences, seq_len = data["batch"]["sequences"], data["data"]["seq_len"]
    if "data.unique_tokens" in said:
        _put(data, "data.unique_sequences", max(1, round(said.whole("data.unique_tokens") / seq_len)))
    if "train.steps" not in said:
        _put(data, "train.steps", 1)
    if "model.depth_ratio" in said:
        _trade_depth(data, said.number("model.depth_ratio"))
    if "train.tokens" in said:
        steps = said.whole("train.tokens") / (sequences * seq_len)
    elif "train.tokens_per_parameter" in said:
        parameters = _parameters(Recipe.from_dict(data))
        steps = said.number("train.tokens_per_parameter") * parameters / (sequences * seq_len)
    elif "train.epochs" in said:
        if "data.unique_sequences" not in said and "data.unique_tokens" not in said:
            raise RecipeError("train.epochs", "needs data.unique_sequences or data.unique_tokens, which it passes over")
        unique = said.whole("data.unique_sequences", data["data"]["unique_sequences"])
        steps = said.number("train.epochs") * unique / sequences
    else:
        steps = said.whole("train.steps")
    _put(data, "train.steps", max(1, round(steps)))
    if "data.repetitions" in said:
        times, run = said.whole("data.repetitions"), data["train"]["steps"] * sequences
        if times > run:
            raise RecipeError("data.repetitions", f"a run of {run:,} sequences cannot be {times:,} times the same")
        unit = times // math.gcd(times, sequences)
        steps = max(1, round(data["train"]["steps"] / unit)) * unit
        _put(data, "train.steps", steps)
        _put(data, "data.unique_sequences", steps * sequences // times)


def _trade_depth(data: dict[str, Any], ratio: float) -> None:
    """Make the model `ratio` times as deep at the same number of parameters in its blocks.

    Width times the square root of depth is kept, as parameters go by width squared: width becomes dim / sqrt(ratio), rounded to whole
    heads of an even width; the feed-forward width takes up what the rounding leaves.
    """
    model = data["model"]
    layers, wanted = model["n_layers"], _blocks(data)
    deeper = round(layers * ratio)
    if not math.isclose(deeper, layers * ratio, rel_tol=0.01):
        raise RecipeError("model.depth_ratio", f"{ratio:g} times {layers} blocks are no whole number of blocks")
    if deeper == layers:
        return
    unit = 2 * model["n_heads"]
    old, width = model["dim"], max(1, round(model["dim"] / math.sqrt(deeper / layers) / unit)) * unit
    if model["head_dim"] * model["n_heads"] == old:
        model["head_dim"] = width // model["n_heads"]
    model |= {"dim": width, "n_layers": deeper}
    at_one, at_two = (_blocks(_put_copy(data, "model.ffn_dim", size)) for size in (1, 2))
    exact = 1 + (wanted - at_one) / (at_two - at_one)
    for multiple in (FFN_MULTIPLE, 4, 2, 1):
        model["ffn_dim"] = round(exact / multiple) * multiple
        if model["ffn_dim"] > 0 and math.isclose(_blocks(data), wanted, rel_tol=SAME_PARAMETERS):
            return
    raise RecipeError(
        "model.depth_ratio",
        f"no feed-forward width gives {deeper} blocks of width {width} the parameters of {layers} of {old}",
    )


def _blocks(data: dict[str, Any]) -> int:
    """Parameters of all blocks, which are alike."""
    from ablate.model import build, parameter_count

    return data["model"]["n_layers"] * parameter_count(
        build(Recipe.from_dict(_put_copy(data, "model.n_layers", 1)), "meta").blocks
    )


def _parameters(recipe: Recipe) -> int:
    from ablate.model import build, parameter_count

    return parameter_count(build(recipe, "meta"))


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for part in outer:
        data = data.setdefault(part, {})
    data[last] = value


def _put_copy(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    _put(changed, path, value)
    return changed
