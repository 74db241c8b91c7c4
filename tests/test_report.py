"""A report says what was found, in words that the numbers bear, in three formats from the same tables; what it shows is never run."""

from __future__ import annotations

import html.parser
import re
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import needs
import pytest
from effects_frames import (
    ACTIVATION,
    HOSTILE,
    NAN,
    NOTHING,
    WIDE,
    contrast,
    hostile,
    planted,
    planted_design,
    simulated,
)
from registry_records import design, empty_store, recipe, record, write_at_once

from ablate.cli import main
from registry import _wording as w
from registry import plots
from registry.analysis import analyse
from registry.leaderboard import RegistryEmpty
from registry.record import DesignRecord
from registry.report import FORMATS, Report, report
from registry.store import Store


def page(rows: list[dict[str, Any]] | None = None, declared: DesignRecord | None = None, **others: Any) -> Report:
    return Report(planted(rows, declared, **others), NOTHING)


def sentences(made: Report) -> list[str]:
    blocks = [block for block in made.sections[0].blocks if block.kind == "answers"]
    return [w.plain(answer.phrase) for block in blocks for _, some in block.groups for answer in some]


def sentence(*rows: dict[str, Any], **others: Any) -> str:
    """What is said of one contrast, whose factor no other one changes."""
    (said,) = sentences(page(list(rows), simple_effects=planted().simple_effects[:0], **others))
    return said


MARGIN = "the margin of ±0.005 nats that this suite calls equal"
SENTENCES: list[tuple[tuple[str, str, dict[str, Any]], list[tuple[str, str]], str]] = [
    (
        ("-0.043 -0.048 -0.038", "better", {}),
        [],
        "swiglu lowers validation loss by 0.043 [0.038, 0.048] nats against gelu at equal tokens; n = 5.",
    ),
    (
        ("0.0121 0.0108 0.0134", "worse", {}),
        [("0.97 0.96 0.98", "worse")],
        "swiglu raises validation loss by 0.0121 [0.0108, 0.0134] nats against gelu at equal tokens, and runs 3 % slower [2, 4]; n = 5.",
    ),
    (
        ("-0.003 -0.004 -0.002", "better", {"within_margin": True}),
        [],
        "swiglu lowers validation loss by 0.0030 [0.0020, 0.0040] nats against gelu at equal tokens: "
        f"a difference, but one inside {MARGIN}; n = 5.",
    ),
    (
        ("0.001 -0.002 0.004", "equivalent", WIDE | {"within_margin": True}),
        [("1.04 1.03 1.05", "better")],
        "swiglu and gelu are equivalent: validation loss +0.001 [−0.002, +0.004] nats at equal tokens, "
        f"inside {MARGIN}; n = 5. swiglu runs 4 % faster [3, 5].",
    ),
    (
        ("0.02 -0.01 0.05", "inconclusive", WIDE),
        [("1.01 0.98 1.04", "inconclusive")],
        "No difference between swiglu and gelu is shown: validation loss +0.02 [−0.01, +0.05] nats at equal tokens; n = 5. That does "
        "not make them equal: these runs could show 0.04 or more. No difference in speed is shown: +1 [−2, +4] %.",
    ),
    (
        ("0.02 0.002 0.038", "inconclusive", {"p": 0.03, "p_holm": 0.09}),
        [],
        "No difference between swiglu and gelu is shown: validation loss +0.020 [+0.002, +0.038] nats at equal tokens, which by itself "
        "would be one (p = 0.03), but not as one of 3 contrasts (p = 0.09 by Holm's method); n = 5. That does not make them equal: these "
        "runs could show 0.04 or more.",
    ),
    (
        ("0.043 nan nan", "inconclusive", {"p": NAN, "p_holm": NAN, "n": 1, "df": NAN, "untestable": "one seed"}),
        [],
        "Nothing can be claimed of swiglu against gelu: validation loss +0.043 nats at equal tokens (one seed); n = 1.",
    ),
    (
        (
            "nan nan nan",
            "worse",
            {"untestable": "diverged in 5 of 5 seeds, gelu in 0 of 5 (Fisher's exact test)", "n": 0},
        ),
        [],
        "swiglu is worse than gelu: it diverged in 5 of 5 seeds, gelu in 0 of 5 (Fisher's exact test); n = 0.",
    ),
    (
        ("-0.02 -0.03 -0.01", "inconclusive", {}),
        [],
        "swiglu lowers validation loss by 0.020 [0.010, 0.030] nats against gelu at equal tokens; no verdict is given, for the arm that "
        "it favours diverged more often; n = 5.",
    ),
    (
        ("-0.02 -0.03 -0.01", "better", {"aliases": "+ norm x position"}),
        [],
        "swiglu lowers validation loss by 0.020 [0.010, 0.030] nats against gelu at equal tokens; n = 5. "
        "The estimate also holds norm x position.",
    ),
]


