"""What some tests need of the machine. `.ci/run` installs it all and sets ABLATE_NO_SKIPS: there, what is missing fails."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PACKAGES = {
    "chromium": "chromium",
    "pdflatex": "texlive-latex-extra texlive-fonts-recommended lmodern",
    "postgres": "postgresql",
}
"""Debian's packages by the program that they bring."""


def path(name: str) -> str | None:
    """Where a key of `PACKAGES` is; Debian has PostgreSQL's programs, by version, where no PATH looks."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda one: int(one.parts[-3]))
    return shutil.which(name) or (str(versions[-1]) if versions else None)


def program(name: str) -> pytest.MarkDecorator:
    """A mark for tests that run a key of `PACKAGES`."""
    missing = path(name) is None and "ABLATE_NO_SKIPS" not in os.environ
    return pytest.mark.skipif(missing, reason=f"needs {name}: apt-get install {PACKAGES[name]}")
