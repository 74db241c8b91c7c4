"""Records as one file: a zip of JSON lines and Parquet with a manifest, sealed by a digest, believed whole or not at all.

The seal finds what was cut off or altered on the way; it does not say who wrote the file. Nothing is unpacked to disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .record import SCHEMA_VERSION, DesignRecord, MarkRecord, RecordError, TrialRecord

FORMAT, VERSION = "ablate-records", 1
MANIFEST, TRIALS, DESIGNS, MARKS, CURVES = (
    "manifest.json",
    "trials.jsonl",
    "designs.jsonl",
    "marks.jsonl",
    "curves.parquet",
)
MEMBERS = (TRIALS, DESIGNS, MARKS, CURVES)
MOST_BYTES = 2**31 - 1
"""Of a file, and of what it unpacks to."""
MOST_MANIFEST_BYTES, MOST_POINTS = 2**16, 2**27
POINTS = pa.schema(
    [("record_id", pa.string()), ("metric", pa.string()), ("step", pa.int64()), ("tokens", pa.float64()), ("value", pa.float64())]
)  # fmt: skip
_SEAL = "sha256:"
_END = struct.Struct("<4s4H2LH")
"""What a zip ends with; the seal follows it, as the archive's comment."""


class ArchiveError(ValueError):
    """A file that is not taken; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Records that travel together; trials with their curves, and what was said of them later."""

    trials: list[TrialRecord] = field(default_factory=list)
    designs: list[DesignRecord] = field(default_factory=list)
    marks: list[MarkRecord] = field(default_factory=list)

    @property
    def points(self) -> int:
        return sum(len(curve) for record in self.trials for curve in record.curves.values())

    @property
    def counts(self) -> dict[str, int]:
        return {
            "trials": len(self.trials),
            "designs": len(self.designs),
            "marks": len(self.marks),
            "points": self.points,
        }


def pack(bundle: Bundle) -> bytes:
    """The file of these records: the same bytes for the same records (and versions of zlib and pyarrow), in whatever order they come."""
    trials = sorted(bundle.trials, key=lambda record: record.record_id)
    designs = sorted(bundle.designs, key=lambda design: design.design_id)
    members = {
        TRIALS: _lines(replace(record, curves={}).to_json() for record in trials),
        DESIGNS: _lines(design.to_json() for design in designs),
        MARKS: _lines(mark.to_json() for mark in sorted(bundle.marks, key=lambda mark: mark.mark_id)),
        CURVES: _parquet(trials),
    }
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "schema_version": SCHEMA_VERSION,
        "counts": bundle.counts,
        "members": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in members.items()
        },
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in {MANIFEST: _lines([json.dumps(manifest, indent=2)]), **members}.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16
            file.writestr(info, data, compresslevel=9)
    body = out.getvalue()[: -_END.size]
    seal = (_SEAL + hashlib.sha256(body).hexdigest()).encode()
    size, start = _directory(out.getvalue()[-_END.size :])
    return body + _end(1 + len(members), size, start) + seal


def unpack(data: bytes) -> Bundle:
    """The records of a file. Raises `ArchiveError` for one that was cut off, altered, made by a newer version, or holds anything that is
    not a record, or one twice, or more than it declares."""
    if not data.startswith(b"PK"):
        raise ArchiveError("not a file of ablate export")
    if len(data) > MOST_BYTES:
        raise ArchiveError(f"larger than {MOST_BYTES:,} bytes")
    try:
        _check_seal(data)
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            return _bundle(*_members(file))
    except ArchiveError:
        raise
    except RecordError as error:
        raise ArchiveError(" ".join(str(error).split())[:200]) from None
    except (zipfile.BadZipFile, zlib.error, pa.ArrowException, struct.error, NotImplementedError, RuntimeError, EOFError, OSError,
            ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:  # fmt: skip
        raise ArchiveError(
            f"cut off or altered ({' '.join(str(error).split())[:120] or type(error).__name__})"
        ) from None


def _members(file: zipfile.ZipFile) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and what it lists, of which nothing is larger than declared."""
    infos = {info.filename: info for info in file.infolist()}
    if len(infos) != len(file.infolist()):
        raise ArchiveError("two of its members have the same name")
    if MANIFEST not in infos:
        raise ArchiveError("no manifest: not a file of ablate export")
    if infos[MANIFEST].file_size > MOST_MANIFEST_BYTES:
        raise ArchiveError(f"its manifest is larger than {MOST_MANIFEST_BYTES:,} bytes")
    manifest = _json(_read(file, infos[MANIFEST]), MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArchiveError("not a file of ablate export")
    for name, newest in (("version", VERSION), ("schema_version", SCHEMA_VERSION)):
        found = manifest.get(name)
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise ArchiveError(f"manifest: {name} {found!r} is none")
        if found > newest:
            raise ArchiveError(f"made by a newer ablate ({name} {found}; this one reads up to {newest}): upgrade")
    declared = manifest["members"]
    if set(declared) != set(infos) - {MANIFEST}:
        raise ArchiveError("its members are not those that its manifest lists")
    if strange := sorted(set(declared) - set(MEMBERS)):
        raise ArchiveError(f"unknown member {strange[0]!r}")
    if missing := sorted(set(MEMBERS) - set(declared)):
        raise ArchiveError(f"member {missing[0]} is missing")
    if sum(info.file_size for info in infos.values()) > MOST_BYTES:
        raise ArchiveError(f"unpacks to more than {MOST_BYTES:,} bytes")
    members = {}
    for name in MEMBERS:
        if infos[name].file_size != declared[name]["bytes"]:
            raise ArchiveError(f"{name}: not as long as the manifest says")
        members[name] = _read(file, infos[name])
        if hashlib.sha256(members[name]).hexdigest() != declared[name]["sha256"]:
            raise ArchiveError(f"{name}: cut off or altered (its digest is another)")
    return manifest, members


def _read(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member, as far as it has declared its size."""
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"{info.filename!r}: encrypted, or compressed in another way than ours")
    with file.open(info) as member:
        data = member.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise ArchiveError(f"{info.filename!r}: not as long as it says")
    return data


