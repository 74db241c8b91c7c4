"""Texts from files, as `datasets` reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ablate.errors import UserError, near_miss

FORMATS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def check_file(path: Path) -> str:
    """The loader of `datasets` for a file.

    Raises:
        UserError: no such file, a directory, or a format that we do not read.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name the files in it")
    if not path.exists():
        raise UserError(f"{path}: no such file; name another with --set data.source='{{files: {{paths: FILE}}}}'")
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
