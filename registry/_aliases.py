"""What an estimate of a design that confounds holds beside the effect that it is named after."""

from __future__ import annotations

from collections.abc import Sequence

from .record import DesignRecord


def aliases(design: DesignRecord, effect: Sequence[str]) -> str:
    """The aliases of an effect as text, such as `- attention x norm + 0.5 window`; empty where it has none."""
    words: list[str] = []
    for entry in design.aliases:
        if set(entry["effect"]) == set(effect):
            words += [_term(design, alias["effect"], float(alias["coefficient"])) for alias in entry["aliases"]]
    return " ".join(words)


def effect_name(design: DesignRecord, factors: Sequence[str]) -> str:
    """`attention x norm`: the last part of each factor's name where it is free."""
    last = [factor.rpartition(".")[2] for factor in design.factors]
    short = {f: s if last.count(s) == 1 else f for f, s in zip(design.factors, last, strict=True)}
    return " x ".join(short.get(factor, factor) for factor in factors) or "mean"


def _term(design: DesignRecord, factors: Sequence[str], coefficient: float) -> str:
    size = "" if abs(abs(coefficient) - 1.0) < 5e-4 else f"{abs(coefficient):.2g} "
    return f"{'-' if coefficient < 0 else '+'} {size}{effect_name(design, factors)}"
