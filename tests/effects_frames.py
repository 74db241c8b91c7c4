"""Effects with planted numbers, in the frames of `registry.effects`: for tests of what is made of them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from registry_records import ENVIRONMENT, cell_id, design, trial_id

from registry.record import DesignRecord

NAN = math.nan
ACTIVATION, NORM = "model.activation", "model.norm"
FACTORS = {ACTIVATION: ["gelu", "swiglu", "relu2"], NORM: ["layernorm", "rmsnorm"]}
CONTRAST = {
    "scale": "difference", "p": 0.0001, "p_holm": 0.0003, "family": 3, "n": 5.0, "df": 4.0, "margin": 0.005, "p_equivalence": 0.9,
    "within_margin": False, "tuned": True, "correlation": 0.9, "untestable": "",
}  # fmt: skip


@dataclass
class Frames:
    """What a report reads of `registry.effects.Effects`."""

    design: DesignRecord
    trials: pd.DataFrame
    environment: dict[str, Any]
    metrics: tuple[str, ...]
    contrasts: pd.DataFrame
    main_effects: pd.DataFrame
    interactions: pd.DataFrame
    simple_effects: pd.DataFrame
    variance: pd.DataFrame
    noise: pd.DataFrame
    divergence: pd.DataFrame
    cells: pd.DataFrame
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


def contrast(metric: str, factor: str, level: str, against: str, numbers: str, verdict: str, **others: Any) -> dict[str, Any]:
    """A row of contrasts; `numbers` are estimate, low and high."""
    estimate, low, high = map(float, numbers.split())
    scale = "difference" if metric.startswith("val") else "ratio"
    margin = CONTRAST["margin"] if scale == "difference" else NAN
    row = {"metric": metric, "factor": factor, "level": level, "against": against, "estimate": estimate, "low": low, "high": high}
    return CONTRAST | row | {"verdict": verdict, "scale": scale, "margin": margin} | others


def planted_contrasts() -> list[dict[str, Any]]:
    """Every verdict once, and every reason for none."""
    wide = {"p": 0.4, "p_holm": 0.8}
    return [
        contrast("val_loss", ACTIVATION, "swiglu", "gelu", "-0.043 -0.048 -0.038", "better"),
        contrast("val_loss", ACTIVATION, "relu2", "gelu", "0.021 0.014 0.028", "worse"),
        contrast("val_loss", NORM, "rmsnorm", "layernorm", "0.0007 -0.0021 0.0035", "equivalent", p_equivalence=0.001, **wide),
        contrast("tokens_per_second", ACTIVATION, "swiglu", "gelu", "0.97 0.96 0.98", "worse"),
        contrast("tokens_per_second", ACTIVATION, "relu2", "gelu", "1.004 0.988 1.021", "inconclusive", **wide),
        contrast("tokens_per_second", NORM, "rmsnorm", "layernorm", "1.021 1.015 1.027", "better"),
        contrast("peak_memory_gib", ACTIVATION, "swiglu", "gelu", "1.052 1.051 1.053", "worse"),
        contrast("peak_memory_gib", ACTIVATION, "relu2", "gelu", "0.991 0.990 0.992", "better"),
        contrast("peak_memory_gib", NORM, "rmsnorm", "layernorm", "1.0 0.999 1.001", "inconclusive", **wide),
        contrast("val_loss", "(control)", "A/A", "baseline", "0.001 -0.006 0.008", "inconclusive", correlation=NAN, **wide),
        contrast("val_loss", "(control)", "known-bad: no norm", "baseline", "1.21 1.05 1.37", "worse"),
    ]  # fmt: skip


def planted_design(factors: dict[str, list[str]] | None = None, seeds: int = 5, **fields: Any) -> DesignRecord:
    """A full design of these factors, the first cell its baseline."""
    factors = factors or FACTORS
    cells = [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]
    return design(cells, seeds, **({"suite": "activation", "description": "Which nonlinearity, and does it matter to the norm?"} | fields))


def planted(rows: list[dict[str, Any]] | None = None, declared: DesignRecord | None = None, **others: Any) -> Frames:
    """Frames over a full design: `rows` of contrasts, trials whose loss is 4 plus 0.03 a step of each factor."""
    declared = declared or planted_design()
    random = np.random.default_rng(0)
    trials = []
    for trial in declared.trials:
        steps = [declared.factors[name].index(level) for name, level in trial["levels"].items()]
        trials.append({
            "trial_id": trial["trial_id"], "cell_id": trial["cell_id"], "cell": " · ".join(trial["levels"].values()), "seed": trial["seed"],
            "status": "finished", "exclusive": True, "control": trial.get("control", ""), "environment_id": ENVIRONMENT, **trial["levels"],
            "val_loss": 4 + 0.03 * sum(steps) + 0.1 * trial["seed"] + random.normal(0, 0.004),
            "tokens_per_second": 20000 * 0.95 ** sum(steps), "peak_memory_gib": 1 + 0.1 * sum(steps),
        })  # fmt: skip
    frame = pd.DataFrame(trials)
    names = list(declared.factors)
    frames: dict[str, Any] = {
        "design": declared, "trials": frame, "environment": {"device": "AMD EPYC", "torch": "2.13.0", "threads": 1},
        "metrics": ("val_loss", "tokens_per_second", "peak_memory_gib"), "contrasts": pd.DataFrame(planted_contrasts() if rows is None else rows),
        "main_effects": pd.DataFrame(
            {"metric": "val_loss", "scale": "difference", "factor": name, "level": level, "estimate": 0.03 * i - 0.02, "low": 0.03 * i - 0.024,
             "high": 0.03 * i - 0.016, "p": 0.001, "n": 5.0, "df": 20.0}
            for name in names for i, level in enumerate(declared.factors[name])
        ),
        "interactions": pd.DataFrame(
            {"metric": "val_loss", "factors": pair, "p": 0.0004, "p_holm": 0.0004, "share": 0.31, "material": True, "estimate": NAN, "low": NAN, "high": NAN}
            for pair in itertools.combinations(names, 2)
        ),
        "simple_effects": pd.DataFrame([
            contrast("val_loss", ACTIVATION, "swiglu", "gelu", "-0.061 -0.070 -0.052", "better") | {"within": {NORM: "layernorm"}},
            contrast("val_loss", ACTIVATION, "swiglu", "gelu", "-0.025 -0.034 -0.016", "better") | {"within": {NORM: "rmsnorm"}},
        ]),
        "variance": pd.DataFrame({"metric": "val_loss", "source": [*names, " x ".join(names), "seed", "residual"][: len(names) + 3],
                                  "share": [0.55, 0.05, 0.1, 0.2, 0.1][-len(names) - 3 :]}),
        "noise": pd.DataFrame([{"metric": "val_loss", "sd": 0.004, "n": 30.0, "df": 24.0, "correlation": 0.93, "smallest_effect": 0.0091}]),
        "divergence": pd.DataFrame(
            {"cell": cell, **part[names].iloc[0].to_dict(), "n": 5.0, "diverged": 0.0, "rate": 0.0, "low": 0.0, "high": 0.43} for cell, part in frame.groupby("cell")
        ),
        "cells": cells_of(frame, names), "notes": ("One environment only: nothing is said of others.",),
    }  # fmt: skip
    return Frames(**(frames | others))


def cells_of(trials: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Means over seeds; the first two cells are called the Pareto front."""
    rows = []
    for number, (cell, part) in enumerate(trials.groupby("cell", sort=False)):
        row = {"cell": cell, **part[names].iloc[0].to_dict(), "n": float(len(part)), "pareto": number < 2}
        for metric in ("val_loss", "tokens_per_second", "peak_memory_gib"):
            mean, half = part[metric].mean(), 2.8 * part[metric].sem()
            row |= {metric: mean, f"{metric}_low": mean - half, f"{metric}_high": mean + half}
        rows.append(row | {"parameters": 123456.0, "tokens": 81920.0, "flops_per_token": 7.5e5})
    return pd.DataFrame(rows)


__all__ = ["ACTIVATION", "FACTORS", "NORM", "Frames", "cell_id", "contrast", "planted", "planted_contrasts", "planted_design", "trial_id"]
