"""Design: the table of trials that a suite asks for. Pure: the same suite and arguments give the same trials."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ablate._cells import NOTHING, recipes
from ablate._yaml import SuiteError, read
from ablate.errors import UserError, near_miss
from ablate.match import Arms, Speeds
from ablate.presets import SCALES
from ablate.recipe import Recipe
from ablate.suite import MAX_SEEDS, Suite
from ablate.variants import load_factors


@dataclass(frozen=True, slots=True)
class Cell:
    """A combination of levels; `levels` holds the label of each factor's level."""

    levels: Mapping[str, str]
    label: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run: a cell and a seed, with the recipe that they come to.

    A trial of the `stage` "tune" only serves to choose a value for its cell, and says in `tuned` which one it tries.
    """

    levels: Mapping[str, str]
    label: str
    seed: int
    recipe: Recipe
    stage: Literal["", "tune"] = ""
    tuned: str = ""

    @property
    def name(self) -> str:
        """Its cell, and what it tries."""
        return f"{self.label}, {self.tuned}" if self.tuned else self.label


@dataclass(frozen=True, slots=True)
class Design:
    """What a suite comes to at one scale. Trials go seed by seed, each with all cells: cut short, they are balanced.

    Where a suite tunes, `trials` are those that are reported, with the value that each arm has of its own (see `ablate.tune`).
    """

    suite: Suite
    scale: str
    cells: tuple[Cell, ...]
    trials: tuple[Trial, ...]
    arms: Arms = field(repr=False, compare=False)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(trial.seed for trial in self.trials))


def expand(
    suite: Suite,
    *,
    scale: str | None = None,
    overrides: Mapping[str, Any] = NOTHING,
    seeds: Sequence[int] | int | None = None,
    only: Mapping[str, str | Sequence[str]] | str | None = None,
    speeds: Speeds | None = None,
) -> Design:
    """The cells and trials of a suite, matched as it says (`ablate.match`).

    `overrides` come between the suite's base and its levels. A number of `seeds` takes the suite's first ones, and goes
    on with the smallest unused. `only` keeps the cells with the given levels: `"attention=gqa,optimizer=lion"`, or
    labels by factor. `speeds` are what `match: wall_clock` goes by.

    Raises:
        UserError: a cell that no recipe can be made of or that cannot be matched, an override of what is a factor, or nothing left.
    """
    if scale is not None and scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}{near_miss(scale, SCALES)}")
    resolved = recipes(suite, scale, overrides)
    wanted = _only(suite, only)
    name, arms = _namer(suite), Arms(suite, scale, overrides, speeds)
    kept = []
    for levels, _ in resolved:
        if all(levels[factor] in labels for factor, labels in wanted.items()):
            cell = Cell(levels, name(levels))
            kept.append((cell, arms.recipe(levels, cell.label)))
    if not kept:
        raise UserError(f"--only {only}: no cell of {suite.name} has these levels together")
    trials = [
        Trial(cell.levels, cell.label, seed, recipe.model_copy(update={"seed": seed}))
        for seed in _seeds(suite, seeds) for cell, recipe in kept
    ]  # fmt: skip
    return Design(suite, scale or suite.scale, tuple(cell for cell, _ in kept), tuple(trials), arms)


def _namer(suite: Suite) -> Callable[[Mapping[str, str]], str]:
    """What to call a cell: its levels; where factors vary one at a time, only how it departs from the baseline."""
    short = short_names(suite.factors)
    known = {factor: {level.label for level in levels} for factor, levels in suite.factors.items()}
    clear = {
        factor.field for factor in load_factors().values()
        if factor.field in known
        and not any(known[factor.field] & known[other] for other in known if other != factor.field)
        and (len(known) == 1 or "none" not in known[factor.field])
    }  # fmt: skip

    def name(levels: Mapping[str, str]) -> str:
        if suite.design == "full":
            words = [label if factor in clear else f"{short[factor]}={label}" for factor, label in levels.items()]
            return " + ".join(words) or "base"
        changes = [f"{short[factor]}={label}" for factor, label in levels.items() if label != suite.baseline[factor]]
        return " + ".join(changes) or "baseline"

    return name


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted field, or all of it where two fields share the last part."""
    fields = list(fields)
    last = [field.rpartition(".")[2] for field in fields]
    return {field: name if last.count(name) == 1 else field for field, name in zip(fields, last, strict=True)}


def parse_set(settings: Iterable[str]) -> dict[str, Any]:
    """Overrides from `field=value`, the value in YAML.

    Raises:
        UserError: a setting that is not of this form, or a field that is set twice.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        field = field.strip()
        if not equals or not field:
            raise SuiteError(f"--set {setting}", None, "", "must be field=value, such as model.dim=128")
        if field in found:
            raise SuiteError(f"--set {field}", None, "", "is given twice")
        try:
            found[field] = read(value, "").value
        except SuiteError as error:
            raise SuiteError(f"--set {field}", None, error.key, error.message) from None
    return found


def _seeds(suite: Suite, seeds: Sequence[int] | int | None) -> list[int]:
    if seeds is None:
        return list(suite.seeds)
    if isinstance(seeds, int):
        if not 1 <= seeds <= MAX_SEEDS:
            raise UserError(f"--seeds must be from 1 to {MAX_SEEDS}, not {seeds}")
        unused = (seed for seed in itertools.count() if seed not in suite.seeds)
        return list(itertools.islice(itertools.chain(suite.seeds, unused), seeds))
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
        raise UserError(f"seeds must be distinct whole numbers from 0 to {2**31 - 1}, not {list(seeds)}")
    return list(seeds)


def _only(suite: Suite, only: Mapping[str, str | Sequence[str]] | str | None) -> dict[str, list[str]]:
    """Labels to keep by factor; factors by their dotted or short names."""
    if only is None:
        return {}
    pairs: list[tuple[str, str]] = []
    if isinstance(only, str):
        for word in re.split(r",(?![^({\[]*[)}\]])", only):
            factor, equals, label = word.partition("=")
            if not equals:
                raise UserError(f"--only {only}: must be factor=level, such as attention=gqa, not {word!r}")
            pairs.append((factor.strip(), label.strip()))
    else:
        pairs = [
            (factor, label)
            for factor, labels in only.items()
            for label in ([labels] if isinstance(labels, str) else labels)
        ]
    names = {name: field for field, name in short_names(suite.factors).items()} | {
        field: field for field in suite.factors
    }
    wanted: dict[str, list[str]] = {}
    for name, label in pairs:
        if name not in names:
            raise UserError(f"--only: {name!r} is not a factor of {suite.name}{near_miss(name, names)}")
        labels = [level.label for level in suite.factors[names[name]]]
        if label not in labels:
            raise UserError(f"--only: {label!r} is not a level of {name}{near_miss(label, labels)}")
        wanted.setdefault(names[name], []).append(label)
    return wanted
