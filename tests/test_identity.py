"""Trial ids from end to end: in a copy of the package, what an edit does to the ids that `ablate plan` gives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEW_VARIANT = '''

@activation.variant("new", reference="nowhere at all")
class New(nn.Module):
    """Nothing."""

    gated = False

    def forward(self, x: Tensor) -> Tensor:
        return x
'''


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("ablate", "registry", "suites"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def ids(root: Path, home: Path) -> dict[str, str]:
    """Trial id by cell and seed, from the package at `root`."""
    command = [sys.executable, "-m", "ablate", "plan", "quickstart", "--set", "data.source=synthetic", "--json"]
    env = {**os.environ, "PYTHONPATH": str(root), "ABLATE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=True)
    return {f"{trial['cell']} {trial['seed']}": trial["trial_id"] for trial in json.loads(done.stdout)["trials"]}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_a_new_variant_changes_no_id_and_an_edit_changes_those_that_use_it(copy: Path, home: Path):
    before = ids(copy, home)
    assert len(set(before.values())) == 8
    with (copy / "ablate/variants/activation.py").open("a") as file:
        file.write(NEW_VARIANT)
    edit(copy / "ablate/variants/activation.py", '"""Rectified linear unit', '"""A rectified linear unit')
    assert ids(copy, home) == before

    edit(copy / "ablate/variants/activation.py", "F.gelu(x, approximate=self.approximate)", "F.gelu(x)")
    after = ids(copy, home)
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if "gelu" in name and "swiglu" not in name
    }

    edit(copy / "ablate/variants/_attend.py", "dropout_p=self.dropout if", "dropout_p=0.0 + self.dropout if")
    helped = ids(copy, home)
    assert not set(helped.values()) & set(after.values()), "the helper of every attention variant changed"
    edit(
        copy / "ablate/variants/_attend.py",
        "return torch.where(seen, bias, -math.inf)",
        "return torch.where(seen, bias, -1e9)",
    )
    assert not set(ids(copy, home).values()) & set(helped.values()), "what the model itself takes from a helper changed"


def test_a_variant_of_another_package_comes_in_by_its_entry_point(tmp_path: Path):
    (tmp_path / "their_norms.py").write_text(
        "from torch import nn\nfrom ablate.variants import FACTORS\n\n"
        "@FACTORS['norm'].variant('theirs', reference='their paper')\n"
        "class Theirs(nn.Identity):\n    '''Nothing.'''\n"
        "    def __init__(self, dim: int, bias: bool, *, strength: float = 1.0) -> None:\n        super().__init__()\n"
    )
    info = tmp_path / "their_norms-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-norms\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ablate.variants]\nnorms = their_norms\n")
    script = (
        "from ablate.spec import Spec\nfrom ablate.fingerprint import code_fingerprint\n"
        "spec = Spec('nano'); spec.set('model.norm', {'theirs': {'strength': 2.0}})\n"
        "print(spec.resolve().model.norm.to_dict(), len(code_fingerprint([('their_norms', 'Theirs')])))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "{'theirs': {'strength': 2.0}} 16"
