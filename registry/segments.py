"""Append-only tables as Parquet files: each change adds a small file, and small files are merged into larger ones.

One manifest names the files of all tables, and is replaced as a whole: a reader sees a state that was, without a lock. A file
is never changed once it is named, and is kept for an hour after it no longer is, for readers that still have to open it.
"""

from __future__ import annotations

import json
import time
import uuid
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from .locks import write_whole

MANIFEST = "manifest.json"
ROW_GROUP = 4096
"""Rows that are read or skipped together, by what a filter says of the column that the rows are sorted by."""
MERGE = 4
"""A file is merged into the one before it unless that one has more than so many times its rows."""
GRACE_S = 3600.0
TYPES = {str(kind): kind for kind in (pa.null(), pa.bool_(), pa.int64(), pa.float64(), pa.string())}


@dataclass(frozen=True, slots=True)
class File:
    """A Parquet file as it was written, without the columns that are null in all its rows."""

    name: str
    columns: list[str]
    rows: int
    size: int
    mtime_ns: int
    crc: int


@dataclass(slots=True)
class Table:
    """The files that make up a table, and the type of each of its columns."""

    columns: dict[str, str] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(name, TYPES[kind]) for name, kind in self.columns.items()])


class Segments:
    """The tables in a folder, and facts that belong to this state of them. Changed by one writer at a time."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder, self.version = folder, version
        self.tables: dict[str, Table] = {}
        self.facts: dict[str, Any] = {}
        self._old: list[str] = []

    @classmethod
    def open(cls, folder: Path, version: str) -> Segments | None:
        """What is in the folder; None if that is nothing, of another version, or damaged."""
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
            crc, _, body = text.partition("\n")
            data = json.loads(body) if int(crc) == zlib.crc32(body.encode()) else {}
            if data.get("version") != version:
                return None
            found = cls.of(folder, version, data)
            sound = all(_sound(folder / file.name, file) for table in found.tables.values() for file in table.files)
        except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError):
            return None
        return found if sound else None

    @classmethod
    def of(cls, folder: Path, version: str, data: dict[str, Any]) -> Segments:
        """The state that was `described`."""
        found = cls(folder, version)
        for name, table in data["tables"].items():
            found.tables[name] = Table(table["columns"], [File(**file) for file in table["files"]])
        found.facts = data["facts"]
        return found

    def described(self) -> str:
        """This state in JSON."""
        tables = {name: asdict(table) for name, table in self.tables.items()}
        return json.dumps({"version": self.version, "facts": self.facts, "tables": tables})

    def commit(self) -> None:
        """Make this state the one that is read from now on."""
        body = self.described()
        write_whole(self.folder / MANIFEST, f"{zlib.crc32(body.encode())}\n{body}")
        named = {file.name for table in self.tables.values() for file in table.files}
        for path in self.folder.glob("*.parquet"):
            if path.name in self._old:
                path.touch()  # its hour begins
            elif path.name not in named and path.stat().st_mtime < time.time() - GRACE_S:
                path.unlink(missing_ok=True)
        self._old = []

    def dataset(self, name: str, least: pa.Schema) -> ds.Dataset:
        """A table, which has the columns of `least` whether there are rows or not. Of its files, mapped into memory now, what is asked
        for is read when it is asked for, also by who may open no file then."""
        table = self.tables.get(name, Table())
        fields = {field.name: field for field in least} | {field.name: field for field in table.schema}
        if not table.files:
            return ds.dataset(pa.schema(list(fields.values())).empty_table())
        form = ds.ParquetFileFormat()
        parts = [form.make_fragment(pa.memory_map(str(self.folder / file.name)).read_buffer()) for file in table.files]
        return ds.FileSystemDataset(parts, pa.schema(list(fields.values())), form)

    def put(self, name: str, rows: pa.Table) -> None:
        """Let a table consist of these rows."""
        table = self.tables.setdefault(name, Table())
        table.columns = {field.name: str(field.type) for field in rows.schema}
        self._replace(table, [], [rows], [])

    def append(self, name: str, new: list[pa.Table], sort: list[str]) -> None:
        """Add rows, sorted by the columns `sort` within each file. A column takes the widest type that it ever had."""
        if not any(part.num_rows for part in new):
            return
        table = self.tables.setdefault(name, Table())
        old = table.schema
        wide = dict(table.columns)
        for one in (column for part in new for column in part.schema):
            wide[one.name] = _wider(wide.get(one.name, "null"), str(one.type))
        kept, parts = table.files, [part for part in new if part.num_rows]
        if any(kind not in ("null", wide[column]) for column, kind in table.columns.items()):
            kept, parts = [], [*(_read(self.folder / file.name, old) for file in kept), *parts]
        while kept and parts and kept[-1].rows <= MERGE * sum(part.num_rows for part in parts):
            kept, parts = kept[:-1], [_read(self.folder / kept[-1].name, old), *parts]
        table.columns = wide
        self._replace(table, kept, parts, sort)

    def drop(self, name: str, column: str, values: set[str]) -> None:
        """Remove the rows that have one of `values`, from the files that hold any; the others keep their order."""
        table = self.tables[name]
        kept, left = [], []
        for file in table.files:
            part = _read(self.folder / file.name, table.schema)
            stays = [value not in values for value in part[column].to_pylist()]
            if all(stays):
                kept.append(file)
            else:
                left.append(part.filter(pa.array(stays, pa.bool_())))
        if len(kept) < len(table.files):
            self._replace(table, kept, left, [])

    def _replace(self, table: Table, kept: list[File], parts: list[pa.Table], sort: list[str]) -> None:
        """Let a table consist of the files `kept` and one of `parts`."""
        self._old += [file.name for file in table.files if file not in kept]
        table.files = list(kept)
        parts = [_shaped(part, table.schema) for part in parts if part.num_rows]
        if parts:
            whole = pa.concat_tables(parts)
            table.files.append(
                self._write(whole.sort_by([(column, "ascending") for column in sort]) if sort else whole)
            )

    def _write(self, rows: pa.Table) -> File:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{uuid.uuid4().hex}.parquet"
        rows = rows.select([name for name in rows.column_names if not pa.types.is_null(rows.schema.field(name).type)])
        pq.write_table(rows, path, compression="zstd", row_group_size=ROW_GROUP)
        stat = path.stat()
        return File(path.name, rows.column_names, rows.num_rows, stat.st_size, stat.st_mtime_ns, _crc(path))


def _sound(path: Path, file: File) -> bool:
    """Whether this is the file that was written. Its bytes are only read if its time stamp is not the one it had."""
    stat = path.stat()
    return stat.st_size == file.size and (stat.st_mtime_ns == file.mtime_ns or _crc(path) == file.crc)


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    file = pq.ParquetFile(path)
    there = set(file.schema_arrow.names)
    return _shaped(file.read([name for name in schema.names if name in there]), schema)


def _shaped(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with the columns of `schema`, cast to their types."""
    there = set(rows.column_names)
    columns = [
        rows[field.name].cast(field.type) if field.name in there else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _wider(first: str, second: str) -> str:
    if first == second or second == "null":
        return first
    if first == "null":
        return second
    return "double" if {first, second} == {"int64", "double"} else "string"
