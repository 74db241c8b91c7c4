"""What a site shows: the cells of the newest designs with their records, and what the leaderboard makes of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import stdtrit

from ._fit import Estimate, paired
from ._grid import Frame
from .leaderboard import Leaderboard
from .mirror import Mirror
from .record import METRICS, DesignRecord
from .sql import Sandbox

Row = Mapping[str, Any]
Key = tuple[str, str, str, str, str, str]
"""Suite, scale, environment, evaluation, cell id, name of the cell."""
_FIELDS = (
    "suite scale environment_id evaluation_fingerprint cell_id cell control levels record_id trial_id seed purpose status cause counts "
    "exclusive device started_at finished_at git_revision git_dirty ablate_version code_fingerprint corpus_fingerprint step_mode recipe "
    "environment context"
).split()
_MARKS = ("retracted", "verified", "refuted")
"""Columns of registries that know of retractions and verifications."""
_OF_THE_DESIGN = ("suite", "scale", "cell_id", "control", "cell", "levels")


@dataclass(frozen=True)
class Cell:
    """A cell of a suite at a scale in an environment: its attempts, counted ones first, and its row of the leaderboard (None where
    nothing counts). `baseline` is the suite's, of the same environment and evaluation, where it was run."""

    key: Key
    control: str
    levels: dict[str, str]
    records: list[Row]
    board: Row | None
    is_baseline: bool
    shared_rank: bool = False
    baseline: Cell | None = None

    @property
    def suite(self) -> str:
        return self.key[0]

    @property
    def scale(self) -> str:
        return self.key[1]

    @property
    def environment_id(self) -> str:
        return self.key[2]

    @property
    def name(self) -> str:
        return self.key[5]

    @property
    def device(self) -> str:
        return str(self.records[0]["device"])

    @property
    def newest(self) -> str:
        """When its newest attempt ended."""
        return max(str(record["finished_at"]) for record in self.records)

    @property
    def parameters(self) -> float:
        return max((float(record["parameters"] or 0.0) for record in self.records), default=0.0)

    @property
    def path(self) -> str:
        """Of its page in the site; of readable characters alone, whatever the names are."""
        digest = hashlib.sha256(json.dumps(self.key).encode(errors="backslashreplace")).hexdigest()[:10]
        return f"cells/{slug(self.suite)}@{slug(self.scale)}-{slug(self.name)}-{digest}.html"

    def value(self, metric: str) -> float:
        found = self.board.get(metric) if self.board else None
        return math.nan if found is None else float(found)

    def half_width(self, metric: str) -> float:
        """Of the 95 % interval of the mean over seeds; NaN where there is none."""
        board = self.board or {}
        error, n = board.get(f"{metric}_sem"), board.get("n") or 0
        if error is None or math.isnan(error) or n < 2:
            return math.nan
        return float(stdtrit(n - 1, 0.975)) * float(error)

    @cached_property
    def losses(self) -> dict[int, float]:
        """val_loss by seed, of the attempts that count."""
        return {
            int(record["seed"]): float(record["val_loss"])
            for record in self.records if record["counts"] and record["status"] == "finished" and record["val_loss"] is not None
        }  # fmt: skip

    @cached_property
    def against_baseline(self) -> Estimate | None:
        """What val_loss is more than the baseline's, paired by seed; None without a common seed."""
        if self.is_baseline or self.baseline is None or self.control == "aa":
            return None
        seeds = sorted(self.losses.keys() & self.baseline.losses.keys())
        return paired(np.array([[self.losses[s] - self.baseline.losses[s] for s in seeds]])) if seeds else None

    def marked(self, what: str) -> int:
        """How many of its records are `retracted`; how often they were `verified` or `refuted`."""
        values = [record.get(what) for record in self.records]
        return sum(bool(value) for value in values) if what == "retracted" else sum(int(value or 0) for value in values)


def cells(mirror: Mirror, board: Leaderboard, designs: Mapping[str, Mapping[str, DesignRecord]]) -> list[Cell]:
    """The cells of all suites: by suite and scale, best first within each, as on the leaderboard."""
    rows = {_key(row): row for row in _plain(board.frame().to_dict("records"))}
    groups: dict[Key, list[Row]] = {}
    for record in _attempts(mirror, [design for by_scale in designs.values() for design in by_scale.values()]):
        groups.setdefault(_key(record), []).append(record)
    order = {key: place for place, key in enumerate(rows)}
    ranks = [(key[:4], row["rank"]) for key, row in rows.items()]
    made: list[Cell] = []
    for key in sorted(groups, key=lambda key: (key[0], key[1], order.get(key, len(order)), key)):
        records = sorted(
            groups[key], key=lambda r: (not r["counts"], r["purpose"], r["seed"], r["finished_at"], r["record_id"])
        )
        levels, control = json.loads(str(records[0]["levels"])), str(records[0]["control"])
        row = rows.get(key)
        usual = not control and levels == designs[key[0]][key[1]].baseline
        shared = row is not None and row["rank"] is not None and ranks.count((key[:4], row["rank"])) > 1
        made.append(Cell(key, control, levels, records, row, usual, shared))
    baselines = {one.key[:4]: one for one in made if one.is_baseline}
    for one in made:
        object.__setattr__(one, "baseline", baselines.get(one.key[:4]))
    return made


def _key(row: Row) -> Key:
    return tuple(
        str(row[name]) for name in ("suite", "scale", "environment_id", "evaluation_fingerprint", "cell_id", "cell")
    )  # type: ignore[return-value]


def _attempts(mirror: Mirror, designs: Sequence[DesignRecord]) -> Iterator[Row]:
    """Every attempt at a trial of these designs, retracted ones and verifications too; one design's at a time, for an answer has a
    largest size."""
    with Sandbox(mirror) as sandbox:
        there = list(sandbox.frame("SELECT * FROM trials LIMIT 0").columns)
        own = [
            f'trials."{name}"' for name in (*_FIELDS, *_MARKS, *METRICS) if name in there and name not in _OF_THE_DESIGN
        ]
        wanted = ", ".join([*own, *(f"designs.{name}" for name in _OF_THE_DESIGN)])
        for design in designs:
            frame: Frame = sandbox.frame(
                f"SELECT {wanted} FROM designs JOIN trials USING (trial_id) WHERE design_id = '{design.design_id}'"  # an id has no quotes
            )
            yield from _plain(frame.to_dict("records"))


def _plain(rows: Sequence[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """Rows with None for all that is missing."""
    return [
        {str(name): None if value is None or value != value or _absent(value) else value for name, value in row.items()}
        for row in rows
    ]


def _absent(value: Any) -> bool:
    return type(value).__name__ in ("NAType", "NaTType")


def slug(text: str) -> str:
    """A text as it may stand in the name of a file anywhere."""
    return re.sub(r"[^a-z0-9_.]+", "-", text.lower())[:40].strip("-._") or "x"


def suite_path(suite: str, scale: str) -> str:
    """Of the page of a suite at a scale; names that had to be changed are told apart by a digest."""
    made, digest = f"{slug(suite)}@{slug(scale)}", hashlib.sha256(json.dumps([suite, scale]).encode()).hexdigest()[:8]
    return f"suites/{made}.html" if made == f"{suite}@{scale}" else f"suites/{made}-{digest}.html"
