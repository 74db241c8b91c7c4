"""What each estimate of a design holds beside its own effect: the alias matrix of the cells.

Factors are coded to sum to zero over their levels; of two levels, the first is +1 and the other -1. More than two take
an orthonormal basis of the same space, for what is said of a factor as a whole does not depend on the basis.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

Effect = tuple[str, ...]
"""The factors that interact; one for a main effect, none for the mean."""
Matrix = NDArray[np.float64]
WHOLE_GRID = 256
"""Up to so many cells of the full grid, aliases are listed to the interaction of all factors, which makes them exact."""
NEGLIGIBLE = 1e-6


@dataclass(frozen=True, slots=True)
class Alias:
    """The estimate of `effect` is that effect plus, of each of `others`, so much."""

    effect: Effect
    others: tuple[tuple[Effect, float], ...]


def effects(factors: Sequence[str], order: int) -> list[Effect]:
    """The mean, the main effects and the interactions of up to `order` factors, the smaller ones first."""
    return [effect for size in range(order + 1) for effect in itertools.combinations(factors, size)]


def coding(levels: int) -> Matrix:
    """A row of `levels` - 1 numbers for each level: columns sum to zero, are orthogonal and have a mean square of 1."""
    if levels == 2:
        return np.array([[1.0], [-1.0]])
    helmert = np.array([[1.0] * i + [-float(i)] + [0.0] * (levels - i - 1) for i in range(1, levels)]).T
    return helmert * np.sqrt(levels / (helmert**2).sum(axis=0))


class Columns:
    """The columns of each effect in the model matrix of cells, computed once each."""

    def __init__(self, labels: Mapping[str, Sequence[str]], cells: Sequence[Mapping[str, str]]) -> None:
        self._known: dict[Effect, Matrix] = {(): np.ones((len(cells), 1))}
        for factor, known in labels.items():
            place = {label: number for number, label in enumerate(known)}
            self._known[factor,] = coding(len(known))[[place[cell[factor]] for cell in cells]]

    def __getitem__(self, effect: Effect) -> Matrix:
        if effect not in self._known:
            first, last = self[effect[:-1]], self[effect[-1:]]
            self._known[effect] = (first[:, :, None] * last[:, None, :]).reshape(len(first), -1)
        return self._known[effect]


def aliases(labels: Mapping[str, Sequence[str]], cells: Sequence[Mapping[str, str]], *, whole: bool) -> list[Alias]:
    """The aliases of the mean, each main effect and each interaction of two factors, `labels` by factor.

    (X1' X1)^-1 X1' X2, the rows of the effect: X1 has its columns, and those of mean and main effects as far as they are no
    combination of what is there already; X2 has those of all other effects (`whole`: of up to all factors, where the full grid
    has up to `WHOLE_GRID` cells; else of up to two). Where one of the two effects has several columns, the number that is given is
    `share` of their block.

    Box and Wilson 1951, On the experimental attainment of optimum conditions.
    """
    factors = list(labels)
    small = prod(map(len, labels.values())) <= WHOLE_GRID
    known = effects(factors, len(factors) if whole and small else min(2, len(factors)))
    columns, low = Columns(labels, cells), effects(factors, 1)
    found = []
    for effect in effects(factors, min(2, len(factors))):
        kept, X1 = [effect], columns[effect]
        for other in low:
            wider = np.hstack([X1, columns[other]])
            if other != effect and np.linalg.matrix_rank(wider) == np.linalg.matrix_rank(X1) + columns[other].shape[1]:
                kept, X1 = [*kept, other], wider
        rest = [other for other in known if other not in kept]
        held = np.linalg.pinv(X1)[: columns[effect].shape[1]]
        blocks = [(other, held @ columns[other]) for other in rest]
        sizes = [(other, round(float(block[0, 0]) if block.size == 1 else share(block), 6)) for other, block in blocks]
        found.append(Alias(effect, tuple((other, size) for other, size in sizes if abs(size) > NEGLIGIBLE)))
    return found


def share(block: Matrix) -> float:
    """Of an effect's root mean square over the full grid, the share that gets into the estimate of another, in the root mean
    square over all that the effect can be; `block` is theirs of the alias matrix, the estimated effect down."""
    return float(np.linalg.norm(block) / np.sqrt(block.shape[1]))


def estimable(labels: Mapping[str, Sequence[str]], cells: Sequence[Mapping[str, str]]) -> list[Effect]:
    """The main effects and interactions of two factors that a model of them all tells apart in these cells."""
    known = effects(list(labels), min(2, len(labels)))
    columns = Columns(labels, cells)
    X = np.hstack([columns[effect] for effect in known])
    # what the rows of X leave open is spanned by the rest of its right singular vectors: an effect on which they are zero is fixed
    _, sizes, rows = np.linalg.svd(X)
    open_ends = rows[int((sizes > NEGLIGIBLE * sizes[0]).sum()) :]
    ends = np.cumsum([columns[effect].shape[1] for effect in known])
    parts = np.split(open_ends, ends[:-1], axis=1)
    return [
        effect for effect, part in zip(known, parts, strict=True) if effect and (part.size == 0 or np.abs(part).max() < NEGLIGIBLE)
    ]  # fmt: skip
