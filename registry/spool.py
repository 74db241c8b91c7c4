"""Records on their way into the store: one file each, written whole, cleared when the store has them."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

from .locks import write_whole
from .record import RecordError, TrialRecord


class SpoolWarning(UserWarning):
    """A spooled file that is no record; it was moved aside."""


class Spool:
    """The records in `home/spool` that have not reached the store. A record there counts as done."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "spool"

    def put(self, record: TrialRecord) -> None:
        """Write `record`: when this returns it survives a crash of the process and of the machine."""
        text = record.to_json()
        write_whole(self._path(record.record_id), f"{text}\n{_checksum(text.encode())}")

    def records(self) -> list[TrialRecord]:
        """Every whole record, oldest attempt first. A damaged file goes to `damaged/`, with a `SpoolWarning`."""
        found = []
        for path in sorted(self.folder.glob("[!.]*.json")):
            try:
                text, _, checksum = path.read_bytes().partition(b"\n")
                record = TrialRecord.from_json(text)
                if checksum and checksum.decode("ascii", "replace") != _checksum(text):
                    raise RecordError("its checksum is another one")
                if record.record_id != path.stem:
                    raise RecordError(f"record_id: {record.record_id!r} is not the name of its file")
            except FileNotFoundError:
                continue  # cleared by another process in between
            except (RecordError, OSError, RecursionError) as error:
                self._set_aside(path, error)
            else:
                found.append(record)
        return sorted(found, key=lambda record: (record.finished_at, record.record_id))

    def find(self, attempt_key: str) -> TrialRecord | None:
        """The latest spooled record of an attempt, if there is one."""
        return next((record for record in reversed(self.records()) if record.attempt_key == attempt_key), None)

    def clear(self, record_id: str) -> None:
        """Forget a record that the store has."""
        self._path(record_id).unlink(missing_ok=True)

    def _path(self, record_id: str) -> Path:
        if "/" in record_id or record_id.startswith("."):
            raise RecordError(f"record_id: {record_id!r} cannot name a file")
        return self.folder / f"{record_id}.json"

    def _set_aside(self, path: Path, reason: Exception) -> None:
        target = self.folder / "damaged" / path.name
        target.parent.mkdir(exist_ok=True)
        try:
            os.replace(path, target)
        except FileNotFoundError:
            return  # set aside by another process in between
        warnings.warn(f"{target}: not a record, moved out of the spool ({reason})", SpoolWarning, stacklevel=3)


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
