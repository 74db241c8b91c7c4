"""Regular fractions of a grid of two-level factors: cells in which some factors follow the product of others."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LETTERS = "ABCDEFGHJKL"
LEAST: dict[int, dict[int, str]] = {
    3: {
        3: "C=AB",
        4: "D=ABC",
        5: "D=AB E=AC",
        6: "D=AB E=AC F=BC",
        7: "D=AB E=AC F=BC G=ABC",
        8: "E=BCD F=ACD G=ABC H=ABD",
        9: "E=ABC F=BCD G=ACD H=ABD J=ABCD",
        10: "E=ABC F=BCD G=ACD H=ABD J=ABCD K=AB",
        11: "E=ABC F=BCD G=ACD H=ABD J=ABCD K=AB L=AC",
    },
    4: {
        4: "D=ABC",
        5: "E=ABCD",
        6: "E=ABC F=BCD",
        7: "E=ABC F=BCD G=ACD",
        8: "E=BCD F=ACD G=ABC H=ABD",
        9: "F=BCDE G=ACDE H=ABDE J=ABCE",
        10: "F=ABCD G=ABCE H=ABDE J=ACDE K=BCDE",
        11: "F=ABC G=BCD H=CDE J=ACD K=ADE L=BDE",
    },
    5: {
        5: "E=ABCD",
        6: "F=ABCDE",
        7: "G=ABCDEF",
        8: "G=ABCD H=ABEF",
        9: "H=ACDFG J=BCEFG",
        10: "H=ABCG J=BCDE K=ACDF",
        11: "H=ABCG J=BCDE K=ACDF L=ABCDEFG",
    },
}
"""Generators by resolution and number of factors: of the smallest fractions, those of least aberration.

Box, Hunter and Hunter, Statistics for Experimenters (2nd ed.), table 6.22; NIST/SEMATECH e-Handbook, section 5.3.3.4.7.
"""
MOST_FACTORS = 15


@dataclass(frozen=True, slots=True)
class Fractional:
    """A regular fraction. Each of `generators` says of which factors' product a factor follows; the others are crossed."""

    generators: Mapping[str, tuple[str, ...]]

    @property
    def resolution(self) -> int:
        """Length of the shortest word of the defining relation: R confounds effects of p factors with none of fewer than R - p."""
        return min(map(len, self.words()))

    def words(self) -> list[frozenset[str]]:
        """The defining relation but for the mean: the products of factors that do not vary over the fraction."""
        own = [frozenset((factor, *product)) for factor, product in self.generators.items()]
        words: list[frozenset[str]] = []
        for word in own:
            words += [word, *(word ^ other for other in words)]
        return words

    def cells(self, labels: Mapping[str, Sequence[str]], baseline: Mapping[str, str]) -> list[dict[str, str]]:
        """The cells by the two labels of each factor, in the order of the full grid; the baseline is one of them.

        A factor that is generated takes its other level where an odd number of those that it follows do: the signs of the
        generators are positive with the baseline's levels coded +1, whichever these are.
        """
        other = {factor: next(label for label in pair if label != baseline[factor]) for factor, pair in labels.items()}
        crossed = [factor for factor in labels if factor not in self.generators]
        found = []
        for row in itertools.product((False, True), repeat=len(crossed)):
            departs = dict(zip(crossed, row, strict=True))
            departs |= {name: sum(departs[one] for one in by) % 2 == 1 for name, by in self.generators.items()}
            found.append({factor: other[factor] if departs[factor] else baseline[factor] for factor in labels})
        return sorted(found, key=lambda cell: [labels[factor].index(label) for factor, label in cell.items()])


def smallest(factors: Sequence[str], resolution: int) -> Fractional | None:
    """The smallest regular fraction of at least that resolution (3 to 5); None where none is listed for so many factors."""
    names = dict(zip(LETTERS, factors, strict=False))
    listed = LEAST[resolution].get(len(factors))
    if listed is None:
        return None
    pairs = (generator.split("=") for generator in listed.split())
    return Fractional({names[made]: tuple(names[letter] for letter in product) for made, product in pairs})
