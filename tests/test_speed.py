"""The pass for speed: what turns recover, what it records, and what it leaves alone."""

from __future__ import annotations

import csv
import gc
import io
import json
import math
import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from registry_records import design, empty_store, record
from tiny import ArrayCorpus, tiny

from ablate import render
from ablate.cli import main
from ablate.train import train
from ablate.turns import Contestant, Pair, Ratio, in_turns, ratio
from registry import Leaderboard, Spool, Store
from registry.locks import FileLock

SUITE = """
name: mine
base:
  {scale: nano, model.dim: 32, model.n_layers: 1, data.source: synthetic, data.tokenizer: bytes, data.seq_len: 16, batch.sequences: 4,
   train.tokens: 2048, evaluation.tokens: 256}
factors:
  model.FACTOR
"""
ATTENTION, ACTIVATION = "attention: [mha, mqa]", "activation: [gelu, relu]"
CPU = torch.device("cpu")


class Device:
    """Work on a device that slows down by `drift` from window to window, with noise of 1 %."""

    def __init__(self, seed: int, drift: float = 1.01) -> None:
        self.random, self.drift, self.windows = random.Random(seed), drift, 0

    def work(self, seconds: float) -> dict[str, float]:
        self.windows += 1
        return {"step": seconds * self.drift**self.windows * math.exp(self.random.gauss(0, 0.01))}


def measured(seed: int, slower: float, rounds: int = 6) -> Ratio:
    device = Device(seed)
    return ratio(in_turns(lambda: device.work(0.01), lambda: device.work(0.01 * slower), rounds), "step")


class TestRatio:
    def test_windows_are_in_turns(self) -> None:
        order: list[str] = []
        in_turns(lambda: order.append("A") or {}, lambda: order.append("B") or {}, 2)
        assert "".join(order) == "ABBAABBA"

    def test_a_drift_cancels(self) -> None:
        device = Device(0, drift=1.5)
        device.random.gauss = lambda *_: 0.0  # type: ignore[method-assign]
        found = ratio(in_turns(lambda: device.work(0.01), lambda: device.work(0.03), 3), "step")
        assert (found.estimate, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))

    @pytest.mark.parametrize("slower", [1.0, 2.0])
    def test_the_interval_holds_the_truth_as_often_as_it_says(self, slower: float) -> None:
        found = [measured(seed, slower) for seed in range(400)]
        assert 0.92 < sum(one.low < slower < one.high for one in found) / 400 < 0.98
        assert all(one.high < 1.1 * slower and one.low > 0.9 * slower for one in found)

    def test_it_is_students(self) -> None:
        rounds = [[{"step": s} for s in (1.0, b, b, 1.0)] for b in (math.exp(0.1), math.exp(0.2), math.exp(0.3))]
        found = ratio(rounds, "step")
        half = 4.302653 * 0.1 / math.sqrt(3)
        assert (found.estimate, found.low, found.high) == pytest.approx([math.exp(0.2 + s * half) for s in (0, -1, 1)])

    def test_that_of_a_rate_is_the_inverse(self) -> None:
        assert 1 / Ratio(2.0, 1.6, 2.5) == Ratio(0.5, 0.4, 0.625)


def test_a_contestant_trains_as_a_trial_does() -> None:
    recipe, corpus = tiny(), ArrayCorpus()
    contestant = Contestant(recipe, corpus, CPU, None)  # type: ignore[arg-type]
    steps = recipe.train.steps
    assert contestant.window(steps - 10, timed := [])["step"] > 0 and len(timed) == steps - 10
    losses = [loss for *_, loss in train(recipe, corpus=corpus, device="cpu").curves["train_loss"]]  # type: ignore[arg-type]
    assert contestant.losses[:steps].tolist() == pytest.approx(losses)


class Fake:
    """A contestant that takes its place on the device."""

    live: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    def __init__(self, room: int) -> None:
        if len(self.live) >= room:
            raise torch.OutOfMemoryError("out of memory")
        self.live.add(self)

    def warm_up(self) -> float:
        return 0.5


