"""The keys of a suite file, and its JSON Schema, which editors complete by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter

from ablate._words import MULTIPLE, SHORTHANDS, number_type, words
from ablate.presets import DEFAULT_SCALE, SCALES
from ablate.recipe import Dropout, Recipe
from ablate.spec import fields
from ablate.variants import Factor, Variant, load_factors

KEYS: dict[str, str] = {
    "name": "The suite's name: lower-case letters, digits and hyphens; one slash may stand between them.",
    "description": "What the suite asks, in plain words.",
    "source": "Where the question comes from: a paper or a page.",
    "base": "What all trials share: the scale, and overrides of its preset by dotted field.",
    "factors": "What varies: the levels of each dotted field. The options of a variant stand inside its level. Left out: one cell.",
    "design": "full: every combination; one_at_a_time: the baseline, and each other level alone; leave_one_out: the same cells, "
    "said of a baseline that is a whole recipe, from which each other level takes one choice away; fractional: of two-level "
    "factors the smallest regular fraction of a resolution, or the one of the generators; optimal: so many cells, chosen to "
    "tell the main effects apart.",
    "baseline": "The level of each factor that others are compared with; the first one where nothing is said.",
    "exclude": "Cells to leave out: each entry gives levels of some factors; cells that have them all are left out.",
    "match": "What every arm has as much of as the baseline: tokens, parameters (by hidden width or depth), flops of training (by "
    "tokens), wall_clock (by tokens and what `ablate speed` measured); none where the budget itself varies. An arm that is off by more "
    "than 2 % is refused; {parameters: {tolerance: 0.05}} takes one that is off by 5 %.",
    "tune": "One field whose best value every cell finds first, on tuning seeds of its own, such as {optimizer.lr: [x0.5, x1, x2]}: "
    "numbers, or multiples of what the cell has of its own. Where the best value is at an end, the grid goes on, by `extend` values at "
    "most (2); a cell whose best value is still at an end is untuned. {values: [...], seeds: 1, extend: 2} says more.",
    "controls": "What is run to test the suite itself: the baseline again on seeds of its own, and what is known to be bad.",
    "seeds": "How many (5 means 0 to 4), or a list of them.",
    "margin": "The difference in val_loss, in nats per token, that counts as equal.",
    "contrasts": "The comparisons named in advance; each level against the baseline where nothing is said.",
}
NAME = r"(?=.{1,64}$)[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)?"

TIMES = {
    "type": "string",
    "pattern": f"^{MULTIPLE}$",
    "description": "A multiple of what the scale or base says: x2, x0.5.",
}
AXES = ("tokens", "parameters", "flops", "wall_clock")
SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
NUMBER = {"type": "number", "exclusiveMinimum": 0}
GRID = {"type": "array", "minItems": 3, "maxItems": 100, "uniqueItems": True, "items": {"anyOf": [NUMBER, TIMES]}}
SEARCH = {
    "type": "object", "additionalProperties": False, "required": ["values"],
    "properties": {
        "values": GRID, "seeds": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 1},
        "extend": {"type": "integer", "minimum": 0, "maximum": 100, "default": 2},
    },
}  # fmt: skip
_RESOLUTION = "3: main effects are confounded with interactions of two factors; 4: of three, and those of two with each other; 5: of four."
_GENERATORS = "The factors that are not crossed, each with those whose product it follows."
_ALIAS = "The largest share of an interaction of two factors that may get into a main effect."
_AA = {
    "anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 1, "maximum": 1000}],
    "description": "The baseline again: true for as many seeds as the suite has, or how many. They are no seeds of the suite.",
}
_BAD = "Overrides that should make the baseline worse, such as optimizer.lr: x10."
PROBABILITY = {"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, TIMES]}


def settable() -> list[str]:
    """Every dotted field that a suite may set or vary, with the options of the variants: `optimizer.lr`."""
    options = [
        f"{factor.field}.{option}"
        for factor in load_factors().values()
        for variant in factor
        for option in _options(variant)
    ]
    return [field for field in fields() if field != "seed"] + options


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a suite file, from the fields of a recipe and the variants there are."""
    schemas = _field_schemas()
    known = {name: schema if "$ref" in schema else {"$ref": f"#/$defs/{name}"} for name, schema in schemas.items()}
    names = {
        name: {"anyOf": [{"type": ["string", "number", "boolean", "null"]}, schema]} for name, schema in known.items()
    }
    levels = {
        name: {"type": "array", "minItems": 2, "uniqueItems": True, "items": schema} for name, schema in known.items()
    }
    rule = {name: {"anyOf": [{"type": "array", "items": label}, label]} for name, label in names.items()}
    seed = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    contrast = {"factor": {"enum": list(known)}, "level": {}, "against": {}}
    values: dict[str, Any] = {
        "name": {"type": "string", "pattern": f"^{NAME}$"},
        "description": {"type": "string"},
        "source": {"type": "string"},
        "base": _object({"scale": {"enum": list(SCALES), "default": DEFAULT_SCALE}, **known}),
        "factors": _object(levels) | {"minProperties": 1},
        "design": _design(list(known)),
        "baseline": _object(names),
        "exclude": {"type": "array", "items": _object(rule) | {"minProperties": 1}},
        "match": {
            "anyOf": [
                {"enum": [*AXES, "none"]},
                _object({axis: _object({"tolerance": SHARE}) for axis in AXES})
                | {"minProperties": 1, "maxProperties": 1},
            ],
            "default": "tokens",
        },
        "tune": _object({name: {"anyOf": [GRID, SEARCH]} for name in known}) | {"minProperties": 1, "maxProperties": 1},
        "controls": _object({"aa": _AA, "bad": _object(known) | {"minProperties": 1, "description": _BAD}})
        | {"minProperties": 1},
        "seeds": {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 1000},
                {"type": "array", "minItems": 1, "maxItems": 1000, "uniqueItems": True, "items": seed},
            ],
            "default": 3,
        },
        "margin": NUMBER,
        "contrasts": {"type": "array", "items": _object(contrast) | {"required": list(contrast)}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Suite of ablations",
        **_object({key: value | {"description": KEYS[key]} for key, value in values.items()}),
        "required": ["name"],
        "$defs": _definitions() | {name: schema for name, schema in schemas.items() if "$ref" not in schema},
    }


