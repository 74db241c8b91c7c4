"""Checks of the plain data of a suite file, and how a wrong value is shown."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ablate._labels import spell
from ablate._yaml import Document
from ablate._yaml import Path as Place
from ablate.errors import near_miss


def mapping(document: Document, place: Place, value: Any, known: Collection[str] | None = None) -> Mapping[str, Any]:
    """`value`, a mapping with no other keys than the `known`."""
    if not isinstance(value, dict):
        raise document.error(place, f"must be a mapping{' of keys to values' if not place else ''}, not {show(value)}")
    for key in value:
        if known is not None and key not in known:
            raise document.error((*place, key), f"unknown key {show(key)}{near_miss(key, known)}")
    return value


def listed(document: Document, place: Place, value: Any) -> list[Any]:
    """`value`, a list."""
    if not isinstance(value, list):
        raise document.error(place, f"must be a list, not {show(value)}")
    return value


def whole(document: Document, place: Place, value: Any, least: int, most: int, else_: str = "") -> int:
    """`value`, a whole number within bounds; `else_` says what else it might have been, such as `true, or `."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise document.error(place, f"must be {else_}a whole number from {least} to {most}, not {show(value)}")
    return value


def show(value: Any) -> str:
    """A value in a message."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value) if isinstance(value, str) else spell(value)
