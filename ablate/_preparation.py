"""The folder of token arrays of a corpus: what is read for it, and how it is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ablate import recipe
from ablate.errors import UserError
from ablate.recipe import Data
from ablate.tokens import encode, encode_held_out, seal
from ablate.variants import Choice
from ablate.variants._documents import Curation, Document, Source, text_key
from ablate.variants._encoders import Tokenizer

TOKENIZER_SAMPLE = 20_000_000
BATCH = 2**23


@dataclass(frozen=True, slots=True)
class Input:
    """A source with its share of what is drawn."""

    choice: Choice
    source: Source
    weight: float

    def documents(self, split: Literal["train", "validation"], cache: Path) -> Iterator[Document]:
        """The documents of one side.

        Raises:
            UserError: the source cannot be read, or holds what is no text.
        """
        for document in self.source.documents(cache):
            if document.split == split:
                encoded(document)
                yield document

    @property
    def where(self) -> str:
        """How its user knows it: by its first path, or its name."""
        paths = self.choice.variant.trait("path_options", ())
        first = next((self.choice.options[key] for key in paths), self.choice.name)
        return first if isinstance(first, str) else first[0]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The sources that are trained on, and those whose held-out documents are the validation slice."""

    training: list[Input]
    held_out: list[Input]

    @classmethod
    def of(cls, data: Data) -> Inputs:
        training = cls._weighted(data.sources)
        return cls(training, cls._weighted(data.validation) if data.validation else training)

    @staticmethod
    def _weighted(entries: Sequence[recipe.Source]) -> list[Input]:
        total = sum(entry.weight for entry in entries)
        return [Input(entry.source, entry.source.build(), entry.weight / total) for entry in entries]

    @property
    def all(self) -> list[Input]:
        return self.training if self.held_out is self.training else [*self.training, *self.held_out]


def build(data: Data, inputs: Inputs, name: str, code: str, folder: Path, cache: Path) -> None:
    """Write the folder, whole or not at all. The caller holds its lock, so that what else lies there is nobody's."""
    partial = folder.with_suffix(".partial")
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    try:
        tokenizer: Tokenizer = data.tokenizer.build()
        dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        held_out, sample = _survey(inputs, cache)
        encoder = tokenizer.train(sample)
        assert encoder.separator == tokenizer.separator
        curation: Curation = data.curation.build()
        sizes = []
        with (partial / "train.tokens").open("wb") as file:
            for given in inputs.training:
                before = file.tell()
                fresh = (d for d in given.documents("train", cache) if not held_out.overlaps(d))
                for texts in _batches(curation.select(fresh)):
                    encode(encoder, texts).astype(dtype).tofile(file)
                sizes.append((file.tell() - before) // np.dtype(dtype).itemsize)
        for i, given in enumerate(inputs.held_out):
            arrays = ("tokens", dtype), ("bytes", "uint32"), ("nll", "float64")
            for texts in _batches(given.documents("validation", cache)):
                for (what, kind), array in zip(arrays, encode_held_out(encoder, given.source, texts), strict=True):
                    if array is not None:
                        with (partial / f"validation-{i}.{what}").open("ab") as file:
                            array.astype(kind).tofile(file)
        seal(partial, {
            "fingerprint": name, "code": code, "vocab_size": tokenizer.vocab_size, "dtype": dtype, "train": sizes,
            "unknown": encoder.unknown,
            "entropy_rates_per_byte": [given.source.entropy_rate_per_byte for given in inputs.held_out],
        })  # fmt: skip
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _HeldOut:
    """All texts that any source holds out, whole or as a part of one."""

    def __init__(self) -> None:
        self._texts: set[bytes] = set()
        self._cut: set[bytes] = set()

    def add(self, documents: Iterable[Document]) -> None:
        for document in documents:
            self._texts.add(text_key(document.text))
            if document.whole is not None:
                self._cut.add(text_key(document.whole))

    def overlaps(self, document: Document) -> bool:
        """Whether a training document is a held-out text, has one cut from it, or was cut from one."""
        key = text_key(document.text)
        part_of_one = document.whole is not None and text_key(document.whole) in self._texts
        return key in self._texts or key in self._cut or part_of_one


def _survey(inputs: Inputs, cache: Path) -> tuple[_HeldOut, list[str]]:
    """What any source holds out; and what a tokenizer is trained on: by weight, training documents of the sources that
    the validation slice is from."""
    held_out = _HeldOut()
    for given in inputs.held_out:
        held_out.add(given.documents("validation", cache))
    sample: list[str] = []
    for given in inputs.held_out:
        room = int(TOKENIZER_SAMPLE * given.weight)
        for document in given.documents("train", cache):
            if room > 0 and not held_out.overlaps(document):
                sample.append(document.text[:room])
                room -= len(sample[-1])
    if inputs.training is not inputs.held_out:
        for given in inputs.training:
            held_out.add(given.documents("validation", cache))
    return held_out, sample


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    """Texts of documents, some megabytes at a time."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document.text)
        size += len(document.text)
        if size > BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def encoded(document: Document) -> bytes:
    """The UTF-8 bytes of a document.

    Raises:
        UserError: it has none.
    """
    try:
        return document.text.encode()
    except UnicodeEncodeError:
        raise UserError(f"document {document.key}: holds half a surrogate pair, which is no text") from None