def _check_seal(data: bytes) -> None:
    """A zip may be changed in many places that nothing reads; the seal is over all of it."""
    length = _END.size + len(_SEAL) + 64
    body, end, seal = data[:-length], data[-length : _END.size - length], data[_END.size - length :]
    if seal != (_SEAL + hashlib.sha256(body).hexdigest()).encode():
        raise ArchiveError("cut off or altered (its digest is another)")
    members, (size, start) = _END.unpack(end)[3], _directory(end)
    if end != _end(members, size, start) or start + size != len(body):
        raise ArchiveError("cut off or altered (its end is another)")


def _end(members: int, size: int, start: int) -> bytes:
    return _END.pack(b"PK\5\6", 0, 0, members, members, size, start, len(_SEAL) + 64)


def _directory(end: bytes) -> tuple[int, int]:
    """Length and place of a zip's table of contents."""
    return _END.unpack(end)[5:7]


def _bundle(manifest: dict[str, Any], members: dict[str, bytes]) -> Bundle:
    trials = _records(members[TRIALS], TRIALS, TrialRecord.from_dict, lambda record: record.record_id)
    designs = _records(members[DESIGNS], DESIGNS, DesignRecord.from_dict, lambda design: design.design_id)
    marks = _records(members[MARKS], MARKS, MarkRecord.from_dict, lambda mark: mark.mark_id)
    if strays := [record_id for record_id, record in trials.items() if record.curves]:
        raise ArchiveError(f"{TRIALS}: record {strays[0]} has curves, which belong into {CURVES}")
    curves = _curves(members[CURVES], set(trials), manifest["counts"]["points"])
    bundle = Bundle(
        [replace(record, curves=curves.get(record_id, {})) for record_id, record in trials.items()],
        list(designs.values()),
        list(marks.values()),
    )
    if bundle.counts != manifest["counts"]:
        raise ArchiveError(f"holds {bundle.counts}, and declares {manifest['counts']}")
    return bundle


def _records(data: bytes, member: str, parse: Callable[[Any], Any], name: Callable[[Any], str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    lines = data.split(b"\n")
    if lines.pop():
        raise ArchiveError(f"{member}: its last line is cut off")
    for number, line in enumerate(lines, 1):
        where = f"{member}:{number}"
        try:
            record = parse(_json(line, where))
        except RecordError as error:
            raise ArchiveError(f"{where}: {' '.join(str(error).split())[:200]}") from None
        if name(record) in found:
            raise ArchiveError(f"{where}: {name(record)} is there twice")
        found[name(record)] = record
    return found


def _json(data: bytes, where: str) -> Any:
    def refuse(constant: str) -> None:
        raise ArchiveError(f"{where}: {constant} is not a finite number")

    try:
        return json.loads(data, parse_constant=refuse)
    except ArchiveError:
        raise
    except (
        ValueError,
        RecursionError,
    ) as error:  # no JSON, no UTF-8, a number of thousands of digits, or a thousand brackets
        raise ArchiveError(f"{where}: not JSON ({str(error)[:100]})") from None


def _lines(texts: Iterable[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def _parquet(trials: list[TrialRecord]) -> bytes:
    rows = [
        (record.record_id, metric, round(step), float(tokens), float(value))
        for record in trials
        for metric, curve in sorted(record.curves.items())
        for step, tokens, value in sorted(curve)
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(POINTS)
    table = pa.table([pa.array(column, kind.type) for column, kind in zip(columns, POINTS, strict=True)], POINTS)
    out = pa.BufferOutputStream()
    pq.write_table(table, out, compression="none")  # the zip does that, and here it could hide a bomb
    return out.getvalue().to_pybytes()


def _curves(data: bytes, known: set[str], declared: int) -> dict[str, dict[str, list[list[float]]]]:
    head = pq.read_metadata(pa.BufferReader(data))
    if head.schema.to_arrow_schema() != POINTS or head.num_rows != declared or declared > MOST_POINTS:
        raise ArchiveError(f"{CURVES}: not the columns, or not the rows, that were declared")
    groups = [head.row_group(i) for i in range(head.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    if any(chunk.compression != "UNCOMPRESSED" or chunk.total_uncompressed_size > len(data) for chunk in chunks):
        raise ArchiveError(f"{CURVES}: compressed in another way than ours")
    # what repeats stays a dictionary: a file of a kilobyte may name a megabyte a million times
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=["record_id", "metric"])
    curves: dict[str, dict[str, list[list[float]]]] = {}
    rows = 0
    for batch in file.iter_batches(batch_size=2**16):
        rows += batch.num_rows
        if rows > declared:
            break
        for record_id, metric, step, tokens, value in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            if record_id not in known:
                raise ArchiveError(f"{CURVES}: a curve of {str(record_id)[:64]!r}, which is not in {TRIALS}")
            curves.setdefault(record_id, {}).setdefault(metric, []).append([step, tokens, value])
    if rows != declared:
        raise ArchiveError(f"{CURVES}: not the rows that were declared")
    return curves
