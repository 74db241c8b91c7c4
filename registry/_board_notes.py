"""What a reader of a board must know beside its rows."""

from __future__ import annotations

from collections.abc import Sequence

from ._cells import Cell, group_of, grouping
from .record import METRICS


def meaning(metric: str) -> list[str]:
    """The unit of a metric, and which way is better."""
    known = METRICS.get(metric)
    return [f"{metric} in {known.unit}, {known.better} is better"] if known else []


def on_ranks(rows: Sequence[Cell], metric: str) -> list[str]:
    """How rows were ranked, and what a half-width is."""
    notes = []
    if any(row["rank"] for row in rows):
        if any(row["n"] > 1 for row in rows):
            notes.append(
                "rows share a rank unless a t-test against its best, paired by seed, separates them (two-sided, 5 %, Holm-corrected)"
            )
        else:
            notes.append("one seed per cell separates nothing, so all share a rank")
    if any(row.get(f"{name}_half_width") is not None for row in rows for name in ("val_loss", metric)):
        notes.append("± is half the width of the mean's 95 % interval over seeds")
    return notes


def on_verdicts(cells: Sequence[Cell], metric: str, filtered: bool, shown: Sequence[str]) -> list[str]:
    """What verdicts and the Pareto set say, of the two those that are shown."""
    notes = []
    if "verdict" in shown and any(cell["verdict"] not in ("", "baseline") for cell in cells):
        seeds = ", over all seeds of the design, whatever the filter" if filtered else ""
        notes.append(
            f"verdict: of {metric} against the baseline, paired by seed, Holm-corrected over the design's cells{seeds}"
        )
    if "pareto" in shown and any(cell["pareto"] for cell in cells):
        quality = "val_bpb" if metric == "val_bpb" else "val_loss"
        notes.append(
            f"pareto •: no cell measured alone is as good in {quality}, tokens_per_second and peak_memory_gib and better in one"
        )
    if any(cell["control"] for cell in cells):
        notes.append(
            "controls have no rank: A/A is the baseline again on seeds of its own, known-bad should be worse than it"
        )
    return notes


def on_values(cells: Sequence[Cell]) -> list[str]:
    """What the means are of."""
    notes = []
    if any(cell["failed"] for cell in cells):
        notes.append("n and the means are over finished trials only; the others are listed under failed")
    if any(cell["verified"] or cell["refuted"] for cell in cells):
        notes.append(
            "verified, refuted: how often training a run of the cell again gave the same within the noise floor, or did not "
            "(ablate verify)"
        )
    if not all(cell["exclusive"] for cell in cells):
        notes.append("~ measured while other trials shared the device: an indication, which is not ranked")
    return notes


def on_groups(rows: Sequence[Cell], fields: Sequence[str]) -> list[str]:
    """What a mean over cells hides."""
    notes = [
        f"means over the cells of each {' and '.join(fields)}; where factors interact they mislead: see `ablate report`"
    ]
    sets = {}
    for row in rows:
        sets.setdefault(group_of(row), set()).add(row["rest"])
    if any(len(found) > 1 for found in sets.values()):
        notes.append(
            "the rows hold different cells of what else varies, so they differ by more than what they are named after"
        )
    if any(row["cells"] > 1 and row["n"] < row["most_seeds"] for row in rows):
        notes.append("n counts the seeds that all cells of a row have finished; ± is over these")
    return notes


def apart(cells: list[Cell], metric: str) -> list[str]:
    """That cells of one suite, scale and environment are ranked apart, because not all were evaluated on the same."""
    group = grouping(cells, metric)
    groups = {group(cell) for cell in cells}
    if len(groups) == len({place[:-1] for place in groups}):
        return []
    if metric == "val_bpb":
        sizes = {cell["validation_bytes"] for cell in cells if cell["validation_bytes"]}
        seen = (
            f": evaluated on {min(sizes):,.0f} to {max(sizes):,.0f} bytes; more evaluation.tokens bring them together"
            if len(sizes) > 1
            else ""
        )
        return [f"cells are ranked apart where they do not share the whole held-out text{seen}"]
    return [
        "cells are ranked apart where held-out text or tokenizer differ; bits per byte compare across tokenizers: sort by val_bpb"
    ]


def scale_of_loss(cells: Sequence[Cell]) -> list[str]:
    """What a loss is to be seen against: the entropy of the tokens without context, and the floor of a known source."""
    notes = []
    for metric, what in (("unigram_entropy", "unigram entropy"), ("loss_floor", "loss of the true source")):
        found = sorted({round(value, 3) for cell in cells if (value := cell.get(metric)) is not None})
        if found:
            span = " to ".join(f"{value:.3f}" for value in dict.fromkeys((found[0], found[-1])))
            notes.append(f"{what} of the validation slice: {span} nats/token")
    return notes
