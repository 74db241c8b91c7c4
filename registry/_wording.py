"""An effect in words: what a level does, how sure that is, and what may not be said of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import _escape
from .record import METRICS

Row = Mapping[str, Any]
NAMES = {
    "val_loss": "validation loss",
    "val_bpb": "bits per byte",
    "tokens_per_second": "throughput",
    "peak_memory_gib": "peak memory",
}
MATCHED = {
    "tokens": "at equal tokens",
    "parameters": "at equal parameters",
    "flops": "at equal FLOPs",
    "wall_clock": "at equal training time",
}
SIGNS = {"better": "▲", "worse": "▼", "equivalent": "■", "inconclusive": "○"}
SIGNIFICANT = 0.05
LONG = 40
"""Characters of a name; a longer one loses its middle."""


@dataclass(frozen=True, slots=True)
class Label:
    """A name as it is shown, and in full."""

    text: str
    full: str


Phrase = tuple[str | Label, ...]
"""A sentence whose names can be looked up in full."""


class Labels:
    """Short names, different for different names."""

    def __init__(self) -> None:
        self._known: dict[str, Label] = {}
        self._taken: set[str] = set()

    def __call__(self, name: str) -> Label:
        if name not in self._known:
            full = _escape.seen(str(name))
            line = " ".join(full.split()) or "(no name)"
            cut = line if len(line) <= LONG else f"{line[: LONG - 15]}…{line[-14:]}"
            text, number = cut, 2
            while text in self._taken:
                text, number = f"{cut} #{number}", number + 1
            self._taken.add(text)
            self._known[name] = Label(text, full)
        return self._known[name]


def short_factors(factors: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted name, or all of it where two share the last part."""
    factors = list(factors)
    last = [name.rpartition(".")[2] for name in factors]
    return {name: short if last.count(short) == 1 else name for name, short in zip(factors, last, strict=True)}


def name(metric: str) -> str:
    return NAMES.get(metric, metric)


def unit(metric: str) -> str:
    return METRICS[metric].unit if metric in METRICS else ""


def lower_is_better(metric: str) -> bool:
    return metric not in METRICS or METRICS[metric].better != "higher"


def missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def number(value: Any, digits: int = 3) -> str:
    """To so many significant digits; nothing where there is no number."""
    if missing(value):
        return ""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}" if 1e-4 <= abs(value) < 1e15 else f"{value:.{digits}g}"
    return (text.rstrip("0").rstrip(".") if decimals and "e" not in text else text).replace("-", "−")


def p_value(p: float) -> str:
    """To two digits, and not below a thousandth."""
    return "" if missing(p) else "< 0.001" if p < 0.001 else f"{p:.2g}"


def count(value: Any) -> str:
    """`1.24M`: a count to three digits."""
    if missing(value):
        return ""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def effect(row: Row) -> tuple[float, float, float]:
    """Estimate and bounds as they are shown: a difference, or the change that a ratio stands for in per cent."""
    values = tuple(float(row[key]) for key in ("estimate", "low", "high"))
    return tuple(100 * (value - 1) for value in values) if row["scale"] == "ratio" else values  # type: ignore[return-value]


def effect_unit(row: Row) -> str:
    return "%" if row["scale"] == "ratio" else unit(row["metric"])


def places(row: Row) -> int:
    """Decimals that the width of the interval is worth; where there is none, three digits of the estimate."""
    values = [value for value in effect(row) if not missing(value)]
    ratio = row["scale"] == "ratio"
    width = (values[2] - values[1]) / 4 if len(values) == 3 else abs(values[0]) / 20 if values else 0.0
    wanted = math.ceil(-math.log10(width)) if width > 0 else 1
    wanted = min(max(wanted, 0), 2) if ratio else min(max(wanted, 2), 6)
    # 3 % [2, 4], where that is all there is to say
    while ratio and wanted and all(math.isclose(value, round(value, wanted - 1), abs_tol=1e-9) for value in values):
        wanted -= 1
    return wanted


def signed(value: float, decimals: int) -> str:
    if missing(value):
        return ""
    text = f"{value:+.{decimals}f}"
    return f"{0:.{decimals}f}" if not text.strip("+-0.") else text.replace("-", "−")


def interval(row: Row) -> str:
    """`+0.043 [+0.038, +0.048]`."""
    estimate, low, high = effect(row)
    decimals = places(row)
    bounds = "" if missing(low) else f" [{signed(low, decimals)}, {signed(high, decimals)}]"
    return signed(estimate, decimals) + bounds


def size(row: Row, more: str = "") -> str:
    """The same without signs, for a verb that says the direction: `0.043 [0.038, 0.048]`, `3 % slower [2, 4]`."""
    decimals = places(row)
    estimate, low, high = effect(row)
    if estimate < 0:
        estimate, low, high = -estimate, -high, -low
    texts = [signed(value, decimals).removeprefix("+") for value in (estimate, low, high)]
    bounds = "" if missing(low) else f" [{texts[1]}, {texts[2]}]"
    return " ".join(filter(None, [texts[0], "%" if row["scale"] == "ratio" else "", more])) + bounds


