"""Spec: a recipe as it is being written, in the words of a suite; `resolve` leaves nothing to be decided.

A spec also takes what is easier to say than what a recipe holds: `model.ffn_ratio`, `model.dropout: 0.1` for all four places,
`batch.tokens`, `batch.micro_limit`, `train.tokens`, `evaluation.tokens`, `data.source`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ablate import recipe as schema
from ablate.errors import UserError, near_miss
from ablate.presets import SCALES
from ablate.recipe import Recipe, RecipeError
from ablate.variants import Factor, load_factors

SHORTHANDS: dict[str, str] = {
    "model.ffn_ratio": "width of the feed-forward block over the model's, before the 2/3 of gated units (4)",
    "batch.tokens": "tokens per optimizer step, instead of batch.sequences",
    "batch.micro_limit": "the most sequences that go through the model at once; the largest divisor of the batch is taken",
    "train.tokens": "tokens trained on, instead of train.steps; rounded to whole steps",
    "evaluation.tokens": "tokens of the validation slice, instead of evaluation.sequences",
    "data.source": "the only source, instead of data.sources",
}
INSTEAD = {
    "batch.tokens": "batch.sequences",
    "batch.micro_limit": "batch.micro_sequences",
    "train.tokens": "train.steps",
    "evaluation.tokens": "evaluation.sequences",
    "data.source": "data.sources",
    "model.ffn_ratio": "model.ffn_dim",
}
VOCAB_MULTIPLE = 64
FFN_MULTIPLE = 8


def fields() -> dict[str, str]:
    """Every dotted field that a suite may set and what it is: sections, leaves, factors and shorthands."""
    return dict(_fields(Recipe, "")) | SHORTHANDS


def _fields(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, info in section.model_fields.items():
        path = prefix + name
        yield path, info.description or ""
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _fields(info.annotation, path + ".")


class Spec:
    """Overrides applied one after another over a scale's preset.

    A factor keeps the options of each of its variants apart, so that selecting another variant does not inherit options that were
    meant for the first: `optimizer.lr` belongs to the optimizer selected at that moment.
    """

    def __init__(self, scale: str) -> None:
        if scale not in SCALES:
            raise UserError(f"unknown scale {scale!r}{near_miss(str(scale), SCALES)}")
        self.scale = scale
        self._values: dict[str, Any] = {}
        self._selected: dict[str, str] = {}
        self._options: dict[str, dict[str, dict[str, Any]]] = {}
        self._by_field = {factor.field: factor for factor in load_factors().values()}
        self._known = fields()
        preset = copy.deepcopy(SCALES[scale])
        optimizers = preset.pop("optimizer")
        self._options["optimizer"] = optimizers
        self._selected["optimizer"] = next(iter(optimizers))
        self.set_all(preset)

    def copy(self) -> Spec:
        """An independent spec with the same overrides."""
        other = Spec.__new__(Spec)
        other.__dict__ = self.__dict__ | {
            name: copy.deepcopy(getattr(self, name)) for name in ("_values", "_selected", "_options")
        }
        return other

    def set_all(self, overrides: Mapping[str, Any], base_dir: Path | None = None) -> None:
        """Apply several overrides, outer fields before their inner ones."""
        for path in sorted(overrides, key=lambda p: (str(p).count("."), list(overrides).index(p))):
            self.set(path, overrides[path], base_dir)

    def set(self, path: str, value: Any, base_dir: Path | None = None) -> None:
        """Override one dotted field; relative paths among the options of a variant count from `base_dir`.

        Raises:
            RecipeError: an unknown field, variant or option.
        """
        if not isinstance(path, str):
            raise RecipeError(str(path), "is not a field of a recipe")
        owner = next((f for f in self._by_field if path == f or path.startswith(f + ".")), None)
        if owner is not None:
            self._set_choice(self._by_field[owner], path, path[len(owner) + 1 :], value, base_dir)
        elif path not in self._known:
            raise RecipeError(path, f"is not a field of a recipe{near_miss(path, self._suggestions())}")
        elif path == "model.dropout" and isinstance(value, (int, float)) and not isinstance(value, bool):
            self.set_all({f"model.dropout.{place}": value for place in schema.Dropout.model_fields})
        elif path in ("data.sources", "data.validation"):
            self._set_leaf(path, self._sources(path, value, base_dir))
        elif any(other.startswith(path + ".") for other in self._known):
            if not isinstance(value, Mapping):
                raise RecipeError(path, f"is a group of fields and must be a mapping, not {value!r}")
            self.set_all({f"{path}.{key}": inner for key, inner in value.items()}, base_dir)
        else:
            self._set_leaf(path, value)

    def _set_leaf(self, path: str, value: Any) -> None:
        for short, full in INSTEAD.items():
            if path in (short, full):
                self._values.pop(full, None)
                self._values.pop(short, None)
        self._values[path] = value

    def _set_choice(self, factor: Factor, path: str, option: str, value: Any, base_dir: Path | None) -> None:
        field = factor.field
        if option:
            name = self._selected[field]
            value = {name: _nest(option, value)}
        try:
            choice = factor.choose(value, self._options.get(field))
        except UserError as error:
            raise RecipeError(path, str(error)) from None
        given = value[choice.name] if isinstance(value, Mapping) else None
        options = self._options.setdefault(field, {}).setdefault(choice.name, {})
        options.update(_absolute(choice, dict(given or {}), base_dir))
        self._selected[field] = choice.name
        if field == "data.source":
            self._values.pop("data.sources", None)

    def _sources(self, field: str, value: Any, base_dir: Path | None) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not value:
            raise RecipeError(field, f"must be a list of sources, not {value!r}")
        found = []
        for i, item in enumerate(value):
            path = f"{field}.{i}"
            entry = item if isinstance(item, Mapping) and "source" in item else {"source": item}
            extra = [key for key in entry if key not in ("source", "weight")]
            if extra:
                raise RecipeError(f"{path}.{extra[0]}", "is not a field of a source; known: source, weight")
            try:
                choice = load_factors()["source"].choose(entry["source"])
            except UserError as error:
                raise RecipeError(path, str(error)) from None
            options = _absolute(choice, dict(choice.options), base_dir)
            found.append({"source": {choice.name: options}, "weight": entry.get("weight", 1.0)})
        return found

    def _suggestions(self) -> set[str]:
        options = {
            f"{field}.{option}" for field, factor in self._by_field.items() if field in self._selected
            for option in factor[self._selected[field]].options.model_fields
        }  # fmt: skip
        return set(self._known) | set(self._by_field) | options

    def _chosen(self, field: str) -> dict[str, Any]:
        name = self._selected[field]
        return {name: self._options.get(field, {}).get(name, {})}

    def resolve(self, seed: int = 0) -> Recipe:
        """The recipe, with every width, step and size decided.

        Raises:
            RecipeError: a value of the wrong type or range, or choices that cannot go together.
        """
        get = self._values.get
        data: dict[str, Any] = {"seed": seed}
        for path, value in self._values.items():
            if path not in SHORTHANDS:
                _put(data, path, value)
        for field in self._selected:
            if field != "data.source":
                _put(data, field, self._chosen(field))
        if "data.sources" not in self._values:
            _put(data, "data.sources", [{"source": self._chosen("data.source")}])
        number = self._number
        dim, heads, seq_len = number("model.dim"), number("model.n_heads"), number("data.seq_len")
        if get("model.head_dim") is None:
            if dim % heads:
                raise RecipeError("model.n_heads", f"{heads} heads do not divide a width of {dim}")
            _put(data, "model.head_dim", dim // heads)
        if get("model.ffn_dim") is None:
            gated = load_factors()["activation"][self._selected["model.activation"]].trait("gated", False)
            exact = number("model.ffn_ratio", 4.0, whole=False) * dim * (2 / 3 if gated else 1)
            _put(data, "model.ffn_dim", max(FFN_MULTIPLE, round(exact / FFN_MULTIPLE) * FFN_MULTIPLE))
        if get("model.vocab_size") is None:
            try:
                tokenizer = load_factors()["tokenizer"].choose(self._chosen("data.tokenizer")).build()
            except UserError as error:
                raise RecipeError("data.tokenizer", str(error)) from None
            _put(data, "model.vocab_size", -(-tokenizer.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE)
        if get("batch.tokens") is not None:
            tokens = number("batch.tokens")
            if tokens % seq_len:
                raise RecipeError("batch.tokens", f"{tokens} tokens are no whole number of sequences of {seq_len}")
            sequences = tokens // seq_len
        else:
            sequences = number("batch.sequences")
        _put(data, "batch.sequences", sequences)
        if get("batch.micro_sequences") is None:
            limit = min(number("batch.micro_limit"), sequences)
            _put(data, "batch.micro_sequences", next(n for n in range(limit, 0, -1) if sequences % n == 0))
        if get("train.steps") is None:
            _put(data, "train.steps", max(1, round(number("train.tokens") / (sequences * seq_len))))
        if get("evaluation.sequences") is None:
            _put(data, "evaluation.sequences", max(1, number("evaluation.tokens") // seq_len))
        return Recipe.from_dict(data)

    def _number(self, path: str, default: Any = None, *, whole: bool = True) -> Any:
        value = self._values.get(path, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e18:
            raise RecipeError(path, f"must be a positive {'whole ' if whole else ''}number, not {value!r}")
        if value > 2**24 and path not in ("batch.tokens", "train.tokens", "evaluation.tokens"):
            raise RecipeError(path, f"must be at most {2**24:,}, not {value!r}")
        if whole and value != int(value):
            raise RecipeError(path, f"must be a whole number, not {value!r}")
        return int(value) if whole else value


def _nest(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for part in outer:
        data = data.setdefault(part, {})
    data[last] = value


def _absolute(choice: Any, options: dict[str, Any], base_dir: Path | None) -> dict[str, Any]:
    for name in choice.variant.trait("path_options", ()):
        if options.get(name):
            value = options[name]
            listed = [value] if isinstance(value, str) else value
            absolute = [os.path.abspath((base_dir or Path.cwd()) / Path(item).expanduser()) for item in listed]
            options[name] = absolute[0] if isinstance(value, str) else absolute
    return options
