"""A dataset of the Hugging Face hub, as much of it as is wanted, in Parquet files of our own."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ablate.errors import UserError
from ablate.variants._files import check_column, load_dataset, reading, text_of

FETCHED = "fetched.json"
BATCH = 2**24


@dataclass(frozen=True, slots=True)
class Copy:
    """Of a dataset the splits to keep, by role, and the most bytes and documents of each."""

    name: str
    config: str | None
    revision: str | None
    column: str
    splits: dict[str, str]
    max_bytes: int
    max_documents: int | None

    def is_whole(self, cache: Path) -> bool:
        """Whether it lies in the cache already."""
        folder = self._folder(cache)
        try:
            kept = json.loads((folder / FETCHED).read_text())
            return all((folder / name).stat().st_size == size for name, size in kept.items())
        except (OSError, ValueError):
            return False

    def paths(self, cache: Path) -> dict[str, Path]:
        """The file of each role, fetched first where it is not there. Any number of processes may call this at once.

        Raises:
            UserError: the dataset cannot be fetched, has no such column, or no text.
        """
        folder = self._folder(cache)
        if not self.is_whole(cache):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not self.is_whole(cache):
                    self._fetch(folder)
        return {role: folder / f"{role}.parquet" for role in self.splits}

    def _folder(self, cache: Path) -> Path:
        limits = [self.max_bytes, self.max_documents]
        options = json.dumps([self.name, self.config, self.revision, self.column, self.splits, limits])
        return cache / "sources" / hashlib.sha256(options.encode()).hexdigest()[:16]

    def _fetch(self, folder: Path) -> None:
        """Write the folder, whole or not at all."""
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        partial = folder.with_suffix(".partial")
        for old in (partial, folder):
            shutil.rmtree(old, ignore_errors=True)
        partial.mkdir()
        try:
            for role, split in self.splits.items():
                with ParquetWriter(partial / f"{role}.parquet", pa.schema({"text": pa.string()})) as writer:
                    for batch in self._stream(split):
                        writer.write_table(pa.table({"text": pa.array(batch, pa.string())}))
            sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
            (partial / FETCHED).write_text(json.dumps(sizes))
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _stream(self, split: str) -> Iterator[list[str]]:
        """Texts of a split, some megabytes at a time, up to the limits."""
        where = f"{self.name} ({split})"
        batch: list[str] = []
        total = documents = held = 0
        with tempfile.TemporaryDirectory() as scratch, reading(where):
            rows = load_dataset(
                self.name, self.config, split=split, revision=self.revision, streaming=True, cache_dir=scratch
            )
            check_column(where, self.column, getattr(rows, "column_names", None) or [self.column])
            for row in rows:
                text = text_of(where, row, self.column)
                size = len(text.encode())
                if (documents and total + size > self.max_bytes) or documents == self.max_documents:
                    break
                if text.strip():
                    batch.append(text)
                    documents, total, held = documents + 1, total + size, held + size
                if held > BATCH:
                    yield batch
                    batch, held = [], 0
        if not documents:
            raise UserError(f"{where}: holds no text")
        yield batch