class TestPair:
    @pytest.fixture
    def make(self) -> Any:
        """Contestants on a device with room for so many; `made` lists them in order."""
        self.made: list[str] = []

        def make(name: str, room: int) -> Fake:
            found = Fake(room)
            self.made.append(name)
            return found

        return make

    def test_both_live_if_they_fit(self, make: Any) -> None:
        pair = Pair(lambda: make("A", 2), lambda: make("B", 2))
        assert pair.warm_up() == 0.5 and pair.together
        in_turns(lambda: pair[0] and {}, lambda: pair[1] and {}, 2)
        assert self.made == ["B", "A"]

    def test_else_they_are_made_for_their_turn(self, make: Any) -> None:
        pair = Pair(lambda: make("A", 1), lambda: make("B", 1))
        assert pair.warm_up() == 0.5 and not pair.together
        self.made.clear()
        in_turns(lambda: pair[0] and {}, lambda: pair[1] and {}, 2)
        assert "".join(self.made) == "BABA"

    def test_what_does_not_fit_alone_is_out_of_memory(self, make: Any) -> None:
        pair = Pair(lambda: make("A", 2), lambda: make("B", 0))
        with pytest.raises(torch.OutOfMemoryError):
            pair.warm_up()


@pytest.fixture
def leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this test's own leases."""
    monkeypatch.setattr("ablate.lease.lease_folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared corpora, for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def ablate(home: Path, leases: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """`ablate speed` of a suite with these factors: its exit code, stdout and stderr."""
    empty_store(home)
    (home / "cache").symlink_to(cache)
    gc.freeze()  # steps are prepared with a collection, which would go through all that was imported

    def call(factors: str, *options: str) -> tuple[int, str, str]:
        path = tmp_path / "mine.yaml"
        path.write_text(SUITE.replace("FACTOR", factors))
        capsys.readouterr()
        code = main(["speed", str(path), "--rounds", "3", "--steps", "2", "--batch", "2", *options])
        out, err = capsys.readouterr()
        return code, out, err

    yield call
    gc.unfreeze()


def records(home: Path) -> dict[str, Any]:
    """The records of the store, by the label of the factor's level."""
    assert not Spool(home).records()
    return {next(iter(one.context["levels"].values())): one for one in Store.open(home).trials()}


def timed(monkeypatch: pytest.MonkeyPatch, seconds: Any) -> None:
    """Have each step of a recipe take the seconds that are said of it and of the number of its window."""
    device = Device(0)

    def run(self: Contestant, steps: int) -> list[float]:
        device.windows += 1
        return [seconds(self.recipe) * device.drift**device.windows * math.exp(device.random.gauss(0, 0.01))] * steps

    monkeypatch.setattr(Contestant, "_run", run)


def test_every_cell_has_a_record(ablate: Any, home: Path) -> None:
    code, _, err = ablate(ATTENTION)
    assert code == 0 and "[1/2] mha" in err and "[2/2] mqa" in err
    found = records(home)
    assert {one.purpose for one in found.values()} == {"speed"} and all(one.exclusive for one in found.values())
    for one in found.values():
        assert {"tokens_per_second", "step_time_ms", "peak_memory_gib", "parameters", "kv_cache_bytes_per_token",
                "prefill_tokens_per_second", "decode_tokens_per_second"} <= set(one.metrics)  # fmt: skip
        assert not {"val_loss", "train_seconds", "total_seconds"} & set(one.metrics)
        context = one.context["speed"]
        assert context["baseline_cell_id"] == found["mha"].cell_id
        assert (context["rounds"], context["steps_per_window"], context["tokens_per_step"]) == (3, 2, 64)
        assert context["inference"] == {"batch": 2, "context": 16, "prompt": 8, "dtype": "float32", "mode": "eager"}
        for name in ("step_time_ms", "tokens_per_second", "prefill_tokens_per_second", "decode_tokens_per_second"):
            ratios = context["ratios"][name]
            assert 0 < ratios["low"] < ratios["estimate"] < ratios["high"]
    memory = {name: one.metrics["peak_memory_gib"] for name, one in found.items()}
    assert found["mha"].context["speed"]["ratios"]["peak_memory_gib"]["estimate"] == 1.0
    assert found["mqa"].context["speed"]["ratios"]["peak_memory_gib"]["estimate"] == memory["mqa"] / memory["mha"] < 1.0


def test_it_prints_for_people_and_for_programs(ablate: Any, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ablate(ACTIVATION, "--inference", "--context", "4", "--format", "json")
    (row, other) = json.loads(out)["rows"]
    assert (code, row["cell"], row["rounds"], row["peak_memory_gib_ratio"]) == (0, "gelu", 3, 1.0)
    assert row["step_time_ms_ratio_low"] < row["step_time_ms_ratio"] < row["step_time_ms_ratio_high"]
    made = records(home)
    assert other["decode_tokens_per_second"] == made["relu"].metrics["decode_tokens_per_second"]

    def shown(form: str) -> str:
        render.speed([made["gelu"], made["relu"]], {one.trial_id: name for name, one in made.items()}, form)
        return capsys.readouterr().out

    (line, _) = csv.DictReader(io.StringIO(shown("csv")))
    assert line["cell"] == "gelu" and float(line["step_time_ms"]) == row["step_time_ms"]
    ratio = "{step_time_ms_ratio:.3f} [{step_time_ms_ratio_low:.3f}, {step_time_ms_ratio_high:.3f}]".format(**other)
    for form in ("table", "markdown", "latex"):
        out = shown(form)
        assert ratio in out and out.count("relu") == 2
        assert "over 3 rounds" in out and "inference: 2 sequences, prompts of 2 tokens, decoded up to 4" in out


def test_inference_is_measured_where_attention_varies(ablate: Any, home: Path) -> None:
    assert ablate(ACTIVATION, "--only", "activation=gelu")[0] == 0
    (found,) = records(home).values()
    assert "decode_tokens_per_second" not in found.metrics and found.context["speed"]["inference"] == {}


def test_a_cell_that_works_twice_takes_twice_the_time(ablate: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, lambda recipe: 0.02 if recipe.model.activation.name == "relu" else 0.01)
    assert ablate(ACTIVATION)[0] == 0
    ratios = {name: one.context["speed"]["ratios"] for name, one in records(home).items()}
    assert ratios["gelu"]["step_time_ms"]["low"] < 1.0 < ratios["gelu"]["step_time_ms"]["high"]
    assert 1.9 < ratios["relu"]["step_time_ms"]["low"] < 2.0 < ratios["relu"]["step_time_ms"]["high"] < 2.1
    assert ratios["relu"]["tokens_per_second"]["high"] == pytest.approx(1 / ratios["relu"]["step_time_ms"]["low"])
    frame = Leaderboard(home).suite("mine").frame().set_index("activation")
    rate = frame["tokens_per_second"].to_dict()
    assert rate["gelu"] > 1.8 * rate["relu"] and frame["n"].tolist() == [0, 0]


def test_nobody_else_measures_meanwhile(ablate: Any, leases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[bool] = []

    def seconds(recipe: Any) -> float:
        free.append(FileLock(leases / "cpu.lock").try_acquire())
        return 0.01

    timed(monkeypatch, seconds)
    assert ablate(ACTIVATION)[0] == 0
    assert free and not any(free)


def test_a_cell_that_fails_is_recorded_and_the_others_go_on(
    ablate: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(recipe: Any) -> float:
        if recipe.model.activation.name == "relu":
            raise torch.OutOfMemoryError("no memory")
        return 0.01

    timed(monkeypatch, seconds)
    code, out, err = ablate("activation: [gelu, relu, silu]")
    assert code == 1 and "out_of_memory: OutOfMemoryError: no memory" in err and "out_of_memory" in out
    assert {name: one.status for name, one in records(home).items()} == {
        "gelu": "finished", "relu": "out_of_memory", "silu": "finished"
    }  # fmt: skip


def test_without_a_baseline_nothing_is_compared(ablate: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(recipe: Any) -> float:
        raise RuntimeError("broken")

    timed(monkeypatch, seconds)
    assert ablate(ACTIVATION)[0] == 1
    assert {name: one.cause for name, one in records(home).items()} == {"gelu": "RuntimeError: broken"}


def test_an_interruption_keeps_what_is_measured(
    ablate: Any, home: Path, leases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(recipe: Any) -> float:
        if recipe.model.activation.name == "relu":
            raise KeyboardInterrupt
        return 0.01

    timed(monkeypatch, seconds)
    code, out, err = ablate(ACTIVATION)
    assert (code, out) == (130, "") and "interrupted; 1 of 2 cells are measured and kept" in err
    assert set(records(home)) == {"gelu"}
    with FileLock(leases / "cpu.lock"):  # free again
        pass


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rounds", "1"], "--rounds"),
        (["--steps", "0"], "--steps"),
        (["--context", "17"], "--context 17 is longer than the 16 tokens of a training sequence"),
        (["--only", "attention=nope"], "'nope' is not a level"),
        (["--scale", "huge"], "unknown scale 'huge'"),
    ],
)
def test_wrong_options_get_one_line(ablate: Any, home: Path, options: list[str], says: str) -> None:
    code, out, err = ablate(ATTENTION, *options)
    assert (code, out) == (2, "") and says in err.splitlines()[-1]
    assert not Store.open(home).trials() and not Store.open(home).designs()


class TestBoard:
    cells: ClassVar = [{"model.attention": name} for name in ("mha", "gqa")]

    @pytest.fixture
    def store(self, home: Path) -> Store:
        store = empty_store(home)
        store.write_design(design(self.cells))
        for levels in self.cells:
            for seed in range(2):
                store.write_trial(record(levels, seed, loss=3.0 + seed))
        return store

    @staticmethod
    def speed(levels: dict[str, str], rate: float, **fields: Any) -> Any:
        metrics = {"tokens_per_second": rate}
        made = record(levels, purpose="speed", metrics=metrics, **fields)
        return type(made).from_dict(made.to_dict() | {"metrics": metrics, "curves": {}})

    def test_speed_records_change_no_other_column(self, store: Store, home: Path) -> None:
        before = Leaderboard(home).suite("attention").frame()
        store.write_trial(self.speed(self.cells[1], 5.0))
        after = Leaderboard(home).suite("attention").frame()
        rest = [name for name in before if name not in ("tokens_per_second", "pareto")]
        assert after[rest].to_csv() == before[rest].to_csv()
        assert after.set_index("attention")["tokens_per_second"].to_dict() == {"mha": 10000.5, "gqa": 5.0}

    def test_the_newest_pass_of_the_suite_counts(self, store: Store, home: Path) -> None:
        for attempt, rate, suite in ((1, 5.0, "attention"), (2, 6.0, "attention"), (3, 7.0, "other")):
            store.write_trial(self.speed(self.cells[1], rate, attempt=attempt, suite=suite))
        frame = Leaderboard(home).suite("attention").frame()
        assert frame.set_index("attention")["tokens_per_second"].to_dict()["gqa"] == 6.0

    def test_a_design_that_was_only_timed_does_not_replace_one_that_was_trained(self, store: Store, home: Path) -> None:
        other = [{"model.attention": "mqa"}]
        store.write_design(design(other, created_at="2026-03-01T00:00:00+00:00"))
        store.write_trial(self.speed(other[0], 5.0))
        assert set(Leaderboard(home).suite("attention").frame()["attention"]) == {"mha", "gqa"}
