"""Regular fractions: they are as small as can be, have the resolution that they claim, and their aliases tell the truth."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from ablate import design
from ablate.aliases import aliases
from ablate.design import Design
from ablate.fractional import LEAST, Fractional, smallest
from ablate.suite import load_suite, shipped

TABLE = [(resolution, k) for resolution, listed in LEAST.items() for k in listed]


def grid(k: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Two levels of each factor, and a baseline of first and second ones in turn."""
    labels = {f"f{i}": ["one", "two"] for i in range(k)}
    return labels, {factor: pair[i % 2] for i, (factor, pair) in enumerate(labels.items())}


def signs(labels: dict[str, list[str]], cells: list[dict[str, str]]) -> np.ndarray:
    return np.array([[1 - 2 * pair.index(cell[factor]) for factor, pair in labels.items()] for cell in cells])


def strength(x: np.ndarray) -> int:
    """The largest t such that every t columns show all of their combinations equally often: resolution is one more (Rao 1947)."""
    for t in range(1, x.shape[1] + 1):
        for chosen in itertools.combinations(range(x.shape[1]), t):
            _, counts = np.unique(x[:, chosen], axis=0, return_counts=True)
            if len(counts) < 2**t or len(set(counts)) > 1:
                return t - 1
    return x.shape[1]


@pytest.mark.parametrize(("resolution", "k"), TABLE)
def test_a_fraction_has_its_resolution_its_size_and_the_baseline(resolution: int, k: int) -> None:
    labels, baseline = grid(k)
    found = smallest(list(labels), resolution)
    assert found is not None
    cells = found.cells(labels, baseline)
    assert baseline in cells
    assert len({tuple(cell.values()) for cell in cells}) == len(cells) == 2 ** (k - len(found.generators))
    assert strength(signs(labels, cells)) + 1 == found.resolution >= resolution


@pytest.mark.parametrize(("resolution", "k"), TABLE)
def test_no_regular_fraction_of_that_resolution_is_smaller(resolution: int, k: int) -> None:
    """Columns are vectors over the field of two elements, of which no `resolution` - 1 may add up to nothing: looked for in half."""
    found = smallest([f"f{i}" for i in range(k)], resolution)
    assert found is not None
    basic = k - len(found.generators)
    assert not exists(resolution, k, basic - 1)
    assert k > 8 or exists(resolution, k, basic), "the search finds what is there"


def exists(resolution: int, k: int, basic: int) -> bool:
    """Whether `k` columns of 2^basic cells are such that no `resolution` - 1 of them add up to nothing, by trying all."""

    def grow(chosen: list[int], sums: set[int], rest: list[int]) -> bool:
        """`sums` are those of up to `resolution` - 2 of the chosen columns: the next may be none of them."""
        if len(chosen) >= k:
            return True
        for i, column in enumerate(rest):
            if len(chosen) + len(rest) - i < k:
                return False
            if column not in sums:
                few = {0} | set(chosen if resolution > 3 else ())
                few |= {a ^ b for a, b in itertools.combinations(chosen, 2)} if resolution > 4 else set()
                if grow([*chosen, column], sums | {column ^ one for one in few}, rest[i + 1 :]):
                    return True
        return False

    start = [1 << i for i in range(basic)]  # some columns span the space: it is a matter of names which
    sums = {0, *start}
    for size in range(2, resolution - 1):
        sums |= {sum(chosen) for chosen in itertools.combinations(start, size)}
    return grow(start, sums, [column for column in range(1, 2**basic) if column not in start])


def test_a_factor_follows_the_product_of_others_in_the_suites_words(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "name: x\nfactors: {model.norm: [layernorm, rmsnorm], model.bias: [true, false], model.dropout: [0.0, 0.1]}\n"
        "baseline: {model.norm: rmsnorm}\ndesign: {fractional: {generators: {model.norm: [model.bias, model.dropout]}}}\n"
    )
    found = design.expand(load_suite(tmp_path / "x.yaml"))
    assert [tuple(cell.levels.values()) for cell in found.cells] == [
        ("layernorm", "true", "0.1"), ("layernorm", "false", "0.0"), ("rmsnorm", "true", "0.0"), ("rmsnorm", "false", "0.1"),
    ]  # fmt: skip
    assert found.cells[0].label == "layernorm + bias=true + dropout=0.1"
    assert isinstance(found.suite.selection, Fractional) and found.suite.selection.resolution == 3


def quarter(tmp_path: Path, baseline: str = "") -> tuple[Design, Design]:
    """The suite `recipe`, and its quarter."""
    text = shipped()["recipe"][0].read_text()
    assert "design: full\n" in text
    (tmp_path / "q.yaml").write_text(
        text.replace("design: full\n", "design: {fractional: {resolution: 3}}\n") + baseline
    )
    return design.expand(load_suite("recipe")), design.expand(load_suite(tmp_path / "q.yaml"))


def test_each_estimate_of_a_quarter_is_the_sum_of_what_its_aliases_name(tmp_path: Path) -> None:
    """By averages over the responses alone: half the difference between the cells in which the product of the signs is + and -."""
    full, part = quarter(tmp_path)
    assert (len(full.cells), len(part.cells)) == (32, 8)
    recipes = [trial.recipe for trial in full.trials]
    assert all(trial.recipe in recipes for trial in part.trials), "records are shared"
    responses = dict(
        zip((tuple(c.levels.values()) for c in full.cells), np.random.default_rng(5).normal(size=32), strict=True)
    )

    def estimate(of: Design, effect: tuple[str, ...]) -> float:
        by_sign: dict[int, list[float]] = {1: [], -1: []}
        for cell in of.cells:
            second = sum(of.labels[factor].index(cell.levels[factor]) for factor in effect)
            by_sign[(-1) ** second].append(responses[tuple(cell.levels.values())])
        if not effect:
            return float(np.mean(by_sign[1]))
        return float(np.mean(by_sign[1]) - np.mean(by_sign[-1])) / 2

    found = part.aliases()
    assert [alias.effect for alias in found][:6] == [(), *((factor,) for factor in full.suite.factors)]
    assert len(found) == 1 + 5 + 10
    for alias in found:
        named = [(alias.effect, 1.0), *alias.others]
        assert len(named) == 4, "a quarter: four effects cannot be told apart"
        total = sum(size * estimate(full, effect) for effect, size in named)
        assert estimate(part, alias.effect) == pytest.approx(total, abs=1e-12)


def test_signs_follow_the_levels_and_not_the_baseline() -> None:
    labels, baseline = grid(3)
    cells = Fractional({"f2": ("f0", "f1")}).cells(labels, baseline)
    (found,) = [alias for alias in aliases(labels, cells, whole=True) if alias.effect == ("f2",)]
    sign = float(np.mean(signs(labels, cells).prod(axis=1)))
    assert found.others == ((("f0", "f1"), sign),) and sign == -1.0


def test_a_large_fraction_names_aliases_of_two_factors() -> None:
    labels, baseline = grid(9)
    found = smallest(list(labels), 4)
    assert found is not None
    listed = aliases(labels, found.cells(labels, baseline), whole=True)
    assert all(len(effect) == 2 and len(alias.effect) == 2 for alias in listed for effect, _ in alias.others)
