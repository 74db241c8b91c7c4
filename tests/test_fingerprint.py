"""Identity of code: what changes a trial id and what does not, on every Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablate import fingerprint

ROOT = Path(__file__).parent.parent
MODULE = '''
"""Variants."""
import math
from torch import nn
from package.helpers import scale, unused_helper
from . import helpers as h

def local_helper(x):
    return x + 1

@register("a", reference="r")
class A(nn.Module):
    """Docstring."""
    def forward(self, x):
        # a comment
        return local_helper(x) * scale(x) + h.shift(f"{x!r:>{3}} and {{}} text")

@register("b", reference="r")
class B(nn.Module):
    def forward(self, x):
        return x
'''
HELPERS = """
FACTOR = 2
def scale(x):
    return deeper(x) * FACTOR
def deeper(x):
    return x
def shift(x):
    return x
def unused_helper(x):
    return x
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a package, fingerprint `variants.A` in it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "package", raising=False)
    folder = tmp_path / "package"

    def identity(variants: str = MODULE, helpers: str = HELPERS, name: str = "A") -> str:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "variants.py").write_text(variants)
        (folder / "helpers.py").write_text(helpers)
        fingerprint._module.cache_clear()
        return fingerprint.code_fingerprint([("package.variants", name)], core=())

    return identity


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment", "# another"),
        ('"""Docstring."""', '"""Rewritten."""'),
        ('@register("a", reference="r")', '@register("a", reference="elsewhere")'),
        ("return local_helper(x) * scale(x)", "return (local_helper( x )\n            * scale(x))"),
        ("(self, x):\n        return x\n", "(self, x):\n        return 2 * x\n"),
        ("import math", "import math\nclass New:\n    pass"),
    ],
    ids=["comment", "docstring", "decorator", "layout", "another-variant", "added-variant"],
)  # fmt: skip
def test_what_changes_no_number_changes_no_identity(package, old: str, new: str):
    assert old in MODULE
    assert package() == package(MODULE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x + 1", "x + 2"),
        ("local_helper(x) *", "local_helper(x) +"),
        (" text", " Text"),
        ("class A(nn.Module)", "class A(B)"),
    ],
)
def test_a_change_of_the_variant_or_a_helper_beside_it_changes_the_identity(package, old: str, new: str):
    assert old in MODULE
    assert package() != package(MODULE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("FACTOR = 2", "FACTOR = 3", True),
        ("def deeper(x):\n    return x", "def deeper(x):\n    return -x", True),
        ("def shift(x):\n    return x", "def shift(x):\n    return -x", True),
        ("def unused_helper(x):\n    return x", "def unused_helper(x):\n    return -x", False),
    ],
)
def test_helpers_in_other_files_count_when_they_are_used(package, old: str, new: str, changes: bool):
    assert old in HELPERS
    assert (package() != package(helpers=HELPERS.replace(old, new))) == changes


def test_an_unknown_name_is_refused(package):
    with pytest.raises(ValueError, match="does not define Nothing"):
        package(name="Nothing")


def test_core_modules_count_whole(package):
    selected = [("ablate.variants.norm", "RMSNorm")]
    assert fingerprint.code_fingerprint(selected, core=["ablate.model"]) != fingerprint.code_fingerprint(
        selected, core=["ablate.step"]
    )
    for module in fingerprint.CORE:
        assert (ROOT / (module.replace(".", "/") + ".py")).exists()


def pythons() -> list[str]:
    """Other supported Pythons on this machine, by name or in pyenv's folder."""
    wanted = [f"3.{minor}" for minor in (11, 12, 13) if minor != sys.version_info.minor]
    found = [shutil.which(f"python{version}") for version in wanted]
    found += [str(p) for v in wanted for p in Path.home().glob(f".pyenv/versions/{v}.*/bin/python")]
    return sorted({p for p in found if p and subprocess.run([p, "-c", ""], capture_output=True).returncode == 0})


def test_the_identity_is_the_same_on_every_python(package, tmp_path: Path):
    """The walk itself is golden, and every other Python that is here agrees about the real modules."""
    assert package() == "76d8eb8776c767d8"
    script = (
        "import sys, types; sys.path.insert(0, sys.argv[1])\n"
        "import importlib.util as u, pathlib\n"
        "package = types.ModuleType('ablate'); package.__path__ = [sys.argv[1] + '/ablate']; sys.modules['ablate'] = package\n"
        "inner = types.ModuleType('ablate.variants'); inner.__path__ = [sys.argv[1] + '/ablate/variants']\n"
        "sys.modules['ablate.variants'] = inner\n"
        "from ablate.fingerprint import code_fingerprint\n"
        "print(code_fingerprint([('ablate.variants.attention', 'GroupedQueryAttention'), ('ablate.variants.optimizer', 'Lion'),"
        " ('ablate.variants.source', 'Synthetic')]))"
    )
    answers = {
        python: subprocess.run([python, "-c", script, str(ROOT)], capture_output=True, text=True, check=True).stdout
        for python in [sys.executable, *pythons()]
    }
    assert len(set(answers.values())) == 1, answers
