"""Writes the generated parts of README.md and results/README.md: `make docs`. `test_readme.py` fails where they have drifted."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import statistics
from pathlib import Path
from unittest import mock

from benchmarks import registry_scale
from benchmarks.gpu import bench

from ablate import render
from ablate._words import words
from ablate.cli import commands, main
from ablate.design import expand
from ablate.suite import load_suite, shipped
from ablate.variants import load_factors

README = Path(__file__).resolve().parent.parent / "README.md"
RESULTS = README.parent / "results"
PUBLISHED = RESULTS / "README.md"
MEASURED = README.parent / "results" / "benchmarks"
COLUMNS = "100"
SECTION = re.compile(r"(<!-- generated: (\w+), by make docs -->\n).*?(<!-- end -->)", re.DOTALL)


def suites() -> str:
    rows = []
    for name, (_, description) in shipped().items():
        suite = load_suite(name)
        factors = "<br>".join(
            f"`{field}`: {', '.join(v.label for v in levels)}" for field, levels in suite.factors.items()
        )
        rows.append([f"`{name}`", description, factors, str(len(suite.seeds))])
    return render.markdown(["suite", "what it asks", "factors and levels", "seeds"], rows)


def variants() -> str:
    rows = []
    for factor in load_factors().values():
        for variant in factor:
            rows.append(
                [f"`{factor.field}`", f"`{variant.name}`", variant.doc, render.options(variant), variant.reference]
            )
    return render.markdown(["field", "variant", "what it is", "options", "reference"], rows)


def fields() -> str:
    rows = [[f"`{path}`", word.doc, word.default, word.reference] for path, word in words().items()]
    return render.markdown(["field", "what it is", "default", "reference"], rows)


def measured() -> list[Path]:
    """The published results of the benchmarks."""
    return sorted(MEASURED.glob("*.json"))


def speed() -> str:
    """A table of each published benchmark."""
    parts = []
    for path in measured():
        found = json.loads(path.read_text(encoding="utf-8"))
        where = f"{found['device']}, torch {found['torch']}, {found['date'][:10]}, revision {found['git_revision'][:7]}"
        left_out = "".join(
            f"Left out: {one['case']}, {one['contender']} ({one['reason']}).\n" for one in found["left_out"]
        )
        about = f"`{path.stem}`: {' '.join([found['about'], f'{where}.', *filter(None, [found.get('note')])])}\n"
        parts.append("\n".join(filter(None, [about, render.markdown(*bench.table(found)), left_out])))
    return "\n".join(parts) or "No results are published yet.\n"


def registry() -> str:
    """A table of each published benchmark of the registry."""
    parts = []
    for path in sorted((MEASURED / "registry").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        loads = [row["load"] for row in found["rows"]]
        about = (
            f"{found['about']} {found['cpu']}, {found['cores']} cores (load {min(loads)} to {max(loads)} meanwhile), {found['date'][:10]}, "
            f"revision {found['git_revision'][:7]}. Writing {found['written']:,} records took {found['write_seconds'] / 60:.0f} minutes; "
            f"the mirror takes {found['mirror_mib']:.0f} MiB, making it {found['peak_memory_gib']:.1f} GiB of memory. Medians:\n"
        )
        parts.append(f"{about}\n{render.markdown(*registry_scale.table(found))}")
    return "\n".join(parts) or "No results are published yet.\n"


def gate() -> str:
    """What the study of the gate found."""
    found = json.loads((MEASURED / "gate" / "study.json").read_text(encoding="utf-8"))
    rows = [
        [
            one["condition"], f"`{one['metric']}`" if one["metric"] else "nothing", str(one["checks"]),
            *(_share(one[which][what]) for which in ("whole", "drawn") for what in ("found", "false", "undecided")),
            str(one["looks"]), str(one["losses"]), str(one["counts"]),
        ]
        for one in found["rows"]
    ]  # fmt: skip
    header = ["change", "to be found in", "whole checks", "found", "false regressions", "undecided", "drawn: found", "false regressions",
              "undecided", "looks at the time", "seeds trained", "counts"]  # fmt: skip
    return render.markdown(header, rows)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}" if 0.0 < value < 0.001 or 0.999 < value < 1.0 else f"{value:.1%}"


def published() -> str:
    """A row for each folder that `ablate publish` or its forerunners made."""
    rows = []
    for path in sorted(RESULTS.rglob("trials.csv")):
        folder = path.parent
        (environment,) = json.loads((folder / "env.json").read_text(encoding="utf-8"))["rows"]
        trials = [row for row in read(path) if row.get("purpose", "primary") == "primary"]
        finished = sum(row["status"] == "finished" for row in trials)
        place = folder.relative_to(RESULTS)
        where = f"{environment['device']}, torch {environment['torch']}"
        kept = f"[{(folder / 'records.ablate').relative_to(RESULTS)}]({place}/records.ablate)"
        rows.append([
            f"[{place.parent.parent}]({place}/report.md)", place.parent.name, where, f"{finished} of {len(trials)}",
            kept if (folder / "records.ablate").exists() else "not kept",
        ])  # fmt: skip
    return render.markdown(["suite", "scale", "on", "trials finished", "records"], rows)


REFERENCE = {
    "6 layers of 384, context 256, 5,000 steps, H200": ("1.4697", "shakespeare-char/10m/nvidia-h200"),
    "4 layers of 128, context 64, 2,000 steps, CPU": ("1.88", "shakespeare-char-cpu/nano/amd-epyc"),
}
"""What nanoGPT's README and data/shakespeare_char say they come to, and where ours is."""


