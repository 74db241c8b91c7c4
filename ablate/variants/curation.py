"""Which training documents are kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from ablate.variants import Factor
from ablate.variants._documents import Curation, Document, text_key

curation = Factor("curation", "data.curation", "which training documents are kept", in_step=False)

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(ge=0)]


@curation.variant("none", reference="arXiv:1910.10683, section 3.4.1")
class Everything(Curation):
    """Every training document, however often it occurs."""

    def select(self, documents: Iterator[Document]) -> Iterator[Document]:
        return documents


@curation.variant("deduplicated", reference="arXiv:2107.06499, section 4")
class Deduplicated(Curation):
    """Of training documents with equal texts the first: exact duplicates, within a source, are told by a hash."""

    def select(self, documents: Iterator[Document]) -> Iterator[Document]:
        seen: set[bytes] = set()
        for document in documents:
            key = text_key(document.text)
            if key not in seen:
                seen.add(key)
                yield document


@curation.variant("quality", reference="arXiv:2112.11446, appendix A.1.1")
class Quality(Curation):
    """Training documents that look like running English text: the quality rules of Gopher.

    Words are what blanks separate, lines those that are not blank.

    Args:
        min_words: fewest words of a document.
        max_words: most words.
        min_word_length: least mean length of its words, in characters.
        max_word_length: greatest.
        max_symbols_per_word: most hashes for each word, and most ellipses.
        max_bullet_lines: largest share of lines that begin with a bullet point.
        max_ellipsis_lines: largest share of lines that end in an ellipsis.
        min_alphabetic_words: least share of words with a letter in them.
        min_stop_words: how many of the, be, to, of, and, that, have, with must occur.
    """

    STOP_WORDS = frozenset("the be to of and that have with".split())
    BULLETS = ("•", "-", "*")
    ELLIPSES = ("...", "…")

    def __init__(
        self,
        *,
        min_words: Count = 50,
        max_words: Count = 100_000,
        min_word_length: Ratio = 3.0,
        max_word_length: Ratio = 10.0,
        max_symbols_per_word: Ratio = 0.1,
        max_bullet_lines: Share = 0.9,
        max_ellipsis_lines: Share = 0.3,
        min_alphabetic_words: Share = 0.8,
        min_stop_words: Annotated[int, Field(ge=0, le=8)] = 2,
    ) -> None:
        self.min_words, self.max_words = min_words, max_words
        self.min_word_length, self.max_word_length = min_word_length, max_word_length
        self.max_symbols_per_word = max_symbols_per_word
        self.max_bullet_lines, self.max_ellipsis_lines = max_bullet_lines, max_ellipsis_lines
        self.min_alphabetic_words, self.min_stop_words = min_alphabetic_words, min_stop_words

    def rules(self, text: str) -> dict[str, bool]:
        """Whether a text that is not blank passes each rule."""
        words = text.split()
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        ellipses = sum(text.count(ellipsis) for ellipsis in self.ELLIPSES)
        return {
            "words": self.min_words <= len(words) <= self.max_words,
            "word_length": self.min_word_length <= sum(map(len, words)) / len(words) <= self.max_word_length,
            "hashes": text.count("#") / len(words) <= self.max_symbols_per_word,
            "ellipses": ellipses / len(words) <= self.max_symbols_per_word,
            "bullet_lines": sum(line.startswith(self.BULLETS) for line in lines) / len(lines) <= self.max_bullet_lines,
            "ellipsis_lines": sum(line.endswith(self.ELLIPSES) for line in lines) / len(lines) <= self.max_ellipsis_lines,
            "alphabetic_words": sum(any(map(str.isalpha, word)) for word in words) / len(words) >= self.min_alphabetic_words,
            "stop_words": len(self.STOP_WORDS.intersection(map(str.lower, words))) >= self.min_stop_words,
        }  # fmt: skip

    def select(self, documents: Iterator[Document]) -> Iterator[Document]:
        return (document for document in documents if document.text.strip() and all(self.rules(document.text).values()))
