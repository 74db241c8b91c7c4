"""Mixed-level designs: the cells, so many of them, that tell main effects best and keep interactions out of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from ablate.aliases import NEGLIGIBLE, Columns, Matrix, effects

WORST_ALIAS = 0.5
"""The cap where a suite names none: half of an interaction may get into a main effect."""
STARTS, WORK = 30, 2e8
"""Starts of the search, fewer where so many products of numbers are spent before."""
TRIED = 300
"""Exchanges that are looked at for a lower alias, those that lose least efficiency first."""


@dataclass(frozen=True, slots=True)
class Optimal:
    """So many cells; no interaction of two factors gets into a main effect by more than the share `alias` (see `ablate.aliases`)."""

    cells: int
    alias: float = WORST_ALIAS


@dataclass(frozen=True, slots=True)
class Quality:
    """`efficiency` is |X'X / n|^(1/p) over what the full grid has, 1 where main effects are orthogonal; `alias` the worst."""

    efficiency: float
    alias: float


def parameters(labels: Mapping[str, Sequence[str]]) -> int:
    """The mean and the main effects: no fewer cells tell them apart."""
    return 1 + sum(len(known) - 1 for known in labels.values())


def quality(labels: Mapping[str, Sequence[str]], cells: Sequence[Mapping[str, str]]) -> Quality:
    """How well `cells` tell main effects, and the largest share of an interaction of two factors that gets into one."""
    found = _Candidates(labels, cells)
    rows = np.arange(len(cells))
    return Quality(float(np.exp(found.log_volume(rows) / found.X.shape[1])), found.worst_alias(rows))


def choose(
    labels: Mapping[str, Sequence[str]],
    candidates: Sequence[Mapping[str, str]],
    baseline: Mapping[str, str],
    wanted: Optimal,
) -> list[Mapping[str, str]]:
    """The cells chosen among `candidates`, in their order, the baseline with them: of the highest D-efficiency found within the cap.

    Fedorov's exchange from several starts, then exchanges that lower the worst alias where it is over the cap. The same
    arguments give the same cells: starts come from a hash, and ties go to the first.

    Raises:
        ValueError: no such cells are found; the message says what is wrong.

    Source: Fedorov 1972; Jones and Nachtsheim 2011, Technometrics 53(1) for the cap on aliases.
    """
    key = tuple(tuple(cell.values()) for cell in candidates)
    grid = tuple((factor, tuple(known)) for factor, known in labels.items())
    return [candidates[row] for row in _choose(grid, key, key.index(tuple(baseline.values())), wanted)]


