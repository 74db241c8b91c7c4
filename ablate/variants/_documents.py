"""What a source of documents and a curation of them are, and how documents are held out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

HELD_OUT = 0.1


@dataclass(frozen=True, slots=True)
class Document:
    """One text and the side it is on. `key` names it within its source; `whole` is what it was cut from, if it was."""

    key: str
    text: str
    split: Literal["train", "validation"]
    whole: str | None = None


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

    Where the hash leaves one side empty, the text with the hash nearest to that side goes there. Where all texts are
    equal, one is cut by position: its last tenth is held out.
    """
    early: list[Document] = []
    both = False
    for key, text in texts:
        document = Document(key, text, "validation" if fraction(text) < HELD_OUT else "train")
        if both:
            yield document
            continue
        early.append(document)
        if document.split != early[0].split:
            both = True
            yield from early
            early.clear()
    if early:
        yield from _divided(early)


def _divided(documents: list[Document]) -> Iterator[Document]:
    """Documents of one side, some of them moved to the other."""
    nearest = min({document.text for document in documents}, key=lambda text: abs(fraction(text) - HELD_OUT))
    other = "train" if documents[0].split == "validation" else "validation"
    if any(document.text != nearest for document in documents):
        yield from (replace(d, split=other) if d.text == nearest else d for d in documents)
    else:
        cut = len(nearest) - int(len(nearest) * HELD_OUT)
        yield Document(documents[0].key, nearest[:cut], "train", nearest)
        yield Document(documents[0].key, nearest[cut:], "validation", nearest)
