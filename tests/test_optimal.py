"""Mixed-level designs: main effects are told well, interactions kept out, and the choice is the same everywhere."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from patsy.highlevel import dmatrix

from ablate import design
from ablate.aliases import aliases, coding, estimable
from ablate.optimal import Optimal, choose, quality
from ablate.suite import load_suite


def grid(*levels: int) -> tuple[dict[str, list[str]], list[dict[str, str]]]:
    labels = {f"f{i}": [f"l{j}" for j in range(size)] for i, size in enumerate(levels)}
    return labels, [dict(zip(labels, row, strict=True)) for row in itertools.product(*labels.values())]


def sum_coded(cells: list, formula: str) -> np.ndarray:
    """A model matrix by patsy, which codes as the analysis does."""
    data = {factor: [cell[factor] for cell in cells] for factor in cells[0]}
    return np.asarray(dmatrix(formula, data))


@pytest.mark.parametrize(
    ("levels", "cells", "cap", "efficiency"),
    [((2,) * 5, 12, 0.5, 1.0), ((2,) * 5, 16, 0.0, 1.0), ((2, 3, 2, 4), 16, 0.5, 0.95), ((3, 3, 3), 9, 0.75, 1.0), ((4, 5), 20, 0.1, 1.0)],
    ids=str,
)  # fmt: skip
def test_cells_tell_main_effects_as_well_as_is_known_to_be_possible(levels, cells, cap, efficiency) -> None:
    """12 runs of Plackett and Burman, 2^(5-1) of resolution V, Taguchi's L9 and the full grid are orthogonal."""
    labels, candidates = grid(*levels)
    chosen = choose(labels, candidates, candidates[3], Optimal(cells, cap))
    assert candidates[3] in chosen and len({tuple(c.values()) for c in chosen}) == len(chosen) == cells
    found = quality(labels, chosen)
    assert found.efficiency >= efficiency - 1e-9
    assert found.alias <= cap + 1e-6


def test_efficiency_is_that_of_the_information_matrix() -> None:
    """|X'X / n|^(1/p) in sum coding by patsy, over that of the full grid."""
    labels, candidates = grid(2, 3, 4)
    chosen = choose(labels, candidates, candidates[0], Optimal(10, 9.0))
    formula = " + ".join(f"C({factor}, Sum)" for factor in labels)
    own, full = (sum_coded(cells, formula) for cells in (chosen, candidates))
    volume = [np.linalg.det(x.T @ x / len(x)) for x in (own, full)]
    assert quality(labels, chosen).efficiency == pytest.approx((volume[0] / volume[1]) ** (1 / own.shape[1]))


def test_no_single_exchange_would_do_better() -> None:
    labels, candidates = grid(2, 3, 3)
    chosen = choose(labels, candidates, candidates[0], Optimal(9, 9.0))
    best = quality(labels, chosen).efficiency
    for out in (cell for cell in chosen if cell != candidates[0]):
        for new in (cell for cell in candidates if cell not in chosen):
            other = [new if cell == out else cell for cell in chosen]
            assert quality(labels, other).efficiency <= best + 1e-6


def test_excluded_cells_are_not_chosen_and_the_choice_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "name: x\nfactors:\n  model.attention: [mha, gqa, mqa]\n  model.activation: [gelu, swiglu, relu, geglu]\n"
        "  model.norm: [layernorm, rmsnorm]\n  model.dropout: [0.1, 0.0]\n"
        "baseline: {model.attention: mqa, model.activation: relu}\n"
        "exclude: [{model.attention: gqa, model.norm: rmsnorm}]\ndesign: {optimal: {cells: 18, alias: 0.8}}\n"
    )
    suite = load_suite(tmp_path / "x.yaml")
    found = design.expand(suite)
    assert len(found.cells) == 18
    assert suite.baseline in [cell.levels for cell in found.cells]
    assert not any(c.levels["model.attention"] == "gqa" and c.levels["model.norm"] == "rmsnorm" for c in found.cells)
    from ablate import optimal

    optimal._choose.cache_clear()
    assert design.expand(suite) == found
    labels = found.labels
    shares = [
        size for alias in found.aliases() if len(alias.effect) == 1 for effect, size in alias.others if len(effect) == 2
    ]
    assert max(map(abs, shares)) == pytest.approx(
        quality(labels, [cell.levels for cell in found.cells]).alias, abs=1e-6
    )
    assert max(map(abs, shares)) <= 0.8 + 1e-6


