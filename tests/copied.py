"""Copies of the package, in which tests plant what `ablate check` must find, and the suite that they check."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ONE_ARM = """
name: one-arm
description: The baseline alone.
base: {scale: nano, data.source: synthetic, train.tokens: 40000}
seeds: 2
"""


def copy_to(folder: Path) -> Path:
    """The package and its suites, in a folder of their own."""
    for name in ("ablate", "registry", "suites"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def ablate(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the package in `folder`."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "ablate", *argv],
        capture_output=True, text=True, cwd=folder, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
