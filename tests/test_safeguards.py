"""What `safeguards.py` takes out is still there to be taken out. That the tests fail without it, it shows itself."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import safeguards
from copied import Change
from safeguard_list import SAFEGUARDS, Safeguard

ROOT = Path(__file__).resolve().parent.parent
FAULTS = safeguards.rows()


@pytest.mark.parametrize("safeguard", SAFEGUARDS, ids=lambda one: one.name)
def test_what_is_taken_out_is_there_and_leaves_code_that_compiles(safeguard: Safeguard) -> None:
    texts: dict[str, str] = {}
    for change in safeguard.changes:
        assert change.old != change.new and change.file.startswith(("ablate/", "registry/"))
        text = texts.get(change.file) or (ROOT / change.file).read_text(encoding="utf-8")
        texts[change.file] = change.applied(text)
    for file, text in texts.items():
        compile(text, file, "exec")
    assert texts


@pytest.mark.parametrize("safeguard", SAFEGUARDS, ids=lambda one: one.name)
def test_the_test_of_a_safeguard_is_there(safeguard: Safeguard) -> None:
    file, _, test = safeguard.row.partition("::")
    assert re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_row_of_the_list_has_a_safeguard_that_is_taken_out() -> None:
    assert {one.row for one in SAFEGUARDS} == set(FAULTS)


def test_each_row_has_a_test_of_its_own() -> None:
    listed = (ROOT / "tests" / "FAULTS.md").read_text(encoding="utf-8").count("\n| ") - 2
    assert len(FAULTS) == listed, "a test is in two rows, or a row is not understood"


def test_no_two_safeguards_have_one_name() -> None:
    assert [name for name, count in Counter(one.name for one in SAFEGUARDS).items() if count > 1] == []


@pytest.mark.parametrize("old", ["twice", "never"])
def test_a_change_of_what_is_not_there_once_is_refused(old: str) -> None:
    with pytest.raises(ValueError, match=f"a.py: '{old}' is there [02] times"):
        Change("a.py", old, "").applied("twice twice")


(NAMED,) = [one for one in SAFEGUARDS if "numpy" in one.name]
HARMLESS = Change("ablate/errors.py", "What ends a command early", "An error")
BROKEN = Change("ablate/errors.py", "class UserError(ValueError):", "class UserError(NoSuchName):")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "verdict"),
    [(NAMED.changes[0], safeguards.CAUGHT), (HARMLESS, safeguards.MISSED), (BROKEN, safeguards.UNKNOWN)],
    ids=["taken out", "harmless", "broken"],
)
def test_code_without_a_safeguard_is_told_from_good_and_from_broken_code(change: Change, verdict: str) -> None:
    found = safeguards.tested(Safeguard(NAMED.name, NAMED.test, change), limit=200)
    assert found.verdict == verdict, found
