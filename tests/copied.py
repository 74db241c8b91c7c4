"""Copies of the package, in which tests plant what `ablate check` must find, and the suite that they check."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ONE_ARM = """
name: one-arm
description: The baseline alone.
base: {scale: nano, data.source: synthetic, train.tokens: 40000}
seeds: 2
"""


@dataclass(frozen=True, slots=True)
class Change:
    """The text `old`, which is in a file once, becomes `new`."""

    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """Raises `ValueError` where `old` is not there once."""
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.file}: {self.old!r} is there {count} times")
        return text.replace(self.old, self.new)

    def make(self, folder: Path) -> None:
        """Change the file in a copy of the package."""
        path = folder / self.file
        path.write_text(self.applied(path.read_text(encoding="utf-8")), encoding="utf-8")


def copy_to(folder: Path) -> Path:
    """The package and its suites, in a folder of their own."""
    for name in ("ablate", "registry", "suites"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def repository(folder: Path) -> Path:
    """The package and the suite of one arm, as the only commit of a repository."""
    copy_to(folder)
    (folder / "one-arm.yaml").write_text(ONE_ARM, encoding="utf-8")
    for argv in (
        "init --quiet",
        "add --all",
        "-c user.name=a -c user.email=a@example.org commit --quiet --message all",
    ):
        subprocess.run(["git", "-C", folder, *argv.split()], check=True)
    return folder


def ablate(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the package in `folder`."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "ablate", *argv],
        capture_output=True, text=True, cwd=folder, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
