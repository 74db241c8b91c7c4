"""The expansion of every shipped suite, and questions to a registry: `pytest -m slow tests/benchmarks/test_suites_and_board.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from counting import Held
from registry_records import empty_store, write_at_once
from site_records import registry

from ablate.design import expand
from ablate.suite import load_suite, shipped
from registry.leaderboard import Leaderboard, query
from registry.mirror import sync
from registry.store import Store

pytestmark = pytest.mark.slow
TRIALS = 1000
CONDITION = "attention = 'gqa' AND val_loss < 3.5"


@pytest.mark.parametrize("suite", shipped())
def test_expanding_a_suite(suite: str, tmp_path: Path, held: Held) -> None:
    """From its file, at the scale of its own."""
    text = tmp_path / "text.txt"
    text.write_text("Some text. " * 1000)
    overrides = {"data.source": {"files": {"paths": str(text)}}} if suite.startswith("reference/") else {}
    held.python(lambda: expand(load_suite(suite), overrides=overrides))


@pytest.fixture(scope="module")
def filled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of a thousand trials, with a mirror that is up to date."""
    home = tmp_path_factory.mktemp("filled")
    write_at_once(empty_store(home), list(registry(TRIALS)))
    sync(Store.open(home))
    return home


def test_a_board_of_one_suite(filled_home: Path, held: Held) -> None:
    held.python(lambda: Leaderboard(filled_home).suite("attention").frame())


def test_a_board_of_all_suites(filled_home: Path, held: Held) -> None:
    held.python(lambda: Leaderboard(filled_home).frame())


def test_a_board_with_a_condition(filled_home: Path, held: Held) -> None:
    held.python(lambda: Leaderboard(filled_home).where(CONDITION).limit(5).frame())


def test_a_query(filled_home: Path, held: Held) -> None:
    sql = (
        "SELECT attention, avg(val_loss) AS val_loss, count(*) AS n FROM trials WHERE counts GROUP BY ALL ORDER BY ALL"
    )
    held.python(lambda: query(sql, home=filled_home))


def test_bringing_a_mirror_up_to_date(filled_home: Path, held: Held) -> None:
    """One that is."""
    store = Store.open(filled_home)
    held.python(lambda: sync(store))
