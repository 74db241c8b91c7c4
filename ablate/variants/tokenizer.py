"""How text becomes tokens."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from ablate.errors import UserError, near_miss
from ablate.variants import Factor
from ablate.variants._encoders import (
    ByteEncoder,
    CharacterEncoder,
    Encoder,
    LibraryEncoder,
    Tokenizer,
    read_tokenizer,
)

tokenizer = Factor("tokenizer", "data.tokenizer", "how text becomes tokens", in_step=False)

SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "<|bos|>", "</s>", "<eos>", "[SEP]")


@tokenizer.variant("bpe", reference="arXiv:1508.07909")
class BytePairEncoding(Tokenizer):
    """Byte-level byte-pair encoding, trained on the training documents; words are split as in GPT-2.

    From bytes on, the most frequent pair of neighbouring tokens becomes a token, until there are enough. The last id is
    the document separator. A corpus that yields fewer merges leaves ids unused.

    Args:
        vocab_size: bytes, merges and the separator.
    """

    def __init__(self, *, vocab_size: Annotated[int, Field(ge=257)] = 8192) -> None:
        self.vocab_size = vocab_size
        self.separator = vocab_size - 1
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
        return LibraryEncoder(bpe, self.separator)


@tokenizer.variant("characters", reference="arXiv:1308.0850")
class Characters(Tokenizer):
    """One token per Unicode character: the most frequent ones of the training documents, and one for all others.

    Id 0 is the document separator, 1 any other character: bits per byte count it as one that is drawn from all of Unicode
    that has no token.

    Args:
        vocab_size: characters, and the two above.
    """

    separator = 0

    def __init__(self, *, vocab_size: Annotated[int, Field(ge=3)] = 256) -> None:
        self.vocab_size = vocab_size

    def train(self, texts: Iterable[str]) -> Encoder:
        counts = Counter[str]()
        for text in texts:
            counts.update(text)
        ranked = sorted(counts, key=lambda c: (-counts[c], c))
        return CharacterEncoder("".join(ranked[: self.vocab_size - 2]))


@tokenizer.variant("bytes", reference="arXiv:2105.13626")
class Bytes(Tokenizer):
    """One token per UTF-8 byte; 256 is the document separator."""

    vocab_size = 257
    separator = 256

    def __init__(self) -> None:
        pass

    def train(self, texts: Iterable[str]) -> Encoder:
        return ByteEncoder()


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
        self._raw, ids = read_tokenizer(path)
        if separator is not None and separator not in ids:
            raise UserError(f"{path}: has no token {separator!r}{near_miss(separator, ids)}")
        known = separator or next((name for name in SEPARATORS if name in ids), None)
        size = max(ids.values(), default=-1) + 1
        self.separator = size if known is None else ids[known]
        self.vocab_size = max(size, self.separator + 1)

    def content_hash(self) -> str:
        return hashlib.sha256(self._raw).hexdigest()

    def train(self, texts: Iterable[str]) -> Encoder:
        from tokenizers import Tokenizer

        whole = Tokenizer.from_buffer(self._raw)
        whole.no_truncation()
        whole.no_padding()
        whole.encode_special_tokens = True
        return LibraryEncoder(whole, self.separator)
