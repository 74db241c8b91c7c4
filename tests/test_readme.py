"""The README says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import readme

from ablate.cli import commands, main
from ablate.design import parse_set
from ablate.spec import Spec
from ablate.suite import load_suite, shipped

TEXT = readme.README.read_text(encoding="utf-8")
PUBLISHED = readme.PUBLISHED.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_generated_parts_have_not_drifted() -> None:
    assert readme.generate(TEXT) == TEXT, "run make docs"
    assert readme.generate(PUBLISHED) == PUBLISHED, "run make docs"


def test_every_generated_part_is_there() -> None:
    assert [found[2] for found in readme.SECTION.finditer(TEXT)] == [
        "registry",
        "gate",
        "speed",
        "suites",
        "variants",
        "fields",
        "help",
    ]
    assert [found[2] for found in readme.SECTION.finditer(PUBLISHED)] == ["published", "reference"]


def test_every_command_is_documented() -> None:
    assert set(commands()) <= set(re.findall(r"Usage: ablate ([a-z]+(?: [a-z]+)?)", TEXT))


def test_its_suite_loads(tmp_path: Path) -> None:
    text, *_ = blocks("yaml")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert load_suite(str(path)).factors


def test_its_designs_and_controls_load(tmp_path: Path) -> None:
    """Each line of the second block is a key of a suite of five factors with two levels."""
    lines = blocks("yaml")[1].splitlines()
    assert len(lines) == 4
    for line in lines:
        path = tmp_path / "mine.yaml"
        path.write_text(shipped()["recipe"][0].read_text().replace("design: full\n", f"{line}\n"))
        assert load_suite(path).factors


def test_its_sql_runs(filled: Path) -> None:
    for line in re.findall(r'ablate query "(.*?)"', TEXT, re.DOTALL):
        assert main(["query", line]) == 0


def test_its_python_runs(filled: Path) -> None:
    for block in blocks("python"):
        if "@" not in block:
            exec(compile(block, "README.md", "exec"), {})


def test_its_overrides_are_understood() -> None:
    found = re.findall(r"--set ([a-z][\w.]*)=(?:'(.*?)'|([\w.]+))", TEXT)
    assert len(found) >= 3
    for field, quoted, plain in found:
        Spec("nano").set_all(parse_set([f"{field}={quoted or plain}"]))
