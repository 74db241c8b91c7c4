"""What a source of documents and a curation of them are, and how documents are held out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

HELD_OUT = 0.1


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the side it is on. `key` names it within its source."""

    key: str
    text: str
    split: Literal["train", "validation"]


class Source(ABC):
    """Where documents come from. `cache` is a folder in which a source may keep what it has fetched."""

    @abstractmethod
    def documents(self, cache: Path) -> Iterator[Document]:
        """The documents, in the same order every time.

        Raises:
            UserError: the documents cannot be read.
        """

    @abstractmethod
    def content_hash(self, cache: Path) -> str:
        """What decides the documents, by content: equal wherever the files lie and whenever they were written."""

    @abstractmethod
    def sizes(self, cache: Path) -> tuple[int, int]:
        """UTF-8 bytes of training and of validation text, roughly, without reading it all."""

    def unfetched(self, cache: Path) -> str | None:
        """What `content_hash` and `documents` would have to fetch over the network, in words; None if nothing."""
        return None

    @property
    def entropy_rate_per_byte(self) -> float | None:
        """Nats per byte that no model can do without; None where nobody knows."""
        return None

    def nll(self, text: str) -> np.ndarray:
        """Nats of each character of a document given those before it: float64[characters]; only with a known entropy
        rate."""
        raise NotImplementedError


class Curation(ABC):
    """A rule that says which training documents are kept."""

    @abstractmethod
    def select(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Those of a source's training documents that are kept, in their order."""


def text_key(text: str) -> bytes:
    """16 bytes that only equal texts share."""
    return hashlib.sha256(text.encode()).digest()[:16]


def fraction(text: str | bytes) -> float:
    """A number in [0, 1) that depends on the text alone."""
    raw = text if isinstance(text, bytes) else text.encode()
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "big") / 2**64


def split_documents(texts: Iterable[tuple[str, str]]) -> Iterator[Document]:
    """Hold out a tenth of the (key, text) pairs: by a hash of the text, so that copies stay on one side.

    Where the hash holds none out, the document with the smallest hash is. A single document is cut by position: its
    last tenth is held out.
    """
    lowest: list[tuple[str, str]] = []
    smallest, seen_two, found = 1.0, False, False
    for key, text in texts:
        rank = fraction(text)
        if rank < HELD_OUT:
            found = True
            yield Document(key, text, "validation")
        elif found or rank > smallest:
            seen_two = True
            yield Document(key, text, "train")
        elif rank == smallest:
            lowest.append((key, text))
            continue
        else:
            seen_two = seen_two or bool(lowest)
            yield from (Document(*pair, "train") for pair in lowest)
            smallest, lowest = rank, [(key, text)]
        if found and lowest:
            seen_two = True
            yield from (Document(*pair, "train") for pair in lowest)
            lowest = []
    if lowest and seen_two:
        yield from (Document(*pair, "validation") for pair in lowest)
    elif lowest:
        key, text = lowest[0]
        cut = len(text) - int(len(text) * HELD_OUT)
        yield Document(key, text[:cut], "train")
        yield Document(key, text[cut:], "validation")
