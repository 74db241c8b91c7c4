"""The keys `design` and `controls` of a suite: which cells of the grid are run, and what is run beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from ablate._checks import listed, mapping, show, whole
from ablate._suite_schema import settable
from ablate._yaml import Document
from ablate._yaml import Path as Place
from ablate.errors import near_miss
from ablate.fractional import LEAST, MOST_FACTORS, Fractional, smallest
from ablate.optimal import WORST_ALIAS, Optimal, parameters

DesignKind = Literal["full", "one_at_a_time", "leave_one_out", "fractional", "optimal"]
WITH_OPTIONS = {"fractional": "resolution: 4", "optimal": "cells: 16"}
"""The kinds of design that must be told more, with an example of it."""
Labels = Mapping[str, list[str]]
"""The labels of the levels of each factor."""


@dataclass(frozen=True, slots=True)
class Controls:
    """What a suite runs to test itself. `aa`: the baseline again, on so many seeds of its own (True: as many as the suite
    has); `bad`: overrides of the baseline that should make it worse."""

    aa: int | bool = False
    bad: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def read_design(
    document: Document, top: Mapping[str, Any], labels: Labels
) -> tuple[DesignKind, Fractional | Optimal | None]:
    """The kind of design, with how its cells are selected where that is more than its name says."""
    value, kinds = top.get("design", "full"), get_args(DesignKind)
    if not isinstance(value, dict):
        if isinstance(value, str) and value in WITH_OPTIONS:
            raise document.error(
                ("design",), f"{value} needs to be told more, such as {{{value}: {{{WITH_OPTIONS[value]}}}}}"
            )
        if value not in kinds:
            near = near_miss(value, kinds) if isinstance(value, str) else f"; known: {', '.join(kinds)}"
            raise document.error(("design",), f"{show(value)} is not a design{near}")
        return cast(DesignKind, value), None
    mapping(document, ("design",), value, WITH_OPTIONS)
    if len(value) != 1:
        raise document.error(("design",), f"must be one of {' and '.join(WITH_OPTIONS)}")
    ((kind, options),) = value.items()
    if kind == "optimal":
        return "optimal", _optimal(document, options, labels)
    return "fractional", _fractional(document, top, options, labels)


def _fractional(document: Document, top: Mapping[str, Any], value: Any, labels: Labels) -> Fractional:
    place: Place = ("design", "fractional")
    options = mapping(document, place, value, ("resolution", "generators"))
    if len(options) != 1:
        raise document.error(place, f"needs a resolution or generators{', not both' if options else ''}")
    for factor, known in labels.items():
        if len(known) != 2:
            raise document.error(
                ("factors", factor),
                f"has {len(known)} levels; a fractional design takes two of each factor, an optimal one any number",
            )
    if "exclude" in top:
        raise document.error(
            ("exclude",), "takes cells out of a fraction, which leaves none; let the design be optimal"
        )
    if len(labels) > MOST_FACTORS:
        raise document.error(("factors",), f"are {len(labels)}; a fractional design takes up to {MOST_FACTORS}")
    if "generators" in options:
        return _generated(document, (*place, "generators"), options["generators"], labels)
    resolution = whole(document, (*place, "resolution"), options["resolution"], min(LEAST), max(LEAST))
    found = smallest(list(labels), resolution)
    if found is None and len(labels) > max(LEAST[resolution]):
        most = max(LEAST[resolution])
        raise document.error(
            (*place, "resolution"), f"is known for up to {most} factors, not {len(labels)}; name the generators"
        )
    if found is None:
        raise document.error(
            (*place, "resolution"),
            f"{resolution} of {len(labels)} factors takes all of their combinations; let the design be full",
        )
    return found


def _generated(document: Document, place: Place, value: Any, labels: Labels) -> Fractional:
    given = mapping(document, place, value, labels)
    if not given:
        raise document.error(place, "is empty; let the design be full")
    generators = {}
    for factor, product in given.items():
        here = (*place, factor)
        for i, name in enumerate(listed(document, here, product)):
            if name not in list(labels):
                raise document.error((*here, i), f"{show(name)} is not a factor{near_miss(str(name), labels)}")
            if name in given:
                raise document.error((*here, i), f"{name} is generated itself; name factors that are not")
            if name in product[:i]:
                raise document.error((*here, i), f"{name} is there already")
        generators[factor] = tuple(product)
    found = Fractional(generators)
    if found.resolution < 3:
        together = " and ".join(factor for factor in labels if factor in min(found.words(), key=len))
        raise document.error(place, f"{together} would only change together, so that nobody could tell which did what")
    return found


def _optimal(document: Document, value: Any, labels: Labels) -> Optimal:
    place: Place = ("design", "optimal")
    options = mapping(document, place, value, ("cells", "alias"))
    if "cells" not in options:
        raise document.error((*place, "cells"), "is missing")
    cells = whole(document, (*place, "cells"), options["cells"], 1, prod(map(len, labels.values())))
    if cells < parameters(labels):
        raise document.error(
            (*place, "cells"),
            f"{cells} cells cannot tell the main effects apart; {parameters(labels)} is the least, and more are better",
        )
    alias = options.get("alias", WORST_ALIAS)
    if not isinstance(alias, int | float) or isinstance(alias, bool) or alias < 0:
        raise document.error((*place, "alias"), f"must be a share that is not negative, not {show(alias)}")
    return Optimal(cells, float(alias))


def read_controls(document: Document, top: Mapping[str, Any], most_seeds: int) -> Controls:
    """The controls that a suite asks for."""
    if "controls" not in top:
        return Controls()
    place: Place = ("controls",)
    value = mapping(document, place, top["controls"], ("aa", "bad"))
    if not value:
        raise document.error(place, "is empty; say aa: true, or what is known to be bad")
    aa = value.get("aa", False)
    if not isinstance(aa, bool):
        whole(document, (*place, "aa"), aa, 1, most_seeds, "true, or ")
    bad = mapping(document, (*place, "bad"), value.get("bad", {}), settable())
    if "bad" in value and not bad:
        raise document.error((*place, "bad"), "is empty; say what makes the baseline worse, such as optimizer.lr: x10")
    return Controls(aa, dict(bad))
