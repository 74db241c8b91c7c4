"""What may be thrown away: caches, what runs left, and the runs of records that were retracted."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ablate.errors import UserError
from ablate.scratch import abandoned
from ablate.status import running
from registry import Store
from registry.locks import UNFINISHED

DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Heap:
    """Things of one kind that are thrown away: what they are, how many, and their size in bytes."""

    what: str
    count: int
    bytes: int


def clear(home: Path, *, days: float, retracted: bool, dry_run: bool) -> list[Heap]:
    """Throw away what can be made again and what nobody reads any more; with `dry_run` only say what that would be.

    Prepared corpora and compiled steps are made again when they are needed. Logs and checkpoints go once they are `days` old, files whose
    writer was killed after a day, folders of Ray and checkouts once their command is dead. Downloaded corpora stay: they cannot be made
    again without a network. With `retracted` the MLflow runs of retracted records are deleted (MLflow keeps deleted runs until
    `mlflow gc`); their marks stay, so that a copy of such a record that comes in later is known to be retracted.

    Raises:
        UserError: trials are running, which use all this.
    """
    if not dry_run and (busy := running(home)):
        raise UserError(
            f"{len(busy)} trials are running, which use what would be cleared: wait for them, or look with --dry-run"
        )
    oldest = time.time() - days * DAY
    heaps = [
        _throw("prepared corpora", _prepared(home / "cache" / "tokens"), dry_run),
        _throw("compiled steps", (home / "cache" / "inductor").glob("*"), dry_run),
        _throw(f"logs older than {days:g} days", _older((home / "logs").glob("*.log"), oldest), dry_run),
        _throw(f"checkpoints older than {days:g} days", _older((home / "checkpoints").glob("*"), oldest), dry_run),
        _throw("files that were never finished", _older((home / "spool").glob(UNFINISHED), time.time() - DAY), dry_run),
        _throw("what killed commands left", abandoned(), dry_run),
    ]
    if retracted:
        heaps.append(_runs(home, dry_run))
    return heaps


def _older(paths: Iterator[Path], than: float) -> Iterator[Path]:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # finished in between
            if path.lstat().st_mtime < than:
                yield path


def _throw(what: str, paths: Iterator[Path], dry_run: bool) -> Heap:
    count = total = 0
    for path in paths:
        count, total = count + 1, total + _size(path)
        if dry_run:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return Heap(what, count, total)


def _prepared(folder: Path) -> Iterator[Path]:
    """The prepared corpora that nobody is at, each locked while the caller has it. What is locked, and the lock, stay."""
    for path in folder.glob("[!.]*"):
        if path.is_dir():
            # while a corpus is prepared it lies in NAME.partial, under the lock of NAME
            with contextlib.suppress(Timeout), FileLock(f"{path.with_suffix('')}.lock", timeout=0):
                yield path


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def _runs(home: Path, dry_run: bool) -> Heap:
    store = Store.open(home, create=False)
    return Heap("runs of retracted records", store.delete(list(store.retracted()), dry_run=dry_run), 0)