@pytest.mark.parametrize(("row", "costs", "expected"), SENTENCES)
def test_an_effect_in_a_sentence(
    row: tuple[str, str, dict[str, Any]], costs: Sequence[tuple[str, str]], expected: str
) -> None:
    numbers, verdict, others = row
    rows = [contrast("val_loss", ACTIVATION, "swiglu", "gelu", numbers, verdict, **others)]
    rows += [contrast("tokens_per_second", ACTIVATION, "swiglu", "gelu", found, what) for found, what in costs]
    assert sentence(*rows) == expected


def test_an_untuned_arm_is_not_called_worse() -> None:
    declared = planted_design(
        tuning={"x": {"field": "optimizer.lr", "values": [1, 2], "chosen": 2, "bracketed": False, "seeds": [9]}}
    )
    row = contrast("val_loss", ACTIVATION, "swiglu", "gelu", "0.02 0.01 0.03", "inconclusive", tuned=False)
    said = sentence(row, declared=declared)
    assert said.endswith(
        "no verdict is given, for its best rate was at the edge of what was searched: it is untuned; n = 5."
    )


def test_a_suite_of_which_nothing_finished_says_so_first() -> None:
    declared = planted_design()
    trials = simulated(declared).assign(status="timeout", val_loss=NAN)
    made = Report(analyse(declared, trials), NOTHING)
    text = made.render("markdown")
    assert f"No trial of this suite has finished: {len(trials)} timeout." in text
    assert "This holds at" not in text


def test_the_baseline_again_is_as_expected_only_where_it_is_shown_equal() -> None:
    assert "no false alarm, but not shown equal" in page().render("markdown")
    row = contrast(
        "val_loss", "(control)", "A/A", "baseline", "0.0 -0.002 0.002", "equivalent", correlation=NAN, **WIDE
    )
    assert "not shown equal" not in page([row]).render("markdown")


def test_the_command_that_was_asked_for_is_the_one_to_run_again() -> None:
    asked = "ablate run mine.yaml --scale nano --set 'train.tokens=\"x0.1\"'"
    assert asked in page(declared=planted_design(command=asked)).render("markdown")


def test_lines_are_named_beside_them_also_where_they_have_bands() -> None:
    rows = [
        {"x": x, "y": y, "low": y - 1, "high": y + 1, "series": name, "mark": x == 2, "told": name}
        for name, y in (("first arm", 3.0), ("second arm", 4.0)) for x in (1, 2)
    ]  # fmt: skip
    drawn = plots.svg(
        plots.lines(rows, "tokens", "loss", "cell", names=["first arm", "second arm"], band=True), "losses"
    )
    shown = [text.text for text in ET.fromstring(drawn).iter() if text.tag.endswith("text")]
    assert {"first arm", "second arm"} <= set(shown)


def test_where_factors_interact_effects_are_told_within_levels() -> None:
    made = page()
    assert len(made.found.simple_effects) and made.found.interactions["material"].any()
    said = sentences(made)
    assert all(one.startswith("Where ") for one in said)
    assert "Where norm = rmsnorm: swiglu" in " ".join(said)
    assert sum("runs 3 % slower" in one for one in said) == 1


def test_levels_that_say_nothing_alone_go_with_their_factor() -> None:
    declared = planted_design({"train.dropout": ["0.0", "0.1"]}, suite="dropout")
    said = sentence(contrast("val_loss", "train.dropout", "0.1", "0.0", "0.02 0.01 0.03", "worse"), declared=declared)
    assert said.startswith("dropout = 0.1 raises validation loss by 0.020 [0.010, 0.030] nats against dropout = 0.0")


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ("0.9995 0.9990 1.0000", "−0.05 [−0.10, 0.00]"),
        ("0.97 0.96 0.98", "−3 [−4, −2]"),
        ("1.004 0.988 1.021", "+0.4 [−1.2, +2.1]"),
        ("2.5 2.0 3.0", "+150 [+100, +200]"),
    ],
)
def test_numbers_have_the_digits_that_their_interval_is_worth(numbers: str, shown: str) -> None:
    assert w.interval(contrast("tokens_per_second", ACTIVATION, "a", "b", numbers, "better")) == shown