def quality(row: Row, level: Label, against: Label, match: str, doubt: str) -> Phrase:
    """What a level does to quality, against another one; `doubt` is why a difference that shows has no verdict."""
    matched = MATCHED.get(match, "with budgets that differ on purpose")
    metric, units = name(row["metric"]), unit(row["metric"]).partition("/")[0]
    found = f"{metric} {interval(row)} {units} {matched}"
    margin = f"the margin of ±{number(row['margin'])} {units} that this suite calls equal"
    decided = row["verdict"] in ("better", "worse")
    if missing(row["estimate"]) and decided:
        return (level, f" is {row['verdict']} than ", against, f": it {row['untestable']}")
    if row["untestable"]:
        known = "" if missing(row["estimate"]) else f": {found}"
        return ("Nothing can be claimed of ", level, " against ", against, f"{known} ({row['untestable']})")
    if decided or significant(row):
        verb = "raises" if row["estimate"] > 0 else "lowers"
        within = f": a difference, but one inside {margin}" if row["within_margin"] else ""
        without = "" if decided else f"; no verdict is given, for {doubt}"
        return (level, f" {verb} {metric} by {size(row)} {units} against ", against, f" {matched}{within}{without}")
    if row["verdict"] == "equivalent":
        inside = "" if missing(row["margin"]) else f", inside {margin}"
        return (level, " and ", against, f" are equivalent: {found}{inside}")
    alone = (
        f", which by itself would be one (p = {p_value(row['p'])}), but not as one of {row['family']} contrasts "
        f"(p = {p_value(row['p_holm'])} by Holm's method)"
    )
    corrected = alone if not missing(row["p"]) and row["p"] < SIGNIFICANT else ""
    return ("No difference between ", level, " and ", against, f" is shown: {found}{corrected}")


def significant(row: Row) -> bool:
    """Whether a difference shows, at 5 %, Holm-corrected."""
    return not missing(row["p_holm"]) and row["p_holm"] < SIGNIFICANT


def cost(row: Row) -> str:
    """What a level that makes a difference does to speed or memory, as a verb: `runs 3 % slower [2, 4]`."""
    more = row["estimate"] > 1
    if row["metric"] == "tokens_per_second":
        return f"runs {size(row, 'faster' if more else 'slower')}"
    return f"takes {size(row, 'more memory' if more else 'less memory')}"


def uncertain_cost(row: Row) -> str:
    """What is to be said where no difference in speed or memory shows."""
    what = "speed" if row["metric"] == "tokens_per_second" else "memory"
    if row["untestable"]:
        known = "" if missing(row["estimate"]) else f": {interval(row)} %"
        return f"Nothing can be claimed of {what}{known} ({row['untestable']})."
    if row["verdict"] == "equivalent":
        return f"Its {what} is the same: {interval(row)} %."
    return f"No difference in {what} is shown: {interval(row)} %."


def answer(row: Row | None, costs: Sequence[Row], level: Label, against: Label, match: str, doubt: str) -> Phrase:
    """What a level does, in a sentence, and what else has to be said."""
    clear = [one for one in costs if one["verdict"] in ("better", "worse")]
    verbs = " and ".join(map(cost, clear))
    parts: list[str | Label] = (
        [level, " against ", against] if row is None else [*quality(row, level, against, match, doubt)]
    )
    joined = row is None or row["verdict"] in ("better", "worse")
    if verbs and joined:
        parts.append(f"{' ' if row is None else ', and '}{verbs}")
    first = costs[0] if row is None else row
    parts.append(f"; n = {number(first['n'])}{' rounds' if first['unit'] == 'rounds' else ''}.")
    if row is not None and row["verdict"] == "inconclusive" and not row["untestable"] and not significant(row):
        smallest = row["smallest_effect"]
        could = f": these runs could show {number(smallest, 2)} or more" if not missing(smallest) else ""
        parts.append(f" That does not make them equal{could}.")
    if row is not None and not row["tuned"] and row["verdict"] != "inconclusive":
        parts += [" ", level, " is untuned: its best rate was at the edge of what was searched."]
    if row is not None and row["aliases"]:
        parts.append(f" The estimate also holds {row['aliases'].removeprefix('+ ')}.")
    if verbs and not joined:
        parts += [" ", level, f" {verbs}."]
    parts += [f" {uncertain_cost(one)}" for one in costs if one not in clear]
    start = parts[0]
    return (start[:1].upper() + start[1:] if isinstance(start, str) else start, *parts[1:])


def plain(phrase: Phrase) -> str:
    return "".join(part if isinstance(part, str) else part.text for part in phrase)


def is_word(level: str) -> bool:
    """Whether a level says by itself what it is, as `swiglu` does and `0.1` or `none` does not."""
    return bool(re.match(r"[A-Za-z]{3,}", level)) and level not in (
        "none",
        "true",
        "false",
        "null",
        "full",
        "normal",
        "auto",
    )


class Names:
    """What to call the factors, levels and cells of a design."""

    def __init__(self, factors: Mapping[str, Sequence[str]]) -> None:
        self._labels = Labels()
        self._short = short_factors(factors)
        levels = [level for some in factors.values() for level in some]
        self._clear = {level for level in levels if is_word(level) and levels.count(level) == 1}

    def factor(self, factor: str) -> Label:
        return self._labels(self._short.get(factor, factor))

    def level(self, factor: str, level: str) -> Label:
        """A level so that it is clear without its factor: `swiglu`, but `dropout = 0.1`."""
        if level in self._clear or factor not in self._short:
            return self._labels(level)
        return self._labels(f"{self._short[factor]} = {level}")

    def bare(self, level: str) -> Label:
        """A level that stands beside its factor; or a cell."""
        return self._labels(level)

    def pair(self, factors: Iterable[str]) -> Label:
        """An interaction: `activation × norm`."""
        return self._labels(" × ".join(self._short.get(name, name) for name in factors) or "mean")
