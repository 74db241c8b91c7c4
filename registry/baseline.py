"""What CI compares against: a small file that a person can read, with the noise that was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
"""Of the file."""


class BaselineError(ValueError):
    """A baseline file that cannot be read; one line."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What was measured of one arm of a suite.

    `runs` are the metrics that differ from seed to seed, by seed: of a run that did not finish there are none. `counts` are those that
    do not. `recipe` tells whether it is still the same arm: a hash of its settings and its corpus, but not of code.
    """

    recipe: str
    runs: dict[int, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def values(self, metric: str) -> dict[int, float]:
        """Of a metric, by seed."""
        return {seed: found[metric] for seed, found in self.runs.items() if metric in found}


@dataclass(frozen=True, slots=True)
class Noise:
    """Standard deviation of the difference of two runs that should be the same: same seed, same recipe, numbers rounded in another
    order; from `n` such differences."""

    sd: float
    n: int

    @classmethod
    def of(cls, differences: Iterable[float]) -> Noise | None:
        """From differences, which are around zero; those that are not finite tell nothing. None where there is none."""
        known = [one for one in differences if math.isfinite(one)]
        return cls(math.sqrt(sum(one * one for one in known) / len(known)), len(known)) if known else None


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a suite measured at one time in one environment, by arm.

    `settings` are what was asked for with `--set`; `environment` names what the numbers depend on beside the code; `noise` is that of
    each metric of `Arm.runs`, where it was measured.
    """

    suite: str
    scale: str
    settings: list[str]
    arms: dict[str, Arm]
    environment: dict[str, str]
    noise: dict[str, Noise] = field(default_factory=dict)
    created_at: str = ""
    git_revision: str = ""
    ablate_version: str = ""

    def to_json(self) -> str:
        """The file: sorted, one number a line, so that a change of it is read in a diff."""
        data = asdict(self) | {"ablate_baseline": VERSION}
        return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Baseline:
        """Raises `BaselineError`, which names what is wrong."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise BaselineError(f"it is not JSON: {' '.join(str(error).split())}") from None
        if not isinstance(data, dict) or "ablate_baseline" not in data:
            raise BaselineError("it is no baseline of ablate")
        if (version := data.pop("ablate_baseline")) != VERSION:
            raise BaselineError(f"it is of version {version}, and this is version {VERSION}: save it again")
        try:
            arms = {name: _arm(name, one) for name, one in _dict(data.pop("arms"), "arms").items()}
            noise = {name: _noise(name, one) for name, one in _dict(data.pop("noise"), "noise").items()}
            environment = {str(key): str(value) for key, value in _dict(data.pop("environment"), "environment").items()}
            texts = {name: _text(data.pop(name), name) for name in _TEXTS}
            settings = [_text(one, "settings") for one in _list(data.pop("settings"), "settings")]
        except KeyError as error:
            raise BaselineError(f"{error.args[0]} is missing") from None
        if data:
            raise BaselineError(f"{sorted(data)[0]} is not a field of a baseline")
        return cls(**texts, settings=settings, arms=arms, noise=noise, environment=environment)

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Raises `BaselineError` for a file that is missing or is not one."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise BaselineError(f"{path}: {reason}") from None
        except BaselineError as error:
            raise BaselineError(f"{path}: {error}") from None


_TEXTS = ("suite", "scale", "created_at", "git_revision", "ablate_version")


def _dict(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BaselineError(f"{where} is not an object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise BaselineError(f"{where} is not a list")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BaselineError(f"{where} is not text")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BaselineError(f"{where} is not a finite number")
    return value


def _arm(name: str, given: Any) -> Arm:
    where, data = f"arms.{name}", dict(_dict(given, f"arms.{name}"))
    runs: dict[int, dict[str, float]] = {}
    for seed, metrics in _dict(data.get("runs", {}), f"{where}.runs").items():
        if not seed.isascii() or not seed.isdigit():
            raise BaselineError(f"{where}.runs.{seed} is not a seed")
        runs[int(seed)] = _numbers(metrics, f"{where}.runs.{seed}")
    return Arm(_text(data["recipe"], f"{where}.recipe"), runs, _numbers(data.get("counts", {}), f"{where}.counts"))


def _noise(name: str, given: Any) -> Noise:
    data = _dict(given, f"noise.{name}")
    return Noise(_number(data["sd"], f"noise.{name}.sd"), int(_number(data["n"], f"noise.{name}.n")))


def _numbers(given: Any, where: str) -> dict[str, float]:
    return {name: _number(value, f"{where}.{name}") for name, value in _dict(given, where).items()}
