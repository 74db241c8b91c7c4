"""What a source of documents is, how documents are held out, and how `datasets` reads them from files."""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ablate.errors import UserError, near_miss

FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
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


def check_file(path: Path) -> str:
    """The loader of `datasets` for a file.

    Raises:
        UserError: no such file, a directory, or a format that we do not read.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name the files in it")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    kind = FORMATS.get(Path(path.name.removesuffix(".gz")).suffix)
    if kind is None:
        raise UserError(f"{path}: unknown format; known: {', '.join(FORMATS)}, also with .gz")
    return kind


def read_texts(path: Path, column: str) -> Iterator[tuple[str, str]]:
    """The (key, text) pairs of a file: one for a .txt, one per row otherwise; rows without text are left out.

    Streamed, so that no copy is kept which could go stale: `datasets` tells files apart by size and time stamp.

    Raises:
        UserError: the file cannot be read, has no such column, or the column holds no text.
    """
    kind = check_file(path)
    with tempfile.TemporaryDirectory() as scratch, reading(str(path)):
        options: dict[str, Any] = {"data_files": str(path), "split": "train", "streaming": True, "cache_dir": scratch}
        if kind == "text":
            options["sample_by"] = "document"
        elif kind == "parquet":
            check_column(str(path), column, parquet_columns(path))
            options["columns"] = [column]
        for i, row in enumerate(load_dataset(kind, **options)):
            text = text_of(str(path), row, column if kind != "text" else "text")
            if text.strip():
                yield f"{path.name}:{i}", text


def load_dataset(*args: Any, **options: Any) -> Iterable[dict[str, Any]]:
    """`datasets.load_dataset` without its log lines and progress bars."""
    import datasets
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    return datasets.load_dataset(*args, **options)


def text_of(where: str, row: dict[str, Any], column: str) -> str:
    """The text of a row, "" for a null.

    Raises:
        UserError: the row has no such column, or it holds something else.
    """
    check_column(where, column, list(row))
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: column {column!r} holds {type(value).__name__}, not text")
    return value or ""


def check_column(where: str, column: str, columns: list[str]) -> None:
    """Raise UserError unless `column` is one of `columns`, naming those that are there."""
    if column not in columns:
        hint = near_miss(column, columns) or f"; it has {len(columns)} others"
        raise UserError(f"{where}: no column {column!r}{hint}")


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns."""
    from pyarrow.parquet import read_schema

    return read_schema(path).names


def text_size(path: Path, column: str) -> int:
    """Bytes of text in a file, roughly.

    Raises:
        UserError: as `read_texts`, as far as the file's head tells.
    """
    kind = check_file(path)
    if kind != "parquet":
        return path.stat().st_size * (3 if path.suffix == ".gz" else 1)
    with reading(str(path)):
        from pyarrow.parquet import read_metadata

        check_column(str(path), column, parquet_columns(path))
        metadata = read_metadata(path)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn whatever a reader raises into one line about `where`."""
    try:
        yield
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte 0x{error.object[error.start]:02x})") from None
    except Exception as error:
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(f"{where}: cannot be read: {first}") from None
