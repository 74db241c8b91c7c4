"""What a suite found, as files for readers who have no registry: made from records alone, and the same for the same records."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from . import tables
from ._grid import Frame
from .analysis import scales
from .archive import pack
from .exchange import select, write_bytes
from .home import home as default_home
from .leaderboard import Leaderboard, RegistryEmpty
from .mirror import sync
from .record import METRICS
from .report import Report, report
from .sql import Sandbox
from .store import Store

SMALL = 2**20
"""Bytes up to which the records themselves are published beside what they say."""
EXPORT = "records.ablate"
_KEYS = ("suite", "scale", "cell", "seed", "purpose", "status")
_ORIGIN = """
    cause step_mode exclusive trial_id record_id environment_id corpus_fingerprint evaluation_fingerprint text_fingerprint code_fingerprint
    git_revision git_dirty ablate_version started_at finished_at
""".split()
_FINGERPRINTS = ("corpus_fingerprint", "evaluation_fingerprint", "text_fingerprint", "code_fingerprint")


class PublishError(ValueError):
    """What is not published, and why, in one line."""


@dataclass(frozen=True, slots=True)
class Publication:
    """The files of a suite at one scale on one kind of hardware, by name, for the folder `<suite>/<scale>/<hardware>`."""

    folder: str
    files: dict[str, bytes]

    def write(self, into: Path) -> Path:
        """Put the files there; an export that is not among them was one of other records."""
        path = into / self.folder
        path.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            write_bytes(path / name, data)
        if EXPORT not in self.files:
            (path / EXPORT).unlink(missing_ok=True)
        return path


def publish(
    suite: str, scale: str | None = None, *, unverified: bool = False, home: Path | None = None, tracking_uri: str | None = None
) -> list[Publication]:  # fmt: skip
    """The publications of a suite, one per scale and kind of hardware, there of the environment with the most finished trials. Nothing is
    written.

    Raises `PublishError` for records that nobody could check: from a checkout with uncommitted changes, without a revision, damaged,
    refuted or retracted. With `unverified` they are published, and the files say so.
    """
    place = {"home": home, "tracking_uri": tracking_uri}
    known = scales(suite, **place)
    if scale is not None and scale not in known:
        raise RegistryEmpty(f'no results for suite "{suite}" at scale "{scale}"; there are some at: {", ".join(known)}')
    return [
        _publication(suite, one, environment_id, unverified, place)
        for one in (known if scale is None else [scale])
        for environment_id in _environments(suite, one, place)
    ]


def _environments(suite: str, scale: str, place: dict[str, Any]) -> list[str]:
    """Of each device the environment with the most finished trials, the newest of them."""
    trials: Frame = Leaderboard(**place).suite(suite, scale).trials()
    primary = trials[trials["purpose"] == "primary"].assign(finished=lambda frame: frame["status"] == "finished")
    found = primary.groupby(["device", "environment_id"]).agg(n=("finished", "sum"), last=("finished_at", "max"))
    best = found.reset_index().sort_values(["n", "last", "environment_id"]).groupby("device").last()
    return list(best["environment_id"])


def _publication(suite: str, scale: str, environment_id: str, unverified: bool, place: dict[str, Any]) -> Publication:
    trials: Frame = Leaderboard(**place).suite(suite, scale).trials()
    trials = trials[trials["environment_id"] == environment_id].sort_values(["cell", "seed", "purpose", "record_id"])
    device = str(trials["device"].iloc[0])
    folder = "/".join([*suite.split("/"), scale, _slug(device)])
    if not all(re.fullmatch(r"\w[\w.-]*", part) for part in folder.split("/")):
        raise PublishError(f"suite {suite!r} at scale {scale!r} on {device!r} cannot name a folder")
    troubles = list(_troubles(trials, environment_id, place))
    if troubles and not unverified:
        what = "; ".join(troubles)
        raise PublishError(f"{suite} {scale} on {device}: {what}: --unverified publishes it and says so")
    notes = tuple(f"Published although nobody can check all of it: {trouble}." for trouble in troubles)
    made = report(suite, scale, environment_id=environment_id, **place)
    made = Report(replace(made.found, notes=(*notes, *made.found.notes)), made.sources)
    files = {
        "trials.csv": _text(_trials(trials, list(made.found.design.factors)), "csv"),
        "effects.csv": _text(made.found.contrasts, "csv"),
        "val_loss.csv": _text(_curves(made), "csv"),
        "report.md": made.render("markdown").encode(),
        "env.json": _text(_environment(trials), "json", (*notes, *made.found.notes)),
    }
    records = pack(select(suite, scale, (f"environment_id = '{environment_id}'",), **place))
    return Publication(folder, files | ({EXPORT: records} if len(records) <= SMALL else {}))


def _troubles(trials: Frame, environment_id: str, place: dict[str, Any]) -> Iterator[str]:
    """Why what would be published cannot be checked."""
    n = len(trials)
    missing = trials[list(_FINGERPRINTS)].isin(["", "unknown"]).any(axis="columns").sum()
    for count, what in (
        (trials["git_dirty"].sum(), "from a checkout with uncommitted changes"),
        ((trials["git_revision"] == "").sum(), "without a git revision"),
        (missing, "without a fingerprint of corpus, held-out text or code"),
        ((trials["refuted"] > trials["verified"]).sum(), "did not reproduce"),
    ):
        if count:
            yield f"{count} of {n} records {what}"
    mirror = sync(Store.open(place["home"] or default_home(), place["tracking_uri"], create=False))
    if mirror.damaged:
        yield f"{len(mirror.damaged)} of the registry's runs damaged"
    with Sandbox(mirror) as sandbox:
        suite, scale = trials["suite"].iloc[0], trials["scale"].iloc[0]
        rows = sandbox.rows(
            "SELECT trial_id, suite, scale, bool_or(counts) AS counts FROM (SELECT trials.* REPLACE (designs.suite AS suite, "
            "designs.scale AS scale) FROM designs JOIN trials USING (trial_id) WHERE designs.latest AND purpose = 'primary' "
            f"AND environment_id = '{environment_id}') GROUP BY ALL HAVING NOT bool_or(counts) AND max(retracted) <> ''"
        )
    if withdrawn := sum((row["suite"], row["scale"]) == (suite, scale) for row in rows):
        yield f"{withdrawn} {'trial has' if withdrawn == 1 else 'trials have'} only retracted records"


def _trials(trials: Frame, factors: list[str]) -> pd.DataFrame:
    """One row per record: its cell, a column per factor, metrics in their units, and where it comes from."""
    levels = [json.loads(text) for text in trials["levels"]]
    labels = {factor: [one.get(factor) for one in levels] for factor in factors}
    metrics = [name for name in METRICS if name in trials and trials[name].notna().any()]
    origin = [name for name in _ORIGIN if name in trials]
    parts = [trials[list(_KEYS)], pd.DataFrame(labels, index=trials.index), trials[[*metrics, *origin]]]
    return pd.concat(parts, axis="columns").drop(columns=["suite", "scale"])


def _curves(made: Report) -> pd.DataFrame:
    trials = made.found.trials.dropna(subset=["record_id"]) if "record_id" in made.found.trials else pd.DataFrame()
    rows = [
        (trial["cell"], trial["seed"], *point)
        for trial in trials.to_dict("records")
        for point in made.found.curves.get(trial["record_id"], {}).get("val_loss", [])
    ]
    return pd.DataFrame(rows, columns=["cell", "seed", "step", "tokens", "val_loss"])


def _environment(trials: Frame) -> pd.DataFrame:
    first = trials.iloc[0]
    return pd.DataFrame([{"environment_id": first["environment_id"], **json.loads(first["environment"])}])


def _text(frame: pd.DataFrame, form: str, notes: tuple[str, ...] = ()) -> bytes:
    out = io.StringIO()
    tables.render(frame, form, Console(file=out), notes)
    return out.getvalue().encode()


def _slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
