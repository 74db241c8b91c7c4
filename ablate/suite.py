"""Suites: a YAML file that declares factors and levels, read strictly.

`load_suite` gives a `Suite` in which every cell is known to resolve, or a `SuiteError` that names file, line, key and
what was meant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ablate._cells import known_bad, recipes
from ablate._checks import listed as _list
from ablate._checks import mapping as _mapping
from ablate._checks import show as _show
from ablate._grid import Tune
from ablate._labels import labels as level_labels
from ablate._labels import spell
from ablate._suite_arms import Match, read_match, read_tune
from ablate._suite_design import Controls, DesignKind, read_controls, read_design
from ablate._suite_schema import KEYS, NAME, json_schema, settable
from ablate._yaml import MAX_BYTES, Document, SuiteError, read
from ablate._yaml import Path as Place
from ablate.errors import near_miss
from ablate.fractional import Fractional
from ablate.optimal import Optimal
from ablate.presets import DEFAULT_SCALE, SCALES
from ablate.variants import load_factors

__all__ = ["Level", "Suite", "SuiteError", "json_schema", "load_suite", "shipped"]

DEFAULT_SEEDS = 3
MAX_SEEDS = 1000


@dataclass(frozen=True, slots=True)
class Level:
    """One setting of a factor: its name in tables, and the value as the suite spells it."""

    label: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite as it was declared. Factors are dotted fields of a recipe; outside `factors`, levels go by their labels.

    `base` holds the overrides without the scale; relative paths in it and in levels count from `base_dir`. Without factors there is
    one cell. `selection` says how a fractional or optimal design selects its cells. `tolerance` is the share by which an arm may miss
    what it is to `match`. `margin` is in nats per token. Each of `contrasts` has `factor`, `level` and `against`. `document` knows the
    lines, for errors.
    """

    name: str
    description: str
    source: str
    scale: str
    base: Mapping[str, Any]
    factors: Mapping[str, tuple[Level, ...]]
    design: DesignKind
    selection: Fractional | Optimal | None
    controls: Controls
    baseline: Mapping[str, str]
    exclude: tuple[Mapping[str, tuple[str, ...]], ...]
    match: Match
    tolerance: float
    tune: Tune | None
    seeds: tuple[int, ...]
    margin: float | None
    contrasts: tuple[Mapping[str, str], ...]
    text: str
    path: Path
    document: Document = field(repr=False, compare=False)

    @property
    def base_dir(self) -> Path:
        return self.path.parent

    @property
    def asked(self) -> str:
        """What to call it on the command line."""
        return self.name if self.path.is_relative_to(_folder()) else str(self.path)

    def matched(self, text: str) -> Suite:
        """The suite with another `match`, as it would be said in the file.

        Raises:
            SuiteError: no axis, or a tolerance that is none.
        """
        try:
            document = read(f"match: {text}", "")
            axis, tolerance = read_match(document, document.value)
        except SuiteError as error:
            raise SuiteError(f"--match {text}", None, "", error.message) from None
        return replace(self, match=axis, tolerance=tolerance)


def load_suite(name_or_path: str | Path) -> Suite:
    """The shipped suite of that name, or the file at that path (see `is_path`).

    Raises:
        SuiteError: no such suite, a file that is not one, or a cell that has no recipe at the suite's own scale.
    """
    path = _find(str(name_or_path))
    where = f"suites/{path.relative_to(_folder()).as_posix()}" if path.is_relative_to(_folder()) else str(path)
    content = _content(path, where)
    suite = _suite(read(content, where), content.decode("utf-8-sig"), path.absolute())
    known_bad(suite, recipes(suite))
    return suite


def shipped() -> dict[str, tuple[Path, str]]:
    """The suites that come with ablate: path and description by name."""
    return {name: (path, read(path.read_bytes(), name).value["description"].strip()) for name, path in _paths().items()}


