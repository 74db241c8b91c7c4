"""The README's first question, asked as it stands there, of the results that come with a checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
QUESTION = (
    (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Query\n")[2].partition("\nMore questions:\n")[0]
)


def test_what_attention_to_use_where_memory_is_tight(home: Path, tmp_path: Path) -> None:
    (shell,), (python,) = (
        re.findall(rf"```{language}\n(.*?)```", QUESTION, re.DOTALL) for language in ("sh", "python")
    )
    command = tmp_path / "ablate"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ablate "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "COLUMNS": "160"}

    def run(*argv: str) -> str:
        done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    board = run("sh", "-e", "-c", shell)
    *imports, last = python.strip().splitlines()
    frame = run(sys.executable, "-c", "\n".join([*imports, f"print({last})"]))
    assert [line.split()[1] for line in board.splitlines() if re.match(r" +\d ", line)] == ["mqa", "gqa", "mha", "mla"]
    assert [line.split()[1] for line in frame.splitlines()[1:]] == ["mqa", "gqa", "mha", "mla"]
