"""A board says what the data can say: seeds aggregated, ties shared, nothing mixed that does not belong together."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_records import design, empty_store, record, trial_id
from scipy import stats

from registry import sql
from registry.leaderboard import Leaderboard, QueryError, RegistryEmpty, query
from registry.rank import Values, holm, p_value, ranks
from registry.store import Store

ROOT = Path(__file__).parent.parent
CELLS = [{"model.attention": a, "norm": n} for a in ("mha", "gqa") for n in ("layernorm", "rmsnorm")]


def board(home: Path) -> Leaderboard:
    return Leaderboard(home).suite("attention")


def fill(home: Path, cells: int = 4, seeds: int = 5, worse: float = 0.05) -> Store:
    """Cells that differ by noise alone, except that rmsnorm is `worse`; seeds differ by much more than that."""
    store = empty_store(home)
    (home / "mlflow.db").write_bytes(filled(cells, seeds, worse))
    return store


@functools.cache
def filled(cells: int, seeds: int, worse: float) -> bytes:
    noise = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        store = empty_store(Path(folder))
        store.write_design(design(CELLS[:cells], seeds))
        for levels in CELLS[:cells]:
            for seed in range(seeds):
                loss = 3 + 0.3 * seed + noise.gauss(0, 0.005) + (worse if levels["norm"] == "rmsnorm" else 0)
                store.write_trial(record(levels, seed, loss=loss))
        return (Path(folder) / "mlflow.db").read_bytes()


def by_cell(frame: pd.DataFrame, column: str) -> dict[tuple[str, str], Any]:
    return {(row["attention"], row["norm"]): row[column] for row in frame.to_dict("records")}


def test_seeds_are_aggregated_and_only_what_the_data_separate_is_ranked_apart(home: Path) -> None:
    store = fill(home)
    frame = board(home).frame()
    assert by_cell(frame, "rank") == {
        ("mha", "layernorm"): 1,
        ("gqa", "layernorm"): 1,
        ("mha", "rmsnorm"): 3,
        ("gqa", "rmsnorm"): 3,
    }
    assert list(frame["val_loss"]) == sorted(frame["val_loss"])
    losses = pd.Series([t.metrics["val_loss"] for t in store.trials() if t.context["levels"] == CELLS[0]])
    row = frame[(frame["attention"] == "mha") & (frame["norm"] == "layernorm")].iloc[0]
    assert row["n"] == 5
    assert row["val_loss"] == pytest.approx(losses.mean())
    assert row["val_loss_sd"] == pytest.approx(losses.std())
    assert row["val_loss_sem"] == pytest.approx(losses.sem())
    assert row["tokens_per_second"] == pytest.approx(10002)
    assert any("paired by seed" in note for note in frame.attrs["notes"])


def test_one_seed_separates_nothing(home: Path) -> None:
    fill(home, seeds=1, worse=5.0)
    frame = board(home).frame()
    assert set(frame["rank"]) == {1}
    assert any("separates nothing" in note for note in frame.attrs["notes"])


def test_failures_are_shown_and_not_averaged(home: Path) -> None:
    store = empty_store(home)
    store.write_design(design(CELLS[:3], 3))
    for seed in range(3):
        store.write_trial(record(CELLS[0], seed, loss=3.0 + seed))
        status = "diverged" if seed else "finished"
        store.write_trial(
            record(CELLS[1], seed, loss=2.0, status=status, metrics={} if not seed else {"val_loss": 99.0})
        )
    store.write_trial(record(CELLS[2], 0, status="out_of_memory"))
    frame = board(home).frame()
    assert list(frame["failed"]) == ["2 diverged", "", "1 out of memory"]
    assert list(frame["n"]) == [1, 3, 0]
    assert frame["val_loss"].iloc[0] == 2.0
    assert frame["rank"].isna().tolist() == [False, False, True]
    assert any("2 of 9 trials have no result" in note for note in frame.attrs["notes"])


def test_environments_validation_slices_and_scales_are_never_mixed(home: Path) -> None:
    store = empty_store(home)
    cells = CELLS[:2]
    store.write_design(design(cells, 2))
    store.write_design(design(cells, 2, scale="10m", corpus="corpus-b"))
    for levels in cells:
        for seed in range(2):
            store.write_trial(record(levels, seed, loss=3))
            store.write_trial(record(levels, seed, loss=4, environment_id="gpu"))
            store.write_trial(record(levels, seed, loss=5, scale="10m", corpus="corpus-b", evaluation="slice-b"))
    frame = board(home).frame()
    groups = frame.groupby(["scale", "environment_id", "evaluation_fingerprint"])
    assert {key: (len(rows), rows["val_loss"].mean(), set(rows["rank"])) for key, rows in groups} == {
        ("nano", "env-cpu", "slice-a"): (2, 3, {1}),
        ("nano", "gpu", "slice-a"): (2, 4, {1}),
        ("10m", "env-cpu", "slice-b"): (2, 5, {1}),
    }
    assert set(board(home).suite("attention", "10m").frame()["scale"]) == {"10m"}


def test_arms_on_different_corpora_are_ranked_where_the_validation_slice_is_one(home: Path) -> None:
    store = empty_store(home)
    arms = {"none": "corpus-a", "quality": "corpus-b", "deduplicated": "corpus-c"}
    trials = [
        record({"data.curation": arm}, seed, loss=3 + place / 10 + seed / 1000, corpus=corpus)
        for place, (arm, corpus) in enumerate(arms.items())
        for seed in range(3)
    ]
    for trial in trials:
        store.write_trial(trial)
    listed = [
        {"trial_id": t.trial_id, "cell_id": t.cell_id, "levels": t.context["levels"], "seed": t.seed} for t in trials
    ]
    store.write_design(design([{"data.curation": arm} for arm in arms], 3, trials=listed))
    frame = board(home).frame()
    assert frame["curation"].tolist() == ["none", "quality", "deduplicated"]
    assert frame["rank"].tolist() == [1, 2, 3]
    assert set(frame["evaluation_fingerprint"]) == {"slice-a"}
    corpora = query("SELECT DISTINCT corpus_fingerprint AS c FROM trials ORDER BY c", home)
    assert corpora["c"].tolist() == ["corpus-a", "corpus-b", "corpus-c"]


def test_where_one_choice_is_taken_back_a_table_says_which(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from registry.tables import render

    store = empty_store(home)
    cells = [
        {"model.attention": "gqa", "norm": "rmsnorm"},
        {"model.attention": "mha", "norm": "rmsnorm"},
        {"model.attention": "gqa", "norm": "layernorm"},
    ]
    store.write_design(design(cells, 1, kind="leave_one_out"))
    for i, levels in enumerate(cells):
        store.write_trial(record(levels, 0, loss=3 + i))
    frame = board(home).frame()
    assert frame["cell"].tolist() == ["baseline", "attention=mha", "norm=layernorm"]
    assert frame["attention"].tolist() == ["gqa", "mha", "gqa"]
    render(frame, "table")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[0] == "1"]
    assert [row[1] for row in rows] == frame["cell"].tolist()


@pytest.mark.parametrize(
    ("metric", "text", "size", "ranks"),
    [
        ("val_loss", "text-a", 1000, [1, 1]),
        ("val_bpb", "text-a", 1019, [1, 2]),
        ("val_bpb", "text-a", 1021, [1, 1]),
        ("val_bpb", "text-b", 1000, [1, 1]),
    ],
    ids=["nats per token", "bits per byte", "of more of the text", "of another text"],
)
def test_tokenizers_are_ranked_together_only_by_bits_per_byte_of_the_same_text(
    metric: str, text: str, size: int, ranks: list[int], home: Path
) -> None:
    store = empty_store(home)
    store.write_design(design(CELLS[:2], 4))
    for seed in range(4):
        store.write_trial(record(CELLS[0], seed, loss=3 + seed / 100, metrics={"validation_bytes": 1000}))
        other = {"validation_bytes": size}
        store.write_trial(record(CELLS[1], seed, loss=4 + seed / 90, evaluation="slice-b", text=text, metrics=other))
    frame = board(home).sort(metric).frame()
    assert frame["rank"].tolist() == ranks
    assert any("ranked apart" in note for note in frame.attrs["notes"]) == (ranks == [1, 1])


def test_records_of_the_first_version_are_grouped_by_their_corpus(home: Path) -> None:
    """They do not say what they were validated on, and are no reason to rank what may not compare."""
    store = empty_store(home)
    cells = CELLS[:2]
    store.write_design(design(cells, 1))
    for levels, corpus in zip(cells, ("corpus-a", "corpus-b"), strict=True):
        old = record(levels, 0, corpus="corpus-a", corpus_fingerprint=corpus).to_dict() | {"schema_version": 1}
        del old["evaluation_fingerprint"], old["text_fingerprint"], old["curves"]
        tags = {"ablate.record": json.dumps(old), "ablate.chunks": "1", "ablate.schema": "1"}
        run = store.write_trial(record(levels, 0))
        for name, value in tags.items():
            store._client.set_tag(run, name, value)
    frame = board(home).frame()
    assert frame["evaluation_fingerprint"].tolist() == ["corpus-a", "corpus-b"]
    assert frame["rank"].tolist() == [1, 1]


def test_speed_is_ranked_only_where_it_was_measured_alone(home: Path) -> None:
    store = empty_store(home)
    store.write_design(design(CELLS[:3], 2))
    for seed in range(2):
        alone = {"tokens_per_second": 100.0}
        store.write_trial(record(CELLS[0], seed, metrics={"tokens_per_second": 900.0}, exclusive=False))
        store.write_trial(record(CELLS[1], seed, metrics=alone, exclusive=seed == 0))
        store.write_trial(record(CELLS[2], seed, metrics=alone))
        store.write_trial(record(CELLS[2], seed, metrics={"tokens_per_second": 300.0}, purpose="speed"))
    frame = board(home).sort("tokens_per_second").frame()
    assert frame["tokens_per_second"].tolist() == [300.0, 100.0, 900.0]
    assert frame["exclusive"].tolist() == [True, True, False]
    assert list(frame["n"]) == [2, 2, 2]
    assert frame["rank"].isna().tolist() == [False, False, True]
    assert any("while other trials shared the device" in note for note in frame.attrs["notes"])


def test_the_newest_design_of_a_scale_that_has_results_is_shown(home: Path) -> None:
    store = fill(home, 2, 2)
    grown = [{**levels, "bias": "no"} for levels in CELLS[:1]]
    store.write_design(design(grown, 2, created_at="2026-03-01T00:00:00+00:00"))
    assert len(board(home).frame()) == 2
    store.write_trial(record(grown[0]))
    assert list(board(home).frame()["bias"]) == ["no"]


def test_a_trial_counts_in_every_suite_that_declares_it(home: Path) -> None:
    store = fill(home, 2, 2)
    store.write_design(design(CELLS[:1], 2, suite="other"))
    assert list(Leaderboard(home).suite("other").frame()["n"]) == [2]
    assert Leaderboard(home).frame()["suite"].tolist() == ["attention", "attention", "other"]


def test_a_board_is_sorted_by_any_metric(home: Path) -> None:
    fill(home)
    frame = board(home).sort("val_bpb").frame()
    assert frame["val_bpb"].is_monotonic_increasing
    assert "val_bpb_sd" in frame.columns
    assert board(home).sort("val_loss", reverse=True).frame()["val_loss"].is_monotonic_decreasing
    assert board(home).sort("parameters").frame()["rank"].isna().tolist() == [True] * 4
    with pytest.raises(QueryError, match='no metric "val_los": did you mean "val_loss"'):
        board(home).sort("val_los").frame()


def test_where_restricts_the_trials(home: Path) -> None:
    fill(home)
    frame = board(home).where("attention = 'gqa'").where("seed < 3").frame()
    assert set(frame["attention"]) == {"gqa"}
    assert list(frame["n"]) == [3, 3]
    rows = board(home).where("n_kv_heads = 2 and lr = 0.001").trials()
    assert len(rows) == 10
    with pytest.raises(RegistryEmpty, match="no result fits seed > 99"):
        board(home).where("seed > 99").frame()


@pytest.mark.parametrize(
    "expression",
    [
        "seed > 1; DROP TABLE trials",
        "seed > 1) OR (1 = 1",
        "1 = 1) UNION SELECT * FROM (SELECT 1",
        "seed > 1, seed < 2",
        "seed > 1 ORDER BY seed",
        "seed IN (SELECT seed FROM read_csv('/etc/passwd'))",
        "nope = 1",
        "seed = 'x'",
        "seed >",
        "",
    ],
)
def test_where_takes_one_expression_and_nothing_else(home: Path, expression: str) -> None:
    fill(home, 1, 1)
    with pytest.raises(QueryError) as caught:
        board(home).where(expression).frame()
    assert "\n" not in str(caught.value)


def test_sql_answers_over_all_views(home: Path) -> None:
    fill(home)
    frame = query(
        "SELECT attention, attention_options, n_layers, lr, val_loss FROM trials WHERE seed = 0 ORDER BY ALL", home
    )
    assert frame["attention"].tolist() == ["gqa", "gqa", "mha", "mha"]
    assert frame["attention_options"].tolist()[0] == '{"n_kv_heads": 2}'
    cells = query("SELECT cell, rank, n, val_loss, val_loss_sd, attention FROM cells ORDER BY val_loss", home)
    assert cells["rank"].tolist() == [1, 1, 3, 3]
    assert cells["val_loss"].tolist() == pytest.approx(board(home).frame()["val_loss"].tolist())
    points = query(
        "SELECT step, curves.tokens, value FROM curves JOIN trials USING (record_id) WHERE seed = 0 AND step = 2", home
    )
    assert points["tokens"].tolist() == [8192.0] * 4
    counted = query("WITH d AS (SELECT * FROM designs WHERE latest) SELECT count(*) AS n FROM d", home)
    assert counted["n"].tolist() == [20]


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("SELECT valloss FROM trials", "valloss"),
        ("SELECT * FROM trails", "trails"),
        ("SELECT seed FRM trials WHERE", "trials"),
        ("SELEC 1", "SELEC"),
        ("SELECT 1; SELECT 2", "one SELECT"),
        ("", "one SELECT"),
        ("SET memory_limit = '1TB'", "one SELECT"),
        ("COPY trials TO '/tmp/ablate-test.csv'", "one SELECT"),
        ("ATTACH '/tmp/ablate-test.db'", "one SELECT"),
        ("INSTALL httpfs", "one SELECT"),
        ("CREATE TABLE x AS SELECT 1", "one SELECT"),
        ("DROP VIEW trials", "one SELECT"),
        ("PRAGMA database_list", "one SELECT"),
        ("SELECT * FROM read_csv('/etc/passwd')", "/etc/passwd"),
        ("SELECT * FROM read_text('/etc/passwd')", "/etc/passwd"),
        ("SELECT * FROM glob('/*')", "/*"),
        ("SELECT * FROM '/etc/passwd'", "/etc/passwd"),
        ("SELECT * FROM '/etc/passwd.csv'", "/etc/passwd.csv"),
        ("SELECT * FROM sandbox", "sandbox"),
        ("SELECT * FROM query('COPY (SELECT 1) TO ''/tmp/ablate-test.csv''')", "SELECT"),
        ("SELECT getenv('HOME')", "getenv"),
        ("SELECT CAST('x' AS INTEGER)", "x"),
    ],
)
def test_sql_reads_the_registry_and_nothing_else(home: Path, statement: str, word: str) -> None:
    fill(home, 1, 1)
    with pytest.raises(QueryError) as caught:
        query(statement, home)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("/tmp/ablate-test.csv").exists()


def test_a_query_without_end_is_interrupted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(home, 1, 1)
    monkeypatch.setattr(sql, "TIME_LIMIT_S", 0.3)
    endless = "SELECT sum(a.range * b.range) FROM range(10000000) AS a, range(10000000) AS b"
    with pytest.raises(QueryError, match="took longer"):
        query(endless, home)


def test_an_empty_registry_says_what_to_do(home: Path) -> None:
    for ask in (lambda: Leaderboard(home).frame(), lambda: query("SELECT 1", home)):
        with pytest.raises(RegistryEmpty, match="no results yet: run `ablate run quickstart`"):
            ask()
    fill(home, 1, 1)
    with pytest.raises(RegistryEmpty, match='no results for suite "norm"; there are some for: attention'):
        Leaderboard(home).suite("norm").frame()
    with pytest.raises(RegistryEmpty, match="no results for suite"):
        Leaderboard(home).suite("'; DROP VIEW trials; --").frame()


def test_damaged_runs_are_named(home: Path) -> None:
    store = fill(home, 1, 2)
    bad = store.write_trial(record(CELLS[0], 7))
    store._client.set_tag(bad, "ablate.record", "{")
    assert any(bad in note for note in board(home).frame().attrs["notes"])


def test_offline_reads_the_mirror(home: Path) -> None:
    fill(home)
    expected = board(home).frame()
    (home / "mlflow.db").unlink()
    pd.testing.assert_frame_equal(Leaderboard(home, offline=True).suite("attention").frame(), expected)
    with pytest.raises(QueryError, match="not in the mirror"):
        query("SELECT * FROM curves", home, offline=True)


def test_offline_without_a_mirror_says_so(home: Path) -> None:
    fill(home)
    with pytest.raises(RegistryEmpty, match=r"nothing of sqlite:.*mlflow.db is mirrored here yet: ask once without"):
        Leaderboard(home, offline=True).frame()


def test_boards_and_queries_need_no_trainer_and_no_mlflow(home: Path) -> None:
    fill(home, 2, 2)
    code = """
