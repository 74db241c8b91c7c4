"""Design: the table of trials that a suite asks for. Pure: the same suite and arguments give the same trials."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ablate._cells import NOTHING, known_bad, recipes
from ablate._labels import spell
from ablate._yaml import SuiteError, read
from ablate.aliases import Alias, aliases
from ablate.errors import UserError, near_miss
from ablate.fractional import Fractional
from ablate.match import Arms, Speeds
from ablate.presets import SCALES
from ablate.recipe import Recipe
from ablate.suite import MAX_SEEDS, Suite
from ablate.variants import load_factors

ALONE = ("one_at_a_time", "leave_one_out")
"""The designs in which a cell departs from the baseline by one level: it is named by that."""
AA_SEEDS = 1_000_000
"""The first seed of an A/A arm: far from those that a suite grows into."""
Control = Literal["", "aa", "bad"]


@dataclass(frozen=True, slots=True)
class Cell:
    """A combination of levels; `levels` holds the label of each factor's level."""

    levels: Mapping[str, str]
    label: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One training run: a cell and a seed, with the recipe that they come to.

    Of a `control`, "aa" is the baseline with a seed that no other cell has, and "bad" is known to be bad and has no levels.

    A trial of the `stage` "tune" only serves to choose a value for its cell, and says in `tuned` which one it tries.
    """

    levels: Mapping[str, str]
    label: str
    seed: int
    recipe: Recipe
    control: Control = ""
    stage: Literal["", "tune"] = ""
    tuned: str = ""

    @property
    def name(self) -> str:
        """Its cell, and what it tries."""
        return f"{self.label}, {self.tuned}" if self.tuned else self.label


@dataclass(frozen=True, slots=True)
class Design:
    """What a suite comes to at one scale. Trials go seed by seed, each with all cells and controls: cut short, they are balanced.

    Where a suite tunes, `trials` are those that are reported, with the value that each arm has of its own (see `ablate.tune`).
    """

    suite: Suite
    scale: str
    cells: tuple[Cell, ...]
    trials: tuple[Trial, ...]
    arms: Arms = field(repr=False, compare=False)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the cells, without those of an A/A arm."""
        return tuple(dict.fromkeys(trial.seed for trial in self.trials if trial.control != "aa"))

    @property
    def labels(self) -> dict[str, list[str]]:
        """The labels of the levels of each factor."""
        return {factor: [level.label for level in levels] for factor, levels in self.suite.factors.items()}

    def part(self, labels: Collection[str]) -> Design:
        """The cells of these labels, without controls."""
        return replace(
            self, cells=tuple(cell for cell in self.cells if cell.label in labels),
            trials=tuple(trial for trial in self.trials if trial.label in labels and not trial.control),
        )  # fmt: skip

    @property
    def command(self) -> str:
        """The command that runs it."""
        suite, words = self.suite, ["ablate", "run", self.suite.asked, "--scale", self.scale]
        for key, value in self.arms.resolver.overrides.items():
            words += ["--set", f"{key}={json.dumps(value, default=str)}"]
        if self.seeds != suite.seeds:
            words += ["--seeds", str(len(self.seeds))]
        if suite.match not in suite.document.value.get("match", "tokens"):
            words += ["--match", suite.match]
        return shlex.join(words)

    def aliases(self) -> list[Alias]:
        """What each estimate holds beside its own effect, where the design confounds them; else nothing."""
        if self.suite.selection is None:
            return []
        whole = isinstance(self.suite.selection, Fractional)
        return aliases(self.labels, [cell.levels for cell in self.cells], whole=whole)


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
    labels by factor; the controls are there where the baseline is. `speeds` are what `match: wall_clock` goes by.

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
    numbers = _seeds(suite, seeds)
    controls: list[list[Trial]] = []
    if any(cell.levels == suite.baseline for cell, _ in kept):
        baseline = next(recipe for levels, recipe in resolved if levels == suite.baseline)
        controls = _controls(suite, numbers, baseline, known_bad(suite, resolved, scale, overrides))
    trials = []
    for rest, seed in itertools.zip_longest(controls, numbers):
        if seed is not None:
            trials += [Trial(cell.levels, cell.label, seed, _seeded(recipe, seed)) for cell, recipe in kept]
        trials += rest or []
    return Design(suite, scale or suite.scale, tuple(cell for cell, _ in kept), tuple(trials), arms)


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"seed": seed})


def _controls(suite: Suite, seeds: Sequence[int], baseline: Recipe, bad: Recipe | None) -> list[list[Trial]]:
    """The controls that go with each seed in turn; where an A/A arm has more seeds, these come after."""
    wanted = suite.controls.aa
    size = len(seeds) if wanted is True else int(wanted)
    unused = (seed for seed in itertools.count(AA_SEEDS) if seed not in seeds and seed not in suite.seeds)
    found: list[list[Trial]] = [[] for _ in range(max(size, len(seeds)))]
    for place, seed in enumerate(itertools.islice(unused, size)):
        found[place].append(Trial(suite.baseline, "A/A", seed, _seeded(baseline, seed), "aa"))
    if bad is not None:
        short = short_names(suite.controls.bad)
        changes = ", ".join(f"{short[field]}={spell(value)}" for field, value in suite.controls.bad.items())
        for place, seed in enumerate(seeds):
            found[place].append(Trial({}, f"known-bad: {changes}", seed, _seeded(bad, seed), "bad"))
    return found


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
        if suite.design not in ALONE:
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
