"""A board compares each cell with the baseline as the analysis does, and never averages what does not compare."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from registry_records import ENVIRONMENT, design, empty_store, record, write_at_once
from scipy import stats

from ablate.cli import main
from registry import Leaderboard, effects, query, schema
from registry.leaderboard import QueryError, RegistryEmpty

GRID = [{"model.attention": a, "norm": n} for a in ("mha", "gqa") for n in ("layernorm", "rmsnorm")]
ALONE = [{"model.attention": "mha", "norm": "layernorm"}, {"model.attention": "gqa", "norm": "layernorm"},
         {"model.attention": "mqa", "norm": "layernorm"}, {"model.attention": "mha", "norm": "rmsnorm"}]  # fmt: skip


def fill(home: Path, cells: list[dict[str, str]], shifts: list[float], seeds: int = 5, **fields) -> None:
    store, noise, kind = empty_store(home), random.Random(3), fields.pop("kind", "full")
    made = [design(cells, seeds, kind=kind)]
    for levels, shift in zip(cells, shifts, strict=True):
        made += [
            record(levels, seed, loss=3 + seed / 5 + shift + noise.gauss(0, 0.001),
                   metrics={"tokens_per_second": 100 + 10 * shift + noise.gauss(0, 0.1)}, **fields)
            for seed in range(seeds)
        ]  # fmt: skip
    write_at_once(store, made)


@pytest.mark.parametrize("metric", ["val_loss", "val_bpb", "tokens_per_second", "peak_memory_gib"])
def test_verdicts_are_those_of_the_analysis(home: Path, metric: str) -> None:
    fill(home, ALONE, [0.0, 0.05, 0.0005, -0.05], kind="one_at_a_time")
    board = Leaderboard().suite("attention").sort(metric).frame().set_index("cell")["verdict"].to_dict()
    assert board.pop("baseline") == "baseline"
    found = effects("attention").contrasts
    if metric == "val_bpb":  # which the analysis tells only where losses do not compare
        assert board == {"attention=gqa": "worse", "attention=mqa": "inconclusive", "norm=rmsnorm": "better"}
        return
    found = found[found["metric"] == metric]
    names = found["factor"].str.rpartition(".")[2] + "=" + found["level"]
    assert board == dict(zip(names, found["verdict"], strict=True))
    if metric == "val_loss":
        assert board == {"attention=gqa": "worse", "attention=mqa": "equivalent", "norm=rmsnorm": "better"}


def test_a_filter_changes_no_verdict_and_no_front(home: Path) -> None:
    fill(home, GRID, [0.0, 0.05, -0.05, 0.1])
    whole = Leaderboard().frame().set_index("cell")[["verdict", "pareto"]]
    part = Leaderboard().where("attention = 'gqa' and seed < 2").frame().set_index("cell")[["verdict", "pareto"]]
    assert len(part) == 2
    assert part.equals(whole.loc[part.index])
    assert set(whole["verdict"]) == {"baseline", "better", "worse"}


def test_half_widths_are_students(home: Path) -> None:
    fill(home, GRID, [0.0] * 4, seeds=4)
    row = Leaderboard().frame().iloc[0]
    values = query(f"SELECT val_loss FROM trials WHERE cell_id = '{row['cell_id']}'")["val_loss"]
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=values.sem())
    assert row["val_loss_half_width"] == pytest.approx((high - low) / 2)
    assert row["val_loss_sd"] == pytest.approx(values.std())


def test_the_front_holds_no_cell_that_another_beats_and_none_that_was_not_alone(home: Path) -> None:
    store = empty_store(home)
    cells = [{"model.attention": name} for name in ("mha", "gqa", "mqa", "slow")]
    figures = [(3.0, 100.0, True), (3.1, 200.0, True), (2.0, 900.0, False), (3.2, 150.0, True)]
    made = [
        record(levels, seed, loss=loss, metrics={"tokens_per_second": speed}, exclusive=alone)
        for levels, (loss, speed, alone) in zip(cells, figures, strict=True)
        for seed in range(2)
    ]
    write_at_once(store, [design(cells), *made])
    found = Leaderboard().frame().set_index("cell")["pareto"].to_dict()
    assert found == {"mha": True, "gqa": True, "mqa": False, "slow": False}


def test_groups_are_means_over_cells_of_the_seeds_that_all_have(home: Path) -> None:
    fill(home, GRID, [0.0, 0.2, 0.1, 0.5])
    frame = Leaderboard().group_by("attention").frame()
    assert frame["attention"].tolist() == ["mha", "gqa"]
    assert frame["cells"].tolist() == [2, 2] and frame["n"].tolist() == [5, 5]
    cells = Leaderboard().frame().groupby("attention")["val_loss"].mean()
    assert frame.set_index("attention")["val_loss"].to_dict() == pytest.approx(cells.to_dict())
    assert frame["rank"].tolist() == [1, 2]
    assert "verdict" not in frame
    by_seed = query("SELECT avg(val_loss) AS v FROM trials WHERE attention = 'mha' GROUP BY seed")["v"]
    half = stats.t.isf(0.025, 4) * by_seed.sem()
    assert frame["val_loss_half_width"].iloc[0] == pytest.approx(half)


@pytest.mark.parametrize("fields", [("attention",), ("norm",), ("scale",), ("n_layers",), ("attention", "norm")])
def test_no_mean_crosses_hardware_texts_tokenizers_or_scales(home: Path, fields: tuple[str, ...]) -> None:
    store = empty_store(home)
    made = [design(GRID, 2), design(GRID, 2, scale="10m", corpus="b")]
    places = [(1.0, ENVIRONMENT, "slice-a", "nano", "corpus-a"), (2.0, "gpu", "slice-a", "nano", "corpus-a"),
              (4.0, ENVIRONMENT, "slice-b", "10m", "b")]  # fmt: skip
    for value, environment, evaluation, scale, corpus in places:
        made += [
            record(levels, seed, loss=value, metrics={"tokens_per_second": value}, environment_id=environment,
                   evaluation=evaluation, scale=scale, corpus=corpus)
            for levels in GRID for seed in range(2)
        ]  # fmt: skip
    write_at_once(store, made)
    frame = Leaderboard().group_by(*fields).frame()
    assert set(frame["val_loss"]) == {1.0, 2.0, 4.0}
    assert set(frame["tokens_per_second"]) == {1.0, 2.0, 4.0}
    assert set(frame["val_loss_half_width"]) == {0.0}


def test_what_varies_within_a_cell_is_nothing_to_group_by(home: Path) -> None:
    fill(home, GRID, [0.0] * 4, seeds=2)
    for field in ("seed", "record_id"):
        with pytest.raises(QueryError, match=f'cannot group by "{field}", of which one cell has several'):
            Leaderboard().group_by(field).frame()
    with pytest.raises(QueryError, match='cannot group by "attenton": did you mean "attention"'):
        Leaderboard().group_by("attenton").frame()


def test_columns_are_any_of_the_board_and_of_the_trials(home: Path) -> None:
    fill(home, GRID, [0.0, 0.1, 0.2, 0.3], seeds=2)
    frame = Leaderboard().columns("cell", "attention", "lr", "seed", "train_loss", "val_bpb_sd").limit(3).frame()
    assert list(frame) == ["cell", "attention", "lr", "seed", "train_loss", "val_bpb_sd"]
    assert frame["lr"].tolist() == [0.001] * 3
    assert frame["seed"].isna().all(), "it differs within a cell"
    assert "the first 3 of 4 rows" in frame.attrs["notes"]


def test_reverse_limit_hardware_and_dates(home: Path) -> None:
    fill(home, GRID, [0.0, 0.1, 0.2, 0.3], seeds=2)
    assert Leaderboard().sort("val_loss", reverse=True).frame()["val_loss"].is_monotonic_decreasing
    assert Leaderboard().sort("tokens_per_second", reverse=True).frame()["tokens_per_second"].is_monotonic_increasing
    assert len(Leaderboard().limit(2).frame()) == 2
    for board in (
        Leaderboard().hardware("CPU"),
        Leaderboard().hardware("env-"),
        Leaderboard().dates("2026-01-02", "2026-01-02"),
    ):
        assert len(board.frame()) == 4
    for board in (
        Leaderboard().hardware("H100"),
        Leaderboard().dates("2026-01-03"),
        Leaderboard().dates(until="2026-01-01"),
    ):
        with pytest.raises(RegistryEmpty, match="no result"):
            board.frame()


def test_near_misses_are_named(home: Path) -> None:
    fill(home, GRID, [0.0] * 4, seeds=2)
    for board, meant in (
        (Leaderboard().suite("atention"), "attention"), (Leaderboard().suite("attention", "nan"), "nano"),
        (Leaderboard().columns("val_los"), "val_loss"), (Leaderboard().sort("tokens_per_secnd"), "tokens_per_second"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f'did you mean "{meant}"'):
            board.frame()


def test_every_column_of_every_view_is_documented(home: Path) -> None:
    fill(home, GRID, [0.0] * 4, seeds=2)
    found = schema()
    assert set(found["view"]) == {"trials", "cells", "curves", "designs", "marks"}
    assert found["meaning"].str.len().min() > 0
    for view in set(found["view"]):
        assert list(query(f"SELECT * FROM {view} LIMIT 1")) == found[found["view"] == view]["column"].tolist()
    units = found[found["view"] == "trials"].set_index("column")["unit"]
    assert (units["val_loss"], units["tokens_per_second"]) == ("nats/token", "tokens/s")


def test_an_empty_registry_has_a_schema(home: Path) -> None:
    empty_store(home)
    assert "val_loss" in set(schema()["column"])


@pytest.mark.parametrize(
    ("words", "word", "expected"),
    [
        ("ablate leaderboard att", 2, "attention"),
        ("ablate run --scale 12", 3, "124m"),
        ("ablate leaderboard --sort tokens_per", 3, "tokens_per_second"),
        ("ablate leaderboard --columns rank,val_b", 3, "rank,val_bpb"),
        ("ablate leaderboard --group-by atten", 3, "attention"),
    ],
)
def test_a_shell_completes_names(
    words: str, word: int, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"_ABLATE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(word)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    assert expected in capsys.readouterr().out.split()


def test_threads_ask_at_once(filled_folder: Path) -> None:
    uri = f"sqlite:///{filled_folder / 'mlflow.db'}"

    def ask(place: int) -> tuple[list[str], int]:
        cells = Leaderboard(filled_folder, uri).suite("attention" if place % 2 else None).frame()["cell"].tolist()
        return cells, int(query("SELECT count(*) AS n FROM trials WHERE counts", filled_folder, uri)["n"].iloc[0])

    with ThreadPoolExecutor(8) as pool:
        assert set(map(repr, pool.map(ask, range(32)))) == {repr((["mha", "gqa"], 4))}
