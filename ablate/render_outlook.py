"""What a person sees of a design's outlook, as text; and what programs get of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ablate import render
from ablate.aliases import Alias, Effect
from ablate.design import ALONE, short_names
from ablate.fractional import Fractional
from ablate.optimal import Optimal

if TYPE_CHECKING:
    from ablate.outlook import Outlook
    from ablate.plan import Plan

ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")
FEW = 4
"""Up to so many aliases of an effect are printed whatever they are."""


def outlook(found: Outlook, made: Plan) -> None:
    """Print what a design stands for, confounds and can show, and what the pending trials cost."""
    if len(made.design.cells) < len(found.design.cells):
        _say("what follows is said of the whole suite, of which --only runs a part")
    _say(_cells(found))
    for line in _selection(found):
        _say(f"  {line}")
    if found.aliases:
        print()
        render.table(["the estimate of", "holds beside it (its aliases)"], _aliases(found))
        _say(
            "signs: a factor of two levels counts +1 at the first and -1 at the second; sizes: of an interaction, the share that gets in"
        )
    print()
    _say(f"can be estimated: {_estimable(found)}")
    if any(trial.control for trial in found.design.trials):
        _say(f"controls: {_controls(found)}")
    if found.prospects:
        _prospects(found)
    _say(price(made))


def _say(text: str) -> None:
    render.console().print(Text(text))


def price(made: Plan) -> str:
    """One line: the hours that are still to be trained, of GPUs or of CPU cores, and where the forecast is from."""
    if not made.pending:
        return "price: nothing, for all trials are recorded"
    waiting = made.waiting
    timed = sum(row.timed for row in waiting)
    source = "step times measured here of the same shapes"
    if timed < len(waiting):
        rest = "the rate of other shapes, or a guess where nothing was measured here"
        source = f"{source} for {timed} of them, and {rest}" if timed else rest
    hours, unit = device_hours(made)
    return f"price: {hours:.2g} {unit} for {len(waiting)} trials, from {source}"


def device_hours(made: Plan) -> tuple[float, str]:
    """What all trials take that are to be trained, and of what."""
    hours = sum(row.seconds for row in made.waiting) / 3600
    cuda = made.environment["device_type"] == "cuda"
    return (hours, "GPU hours") if cuda else (hours * made.environment["threads"], "CPU core hours")


def _cells(found: Outlook) -> str:
    design, kind = found.design, found.design.suite.design
    selection, cells = design.suite.selection, len(design.cells)
    if isinstance(selection, Fractional):
        kind += (
            f", resolution {ROMAN[selection.resolution] if selection.resolution < len(ROMAN) else selection.resolution}"
        )
    if isinstance(selection, Optimal) and found.quality:
        kind += f", D-efficiency {found.quality.efficiency:.2f}, worst alias {found.quality.alias:.2f} of {selection.alias:g} allowed"
    return f"design: {cells} of the {found.cells_stood_for} cells of the full grid ({kind.replace('_', ' ')})"


def _selection(found: Outlook) -> list[str]:
    selection = found.design.suite.selection
    if not isinstance(selection, Fractional):
        return []
    short = short_names(found.design.suite.factors)
    return [
        f"{short[factor]} departs from the baseline where an odd number of these do: {', '.join(short[one] for one in product)}"
        for factor, product in selection.generators.items()
    ]


def _aliases(found: Outlook) -> list[list[str]]:
    """A row for each estimate. Of a fraction, effects that cannot be told apart share one; of other selections, main effects have one."""
    short, rows, told = short_names(found.design.suite.factors), [], set[Effect]()
    regular = isinstance(found.design.suite.selection, Fractional)
    for alias in found.aliases:
        if alias.effect in told or (len(alias.effect) == 2 and not regular):
            continue
        told |= {effect for effect, _ in alias.others} if regular else set()
        rows.append([name(alias.effect, short), terms(alias, short) or "nothing"])
    return rows


def name(effect: Effect, short: dict[str, str]) -> str:
    """`norm x position`; `mean` of no factor."""
    return " x ".join(short[factor] for factor in effect) or "mean"


def terms(alias: Alias, short: dict[str, str]) -> str:
    """`+ activation x position - 0.33 norm x dropout`: all where they are few, else main effects and interactions of two factors that are
    wholly in it, or the largest, and how many more there are."""
    shown: Sequence[tuple[Effect, float]] = alias.others
    rest = ""
    if len(shown) > FEW:
        low = [(effect, size) for effect, size in shown if len(effect) <= 2]
        shown = (
            low if low and all(abs(size) == 1 for _, size in low) else sorted(low, key=lambda one: -abs(one[1]))[:FEW]
        )
        left = [(effect, size) for effect, size in alias.others if (effect, size) not in shown]
        if left:
            rest = f" and {len(left)} more of up to {max(abs(size) for _, size in left):.2g} (--json has them)"
    words = [
        f"{'-' if size < 0 else '+'} {'' if abs(size) == 1 else f'{abs(size):.2g} '}{name(effect, short)}" for effect, size in shown
    ]  # fmt: skip
    return " ".join(words) + rest


def _estimable(found: Outlook) -> str:
    design, short = found.design, short_names(found.design.suite.factors)
    if not short:
        return "the mean of one cell"
    if design.suite.design in ALONE:
        return "each level against the baseline, at the baseline's levels of the other factors; no interaction"
    pairs = math.comb(len(short), 2)
    if isinstance(design.suite.selection, Fractional):
        clear = [a for a in found.aliases if len(a.effect) == 2 and all(len(effect) > 2 for effect, _ in a.others)]
        which = "all" if len(clear) == pairs else f"{len(clear)} of the {pairs}" if clear else "none of the"
        return f"every main effect, each with its aliases; {which} interactions of two factors apart from main effects and each other"
    if isinstance(design.suite.selection, Optimal):
        return "every main effect, each with the share that it holds of interactions; confirm what it flags on the full cells"
    missing = pairs - len(found.interactions)
    if not pairs:
        return "the effect of every level"
    if not missing:
        return "every main effect and every interaction of two factors"
    lost = [
        e
        for i, one in enumerate(short)
        for other in list(short)[i + 1 :]
        if (e := (one, other)) not in found.interactions
    ]
    return f"main effects, and interactions of two factors but {', '.join(name(e, short) for e in lost)}: exclude leaves too few cells"


def _controls(found: Outlook) -> str:
    trials = [trial for trial in found.design.trials if trial.control]
    labels = dict.fromkeys(trial.label for trial in trials)
    counts = {label: sum(trial.label == label for trial in trials) for label in labels}
    what = {"A/A": "the baseline again, on {} seeds of its own: a difference would be a false alarm"}
    return "; ".join(
        f"{label} ({what.get(label, 'on {} seeds: it should be worse').format(number)})" for label, number in counts.items()
    )  # fmt: skip


def _prospects(found: Outlook) -> None:
    n, noise, short = len(found.design.seeds), found.noise, short_names(found.design.suite.factors)
    seeds = f"seeds for {found.effect:g}" if found.effect is not None and noise is not None else ""
    rows = []
    for one in found.prospects:
        smallest = "-" if math.isinf(one.smallest_effect) else f"{one.smallest_effect:.2g}{'' if noise else ' sd'}"
        needed = [str(one.seeds) if one.seeds else "over 1000" if one.pairs else "-"] if seeds else []
        rows.append([f"{short[one.factor]}: {one.level} against {one.against}", f"{one.pairs:.3g}", smallest, *needed])
    print()
    numbers = ["pairs of cells", "smallest effect", *([seeds] if seeds else [])]
    render.table(["contrast", *numbers], rows, right=numbers)
    size = "1 contrast" if len(rows) == 1 else f"{len(rows)} contrasts"
    shown = f"smallest effect on val_loss that {n} seeds show in 4 of 5 tries, corrected for {size}"
    if n < 2:
        _say("one seed shows no noise, so no effect can be told from chance")
    elif noise is None:
        _say(
            f"{shown}, in standard deviations (sd) of a run: at this scale none is known here; two seeds of any suite tell it"
        )
        if found.effect is not None:
            _say(f"how many seeds would show {found.effect:g} cannot be told without it")
    else:
        _say(f"{shown}, in nats per token, if a factor acts alike in every seed")
        runs = f"{noise.n_runs} runs of {noise.n_cells} cells: {noise.like}"
        _say(
            f"noise: over seeds, runs of a cell deviate by {noise.sd:.2g} ({runs}), two cells correlate by {noise.correlation:.2f}"
        )
    if noise is not None and found.effect is None:
        _say("how many seeds an effect needs: name it with --effect, or give the suite a margin")


def data(found: Outlook, made: Plan) -> dict[str, Any]:
    """The outlook for programs; infinite numbers are null."""
    suite, noise, (hours, unit) = found.design.suite, found.noise, device_hours(made)
    selection = suite.selection
    fraction = {"resolution": selection.resolution, "generators": {f: list(p) for f, p in selection.generators.items()}} \
        if isinstance(selection, Fractional) else {}  # fmt: skip
    quality = {"d_efficiency": found.quality.efficiency, "worst_alias": found.quality.alias} if found.quality else {}
    return {
        "kind": suite.design,
        "cells": len(found.design.cells),
        "cells_stood_for": found.cells_stood_for,
        **fraction,
        **quality,
        "aliases": [
            {"effect": list(one.effect), "aliases": [{"effect": list(e), "coefficient": c} for e, c in one.others]} for one in found.aliases
        ],
        "interactions": [list(effect) for effect in found.interactions],
        "effect": found.effect,
        "noise": noise and {"sd": noise.sd, "correlation": noise.correlation, "n_runs": noise.n_runs, "n_cells": noise.n_cells},
        "contrasts": [
            {"factor": one.factor, "level": one.level, "against": one.against, "pairs": one.pairs,
             "smallest_effect": None if math.isinf(one.smallest_effect) else one.smallest_effect,
             "unit": "nats/token" if noise else "sd of a run", "seeds_needed": one.seeds}
            for one in found.prospects
        ],
        "price": {"hours": hours, "unit": unit, "trials": len(made.pending), "timed": sum(row.timed for row in made.pending)},
    }  # fmt: skip