import sys
from registry import Leaderboard, query
print(len(Leaderboard().frame()), len(query("SELECT * FROM cells")), len(query("SELECT * FROM curves")))
print(sorted({"mlflow", "torch", "ray", "ablate"} & set(sys.modules)))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ABLATE_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == ("2 2 20\n[]\n", "")


def test_p_values_are_those_of_scipy() -> None:
    noise = random.Random(0)
    first: Values = {seed: noise.gauss(0, 1) for seed in range(6)}
    second: Values = {seed: noise.gauss(0.5, 1) for seed in range(6)}
    other: Values = {seed + 10: value for seed, value in second.items()}
    paired = stats.ttest_rel(list(first.values()), list(second.values()))[1]
    welch = stats.ttest_ind(list(first.values()), list(other.values()), equal_var=False)[1]
    assert p_value(first, second) == pytest.approx(paired)
    assert p_value(first, other) == pytest.approx(welch)
    assert p_value({0: 1.0}, {0: 2.0}) == 1.0
    assert p_value({0: 1.0, 1: 2.0}, {0: 2.0, 1: 3.0}) == 0.0
    assert p_value({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}) == 1.0


def test_holm_is_the_textbook_one() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(0, 5), st.floats(-9, 9), max_size=5), max_size=6),
    st.booleans(),
)
def test_ranks_follow_the_means_and_leave_out_nothing(cells: list[Values], lower: bool) -> None:
    places = ranks(cells, lower_is_better=lower)
    assert [place is None for place in places] == [not values for values in cells]
    means = [(sum(v.values()) / len(v), place) for v, place in zip(cells, places, strict=True) if place is not None]
    ordered = [place for _, place in sorted(means, key=lambda pair: (pair[0] if lower else -pair[0], pair[1]))]
    assert ordered == sorted(ordered)
    assert all(place == 1 + sum(other < place for other in ordered) for place in ordered)


