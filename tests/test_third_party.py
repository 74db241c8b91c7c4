"""A package of its own brings variants: they are listed, trained in a suite, recorded, and their code is part of a trial's identity."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = '''
"""Layers of another package."""

import torch
from torch import nn

from ablate.errors import UserError
from ablate.variants import FACTORS
from their_layers.helpers import mean_so_far


@FACTORS["norm"].variant("scaled", reference="their paper")
class Scaled(nn.Module):
    """The stream times a trained number per channel that starts at `start`."""

    def __init__(self, dim: int, bias: bool, *, start: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), start))

    def forward(self, x):
        return x * self.weight


@FACTORS["attention"].variant("average", reference="their other paper")
class Average(nn.Module):
    """The mean of all values so far, without keys or queries."""

    kv_width = score_width = rotated_dim = 0

    def __init__(self, model) -> None:
        super().__init__()
        self.value = nn.Linear(model.dim, model.dim, bias=model.bias)
        self.out = nn.Linear(model.dim, model.dim, bias=model.bias)

    @staticmethod
    def check(recipe) -> None:
        if recipe.model.position.name == "rope":
            raise UserError("average attention has nothing to rotate")

    def forward(self, x, context):
        return self.out(mean_so_far(self.value(x)))
'''
HELPERS = """
import torch


def mean_so_far(x):
    return x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
"""
SUITE = """\
name: theirs
description: Do their layers learn?
base:
  data.source: {synthetic: {size: 200000}}
  data.tokenizer: bytes
  model.position: learned
  train.tokens: 65536
factors:
  model.norm: [rmsnorm, {scaled: {start: 0.5}}]
  model.attention: [mha, average]
seeds: 1
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder for `PYTHONPATH` with their package, as if it were installed; and their suite beside it."""
    folder = tmp_path / "site"
    for path, text in {
        "their_layers/__init__.py": "",
        "their_layers/layers.py": LAYERS,
        "their_layers/helpers.py": HELPERS,
        "their_layers-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: their-layers\nVersion: 1.0\n",
        "their_layers-1.0.dist-info/entry_points.txt": "[ablate.variants]\nlayers = their_layers.layers\n",
        "theirs.yaml": SUITE,
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture
def ablate(package: Path, home: Path):
    """The command, in a process that finds their package."""

    def run(*argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "ablate", *argv], cwd=package, capture_output=True, text=True, timeout=280,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(package)]), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def ids(ablate) -> dict[str, str]:
    trials = json.loads(ablate("plan", "theirs.yaml", "--json").stdout)["trials"]
    return {trial["cell"]: trial["trial_id"] for trial in trials}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {cell for cell in before if before[cell] != after[cell]}


@pytest.mark.slow
def test_they_are_listed_and_checked_and_their_code_is_in_the_identity(ablate, package: Path) -> None:
    assert "The mean of all values so far, without keys or queries." in ablate("variants", "attention").stdout
    assert "their paper" in ablate("variants", "norm").stdout
    refused = ablate("plan", "theirs.yaml", "--set", "model.position=rope", code=2).stderr
    assert refused.endswith(
        "theirs.yaml:10: factors.model.attention[1]: average attention has nothing to rotate (with --set model.position)\n"
    )

    before = ids(ablate)
    layers, helpers = package / "their_layers/layers.py", package / "their_layers/helpers.py"
    layers.write_text(LAYERS.replace("return x * self.weight", "return x * self.weight.abs()"))
    once = ids(ablate)
    assert changed(before, once) == {"scaled + mha", "scaled + average"}
    helpers.write_text(HELPERS.replace("arange(1, x.shape[1] + 1", "arange(2, x.shape[1] + 2"))
    assert changed(once, ids(ablate)) == {"rmsnorm + average", "scaled + average"}
    layers.write_text(LAYERS.replace("The stream times", "What comes in, times"))
    helpers.write_text(HELPERS)
    assert ids(ablate) == before


@pytest.mark.fire
def test_they_run_in_a_suite_and_stand_on_the_leaderboard(ablate) -> None:
    ablate("run", "theirs.yaml")
    rows = json.loads(ablate("leaderboard", "theirs", "--format", "json").stdout)["rows"]
    assert {(row["norm"], row["attention"]) for row in rows} == {
        ("rmsnorm", "mha"), ("rmsnorm", "average"), ("scaled", "mha"), ("scaled", "average")
    }  # fmt: skip
    assert {row["n"] for row in rows} == {1}
    assert max(row["val_loss"] for row in rows) < 4, "a byte at random costs 5.5 nats"
    assert "nothing to run" in ablate("run", "theirs.yaml").stderr