def _design(fields: list[str]) -> dict[str, Any]:
    product = {"type": "array", "minItems": 2, "uniqueItems": True, "items": {"enum": fields}}
    fractional = {
        "resolution": {"enum": [3, 4, 5], "description": _RESOLUTION},
        "generators": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"enum": fields},
            "additionalProperties": product,
        }
        | {"description": _GENERATORS},
    }
    optimal = {
        "cells": {"type": "integer", "minimum": 1, "description": "How many cells of the grid to run."},
        "alias": {"type": "number", "minimum": 0, "default": 0.5, "description": _ALIAS},
    }
    selections = {
        "fractional": _object(fractional) | {"minProperties": 1, "maxProperties": 1},
        "optimal": _object(optimal) | {"required": ["cells"]},
    }
    names = {"enum": ["full", "one_at_a_time", "leave_one_out"]}
    return {"anyOf": [names, _object(selections) | {"minProperties": 1, "maxProperties": 1}], "default": "full"}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _field_schemas() -> dict[str, dict[str, Any]]:
    factors = {factor.field: factor for factor in load_factors().values()}
    found = dict(_section(Recipe, "", factors))
    found |= {short: _shorthand(short, factors) for short in SHORTHANDS}
    for field, factor in factors.items():
        for variant in factor:
            for option, schema in _options(variant).items():
                found.setdefault(f"{field}.{option}", {"anyOf": []})["anyOf"].append(schema)
    return found


def _section(
    section: type[BaseModel], prefix: str, factors: Mapping[str, Factor]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, info in section.model_fields.items():
        path, kind = prefix + name, info.annotation
        if path == "seed":
            continue
        if path in factors:
            yield path, _choice(factors[path])
        elif path in ("data.sources", "data.validation"):
            source = _choice(factors["data.source"])
            weighted = _object({"source": source, "weight": NUMBER}) | {"required": ["source"]}
            yield path, {"type": "array", "minItems": 1, "items": {"anyOf": [weighted, source]}}
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            inner = dict(_section(kind, path + ".", factors))
            short = {field: _shorthand(field, factors) for field in SHORTHANDS if field.startswith(path + ".")}
            group = _object({field.removeprefix(path + "."): schema for field, schema in (inner | short).items()})
            yield path, {"anyOf": [group, PROBABILITY]} if kind is Dropout else group
            yield from inner.items()
        else:
            limits = [item for item in info.metadata if not isinstance(item, BeforeValidator)]
            schema = TypeAdapter(Annotated[kind, Field(), *limits]).json_schema()  # pyright: ignore
            yield (
                path,
                (schema if words()[path].number is None else {"anyOf": [schema, TIMES]})
                | {"description": words()[path].doc},
            )


def _shorthand(field: str, factors: Mapping[str, Factor]) -> dict[str, Any]:
    value = _choice(factors[field]) if field in factors else {"anyOf": [NUMBER, TIMES]}
    return value | {"description": SHORTHANDS[field].doc}


def _choice(factor: Factor) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{factor.name}"}


def _options(variant: Variant) -> dict[str, Any]:
    schemas = variant.options.model_json_schema().get("properties", {})
    for name, info in variant.options.model_fields.items():
        if number_type(info.annotation) is not None:
            schemas[name] = {"anyOf": [schemas[name], TIMES]}
    return schemas


def _definitions() -> dict[str, Any]:
    """What each factor takes: the name of a variant, or one with options."""
    found: dict[str, Any] = {}
    for factor in load_factors().values():
        names = [{"const": variant.name, "description": variant.doc} for variant in factor]
        options = {
            variant.name: {"type": ["object", "null"], "additionalProperties": False, "properties": _options(variant)}
            | {"description": variant.doc}
            for variant in factor
        }
        chosen = _object(options) | {"minProperties": 1, "maxProperties": 1}
        found[factor.name] = {"description": factor.doc, "anyOf": [*names, chosen]}
        for variant in factor:
            found |= variant.options.model_json_schema().get("$defs", {})
    return found
