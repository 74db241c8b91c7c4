"""What some tests need of the machine. `.ci/run` installs it all and sets ABLATE_NO_SKIPS: there, what is missing fails."""

from __future__ import annotations

import os
import shutil

import pytest

PACKAGES = {
    "chromium": "chromium",
    "pdflatex": "texlive-latex-extra texlive-fonts-recommended lmodern",
}
"""Debian's packages by the program that they bring."""


def program(name: str) -> pytest.MarkDecorator:
    """A mark for tests that run `name`, a key of `PACKAGES`."""
    missing = shutil.which(name) is None and "ABLATE_NO_SKIPS" not in os.environ
    return pytest.mark.skipif(missing, reason=f"needs {name}: apt-get install {PACKAGES[name]}")
