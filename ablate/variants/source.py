"""Where the text comes from."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ablate.errors import UserError
from ablate.variants import Factor
from ablate.variants._documents import HELD_OUT, Document, Source, fraction, split_documents
from ablate.variants._files import check_file, read_texts, reading, text_size
from ablate.variants._hub import Copy

source = Factor("source", "data.source", "where the text comes from", in_step=False)

Paths = str | Annotated[list[str], Field(min_length=1)]


@source.variant("stdlib", reference="Python standard library")
class StandardLibrary(Source):
    """The sources of the Python standard library that runs this: about 8 MB, without network.

    Tests, generated tables and what distributions package apart are left out. One file is one document; a twentieth
    of them, by a hash of the path, is held out. Differs between Python versions, and its content hash with it.

    Args:
        max_bytes: take files, in an order that a hash of their path gives, up to this many bytes.
    """

    LEFT_OUT = frozenset(
        "test tests idle_test site-packages dist-packages __pycache__ "
        "encodings pydoc_data lib2to3 idlelib turtledemo ensurepip".split()
    )
    SHARE = 0.05

    def __init__(self, *, max_bytes: Annotated[int, Field(ge=1)] | None = None) -> None:
        self.max_bytes = max_bytes

    @functools.cached_property
    def _files(self) -> list[tuple[str, bytes]]:
        root = Path(sysconfig.get_path("stdlib"))
        found: list[tuple[str, bytes]] = []
        total = 0
        for path in sorted(self._walk(root), key=lambda p: fraction("order " + p.relative_to(root).as_posix())):
            raw = path.read_bytes()
            total += len(raw)
            if self.max_bytes is not None and total > self.max_bytes:
                break
            found.append((path.relative_to(root).as_posix(), raw))
        if not found:
            raise UserError(f"{root}: no Python sources of the standard library within {self.max_bytes} bytes")
        return found

    def _walk(self, folder: Path) -> Iterator[Path]:
        for path in folder.iterdir():
            if path.is_dir():
                if path.name not in self.LEFT_OUT and not path.name.startswith("config-"):
                    yield from self._walk(path)
            elif path.suffix == ".py" and not path.name.startswith("_sysconfigdata"):
                yield path

    def documents(self, cache: Path) -> Iterator[Document]:
        for key, raw in self._files:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
            text = io.TextIOWrapper(io.BytesIO(raw), encoding).read()
            if text.strip():
                yield Document(key, text, self._split(key))

    def _split(self, key: str) -> Any:
        return "validation" if fraction(key) < self.SHARE else "train"

    def content_hash(self, cache: Path) -> str:
        running = hashlib.sha256()
        for key, raw in self._files:
            running.update(f"{key}\0{len(raw)}\0".encode() + raw)
        return running.hexdigest()

    def sizes(self, cache: Path) -> tuple[int, int]:
        held_out = sum(len(raw) for key, raw in self._files if self._split(key) == "validation")
        return sum(len(raw) for _, raw in self._files) - held_out, held_out


@source.variant("synthetic", reference="Cover and Thomas, Elements of Information Theory, theorem 4.2.4")
class Synthetic(Source):
    """A random second-order Markov chain over 26 letters and the space, whose entropy rate is known exactly.

    H = -sum_ab pi(a, b) sum_c p(c | a, b) ln p(c | a, b) nats per letter, with pi the stationary shares of pairs. The
    last letter decides which five letters may follow besides the space, the one before it how likely each of them is.
    All probabilities are multiples of 1/256 and are drawn by bytes of SHAKE-256: the same text on every machine.
    Documents have 8,192 letters; every tenth is held out.

    Args:
        seed: selects the chain and the text.
        size: bytes of text, rounded down to whole documents.
    """

    LETTERS = " abcdefghijklmnopqrstuvwxyz"
    LENGTH = 8192
    BLOCK = 256
    BURN_IN = 64

    def __init__(
        self, *, seed: Annotated[int, Field(ge=0)] = 0, size: Annotated[int, Field(ge=81_920)] = 4_000_000
    ) -> None:
        self.seed, self.size = seed, size

    def _bytes(self, purpose: str, count: int) -> np.ndarray:
        return np.frombuffer(hashlib.shake_256(f"{self.seed} {purpose}".encode()).digest(count), np.uint8)

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        """In 256ths, how likely each letter is after two others: int64[27, 27, 27], [before last, last, next]."""
        n, spaces, followers = len(self.LETTERS), 48, 5
        counts = np.zeros((n, n, n), np.int64)
        orders = np.argsort(self._bytes("followers", n * (n - 1)).reshape(n, n - 1), axis=1, kind="stable") + 1
        free = 256 - spaces - followers
        cuts = self._bytes("cuts", n * n * (followers - 1)).reshape(n, n, followers - 1).astype(np.int64)
        cuts = np.sort(cuts * free // 256, axis=2)
        ends = np.full((n, n, 1), free)
        shares = 1 + np.diff(np.concatenate([np.zeros_like(ends), cuts, ends], axis=2), axis=2)
        for last in range(n):
            counts[:, last, orders[last, :followers]] = shares[:, last]
        counts[:, :, 0] = spaces
        return counts

    @functools.cached_property
    def _stationary(self) -> np.ndarray:
        """How often each pair of letters occurs in the long run: float64[27, 27]."""
        chances = self._counts / 256
        pairs = np.full(chances.shape[:2], 1 / chances[..., 0].size)
        while True:
            following = np.einsum("ab,abc->bc", pairs, chances)
            if np.abs(following - pairs).max() < 1e-16:
                return following / following.sum()
            pairs = following

    @property
    def entropy_rate_per_byte(self) -> float:
        chances = self._counts / 256
        surprise = -np.log(chances, where=chances > 0, out=np.zeros_like(chances))
        return float(np.einsum("ab,abc,abc->", self._stationary, chances, surprise))

    def nll(self, text: str) -> np.ndarray:
        index = np.searchsorted(list(self.LETTERS.encode()), np.frombuffer(text.encode(), np.uint8))
        first = self._stationary.sum(1)[index[:1]]
        second = self._stationary[index[:-1], index[1:]][:1] / first[: len(index) - 1]
        return -np.log(np.concatenate([first, second, self._counts[index[:-2], index[1:-1], index[2:]] / 256]))

    def documents(self, cache: Path) -> Iterator[Document]:
        letters = np.frombuffer(self.LETTERS.encode(), np.uint8)
        n = len(letters)
        following = np.repeat(np.tile(np.arange(n), n * n), self._counts.ravel()).reshape(n * n, 256)
        wanted, steps = self.size // self.LENGTH, self.BURN_IN + self.LENGTH
        for start in range(0, wanted, self.BLOCK):
            draws = self._bytes(f"text {start}", steps * self.BLOCK).reshape(steps, self.BLOCK)
            text = np.zeros((steps, self.BLOCK), np.intp)
            pair = np.zeros(self.BLOCK, np.intp)
            for step in range(steps):
                text[step] = following[pair, draws[step]]
                pair = pair % n * n + text[step]
            block = letters[text[self.BURN_IN :].T]
            for i in range(start, min(start + self.BLOCK, wanted)):
                text_i = block[i - start].tobytes().decode()
                yield Document(str(i), text_i, "validation" if i % 10 == 9 else "train")

    def content_hash(self, cache: Path) -> str:
        return hashlib.sha256(f"order-2 chain, version 1, seed {self.seed}, size {self.size}".encode()).hexdigest()

    def sizes(self, cache: Path) -> tuple[int, int]:
        held_out = self.size // self.LENGTH // 10
        return (self.size // self.LENGTH - held_out) * self.LENGTH, held_out * self.LENGTH


@source.variant("files", reference="https://github.com/huggingface/datasets")
class Files(Source):
    """Local files: text (one document each), JSON lines and Parquet (one document per row), also gzipped.

    Without validation files a tenth of the documents is held out by a hash of their text; of a single document, its
    last tenth.

    Args:
        paths: the training files, relative to the suite's folder.
        validation_paths: files that are held out instead.
        text: the column that holds the text, in JSON lines and Parquet.
    """

    path_options = ("paths", "validation_paths")

    def __init__(self, *, paths: Paths, validation_paths: Paths | None = None, text: str = "text") -> None:
        self.training = _as_paths(paths)
        self.validation = [] if validation_paths is None else _as_paths(validation_paths)
        self.column = text

    def documents(self, cache: Path) -> Iterator[Document]:
        training = (pair for path in self.training for pair in read_texts(path, self.column))
        empty = True
        if self.validation:
            held_out = (pair for path in self.validation for pair in read_texts(path, self.column))
            documents = itertools.chain(
                (Document(*pair, "validation") for pair in held_out), (Document(*pair, "train") for pair in training)
            )
        else:
            documents = split_documents(training)
        for document in documents:
            empty = False
            yield document
        if empty:
            raise UserError(f"{self.training[0]}: holds no text")

    def content_hash(self, cache: Path) -> str:
        running = hashlib.sha256()
        for role, paths in (("train", self.training), ("validation", self.validation)):
            for path in paths:
                kind = check_file(path)
                with reading(str(path)), path.open("rb") as file:
                    running.update(f"{role} {kind} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return running.hexdigest()

    def sizes(self, cache: Path) -> tuple[int, int]:
        training = sum(text_size(path, self.column) for path in self.training)
        held_out = sum(text_size(path, self.column) for path in self.validation)
        if self.validation:
            return training, held_out
        return training - int(training * HELD_OUT), int(training * HELD_OUT)


def _as_paths(paths: str | list[str]) -> list[Path]:
    return [Path(path) for path in ([paths] if isinstance(paths, str) else paths)]


@source.variant("hub", reference="https://huggingface.co/datasets")
class Hub(Source):
    """A dataset of the Hugging Face hub, streamed until there is enough of it and kept; or a folder with a dataset.

    What is kept decides the identity, not what the hub has since become. It is fetched by the first call that needs
    the documents or their hash, once per set of options.

    Args:
        name: as `datasets.load_dataset` takes it, such as HuggingFaceFW/fineweb-edu.
        config: which of the dataset's configurations.
        split: the split to train on.
        validation_split: the split that is held out; without one, a tenth of the documents by a hash of their text.
        text: the column that holds the text.
        revision: a branch, tag or commit of the dataset.
        max_bytes: the most UTF-8 bytes of text to take from each split.
        max_documents: the most documents to take from each split.
    """

    def __init__(
        self,
        *,
        name: Annotated[str, Field(min_length=1)],
        config: str | None = None,
        split: str = "train",
        validation_split: str | None = None,
        text: str = "text",
        revision: str | None = None,
        max_bytes: Annotated[int, Field(ge=1)] = 1_000_000_000,
        max_documents: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        splits = {"train": split} | ({} if validation_split is None else {"validation": validation_split})
        self.copy = Copy(name, config, revision, text, splits, max_bytes, max_documents)

    def _files(self, cache: Path) -> Files:
        paths = {role: str(path) for role, path in self.copy.paths(cache).items()}
        return Files(paths=paths["train"], validation_paths=paths.get("validation"))

    def unfetched(self, cache: Path) -> str | None:
        whole = self.copy.is_whole(cache)
        return None if whole else f"{self.copy.name}, at most {self.copy.max_bytes / 1e6:.0f} MB"

    def documents(self, cache: Path) -> Iterator[Document]:
        return self._files(cache).documents(cache)

    def content_hash(self, cache: Path) -> str:
        return self._files(cache).content_hash(cache)

    def sizes(self, cache: Path) -> tuple[int, int]:
        if self.unfetched(cache) is None:
            return self._files(cache).sizes(cache)
        return self.copy.max_bytes - int(self.copy.max_bytes * HELD_OUT), int(self.copy.max_bytes * HELD_OUT)