def cells_of(text: str, format: str) -> list[list[str]]:
    """The texts of all cells of all tables."""
    if format == "html":
        rows = re.findall(r"<tr><th scope=row.*?(?=<tr>|</tbody>)", text, re.DOTALL)
        found = [re.findall(r"<t[hd][^>]*>(.*?)(?=<t[hd]|$)", row.strip(), re.DOTALL) for row in rows]
        return [[re.sub(r"<.*?>", "", cell).strip() for cell in row] for row in found]
    if format == "markdown":
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        return [[cell.strip().replace("**", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    return [[re.sub(r"\\textbf\{(.*)\}", r"\1", cell.strip()) for cell in line[:-2].split(" & ")] for line in lines]


def test_formats_show_the_same_tables() -> None:
    made = page()
    sizes = {}
    for format in FORMATS:
        rows = cells_of(made.render(format), format)
        sizes[format] = sorted(len(row) for row in rows if "metric" not in row)
        (row,) = [row for row in rows if row[:3] == ["activation", "swiglu", "gelu"]]
        minus = {"html": "−", "markdown": "−", "latex": r"\ensuremath{-}"}[format]
        assert row[3].replace(minus, "-") == "-0.043 [-0.048, -0.038]"
        assert row[4].endswith("better")
    tables = [block for section in made.sections for block in section.blocks if block.kind == "table"]
    assert len(sizes["html"]) == sum(len(block.rows) for block in tables)


def test_bold_is_what_differs_and_nothing_else() -> None:
    made = page(interactions=planted().interactions[:0], simple_effects=planted().simple_effects[:0])
    latex = made.render("latex")
    body = "".join(re.findall(r"\\midrule(.*?)\\bottomrule", latex, re.DOTALL))
    bold = set(re.findall(r"\\textbf\{(.*?)\}", body.replace(r"\ensuremath{-}", "-")))
    assert bold == {"-0.043 [-0.048, -0.038]", "+0.021 [+0.014, +0.028]", "-3 [-4, -2]", "+2.1 [+1.5, +2.7]",
                    "+5.2 [+5.1, +5.3]", "-0.9 [-1.0, -0.8]", "+1.21 [+1.05, +1.37]"}  # fmt: skip
    assert "+0.001 [-0.002, +0.004]" in body.replace(r"\ensuremath{-}", "-")


def test_latex_is_a_whole_document_with_booktabs() -> None:
    latex = hostile().render("latex")
    assert latex.startswith(r"\documentclass") and latex.rstrip().endswith(r"\end{document}")
    assert (
        latex.count(r"\toprule")
        == latex.count(r"\midrule")
        == latex.count(r"\bottomrule")
        == latex.count(r"\end{longtable}")
        > 3
    )
    assert r"\input{" not in latex and r"\textbackslash{}input\{" in latex
    for columns, row in re.findall(r"\\begin\{longtable\}\{@\{\}(.*?)@\{\}\}\n\\toprule\n(.*?)\\\\", latex):
        assert len(re.sub(r"p\{.*?\}", "p", columns)) == len(re.split(r"(?<!\\)&", row))


@needs.program("pdflatex")
@pytest.mark.parametrize("made", [page, hostile])
def test_latex_compiles_as_it_is(made: Any, tmp_path: Path) -> None:
    (tmp_path / "report.tex").write_text(made().render("latex"), encoding="utf-8")
    argv = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 10_000


@needs.program("pdflatex")
def test_latex_knows_every_letter_that_it_is_given(tmp_path: Path) -> None:
    letters = "".join(
        chr(code) for code in [*range(0x20, 0x7F), *range(0xA0, 0x250), *range(0x370, 0x400), 0x2026, 0x4E2D, 0x1F600]
    )
    made = page(declared=planted_design(description=letters))
    (tmp_path / "report.tex").write_text(made.render("latex"), encoding="utf-8")
    argv = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "report.tex"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]


class Seen(html.parser.HTMLParser):
    """Elements with their attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_hostile_names_are_shown_and_not_run() -> None:
    text = hostile().render("html")
    seen = Seen(text)
    assert [tag for tag, _ in seen.elements].count("script") == 1
    assert not [tag for tag, _ in seen.elements if tag in ("img", "iframe", "object", "embed", "form")]
    assert not [name for _, attributes in seen.elements for name in attributes if name.startswith("on")]
    shown = " ".join(seen.text)
    for name in (HOSTILE[0], "{{ 7 * 7 }} <% x %> ${x}", r"\input{/etc/passwd} $x^2_3$ #1 %"):
        assert name in shown
    titles = {attributes.get("title") for _, attributes in seen.elements}
    assert HOSTILE[5] in titles and HOSTILE[6] in titles
    assert not re.search("[\x00\x1b\u202e]", text)
    for format in ("markdown", "latex"):
        assert not re.search("[\x00\x1b\u202e]", hostile().render(format))


def test_long_names_that_differ_at_their_end_stay_apart() -> None:
    labels = w.Labels()
    names = [labels(name).text for name in HOSTILE]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 50


def test_markdown_holds_no_markup_of_names() -> None:
    text = hostile().render("markdown")
    prose = re.sub(r"^(`{3,})\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in prose and "<img" not in prose and "](javascript" not in prose.replace(r"\](", "")
    for line in re.findall(r"(?:^\| .*\n)+", prose, re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", row)) for row in line.splitlines()}
        assert len(widths) == 1


def svgs(text: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_every_plot_has_marks_units_and_ids_of_its_own() -> None:
    drawn = svgs(page().render("html"))
    titles = [one.get("aria-label") for one in drawn]
    assert titles == ["Effects on validation loss", "Effects on throughput", "Effects on peak memory", "Interaction of activation × norm",
                      "Quality against speed and memory"]  # fmt: skip
    ids = [element.get("id") for one in drawn for element in one.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for one in drawn:
        marks = [element for element in one.iter() if element.get("class") == "mark"]
        assert marks and all(len(mark) and mark[0].text for mark in marks)
        words = " ".join(element.text or "" for element in one.iter() if element.tag.endswith("text"))
        assert re.search(r"nats/token|%|tokens/s", words)


def test_verdicts_differ_in_shape_and_not_in_colour_alone() -> None:
    rows = [contrast("val_loss", ACTIVATION, level, "gelu", numbers, verdict) for level, numbers, verdict in
            (("swiglu", "-0.04 -0.05 -0.03", "better"), ("relu2", "0.04 0.03 0.05", "worse"))]  # fmt: skip
    (forest, *_) = svgs(page(rows, simple_effects=planted().simple_effects[:0]).render("html"))
    marks = [element for element in forest.iter() if element.get("class") == "mark"]
    assert len({mark.get("d") for mark in marks}) == len({mark.get("fill") for mark in marks}) == 2


@pytest.fixture(scope="module")
def suite_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuned suite with controls at two scales, in a store."""
    home = tmp_path_factory.mktemp("suite")
    store = empty_store(home)
    write_at_once(store, [fill(store)])
    small = planted_design(
        {ACTIVATION: ["gelu", "swiglu"]}, 3, scale="1m", corpus="c1", created_at="2025-01-01T00:00:00+00:00"
    )
    write_at_once(store, [small])
    write_at_once(
        store,
        [
            record(t["levels"], t["seed"], loss=3.5 + t["seed"] / 10, suite="activation", scale="1m", corpus="c1")
            for t in small.trials
        ],
    )
    return home


def fill(store: Store) -> DesignRecord:
    declared = planted_design({ACTIVATION: ["gelu", "swiglu"]}, 3)
    numbers, trials, records = simulated(declared), list(declared.trials), []

    def put(trial: dict[str, Any], loss: float, **fields: Any) -> None:
        curves = {"val_loss": [[step, step * 4096, loss + 1 / (1 + step)] for step in range(0, 101, 20)]}
        ids = {"trial_id": trial["trial_id"], "cell_id": trial["cell_id"], "record_id": f"{trial['trial_id']:0<32}"}
        records.append(
            record(
                trial["levels"] or {"norm": "none"},
                trial["seed"],
                loss=loss,
                suite="activation",
                curves=curves,
                **(ids | fields),
            )
        )

    for trial, loss in zip(trials, numbers["val_loss"], strict=True):
        put(trial, float(loss), git_dirty=trial["seed"] == 1)
    cell = trials[0]["cell_id"]
    copies = [
        {"trial_id": f"aa{n}", "cell_id": cell, "levels": declared.baseline, "seed": n, "control": "aa"}
        for n in (100, 101, 102)
    ]
    bad = [
        {"trial_id": f"bad{n}", "cell_id": "bad", "levels": {}, "seed": n, "control": "bad", "label": "no norm"}
        for n in range(3)
    ]
    for trial in copies:
        put(trial, 4.1 + trial["seed"] / 1e4)
    for trial in bad:
        put(trial, 6 + trial["seed"] / 10)
    rates, tune, tuning = (0.0003, 0.001, 0.003), [], {}
    for number, level in enumerate(("gelu", "swiglu")):
        for rate in rates:
            trial = {
                "trial_id": f"tune{number}{rate}",
                "cell_id": f"tune{number}{rate}",
                "levels": {ACTIVATION: level},
                "seed": 900,
                "stage": "tune",
            }
            put(trial, 4 + (rate - 0.001) ** 2 * 1e4, recipe=recipe() | {"optimizer": {"adamw": {"lr": rate}}})
            tune.append(trial)
        key = level if number else trials[0]["cell_id"]
        tuning[key] = {
            "field": "optimizer.lr",
            "values": list(rates),
            "chosen": 0.001,
            "bracketed": not number,
            "seeds": [900],
        }
    write_at_once(store, records)
    return planted_design({ACTIVATION: ["gelu", "swiglu"]}, 3, trials=[*trials, *copies, *bad, *tune], tuning=tuning,
                          drift={cell: {"tokens": 0.0, "parameters": 0.013}}, suite_text="name: activation\n")  # fmt: skip


def test_a_report_from_records(suite_home: Path) -> None:
    made = report("activation", home=suite_home)
    titles = "The answer, Caveats, Effects, Scales, Trade-offs, Curves, Tuning, Controls, Trust, Provenance"
    assert ", ".join(section.title for section in made.sections) == titles
    text = made.render("html")
    seen = " ".join(Seen(text).text)
    for words in ("swiglu", "0123456789abcdef with uncommitted changes", "corpus-a", "ablate run activation --scale nano --seeds 3",
                  "name: activation", "as expected", "untuned: no value is between two", "+1.30 %", "a point on the way"):  # fmt: skip
        assert words in seen
    drawn = {one.get("aria-label"): one for one in svgs(text)}
    search = drawn["Search over optimizer.lr"]
    assert len([element for element in search.iter() if element.get("class") == "mark"]) == 6
    assert "Validation loss over tokens" in drawn
    assert all(note in seen for note in made.found.notes)
    scales = next(
        block for section in made.sections for block in section.blocks if block.kind == "table" and block.id == "scales"
    )
    assert scales.rows


def test_without_the_store_there_are_no_curves(suite_home: Path) -> None:
    report("activation", home=suite_home)
    made = report("activation", home=suite_home, offline=True)
    assert "Curves" not in [section.title for section in made.sections]
    assert sentences(made) == sentences(report("activation", home=suite_home))


def test_a_suite_without_results_is_named(suite_home: Path) -> None:
    with pytest.raises(RegistryEmpty, match='no results for suite "nosuch"'):
        report("nosuch", home=suite_home)


def test_reports_of_little_claim_little(home: Path) -> None:
    store = empty_store(home)
    cells = [{"model.attention": "mha"}, {"model.attention": "gqa"}]
    ends = zip(cells, ("finished", "diverged"), strict=True)
    write_at_once(store, [design(cells, 1), *(record(levels, 0, status=status) for levels, status in ends)])
    made = report("attention")
    for format in FORMATS:
        assert "diverged" in made.render(format)
    (said,) = sentences(made)
    assert not re.search("lowers|raises|better|faster", said)


def test_the_command(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "attention", "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("# attention\n")
    assert main(["report", "attention", "-o", "page.html"]) == 0
    assert capsys.readouterr().out == "page.html\n"
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["report", "attention"]) == 0
    assert (filled / "reports" / "attention-nano.html").is_file()
    assert main(["report", "attention", "--scale", "1b"]) == 2
    assert capsys.readouterr().err == 'error: no results for suite "attention" at scale "1b"; there are some at: nano\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    "factors",
    [{f"model.{a}": [f"{a}_{n}" for n in range(10)] for a in "abc"}, {ACTIVATION: [f"level_{n}" for n in range(1000)]}],
)
def test_a_page_of_5000_trials_stays_under_3_megabytes(factors: dict[str, list[str]]) -> None:
    declared = planted_design(factors, 5)
    text = Report(analyse(declared, simulated(declared)), NOTHING).render("html")
    assert len(text.encode()) < 2_800_000  # curves and provenance come on top