def is_path(text: str) -> bool:
    """Whether SUITE is a file: it ends in .yaml or .yml, or could not be a suite's name, such as ./mine."""
    return text.endswith((".yaml", ".yml")) or (os.sep in text and not re.fullmatch(NAME, text))


def _folder() -> Path:
    here = Path(__file__).resolve().parent
    return next(folder for folder in (here / "suites", here.parent / "suites") if folder.is_dir())


def _paths() -> dict[str, Path]:
    """The shipped files by name: those of the folder first, then those of its folders."""
    folder = _folder()
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    return dict(sorted(found.items(), key=lambda item: (item[0].count("/"), item[0])))


def _find(name: str) -> Path:
    if is_path(name):
        return Path(name)
    known = _paths()
    if name in known:
        return known[name]
    mine = [path for path in (f"./{name}", f"./{name}.yaml", f"suites/{name}.yaml") if _is_file(Path(path))]
    hint = f"; for the file, say {mine[0]}" if mine else near_miss(name, known)
    raise SuiteError("", None, "", f"no suite is called {name!r}{hint}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def _content(path: Path, where: str) -> bytes:
    if not _is_file(path):
        raise SuiteError(where, None, "", "no such file")
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SuiteError(where, None, "", str(error.strerror).lower()) from None


def _suite(document: Document, text: str, path: Path) -> Suite:
    """The suite that a file declares, checked but for what its recipes decide."""
    top = _mapping(document, (), document.value, KEYS)
    if "name" not in top:
        raise document.error(("name",), "is missing")
    match, tolerance = read_match(document, top)
    name = top["name"]
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise document.error(
            ("name",),
            f"must be up to 64 lower-case letters, digits and hyphens, perhaps with a slash, not {_show(name)}",
        )
    base = dict(_mapping(document, ("base",), top.get("base", {})))
    scale = base.pop("scale", DEFAULT_SCALE)
    if not isinstance(scale, str) or scale not in SCALES:
        raise document.error(("base", "scale"), f"unknown scale {_show(scale)}{near_miss(str(scale), SCALES)}")
    factors = _factors(document, top["factors"]) if "factors" in top else {}
    baseline = {factor: levels[0].label for factor, levels in factors.items()}
    for factor, value in _mapping(document, ("baseline",), top.get("baseline", {}), factors).items():
        baseline[factor] = _label(document, ("baseline", factor), value, factors[factor])
    design, selection = read_design(
        document, top, {factor: [level.label for level in levels] for factor, levels in factors.items()}
    )
    return Suite(
        name=name,
        description=_text(document, "description", top),
        source=_text(document, "source", top),
        scale=scale,
        base=base,
        factors=factors,
        design=design,
        selection=selection,
        controls=read_controls(document, top, MAX_SEEDS),
        baseline=baseline,
        exclude=_exclude(document, top.get("exclude", []), factors),
        match=match,
        tolerance=tolerance,
        tune=read_tune(document, top["tune"], factors, MAX_SEEDS) if "tune" in top else None,
        seeds=_seeds(document, top.get("seeds", DEFAULT_SEEDS)),
        margin=_margin(document, top),
        contrasts=_contrasts(document, top, factors, baseline),
        text=text,
        path=path,
        document=document,
    )


def _factors(document: Document, value: Any) -> dict[str, tuple[Level, ...]]:
    categorical = {factor.field for factor in load_factors().values()}
    factors = {}
    for factor, values in _mapping(document, ("factors",), value, settable()).items():
        place = ("factors", factor)
        if not isinstance(values, list):
            raise document.error(place, f"must be a list of levels, not {_show(values)}")
        if len(values) < 2:
            few = "has one level" if values else "has no levels"
            raise document.error(place, f"{few}; a factor needs two or more (what does not vary belongs under base)")
        labels: list[str] = []
        for i, label in enumerate(level_labels(values, factor in categorical)):
            if label in labels:
                raise document.error((*place, i), f"level {label} is there already")
            labels.append(label)
        factors[factor] = tuple(map(Level, labels, values))
    if not factors:
        raise document.error(("factors",), "is empty; leave it out for a suite of one cell")
    return factors


def _label(document: Document, place: Place, value: Any, levels: tuple[Level, ...]) -> str:
    """The label of the level that `value` names, by its label or in full."""
    for level in levels:
        if spell(value) == level.label or (
            value == level.value and isinstance(value, bool) == isinstance(level.value, bool)
        ):
            return level.label
    labels = [level.label for level in levels]
    raise document.error(place, f"{spell(value)} is not one of its levels{near_miss(spell(value), labels)}")


def _exclude(
    document: Document, value: Any, factors: Mapping[str, tuple[Level, ...]]
) -> tuple[dict[str, tuple[str, ...]], ...]:
    rules = []
    for i, rule in enumerate(_list(document, ("exclude",), value)):
        place = ("exclude", i)
        found = {}
        for factor, labels in _mapping(document, place, rule, factors).items():
            listed = labels if isinstance(labels, list) else [labels]
            found[factor] = tuple(_label(document, (*place, factor), label, factors[factor]) for label in listed)
        if not found:
            raise document.error(place, "is empty, which would exclude every cell")
        rules.append(found)
    return tuple(rules)


def _seeds(document: Document, value: Any) -> tuple[int, ...]:
    place = ("seeds",)
    if isinstance(value, list):
        for i, seed in enumerate(value):
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
                raise document.error((*place, i), f"must be a whole number from 0 to {2**31 - 1}, not {_show(seed)}")
            if seed in value[:i]:
                raise document.error((*place, i), f"seed {seed} is there already")
        count, seeds = len(value), tuple(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        count, seeds = value, range(max(0, min(value, MAX_SEEDS)))
    else:
        raise document.error(place, f"must be how many, or a list of them, not {_show(value)}")
    if not 1 <= count <= MAX_SEEDS:
        raise document.error(place, f"must be from 1 to {MAX_SEEDS} of them, not {count}")
    return tuple(seeds)


def _margin(document: Document, top: Mapping[str, Any]) -> float | None:
    if "margin" not in top:
        return None
    value = top["margin"]
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise document.error(("margin",), f"must be a positive number of nats, not {_show(value)}")
    return float(value)


def _contrasts(
    document: Document, top: Mapping[str, Any], factors: Mapping[str, tuple[Level, ...]], baseline: Mapping[str, str]
) -> tuple[dict[str, str], ...]:
    """The declared contrasts; without any, each level against its factor's baseline."""
    if "contrasts" not in top:
        return tuple(
            {"factor": factor, "level": level.label, "against": baseline[factor]}
            for factor, levels in factors.items() for level in levels if level.label != baseline[factor]
        )  # fmt: skip
    found: list[dict[str, str]] = []
    for i, item in enumerate(_list(document, ("contrasts",), top["contrasts"])):
        place = ("contrasts", i)
        contrast = _mapping(document, place, item, ("factor", "level", "against"))
        for key in ("factor", "level", "against"):
            if key not in contrast:
                raise document.error((*place, key), "is missing")
        factor = contrast["factor"]
        if not isinstance(factor, str) or factor not in factors:
            raise document.error(
                (*place, "factor"), f"{_show(factor)} is not a factor{near_miss(str(factor), factors)}"
            )
        level, against = (
            _label(document, (*place, key), contrast[key], factors[factor]) for key in ("level", "against")
        )
        if level == against:
            raise document.error(place, f"sets {level} against itself")
        found.append({"factor": factor, "level": level, "against": against})
    return tuple(found)


def _text(document: Document, key: str, top: Mapping[str, Any]) -> str:
    value = top.get(key, "")
    if not isinstance(value, str):
        raise document.error((key,), f"must be text, not {_show(value)}")
    return value.strip()


def _one_of(document: Document, key: str, top: Mapping[str, Any], known: tuple[str, ...]) -> Any:
    value = top.get(key, known[0])
    if value not in known:
        raise document.error((key,), f"{_show(value)} is not available in this version; known: {', '.join(known)}")
    return value
