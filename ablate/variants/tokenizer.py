"""How text becomes tokens."""

from __future__ import annotations

import functools
import hashlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from ablate.errors import UserError, near_miss
from ablate.variants import Factor

if TYPE_CHECKING:
    import tokenizers

tokenizer = Factor("tokenizer", "data.tokenizer", "how text becomes tokens")

SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "<|bos|>", "</s>", "<eos>", "[SEP]")


class Encoder(ABC):
    """Text to token ids and back. `separator` is the id put before each document; no text encodes to it."""

    separator: int

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
    """A rule that gives an encoder. `bytes_per_token` is a guess for plans made before anything is encoded."""

    vocab_size: int
    bytes_per_token: float = 1.0

    @abstractmethod
    def train(self, texts: Iterable[str]) -> Encoder:
        """The encoder fitted to a sample of the training documents; its ids are below `vocab_size`."""

    def content_hash(self) -> str:
        """What decides the encoder besides options and corpus."""
        return ""


@tokenizer.variant("bpe", reference="arXiv:1508.07909")
class BytePairEncoding(Tokenizer):
    """Byte-level byte-pair encoding, trained on the training documents; words are split as in GPT-2.

    The last id is the document separator. A corpus that yields fewer merges leaves ids unused.

    Args:
        vocab_size: bytes, merges and the separator.
    """

    def __init__(self, *, vocab_size: Annotated[int, Field(ge=257)] = 8192) -> None:
        self.vocab_size = vocab_size
        self.bytes_per_token = max(1.0, 0.4 * math.log(vocab_size))

    def train(self, texts: Iterable[str]) -> Encoder:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - 1, min_frequency=2, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        bpe.train_from_iterator(texts, trainer)
        return _LibraryEncoder(bpe, self.vocab_size - 1)


@tokenizer.variant("characters", reference="arXiv:1308.0850")
class Characters(Tokenizer):
    """One token per Unicode character: the most frequent ones of the training documents, and one for all others.

    Id 0 is the document separator, 1 any other character.

    Args:
        vocab_size: characters, and the two above.
    """

    def __init__(self, *, vocab_size: Annotated[int, Field(ge=3)] = 256) -> None:
        self.vocab_size = vocab_size

    def train(self, texts: Iterable[str]) -> Encoder:
        counts = Counter[str]()
        for text in texts:
            counts.update(text)
        ranked = sorted(counts, key=lambda c: (-counts[c], c))
        return _CharacterEncoder("".join(ranked[: self.vocab_size - 2]))


@tokenizer.variant("bytes", reference="arXiv:2105.13626")
class Bytes(Tokenizer):
    """One token per UTF-8 byte; 256 is the document separator."""

    vocab_size = 257

    def __init__(self) -> None:
        pass

    def train(self, texts: Iterable[str]) -> Encoder:
        return _ByteEncoder()


@tokenizer.variant("file", reference="https://github.com/huggingface/tokenizers")
class File(Tokenizer):
    """A tokenizer file of the `tokenizers` library (tokenizer.json), with its own vocabulary.

    Args:
        path: the file, relative to the suite's folder.
        separator: its token between documents; by default <|endoftext|> or the like if it has one, or else an id of
        our own.
    """

    path_options = ("path",)
    bytes_per_token = 4.0

    def __init__(self, *, path: str, separator: str | None = None) -> None:
        try:
            self._raw = Path(path).read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        ids = _vocabulary(self._raw)
        if ids is None:
            raise UserError(f"{path}: is no tokenizer file of the tokenizers library")
        if separator is not None and separator not in ids:
            raise UserError(f"{path}: has no token {separator!r}{near_miss(separator, ids)}")
        known = separator or next((name for name in SEPARATORS if name in ids), None)
        size = max(ids.values(), default=-1) + 1
        self._separator = size if known is None else ids[known]
        self.vocab_size = max(size, self._separator + 1)

    def content_hash(self) -> str:
        return hashlib.sha256(self._raw).hexdigest()

    def train(self, texts: Iterable[str]) -> Encoder:
        from tokenizers import Tokenizer

        loaded = Tokenizer.from_buffer(self._raw)
        loaded.no_truncation()
        loaded.no_padding()
        loaded.encode_special_tokens = True
        return _LibraryEncoder(loaded, self._separator)


@functools.lru_cache(maxsize=2)
def _vocabulary(raw: bytes) -> dict[str, int] | None:
    """The ids of a tokenizer file's tokens, None if it is none. A recipe builds its tokenizer often, and parsing
    takes long."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(raw).get_vocab()
    except Exception:  # the library raises nothing narrower
        return None


class _LibraryEncoder(Encoder):
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


class _CharacterEncoder(Encoder):
    separator, _other = 0, 1

    def __init__(self, characters: str) -> None:
        self._characters = characters
        self._ids = np.full(0x110000, self._other, np.int64)
        self._ids[_code_points(characters)] = np.arange(2, 2 + len(characters))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._ids[_code_points(text)] for text in texts]

    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(ids, np.arange(1, len(ids) + 1)) for ids in self.encode(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("\N{REPLACEMENT CHARACTER}" if i == self._other else self._characters[i - 2] for i in ids)


class _ByteEncoder(Encoder):
    separator = 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in texts]

    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(ids, np.cumsum(ids & 0xC0 != 0x80)) for ids in self.encode(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
