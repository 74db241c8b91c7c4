"""A project that is not ours: its own model and data, and packages called `registry` and `suites`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAINER = '''\
import torch
from registry import MODELS
from registry.gate import Gate
from suites import SMOKE
from torch import nn


@MODELS.register("gated")
class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.wide, self.gate, self.out = nn.Linear(2, width), Gate(2, width), nn.Linear(width, 1)

    def forward(self, points):
        return self.out(self.wide(points).tanh() * self.gate(points)).squeeze(-1)


def rings(count, generator):
    """Points of a plane, of which those in every other ring are 1."""
    points = 4 * torch.rand(count, 2, generator=generator) - 2
    return points, (points.norm(dim=1).round() % 2).float()


def train(seed, width=16, steps=SMOKE["steps"]):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = MODELS["gated"](width)
    optimizer, criterion = torch.optim.Adam(model.parameters(), lr=SMOKE["lr"]), nn.BCEWithLogitsLoss()
    for _ in range(steps):
        points, truth = rings(64, generator)
        loss = criterion(model(points), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        points, truth = rings(512, torch.Generator().manual_seed(0))
        return {"loss": criterion(model(points), truth).item(), "steps": steps}
'''
FILES = {
    "pytest.ini": """\
[pytest]
filterwarnings =
    error
    ignore::pytest_benchmark.logger.PytestBenchmarkWarning
""",
    "suites/__init__.py": 'SMOKE = {"steps": 20, "lr": 0.03}\n',
    "registry/__init__.py": '''\
class Models(dict):
    def register(self, name):
        return lambda model: self.setdefault(name, model)


MODELS = Models()
''',
    "registry/gate.py": '''\
from torch import nn


class Gate(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.linear = nn.Linear(*sizes)

    def forward(self, x):
        return self.linear(x).sigmoid()
''',
    "conftest.py": "import sys\n\nLOADED = {name.split('.')[0] for name in sys.modules}\n",
}  # fmt: skip


def build(folder: Path, tests: str, trainers: list[str]) -> Path:
    """The project with a copy of its trainer for each name, and the metadata that an installed ablate would have."""
    copies = {f"trainers/{name}.py": TRAINER for name in trainers}
    for name, text in {**FILES, **copies, "tests/test_trainer.py": tests}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]["pytest11"]
    metadata = folder / "site" / "ablate_under_test-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ablate-under-test\nVersion: 0\n")
    lines = [f"{name} = {module}" for name, module in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines, ""]))
    return folder


def change(folder: Path, trainer: str, old: str, new: str) -> None:
    path = folder / "trainers" / f"{trainer}.py"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new), encoding="utf-8")


def pytest_in(folder: Path, *argv: str) -> tuple[int, str]:
    """Run pytest as its users would: the exit code and what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "ABLATE"))}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)]),
        "COLUMNS": "400",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", *argv], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def outcomes(said: str) -> dict[str, str]:
    """PASSED, FAILED, SKIPPED or ERROR by the id of a test within its file."""
    word = "(PASSED|FAILED|SKIPPED|ERROR)?"
    found = re.findall(rf"^(?:\[\w+\] \[ *\d+%\] )?{word} ?\S*?::(\S+) ?{word}", said, re.MULTILINE)
    return {name: before or after for before, name, after in found if before or after}
