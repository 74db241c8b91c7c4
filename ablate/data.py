"""Corpus -> tokenizer -> token array: prepared once per content and options, cached by that, memory-mapped."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout

from ablate.corpus import FORMAT, Corpus, Validation, encode, encode_held_out, load, write_manifest
from ablate.errors import UserError
from ablate.recipe import Data, digest
from ablate.variants import Choice
from ablate.variants._documents import Document, Source
from ablate.variants.tokenizer import Tokenizer

__all__ = ["Corpus", "Peek", "Validation", "fingerprint", "peek", "prepare"]

TOKENIZER_SAMPLE = 20_000_000
BATCH = 2**23
SMALL = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Peek:
    """What is known of a corpus before it is prepared. `exact`: it is prepared already, the numbers are not estimates.

    `note` is set where the corpus must be fetched first: the fingerprint is then provisional, and nothing can be done
    with it yet.
    """

    fingerprint: str
    train_tokens: int
    exact: bool
    document_bytes: int
    note: str | None = None


def fingerprint(data: Data, cache: Path) -> str:
    """16 hexadecimal digits for content, options and weights of the sources and the tokenizer, wherever the files lie.

    Reads every byte of local files. Fetches what a hub source has not fetched yet, for its identity is what was
    fetched; `peek` does not.

    Raises:
        UserError: a source or tokenizer that cannot be read.
    """
    return _fingerprint(data, [choice.build().content_hash(cache) for choice in _sources(data)])


def peek(data: Data, cache: Path) -> Peek:
    """Fingerprint and size of a corpus, without writing or fetching anything.

    Raises:
        UserError: a corpus that is missing, unreadable or certainly too small.
    """
    sources: list[Source] = [choice.build() for choice in _sources(data)]
    missing = [what for source in sources if (what := source.unfetched(cache))]
    if missing:
        name = _fingerprint(data, ["" if source.unfetched(cache) else source.content_hash(cache) for source in sources])
    else:
        name = _fingerprint(data, [source.content_hash(cache) for source in sources])
        corpus = load(_folder(cache, name), name, _weights(data))
        if corpus is not None:
            corpus.check(data.seq_len)
            return Peek(
                fingerprint=name, train_tokens=corpus.train_tokens, exact=True, document_bytes=corpus.document_bytes
            )  # fmt: skip
    training, held_out = _sizes(data, sources, cache)
    return Peek(
        fingerprint=name, train_tokens=int(training / data.tokenizer.build().bytes_per_token), exact=False,
        document_bytes=training + held_out, note=f"not fetched yet: {'; '.join(missing)}" if missing else None,
    )  # fmt: skip


def prepare(data: Data, cache: Path, on_message: Callable[[str], None] | None = None) -> Corpus:
    """The corpus, from `cache/tokens/<fingerprint>` or put there first. Any number of processes may call this at once.

    Raises:
        UserError: a corpus that cannot be read, changes while it is read, or is too short for a sequence.
    """
    say = on_message or (lambda message: None)
    sources: list[Source] = [choice.build() for choice in _sources(data)]
    for source in sources:
        if what := source.unfetched(cache):
            say(f"fetching {what}")
    name = _fingerprint(data, [source.content_hash(cache) for source in sources])
    folder, weights = _folder(cache, name), _weights(data)
    corpus = load(folder, name, weights)
    if corpus is None:
        _sizes(data, sources, cache)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(FileLock(f"{folder}.lock"), lambda: say("waiting for another process to prepare the corpus")):
            corpus = load(folder, name, weights)
            if corpus is None:
                say(f"preparing {', '.join(choice.name for choice in _sources(data))} with {data.tokenizer.name}")
                _build(data, sources, name, folder, cache)
                if fingerprint(data, cache) != name:
                    shutil.rmtree(folder)
                    raise UserError("the corpus changed while it was being prepared")
                corpus = load(folder, name, weights)
    assert corpus is not None
    corpus.check(data.seq_len)
    return corpus


def _sources(data: Data) -> list[Choice]:
    return [entry.source for entry in data.sources]


def _weights(data: Data) -> list[float]:
    total = sum(entry.weight for entry in data.sources)
    return [entry.weight / total for entry in data.sources]


def _folder(cache: Path, name: str) -> Path:
    return cache / "tokens" / name


def _fingerprint(data: Data, contents: list[str]) -> str:
    sources = [
        {**_identity(choice), "weight": weight, "content": content}
        for choice, weight, content in zip(_sources(data), _weights(data), contents, strict=True)
    ]
    tokenizer = {**_identity(data.tokenizer), "content": data.tokenizer.build().content_hash()}
    return digest({"format": FORMAT, "sources": sources, "tokenizer": tokenizer})


def _identity(choice: Choice) -> dict[str, object]:
    paths = choice.variant.trait("path_options", ())
    return {"name": choice.name, "options": {key: value for key, value in choice.options.items() if key not in paths}}


def _sizes(data: Data, sources: list[Source], cache: Path) -> tuple[int, int]:
    """Bytes of training and of held-out text: roughly for a large source, of which only the first document is read."""
    training_in_all = held_out_in_all = 0
    enough = False
    for source, choice in zip(sources, _sources(data), strict=True):
        training, held_out = source.sizes(cache)
        if source.unfetched(cache):
            enough = True
        elif training + held_out > SMALL:
            next(iter(source.documents(cache)), None)
            enough = True
        else:
            most = {"train": 0, "validation": 0}
            for document in source.documents(cache):
                most[document.split] += _encoded_size(document) + 1
            if most["train"] <= data.seq_len:
                raise UserError(f"{_where(choice)}: too little training text for a sequence of {data.seq_len} tokens")
            enough = enough or most["validation"] > data.seq_len
            training, held_out = most["train"], most["validation"]
        training_in_all, held_out_in_all = training_in_all + training, held_out_in_all + held_out
    if not enough:
        where = ", ".join(_where(choice) for choice in _sources(data))
        raise UserError(f"{where}: too little text held out for a validation sequence of {data.seq_len} tokens")
    return training_in_all, held_out_in_all


def _where(choice: Choice) -> str:
    first = next((choice.options[key] for key in choice.variant.trait("path_options", ())), choice.name)
    return first if isinstance(first, str) else first[0]


def _encoded_size(document: Document) -> int:
    try:
        return len(document.text.encode())
    except UnicodeEncodeError:
        raise UserError(f"document {document.key}: holds half a surrogate pair, which is no text") from None


@contextmanager
def _locked(lock: BaseFileLock, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock; `on_wait` is called if somebody else has it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(data: Data, sources: list[Source], name: str, folder: Path, cache: Path) -> None:
    """Write the folder, whole or not at all. The caller holds its lock, so that what else lies there is nobody's."""
    partial = folder.with_suffix(".partial")
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    try:
        sample, held_out, document_bytes = _survey(data, sources, cache)
        tokenizer: Tokenizer = data.tokenizer.build()
        encoder = tokenizer.train(sample)
        dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        described = []
        with (partial / "train.tokens").open("wb") as train_file:
            for i, source in enumerate(sources):
                before = train_file.tell()
                with _HeldOutFiles(partial, i, dtype) as files:
                    for documents in _batches(source.documents(cache)):
                        texts = [d.text for d in documents if d.split == "validation"]
                        files.write(*encode_held_out(encoder, source, texts))
                        texts = [d.text for d in documents if d.split == "train" and _key(d.text) not in held_out]
                        encode(encoder, texts).astype(dtype).tofile(train_file)
                described.append({
                    "train": (train_file.tell() - before) // np.dtype(dtype).itemsize,
                    "entropy_rate_per_byte": source.entropy_rate_per_byte,
                })  # fmt: skip
        write_manifest(partial, {
            "fingerprint": name, "vocab_size": tokenizer.vocab_size, "dtype": dtype, "document_bytes": document_bytes,
            "sources": described,
        })  # fmt: skip
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _survey(data: Data, sources: list[Source], cache: Path) -> tuple[list[str], set[bytes], int]:
    """Training text for the tokenizer (by weight), the keys of all texts that are held out by any source, and bytes
    in all."""
    sample: list[str] = []
    held_out: set[bytes] = set()
    document_bytes = 0
    for source, weight in zip(sources, _weights(data), strict=True):
        room = int(TOKENIZER_SAMPLE * weight)
        for document in source.documents(cache):
            document_bytes += _encoded_size(document)
            if document.split == "validation":
                held_out.add(_key(document.text))
            elif room > 0:
                sample.append(document.text[:room])
                room -= len(sample[-1])
    return [text for text in sample if _key(text) not in held_out], held_out, document_bytes


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents some megabytes at a time."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size > BATCH:
            yield batch
            batch, size = [], 0
    yield batch


class _HeldOutFiles:
    """The three arrays of a source's held-out tokens, appended to."""

    def __init__(self, folder: Path, source: int, dtype: str) -> None:
        names = (("tokens", dtype), ("bytes", "uint32"), ("nll", "float64"))
        self._files = [((folder / f"validation-{source}.{name}").open("wb"), kind) for name, kind in names]

    def write(self, *arrays: np.ndarray | None) -> None:
        for (file, kind), array in zip(self._files, arrays, strict=True):
            if array is not None:
                array.astype(kind).tofile(file)

    def __enter__(self) -> _HeldOutFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        for file, _ in self._files:
            file.close()