def test_ties_are_planted_and_found() -> None:
    """Over many draws equal cells are rarely ranked apart, and a clearly worse one nearly always is."""
    noise, apart, found = random.Random(2), 0, 0
    for _ in range(200):
        blocks = [noise.gauss(0, 1) for _ in range(5)]
        cells = [{s: b + shift + noise.gauss(0, 0.01) for s, b in enumerate(blocks)} for shift in (0, 0, 0, 0.1)]
        places = ranks(cells)
        apart += len(set(places[:3])) > 1
        found += places[3] == 4
    assert apart <= 30
    assert found >= 190


def test_the_board_says_what_a_loss_is_to_be_seen_against(home: Path) -> None:
    store = empty_store(home)
    store.write_design(design(CELLS[:2], 1))
    for cell, floor in zip(CELLS[:2], (1.5, 1.6), strict=True):
        store.write_trial(record(cell, 0, metrics={"val_loss": 4.0, "unigram_entropy": 5.7987, "loss_floor": floor}))
    notes = board(home).frame().attrs["notes"]
    assert "unigram entropy of the validation slice: 5.799 nats/token" in notes
    assert "loss of the true source of the validation slice: 1.500 to 1.600 nats/token" in notes


def test_seeds_in_common_that_contradict_the_means_separate_nothing() -> None:
    """The second is better on every seed that both have, and worse in the mean: one seed of the first was lucky."""
    assert ranks([{0: 1.00, 1: 1.02, 2: 1.01, 3: 0.2}, {0: 0.90, 1: 0.915, 2: 0.905}]) == [1, 1]