@functools.lru_cache(maxsize=16)
def _choose(
    grid: tuple[tuple[str, tuple[str, ...]], ...], candidates: tuple[tuple[str, ...], ...], fixed: int, wanted: Optimal
) -> tuple[int, ...]:
    labels = dict(grid)
    found = _Candidates(labels, [dict(zip(labels, row, strict=True)) for row in candidates])
    if np.linalg.matrix_rank(found.X) < found.X.shape[1]:
        raise ValueError("the cells that exclude leaves do not tell the main effects apart")
    cost = wanted.cells**2 * found.X.size
    designs = [
        found.exchange(found.start(number, wanted.cells, fixed), fixed)
        for number in range(int(min(STARTS, max(2, WORK // cost))))
    ]
    by_volume = sorted(
        {tuple(sorted(rows)) for rows in designs}, key=lambda rows: (-round(found.log_volume(rows), 9), rows)
    )
    within = [rows for rows in by_volume if found.worst_alias(rows) <= wanted.alias + NEGLIGIBLE]
    if within:
        return within[0]
    lowered = [found.lower_alias(rows, fixed, wanted.alias) for rows in by_volume[:5]]
    ok = [rows for rows in lowered if found.worst_alias(rows) <= wanted.alias + NEGLIGIBLE]
    if ok:
        return max(ok, key=lambda rows: round(found.log_volume(rows), 9))
    least = np.ceil(100 * min(map(found.worst_alias, lowered))) / 100
    raise ValueError(
        f"with {wanted.cells} cells, {least:g} of an interaction gets into a main effect, more than the {wanted.alias:g} allowed: "
        f"ask for more cells, or allow it with alias: {least:g}"
    )


class _Candidates:
    """The cells among which a design chooses, as rows of the model matrix of main effects."""

    def __init__(self, labels: Mapping[str, Sequence[str]], cells: Sequence[Mapping[str, str]]) -> None:
        self.columns = Columns(labels, cells)
        self.mains, self.pairs = effects(list(labels), 1), [e for e in effects(list(labels), 2) if len(e) == 2]
        self.X: Matrix = np.hstack([self.columns[effect] for effect in self.mains])
        main_widths = [self.columns[effect].shape[1] for effect in self.mains]
        self.pair_widths = [self.columns[effect].shape[1] for effect in self.pairs]
        self.main_starts = np.cumsum([0, *main_widths[:-1]])
        self.pair_starts = np.cumsum([0, *self.pair_widths[:-1]])

    def start(self, number: int, size: int, fixed: int) -> NDArray[np.int64]:
        """Rows picked by a hash of `number`, so that they are the same with every version of every library."""
        order = sorted(range(len(self.X)), key=lambda row: sha256(f"{number} {row}".encode()).digest())
        return np.array([fixed, *[row for row in order if row != fixed][: size - 1]])

    def log_volume(self, rows: Sequence[int] | NDArray[np.int64]) -> float:
        """log |X'X / n|."""
        X = self.X[list(rows)]
        return float(np.linalg.slogdet(X.T @ X / len(X))[1])

    def worst_alias(self, rows: Sequence[int] | NDArray[np.int64]) -> float:
        """The largest number of `ablate.aliases` for a main effect and an interaction of two factors."""
        if not self.pairs:
            return 0.0
        chosen = list(rows)
        held = np.linalg.pinv(self.X[chosen])
        shares = held @ np.hstack([self.columns[pair][chosen] for pair in self.pairs])
        blocks = np.add.reduceat(np.add.reduceat(shares**2, self.main_starts, axis=0), self.pair_starts, axis=1)
        return float(np.sqrt((blocks[1:] / self.pair_widths).max()))

    def gains(self, rows: NDArray[np.int64], fixed: int) -> Matrix:
        """By what |X'X| is multiplied if a row of the design (down) becomes another (across): Fedorov 1972, equation 3.2.9."""
        X = self.X[rows]
        inverse = np.linalg.inv(X.T @ X + 1e-9 * np.eye(X.shape[1]))
        spread = self.X @ inverse
        new = (spread * self.X).sum(axis=1)
        between = X @ inverse @ self.X.T
        found = (1 - new[rows])[:, None] * (1 + new)[None, :] + between**2
        found[:, rows] = 0.0
        found[rows == fixed] = 0.0
        return np.round(found, 9)

    def exchange(self, rows: NDArray[np.int64], fixed: int) -> NDArray[np.int64]:
        """Exchanges, the best first, until none gains."""
        rows = rows.copy()
        while True:
            gains = self.gains(rows, fixed)
            place, row = np.unravel_index(int(gains.argmax()), gains.shape)
            if gains[place, row] <= 1 + NEGLIGIBLE:
                return rows
            rows[place] = row

    def lower_alias(self, rows: Sequence[int], fixed: int, cap: float) -> tuple[int, ...]:
        """Exchanges that lower the worst alias, at the least loss of efficiency, until it is within the cap or none is found."""
        now, worst = np.array(rows), self.worst_alias(rows)
        while worst > cap + NEGLIGIBLE:
            gains = self.gains(now, fixed)
            for flat in np.argsort(-gains, axis=None, kind="stable")[:TRIED]:
                place, row = np.unravel_index(int(flat), gains.shape)
                if gains[place, row] <= NEGLIGIBLE:
                    return tuple(sorted(now.tolist()))
                other = now.copy()
                other[place] = row
                if (lower := self.worst_alias(other)) < worst - NEGLIGIBLE:
                    now, worst = other, lower
                    break
            else:
                break
        return tuple(sorted(now.tolist()))
