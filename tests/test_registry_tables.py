"""A frame is printed for the one who reads it: a terminal, a program, a spreadsheet, a paper."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from registry.tables import FORMATS, render


def text(frame: pd.DataFrame, format: str, *notes: str, width: int = 80) -> str:
    out = io.StringIO()
    render(frame, format, Console(file=out, width=width), notes)
    return out.getvalue()


@pytest.fixture
def leaderboard() -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "rank": pd.array([1, 1, None], dtype="Int64"),
            "suite": ["recipe"] * 3,
            "scale": ["10m"] * 3,
            **{name: ["multi-query", "grouped", "multi-head"] for name in ("attention", "norm", "position")},
            "n": [5, 5, 0],
            "val_loss": [3.14159265358979, 3.2, np.nan],
            "val_loss_sd": [0.0123, 0.02, np.nan],
            "val_loss_sem": [0.005, 0.009, np.nan],
            "val_loss_half_width": [0.0123, 0.02, np.nan],
            "val_bpb": [1.25, 1.3, np.nan],
            "tokens_per_second": [123456.7, 99.5, np.nan],
            "mfu": [np.nan] * 3,
            "peak_memory_gib": [10.25, 0.0001, np.nan],
            "parameters": [124475904.0, 99999.0, np.nan],
            "failed": ["", "", "5 diverged"],
            "device": ["cpu"] * 3,
            "environment_id": ["e1"] * 3,
            "evaluation_fingerprint": ["v1"] * 3,
            "cell_id": ["x", "y", "z"],
        }
    )
    frame.attrs = {"metric": "val_loss", "factors": ["attention", "norm", "position"], "notes": []}
    frame.attrs |= {"named": frame.attrs["factors"], "shared": []}
    frame.attrs["half_widths"] = {"val_loss": dict(frame["val_loss_half_width"])}
    return frame


def test_a_leaderboard_fits_a_terminal(leaderboard: pd.DataFrame) -> None:
    lines = text(leaderboard, "table", "a note").splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "suite recipe · scale 10m · device cpu · environment e1 · evaluation v1"
    assert sum("multi-query" in line for line in lines) == 1
    assert "3.142 ± 0.012" in "\n".join(lines)
    assert lines[-2] == "a note"
    assert lines[-1] == "not shown in 80 columns: val_bpb, tokens_per_second, peak_memory_gib, parameters"
    wide = text(leaderboard, "table", width=200)
    assert "124M" in wide
    assert "not shown" not in wide
    assert "mfu" not in wide
    row = next(line for line in wide.splitlines() if "grouped" in line)
    assert row.index("99.5") > row.index("1.3")


def test_intervals_and_marks_follow_their_rows(leaderboard: pd.DataFrame) -> None:
    leaderboard.attrs["shared"] = [1]
    lines = text(leaderboard.iloc[[1, 0]], "markdown", width=200).splitlines()[-2:]
    assert "3.200 ± 0.020" in lines[0] and "~" in lines[0]
    assert "3.142 ± 0.012" in lines[1] and "~" not in lines[1]


def test_columns_that_were_asked_for_are_all_shown(leaderboard: pd.DataFrame) -> None:
    chosen = leaderboard[["suite", "cell_id", "val_loss_sd", "mfu", "val_loss"]]
    chosen.attrs = leaderboard.attrs | {"chosen": True}
    lines = text(chosen, "table", width=200).splitlines()
    assert "suite recipe" not in lines[0]
    row = next(line for line in lines if "recipe" in line)
    assert "0.0123" in row and "3.142 ± 0.012" in row


def test_numbers_stand_to_the_right() -> None:
    lines = text(pd.DataFrame({"name": ["a", "bb"], "value": [1, 1000]}), "table").splitlines()
    assert [line.rstrip()[-5:] for line in lines] == ["value", "    1", "1,000"]


def test_programs_get_every_digit(leaderboard: pd.DataFrame) -> None:
    data = json.loads(text(leaderboard, "json", "a note"))
    assert data["notes"] == ["a note"]
    assert data["rows"][0]["val_loss"] == 3.14159265358979
    assert data["rows"][0]["rank"] == 1
    assert data["rows"][2]["val_loss"] is None
    assert data["rows"][2]["rank"] is None
    rows = list(csv.DictReader(io.StringIO(text(leaderboard, "csv", "a note"))))
    assert list(rows[0]) == list(leaderboard.columns)
    assert float(rows[0]["val_loss"]) == 3.14159265358979
    assert rows[2]["val_loss"] == ""


def test_csv_holds_no_formula() -> None:
    frame = pd.DataFrame({"=name": ["=1+1", "+1", "-x", "@SUM(A1)", "\tx", "fine", 'quo"te,'], "value": [-1.5] * 7})
    rows = list(csv.reader(io.StringIO(text(frame, "csv"))))
    assert [row[0] for row in rows] == ["'=name", "'=1+1", "'+1", "'-x", "'@SUM(A1)", "'\tx", "fine", 'quo"te,']
    assert {row[1] for row in rows[1:]} == {"-1.5"}


def test_markdown_and_latex_escape_their_signs() -> None:
    frame = pd.DataFrame({"a|b": ["x|y\nz", r"5% & $3_2 {#}~^\ <·±>"], "value": [1.5, None]})
    assert text(frame, "markdown", "note").splitlines() == [
        r"| a\|b | value |",
        "|---|---:|",
        r"| x\|y z | 1.5000 |",
        r"| 5% &amp; \$3_2 {#}\~^\\ &lt;·±&gt; |  |",
        "",
        "- note",
    ]
    latex = text(frame, "latex", "two\nlines")
    assert r"\begin{tabular}{lr}" in latex
    assert r"\toprule" in latex
    assert "% two lines\n" in latex
    special = r"5\% \& \$3\_2 \{\#\}\textasciitilde{}\textasciicircum{}\textbackslash{} "
    assert special + r"\textless{}\textperiodcentered{}\ensuremath{\pm}\textgreater{} &  \\" in latex


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_prints_an_empty_and_a_strange_frame(format: str) -> None:
    assert text(pd.DataFrame({"a": []}), format)
    strange = pd.DataFrame({"a": [[1, 2], {"k": 1}, None, True, pd.Timestamp("2026-01-01"), "[red]x", 1e-9, 1e20]})
    assert "[red]x" in text(strange, format)


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ValueError, match='no format "xml"; there are: table, json'):
        text(pd.DataFrame(), "xml")


def test_what_was_measured_while_sharing_is_marked(leaderboard: pd.DataFrame) -> None:
    leaderboard.attrs["shared"] = [0]
    page = text(leaderboard.iloc[[0, 1, 2]], "markdown")
    first, second = page.splitlines()[-len(leaderboard) :][:2]
    assert "~" in first and "~" not in second and "exclusive" not in page


@pytest.mark.parametrize("format", FORMATS)
def test_lists_are_shown(format: str) -> None:
    assert "1" in text(pd.DataFrame({"a": [np.array([1, 2]), np.array([3])]}), format)
