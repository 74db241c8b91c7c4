"""What a shell may complete: names that are known without opening the registry or loading a library."""

from __future__ import annotations

from pathlib import Path

_BOARD = """
    rank suite scale cell control n verdict pareto failed exclusive device environment_id evaluation_fingerprint cell_id
""".split()


def suites(incomplete: str) -> list[str]:
    """The shipped suites."""
    here = Path(__file__).resolve().parent.parent
    folder = next(folder for folder in (here / "suites", here.parent / "suites") if folder.is_dir())
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return _fitting(sorted(found), incomplete)


def scales(incomplete: str) -> list[str]:
    from ablate.presets import SCALES

    return _fitting(list(SCALES), incomplete)


def metrics(incomplete: str) -> list[str]:
    from registry.record import METRICS

    return _fitting(list(METRICS), incomplete)


def columns(incomplete: str) -> list[str]:
    """Of a board, the last of a list with commas."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in _fitting([*_BOARD, *metrics(""), *fields("")], last)]


def fields(incomplete: str) -> list[str]:
    """What one may group by: the factors that have variants, the last of a list with commas."""
    before, comma, last = incomplete.rpartition(",")
    files = (Path(__file__).resolve().parent.parent / "variants").glob("[a-z]*.py")
    names = sorted(path.stem for path in files)
    return [before + comma + name for name in _fitting([*names, "scale", "device"], last)]


def _fitting(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