@pytest.mark.parametrize(
    ("levels", "wanted", "kept"),
    [
        ((2, 3, 2), Optimal(7, 9.0), [0, 1, 2, 5, 6, 9, 10]),
        ((2, 3, 2, 4), Optimal(12, 0.6), [0, 12, 14, 17, 23, 26, 29, 32, 33, 35, 43, 46]),
    ],
    ids=["exchange", "alias lowered"],
)
def test_the_choice_stays_the_same(levels, wanted, kept) -> None:
    """Cells that were run stay the cells of a suite, on another machine and with other versions of libraries."""
    labels, candidates = grid(*levels)
    chosen = choose(labels, candidates, candidates[0], wanted)
    assert [candidates.index(dict(cell)) for cell in chosen] == kept


def test_aliases_of_two_levels_are_the_alias_matrix_in_sum_coding() -> None:
    """(X1'X1)^-1 X1'X2 with matrices by patsy, in 12 runs where aliases are thirds."""
    labels, candidates = grid(2, 2, 2, 2, 2)
    chosen = choose(labels, candidates, candidates[0], Optimal(12, 0.5))
    terms = [f"C({factor}, Sum)" for factor in labels]
    pairs = [":".join(pair) for pair in itertools.combinations(terms, 2)]
    X1, both = sum_coded(chosen, " + ".join(terms)), sum_coded(chosen, " + ".join(terms + pairs))
    expected = np.linalg.solve(X1.T @ X1, X1.T @ both[:, X1.shape[1] :])
    names = list(itertools.combinations(labels, 2))
    found = {alias.effect: dict(alias.others) for alias in aliases(labels, chosen, whole=False)}
    for row, effect in enumerate([(), *((factor,) for factor in labels)]):
        for column, pair in enumerate(names):
            assert found[effect].get(pair, 0.0) == pytest.approx(expected[row, column], abs=1e-6)


def test_the_alias_of_several_columns_is_what_gets_in_of_a_random_interaction() -> None:
    """Interactions are drawn at random with root mean square 1 over the grid; main effects are fitted by least squares in other terms."""
    labels, candidates = grid(3, 2, 3)
    chosen = choose(labels, candidates, candidates[0], Optimal(8, 9.0))
    found = {alias.effect: dict(alias.others) for alias in aliases(labels, chosen, whole=False)}
    X = sum_coded(chosen, " + ".join(f"C({factor}, Sum)" for factor in labels))
    random, squares = np.random.default_rng(3), []
    table = random.normal(size=(4000, 3, 3))
    table -= table.mean(1, keepdims=True) + table.mean(2, keepdims=True) - table.mean((1, 2), keepdims=True)
    table /= np.sqrt((table**2).mean())
    place = {label: i for i, label in enumerate(labels["f0"])}
    for one in table:
        y = [one[place[cell["f0"]], place[cell["f2"]]] for cell in chosen]
        beta = np.linalg.lstsq(X, np.array(y), rcond=None)[0]
        squares.append(beta[3] ** 2)  # of f1: +b and -b at its two levels
    assert found["f1",]["f0", "f2"] == pytest.approx(math.sqrt(np.mean(squares)), rel=0.05)


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_codes_sum_to_zero_and_span_what_sum_coding_spans(levels: int) -> None:
    codes = coding(levels)
    assert codes.T @ codes == pytest.approx(levels * np.eye(levels - 1), abs=1e-12)
    assert codes.sum(axis=0) == pytest.approx(np.zeros(levels - 1), abs=1e-12)


def test_what_excluded_cells_leave_open_is_known() -> None:
    labels, candidates = grid(2, 2, 2)
    assert set(estimable(labels, candidates)) == {(f,) for f in labels} | set(itertools.combinations(labels, 2))
    left = [cell for cell in candidates if (cell["f0"], cell["f1"]) != ("l1", "l1")]
    assert set(estimable(labels, left)) == {("f2",), ("f0", "f2"), ("f1", "f2")}
