"""What a tokenizer and its encoder are, and the encoders: of the `tokenizers` library, of characters, of bytes."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ablate.errors import UserError

if TYPE_CHECKING:
    import tokenizers


CHARACTERS = 0x110000 - 2048
"""Unicode's characters: its code points without the surrogates."""


class Encoder(ABC):
    """Text to token ids and back. `separator` is the id put before each document; no text encodes to it.

    `unknown` is the id of all text that has no other, if there is one, and the nats that it takes to say which text.
    """

    separator: int
    unknown: tuple[int, float] | None = None

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text."""

    @abstractmethod
    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token ids of each text, and after how many of its characters each token ends (never decreasing)."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that are not separators."""


class Tokenizer(ABC):
    """A rule that gives an encoder.

    `separator` is the encoder's, known before it is trained; `bytes_per_token` is a guess for plans made before anything
    is encoded.
    """

    vocab_size: int
    separator: int
    bytes_per_token: float = 1.0

    @abstractmethod
    def train(self, texts: Iterable[str]) -> Encoder:
        """The encoder fitted to a sample of the training documents; its ids are below `vocab_size`."""

    def content_hash(self) -> str:
        """What decides the encoder besides options and corpus."""
        return ""


def read_tokenizer(path: str) -> tuple[bytes, dict[str, int]]:
    """The content of a tokenizer file and the ids of its tokens.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    ids = _vocabulary(raw)
    if ids is None:
        raise UserError(f"{path}: is no tokenizer file of the tokenizers library")
    return raw, ids


@functools.lru_cache(maxsize=2)
def _vocabulary(raw: bytes) -> dict[str, int] | None:
    """The ids of a tokenizer file's tokens, None if it is none. A recipe builds its tokenizer often, and parsing
    takes long."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(raw).get_vocab()
    except Exception:  # the library raises nothing narrower
        return None


class LibraryEncoder(Encoder):
    def __init__(self, library: tokenizers.Tokenizer, separator: int) -> None:
        self._library, self.separator = library, separator

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(e.ids, np.int64) for e in self._library.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encoded = []
        for e in self._library.encode_batch(texts, add_special_tokens=False):
            ends = np.array(e.offsets, np.int64).reshape(-1, 2)[:, 1]
            encoded.append((np.array(e.ids, np.int64), np.maximum.accumulate(ends)))
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        return self._library.decode(list(ids), skip_special_tokens=False)


class CharacterEncoder(Encoder):
    separator, _other = 0, 1

    def __init__(self, characters: str) -> None:
        self._characters = characters
        self._ids = np.full(0x110000, self._other, np.int64)
        self._ids[_code_points(characters)] = np.arange(2, 2 + len(characters))
        self.unknown = self._other, math.log(CHARACTERS - len(characters))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._ids[_code_points(text)] for text in texts]

    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(ids, np.arange(1, len(ids) + 1)) for ids in self.encode(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("\N{REPLACEMENT CHARACTER}" if i == self._other else self._characters[i - 2] for i in ids)


class ByteEncoder(Encoder):
    separator = 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in texts]

    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(ids, np.cumsum(ids & 0xC0 != 0x80)) for ids in self.encode(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
