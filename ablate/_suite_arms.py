"""The keys `match` and `tune` of a suite: what every arm has as much of, and what it searches for itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from ablate._cells import decides
from ablate._checks import listed, mapping, show, whole
from ablate._grid import FEWEST, Tune, magnitude
from ablate._labels import spell
from ablate._suite_schema import settable
from ablate._words import is_multiple
from ablate._yaml import Document
from ablate._yaml import Path as Place
from ablate.errors import near_miss

Match = Literal["tokens", "none", "parameters", "flops", "wall_clock"]
MATCH_TOLERANCE = 0.02
"""The share by which an arm may be off on the axis that it is matched on."""
TUNING_SEEDS, EXTEND = 1, 2
"""What a search has where nothing is said: seeds, and values beyond the grid."""
MOST_VALUES = 100
UNTUNABLE = ("data", "evaluation", "train.steps", "train.tokens", "train.epochs", "model.vocab_size")


def read_match(document: Document, top: Mapping[str, Any]) -> tuple[Match, float]:
    """The axis and the tolerance."""
    place, value, axes = ("match",), top.get("match", "tokens"), get_args(Match)
    if not isinstance(value, dict):
        if value not in axes:
            raise document.error(
                place, f"unknown axis {show(value)}{near_miss(str(value), axes)}; known: {', '.join(axes)}"
            )
        return value, MATCH_TOLERANCE
    known = [axis for axis in axes if axis != "none"]
    if len(mapping(document, place, value, known)) != 1:
        raise document.error(
            place, f"must be one axis, such as {{parameters: {{tolerance: 0.05}}}}; known: {', '.join(known)}"
        )
    ((axis, options),) = value.items()
    options = mapping(document, (*place, axis), options, ("tolerance",))
    tolerance = options.get("tolerance", MATCH_TOLERANCE)
    if not isinstance(tolerance, int | float) or isinstance(tolerance, bool) or not 0 < tolerance < 1:
        raise document.error((*place, axis, "tolerance"), f"must be a share between 0 and 1, not {show(tolerance)}")
    return axis, float(tolerance)


def read_tune(document: Document, value: Any, factors: Collection[str], most_seeds: int) -> Tune:
    """The field that is tuned, and its grid."""
    place: Place = ("tune",)
    given = mapping(document, place, value, settable())
    if len(given) != 1:
        raise document.error(place, f"must be one field, such as {{optimizer.lr: [x0.5, x1, x2]}}, not {len(given)}")
    ((name, grid),) = given.items()
    place = (*place, name)
    if any(decides(name, factor) for factor in factors):
        raise document.error(place, "is a factor of this suite; tune another field, or compare its levels")
    if name.startswith(UNTUNABLE):
        raise document.error(place, "changes what is trained or evaluated on, so that losses would not compare")
    options = (
        {"values": grid} if isinstance(grid, list) else mapping(document, place, grid, ("values", "seeds", "extend"))
    )
    if "values" not in options:
        raise document.error((*place, "values"), "is missing")
    at = place if isinstance(grid, list) else (*place, "values")
    values = listed(document, at, options["values"])
    for i, one in enumerate(values):
        number = isinstance(one, int | float) and not isinstance(one, bool)
        if not (number or is_multiple(one)) or magnitude(one) <= 0:
            raise document.error((*at, i), f"must be a positive number, or a multiple such as x0.5, not {show(one)}")
        if isinstance(one, str) != isinstance(values[0], str):
            raise document.error((*at, i), "must be all numbers or all multiples; this one is not like the first")
        if magnitude(one) in map(magnitude, values[:i]):
            raise document.error((*at, i), f"{spell(one)} is there already")
    if not FEWEST <= len(values) <= MOST_VALUES:
        raise document.error(
            at, f"must be from {FEWEST} to {MOST_VALUES} values, for one to lie between others, not {len(values)}"
        )
    seeds = whole(document, (*place, "seeds"), options.get("seeds", TUNING_SEEDS), 1, most_seeds)
    extend = whole(document, (*place, "extend"), options.get("extend", EXTEND), 0, MOST_VALUES)
    return Tune(field=name, values=tuple(values), seeds=seeds, extend=extend, place=at)