def reference() -> str:
    rows = []
    for setting, (theirs, folder) in REFERENCE.items():
        trials = read(RESULTS / "reference" / folder / "trials.csv")
        rows.append([setting, theirs, *(spread(trials, name) for name in ("best_val_loss", "val_loss"))])
    seeds = len(trials)
    evaluated, theirs = evaluation_of("reference/shakespeare-char-cpu"), 20 * 12 * 64
    control = read(RESULTS / "reference" / "shakespeare-char-cpu" / "control-h200.csv")
    orders = {order: [row for row in control if row["order"] == order] for order in ("ours", "random")}
    error = statistics.mean(float(trial["val_loss_se"]) for trial in trials)
    ours = f"of {seeds} seeds (sd)"
    table = render.markdown(["", "published", f"lowest evaluation, mean {ours}", f"last evaluation, mean {ours}"], rows)
    return (
        table
        + f"""
The small setting is evaluated on {evaluated:,} characters here; the published figure comes from 20 batches of 12 x 64, that is {theirs:,},
whose mean has a standard error of about {error * (evaluated / theirs) ** 0.5:.3f} (`val_loss_se` of ours, {error:.4f}, at that number).
A control with nanoGPT's own way of drawing training sequences (random offsets, with replacement) in this trainer gave
{spread(orders["random"], "val_loss")} over {len(orders["random"])} seeds, where our order gave {spread(orders["ours"], "val_loss")} over
the same {len(orders["ours"])} (`reference/shakespeare-char-cpu/control-h200.csv`, on one H200 in fp32).
"""
    )


def evaluation_of(suite: str) -> int:
    """Tokens of the held-out slice of a suite's base."""
    (cell,) = expand(load_suite(suite), seeds=1).trials
    return cell.recipe.evaluation.sequences * cell.recipe.data.seq_len


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def spread(rows: list[dict[str, str]], metric: str) -> str:
    """Mean over seeds, and their standard deviation."""
    values = [float(row[metric]) for row in rows]
    return f"{statistics.mean(values):.4f} ({statistics.stdev(values):.4f})"


def help_of(*argv: str) -> str:
    """What `ablate ARGV --help` prints at a fixed width, without colour."""
    with (
        mock.patch.dict(os.environ, {"COLUMNS": COLUMNS, "NO_COLOR": "1"}),
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        assert main([*argv, "--help"]) == 0
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def help() -> str:
    pages = [help_of(), *(help_of(*name.split()) for name in commands())]
    return "".join(f"```text\n{page}\n```\n\n" for page in pages).rstrip("\n") + "\n"


def generate(text: str) -> str:
    """`text` with its generated parts made anew."""
    makers = {
        "speed": speed, "suites": suites, "variants": variants, "fields": fields, "help": help, "published": published,
        "reference": reference, "registry": registry, "gate": gate,
    }  # fmt: skip
    return SECTION.sub(lambda found: found[1] + "\n" + makers[found[2]]() + "\n" + found[3], text)


if __name__ == "__main__":
    for file in (README, PUBLISHED):
        file.write_text(generate(file.read_text(encoding="utf-8")), encoding="utf-8")