def test_a_scale_without_results_is_named(home: Path) -> None:
    fill(home, 2, 2)
    with pytest.raises(RegistryEmpty, match='no results at scale "nonsense"; there are some at: nano'):
        board(home).suite("attention", "nonsense").frame()


def with_controls(store: Store, kind: str) -> None:
    """Two cells and both controls, two seeds each; A/A has the cell of the baseline, and lower losses."""
    cells = [{"model.attention": "mha"}, {"model.attention": "gqa"}]
    plan = design(cells, kind=kind)
    mine = {
        "trial_id": "bad",
        "cell_id": "bad",
        "levels": {},
        "seed": 0,
        "control": "bad",
        "label": "known-bad: lr=x10",
    }
    again = [
        {**plan.trials[0], "trial_id": trial_id(cells[0], seed), "seed": seed, "control": "aa"} for seed in (70, 71)
    ]
    store.write_design(design(cells, kind=kind, trials=[*plan.trials, *again, mine]))
    for number, levels in enumerate(cells):
        for seed in range(2):
            store.write_trial(record(levels, seed, loss=3 + number + seed / 100))
    for seed in (70, 71):
        store.write_trial(record(cells[0], seed, loss=2.0 + seed / 1000))
    store.write_trial(record({"model.attention": "mqa"}, 0, loss=9.0, trial_id="bad", cell_id="bad"))


@pytest.mark.parametrize("kind", ["full", "one_at_a_time", "fractional", "optimal"])
def test_controls_have_rows_of_their_own_and_no_rank(home: Path, kind: str) -> None:
    with_controls(empty_store(home), kind)
    found = Leaderboard().suite("attention").frame()
    assert list(found["control"]) == ["", "", "A/A", "known-bad: lr=x10"]
    assert found["rank"].fillna(0).tolist() == [1, 2, 0, 0]
    assert list(found["val_loss"]) == pytest.approx([3.005, 4.005, 2.0705, 9.0]), "the baseline is its own seeds alone"
    assert list(found["n"]) == [2, 2, 2, 1]
    assert any("controls have no rank" in note for note in found.attrs["notes"])
    assert ("control" in found.attrs["named"]) == (kind != "one_at_a_time")
    assert found["cell"].tolist()[2:] == ["A/A", "known-bad: lr=x10"]
    baseline = {"full": "mha", "one_at_a_time": "baseline"}.get(kind, "mha")
    assert found["cell"].tolist()[0] == baseline
    assert set(query("SELECT DISTINCT control FROM designs")["control"]) == {"", "aa", "bad"}
