"""Records from one registry to another, as a file (see `registry.archive`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from . import layout
from .archive import MOST_BYTES, ArchiveError, Bundle, pack, unpack
from .home import home as default_home
from .layout import TaggedRun
from .leaderboard import Leaderboard, RegistryEmpty, cells_view
from .mirror import sync
from .record import DesignRecord, TrialRecord
from .sql import Sandbox
from .store import Changes, Store

__all__ = ["ArchiveError", "Taken", "export_records", "import_records", "select"]


@dataclass(frozen=True, slots=True)
class Taken:
    """What an import did: how many of each kind were new, and how many the registry had."""

    new: dict[str, int]
    known: dict[str, int]


def export_records(
    path: Path, suite: str | None = None, scale: str | None = None, where: tuple[str, ...] = (), *, home: Path | None = None,
    tracking_uri: str | None = None,
) -> Bundle:  # fmt: skip
    """Write what `select` finds to `path`, whole or not at all, and return it."""
    bundle = select(suite, scale, where, home=home, tracking_uri=tracking_uri)
    write_bytes(path, pack(bundle))
    return bundle


def select(
    suite: str | None = None, scale: str | None = None, where: tuple[str, ...] = (), *, home: Path | None = None,
    tracking_uri: str | None = None,
) -> Bundle:  # fmt: skip
    """Records with their curves: all of them, or those of a suite and scale: its designs, the trials that these name (whichever suite they
    ran for) and those recorded under its name; of these the ones for which each SQL expression over the view `trials` holds.

    Raises `RegistryEmpty` where there is none, `QueryError` for an expression that cannot be answered.
    """
    store = Store.open(home or default_home(), tracking_uri, create=False)
    mirror = sync(store)
    with Sandbox(mirror) as sandbox:
        ids = sandbox.rows("SELECT * FROM trials", where, ("count(*) AS n", "record_id"))
    chosen = {row["record_id"] for row in ids}
    designs = [design for design in store.designs() if _is_of(design, suite, scale)]
    named = {trial["trial_id"] for design in designs for trial in design.trials}
    trials = [
        record for record in store.trials()
        if record.record_id in chosen and (_is_of(record, suite, scale) or record.trial_id in named)
    ]  # fmt: skip
    if where:
        found = {record.trial_id for record in trials}
        designs = [design for design in designs if any(trial["trial_id"] in found for trial in design.trials)]
    if not trials and not designs:
        what = " ".join(filter(None, [f"of suite {suite!r}" if suite else "", f"at scale {scale!r}" if scale else ""]))
        holds = f"for which {' AND '.join(where)}" if where else ""
        raise RegistryEmpty(" ".join(filter(None, ["no results", what or ("" if where else "yet"), holds])))
    ids = {record.record_id for record in trials}
    curves = store.all_curves(sorted(ids))
    whole = suite is None and scale is None and not where
    # those of records that are gone, too: a copy that comes back is known by them
    marks = [mark for mark in store.marks() if whole or mark.record_id in ids or mark.trial_id in named]
    return Bundle([replace(record, curves=curves.get(record.record_id, {})) for record in trials], designs, marks)


def import_records(path: Path, *, home: Path | None = None, tracking_uri: str | None = None) -> Taken:
    """Take over the records of a file, unless the registry has them; nothing is written before all is checked.

    Raises `ArchiveError` for a file that `registry.archive.unpack` refuses, or of which a record has the id of another in the registry
    or could not be shown beside what is there.
    """
    try:
        bundle = unpack(_read(path))
        store = Store.open(home or default_home(), tracking_uri, create=False)
        new = _new(store, bundle)
        _try_out(new)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}; nothing was imported") from None
    if new.trials or new.designs or new.marks:
        _write(Store.open(home or default_home(), tracking_uri), new)
    counts = {kind: count for kind, count in new.counts.items() if kind != "points"}
    return Taken(counts, {kind: bundle.counts[kind] - count for kind, count in counts.items()})


def write_bytes(path: Path, data: bytes) -> None:
    """Put a file at `path`, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ArchiveError("not a file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ArchiveError(f"larger ({size:,} bytes) than {MOST_BYTES:,} bytes")
    return path.read_bytes()


def _write(store: Store, new: Bundle) -> None:
    for design in new.designs:
        store.write_design(design)
    for mark in new.marks:  # before what they speak of: a retracted record counts at no time
        store.write_mark(mark)
    store.write_trials(new.trials)


def _is_of(record: TrialRecord | DesignRecord, suite: str | None, scale: str | None) -> bool:
    return suite in (None, record.suite) and scale in (None, record.scale)


def _new(store: Store, bundle: Bundle) -> Bundle:
    """What the registry does not have. What it has must be the same, curves too."""
    designs = _unknown(bundle.designs, {design.design_id: design for design in store.designs()}, "design_id")
    bare = [replace(record, curves={}) for record in bundle.trials]
    missing = {record.record_id for record in _unknown(bare, {r.record_id: r for r in store.trials()}, "record_id")}
    known = [record for record in bundle.trials if record.record_id not in missing]
    curves = store.all_curves([record.record_id for record in known]) if known else {}
    for record in known:
        if curves.get(record.record_id, {}) != record.curves:
            raise ArchiveError(f"record {record.record_id} is in the registry with other curves")
    marks = _unknown(bundle.marks, {mark.mark_id: mark for mark in store.marks()}, "mark_id")
    return Bundle([record for record in bundle.trials if record.record_id in missing], designs, marks)


def _unknown(records: Iterable[Any], known: dict[str, Any], key: str) -> list[Any]:
    found = []
    for record in records:
        old = known.get(name := getattr(record, key))
        if old is None:
            found.append(record)
        elif old.to_json() != record.to_json():
            differs = [field for field, value in record.to_dict().items() if old.to_dict()[field] != value]
            raise ArchiveError(f"record {name} is in the registry with other content ({', '.join(differs[:5])})")
    return found


class _Unwritten(Store):
    """The records of a file as the store would give them."""

    def __init__(self, home: Path, bundle: Bundle) -> None:
        super().__init__(home, "file-of-records")
        self._runs = {
            "trial": [TaggedRun(record.record_id, layout.trial_tags(record)) for record in bundle.trials],
            "design": [TaggedRun(design.design_id, layout.design_tags(design)) for design in bundle.designs],
            "mark": [TaggedRun(mark.mark_id, layout.mark_run(mark).tags) for mark in bundle.marks],
        }

    def changes(self, kind: layout.Kind, known: set[str] | None = None, since: datetime | None = None) -> Changes:
        runs = self._runs.get(kind, [])
        return Changes({run.run_id for run in runs}, [run for run in runs if run.run_id not in (known or ())])


def _try_out(new: Bundle) -> None:
    """Write and read the records without the store: one that it or the leaderboard chokes on would be there for good."""
    try:
        for record in new.trials:
            stored = layout.trial_run(record, record.context.get("levels", {})).metrics
            curves = layout.curves((key, step, value) for key, value, step in stored if key.startswith(layout.CURVES))
            if curves != record.curves:
                raise ArchiveError(f"the curves of {record.record_id} have names or steps that cannot be kept")
        with tempfile.TemporaryDirectory() as folder:
            cells_view(Leaderboard(), sync(_Unwritten(Path(folder), new)))
    except (ArchiveError, RegistryEmpty) as error:
        if isinstance(error, ArchiveError):
            raise
    except Exception as error:  # whatever it is, the file is refused
        raise ArchiveError(f"a record cannot be shown ({' '.join(str(error).split())[:200]})") from None
