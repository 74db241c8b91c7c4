"""The GitHub Action: who uses it names inputs that it has, and its script does with an exit code what it says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
ACTION: dict[str, Any] = YAML(typ="safe").load(ROOT / "action.yml")
SCRIPT = next(step["run"] for step in ACTION["runs"]["steps"] if step.get("id") == "check")


def users() -> list[dict[str, Any]]:
    """The steps that use the action: this repository's, and the README's."""
    jobs = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "gate.yml")["jobs"].values()
    blocks = re.findall(
        r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    shown = next(YAML(typ="safe").load(block) for block in blocks if "- uses" in block)
    steps = [step for job in jobs for step in job["steps"]] + shown
    return [step for step in steps if step["uses"] == "./" or "/ablate@" in step["uses"]]


def test_who_uses_it_gives_inputs_that_it_has() -> None:
    given = [set(step["with"]) for step in users()]
    assert len(given) == 3
    assert all(names <= set(ACTION["inputs"]) for names in given)
    assert [names & {"baseline", "against"} for names in given] == [{"baseline"}, {"against"}, {"against"}]


def test_its_scripts_name_the_inputs_alone() -> None:
    """What a pull request may set reaches a shell as a variable, never as text of the script."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]
        assert all(re.fullmatch(r"\$\{\{ inputs\.[a-z-]+ \}\}", value) for value in step["env"].values())


@pytest.mark.parametrize(
    ("given", "allow", "code"),
    [(0, "false", 0), (1, "false", 1), (1, "true", 1), (3, "false", 3), (3, "true", 0), (4, "true", 0), (2, "true", 2)],
)
def test_the_exit_code_is_the_verdict_unless_what_cannot_be_told_is_allowed(
    given: int, allow: str, code: int, tmp_path: Path
) -> None:
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "told"}\nexit {given}\n', encoding="utf-8")
    python.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "GITHUB_OUTPUT": str(out), "SUITE": "my suite", "BASELINE": "a b.json",
        "AGAINST": "", "ARGUMENTS": "--margin 0.01", "JUNIT": "j.xml", "ALLOW": allow,
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert out.read_text(encoding="utf-8") == f"code={given}\n"
    told = (tmp_path / "told").read_text(encoding="utf-8")
    assert told == "-m ablate check my suite --baseline a b.json --junit j.xml --margin 0.01\n"
    assert ("::warning::" in done.stdout) == (code != given)
