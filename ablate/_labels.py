"""What the levels of a factor are called in tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ablate.recipe import canonical_json


def labels(values: list[Any], categorical: bool) -> list[str]:
    """The variant's name, with the options in which others of that name differ; numbers and text as they are; sources by weight."""
    if not categorical:
        return [_mixture(value) if isinstance(value, list) else spell(value) for value in values]
    chosen = [_chosen(value) for value in values]
    found = []
    for value, (name, options) in zip(values, chosen, strict=True):
        same = [other for other_name, other in chosen if other_name == name]
        differing = [key for key in options if any(other.get(key) != options[key] for other in same)]
        detail = ", ".join(f"{key}={spell(options[key])}" for key in differing)
        found.append(spell(value) if name is None else f"{name}({detail})" if detail else name)
    return found


def _mixture(sources: list[Any]) -> str:
    """`9 stdlib + 1 synthetic`; one source without its weight."""
    pairs = [
        (one["source"], one.get("weight", 1)) if isinstance(one, dict) and "source" in one else (one, 1)
        for one in sources
    ]
    if len(pairs) < 2:
        return spell(pairs[0][0]) if pairs else "[]"
    return " + ".join(f"{spell(weight)} {spell(source)}" for source, weight in pairs)


def _chosen(value: Any) -> tuple[str | None, Mapping[str, Any]]:
    """Name and options of a level that selects a variant; no name where it does not read as one."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, dict) and len(value) == 1:
        ((name, options),) = value.items()
        return (name, options or {}) if options is None or isinstance(options, dict) else (None, {})
    return None, {}


def spell(value: Any) -> str:
    """A value on one line, much as YAML has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={spell(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(spell, value)) + "]"
    if value is None or isinstance(value, bool):
        return canonical_json(value)
    return value if isinstance(value, str) else repr(value)
