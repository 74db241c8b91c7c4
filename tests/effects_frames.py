"""Effects to report on: over a simulated table, with contrasts that are planted where a test is about their wording."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from registry_records import ENVIRONMENT, design

from registry.analysis import Effects, analyse
from registry.record import DesignRecord
from registry.report import Report, Sources

NAN = math.nan
NOTHING = Sources(pd.DataFrame(), {}, {}, pd.DataFrame())
HOSTILE = ["<script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "{{ 7 * 7 }} <% x %> ${x}",
           r"\input{/etc/passwd} $x^2_3$ #1 %",
           "a|b`c`*d*[e](javascript:f)", "x" * 10_000, "x" * 9_999 + "y",
           "层归一化 ∑ \u202egnp.exe \x00\x1b[31m"]  # fmt: skip
ACTIVATION, NORM = "model.activation", "model.norm"
FACTORS = {ACTIVATION: ["gelu", "swiglu", "relu2"], NORM: ["layernorm", "rmsnorm"]}
USUAL = {
    "p": 0.0001, "p_holm": 0.0003, "family": 3, "n": 5, "unit": "seeds", "df": 4.0, "p_equivalence": 0.9, "within_margin": False,
    "tuned": True, "correlation": 0.9, "smallest_effect": 0.04, "diverged": 0, "diverged_against": 0, "aliases": "", "untestable": "",
}  # fmt: skip
WIDE = {"p": 0.4, "p_holm": 0.8}


def contrast(
    metric: str, factor: str, level: str, against: str, numbers: str, verdict: str, **others: Any
) -> dict[str, Any]:
    """A row of contrasts; `numbers` are estimate, low and high."""
    estimate, low, high = map(float, numbers.split())
    scale = "difference" if metric.startswith("val") else "ratio"
    row = {"metric": metric, "scale": scale, "factor": factor, "level": level, "against": against, "verdict": verdict}
    numbers_of = {"estimate": estimate, "low": low, "high": high, "margin": 0.005 if metric == "val_loss" else NAN}
    return USUAL | row | numbers_of | others


def planted_contrasts() -> list[dict[str, Any]]:
    """A better, a worse and an equivalent level, what they cost, and controls."""
    return [
        contrast("val_loss", ACTIVATION, "swiglu", "gelu", "-0.043 -0.048 -0.038", "better"),
        contrast("val_loss", ACTIVATION, "relu2", "gelu", "0.021 0.014 0.028", "worse"),
        contrast("val_loss", NORM, "rmsnorm", "layernorm", "0.0007 -0.0021 0.0035", "equivalent", within_margin=True, **WIDE),
        contrast("tokens_per_second", ACTIVATION, "swiglu", "gelu", "0.97 0.96 0.98", "worse"),
        contrast("tokens_per_second", ACTIVATION, "relu2", "gelu", "1.004 0.988 1.021", "inconclusive", **WIDE),
        contrast("tokens_per_second", NORM, "rmsnorm", "layernorm", "1.021 1.015 1.027", "better"),
        contrast("peak_memory_gib", ACTIVATION, "swiglu", "gelu", "1.052 1.051 1.053", "worse"),
        contrast("peak_memory_gib", ACTIVATION, "relu2", "gelu", "0.991 0.990 0.992", "better"),
        contrast("peak_memory_gib", NORM, "rmsnorm", "layernorm", "1.0 0.999 1.001", "inconclusive", **WIDE),
        contrast("val_loss", "(control)", "A/A", "baseline", "0.001 -0.006 0.008", "inconclusive", correlation=NAN, **WIDE),
        contrast("val_loss", "(control)", "no norm", "baseline", "1.21 1.05 1.37", "worse"),
    ]  # fmt: skip


def planted_design(factors: dict[str, list[str]] | None = None, seeds: int = 5, **fields: Any) -> DesignRecord:
    """A full design of these factors, the first cell its baseline."""
    factors = factors or FACTORS
    cells = [dict(zip(factors, levels, strict=True)) for levels in itertools.product(*factors.values())]
    named = {"suite": "activation", "description": "Which nonlinearity, and does the norm matter to it?"}
    return design(cells, seeds, **(named | fields))


def simulated(declared: DesignRecord) -> pd.DataFrame:
    """A table of trials: loss 4, plus 0.03 for each step of a factor, 0.02 where both step, 0.1 a seed, and noise of 0.004."""
    random, rows = np.random.default_rng(0), []
    for trial in declared.trials:
        steps = [declared.factors[name].index(level) for name, level in trial["levels"].items()]
        both = 0.02 * float(sum(step > 0 for step in steps) > 1)
        rows.append({
            "trial_id": trial["trial_id"], "cell_id": trial["cell_id"], "cell": " · ".join(trial["levels"].values()), "seed": trial["seed"],
            "status": "finished", "exclusive": True, "control": trial.get("control", ""), "environment_id": ENVIRONMENT, **trial["levels"],
            "val_loss": 4 + 0.03 * sum(steps) + both + 0.1 * trial["seed"] + random.normal(0, 0.004),
            "tokens_per_second": 20000 * 0.95 ** sum(steps) * random.normal(1, 0.01), "peak_memory_gib": 1 + 0.1 * sum(steps),
            "parameters": 123456.0, "tokens": 81920.0, "flops_per_token": 7.5e5,
        })  # fmt: skip
    return pd.DataFrame(rows)


def planted(rows: list[dict[str, Any]] | None = None, declared: DesignRecord | None = None, **others: Any) -> Effects:
    """What `analyse` finds in a simulated table, with the contrasts `rows` instead of its own, and other fields replaced."""
    declared = declared or planted_design()
    found = analyse(declared, simulated(declared))
    contrasts = pd.DataFrame(planted_contrasts() if rows is None else rows)
    return replace(found, contrasts=contrasts, environment={"device": "AMD EPYC"}, **others)


def hostile() -> Report:
    """On a suite whose factors, levels and texts are all meant to break a page."""
    factors = {f"model.{HOSTILE[0]}": HOSTILE, NORM: ["layernorm", "rmsnorm"]}
    texts = {
        "suite": HOSTILE[1],
        "description": HOSTILE[0] + "|" + HOSTILE[3],
        "suite_text": "```\n" + "\n".join(HOSTILE),
    }
    declared = planted_design(factors, **texts)
    return Report(analyse(declared, simulated(declared)), NOTHING)
