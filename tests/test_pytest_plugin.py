"""`ablate_check` gates a trainer that is not ours, in a project with a `registry` and `suites` of its own, in real runs of pytest."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_project import ROOT, build, change, outcomes, pytest_in

from ablate.pytest_plugin import plain
from registry.baseline import Baseline

README = (ROOT / "README.md").read_text(encoding="utf-8")
PLANTS = {
    "same": [],
    "rounded": [('lr=SMOKE["lr"]', 'lr=SMOKE["lr"] * (1 + 1e-7)')],
    "better": [('{"loss": ', '{"loss": 0.98 * ')],
    "worse": [('{"loss": ', '{"loss": 1.01 * ')],
    "diverged": [('{"loss": ', '{"loss": float("nan") if seed == 1 else ')],
    "lucky": [('{"loss": ', '{"loss": (1.01 if seed < 3 else 1) * ')],
    "waits": [("loss.backward()", "loss.backward(), loss.item()")],
    "waited_once": [("def train", "CALLS = []\n\n\ndef train"), ("    torch.manual_seed", """\
    CALLS.append(seed)
    torch.ones(()).item() if len(CALLS) == 3 else None
    torch.manual_seed""")],
    "busier": [("truth)\n        optimizer", "truth) + 0 * points.sum()\n        optimizer")],
    "hungry": [("loss.backward()", "kept = torch.empty(5000)\n        loss.backward()")],
    "other_torch": [],
    "broken_file": [],
}  # fmt: skip
"""What becomes of the trainer after its baseline was written, by the copy of it."""
TESTS = """
from importlib import import_module
from pathlib import Path

import conftest
import pytest


def test_start_up_loads_no_library():
    assert not conftest.LOADED & {"torch", "numpy", "scipy", "pandas", "mlflow", "pydantic", "ray", "registry"}


@pytest.mark.parametrize("name", NAMES)
def test_learns(ablate_check, name):
    results = ablate_check(import_module(f"trainers.{name}").train)
    assert results[0]["steps"] == 20


class TestMore:
    def test_settings(self, ablate_check):
        ablate_check(import_module("trainers.same").train, seeds=[7], settings={"steps": 15}, margin=0.01)

    def test_two_in_one(self, ablate_check):
        for name, width in (("narrow", 8), ("wide", 24)):
            ablate_check(import_module("trainers.same").train, seeds=[0], settings={"width": width}, name=name)

    def test_is_timed_by_another_plugin(self, ablate_check, benchmark):
        train = import_module("trainers.same").train
        ablate_check(train, seeds=[0])
        benchmark.pedantic(train, (0,), rounds=2)


def test_the_project_has_its_own_packages():
    import registry
    import suites

    for package in (registry, suites):
        assert Path(package.__file__).parent.parent == Path(__file__).parent.parent
"""
NEW = """

def test_is_new(ablate_check):
    ablate_check(lambda seed: float(seed))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The project with its baselines, all copies of the trainer being the same, and what was printed."""
    folder = build(tmp_path_factory.mktemp("project"), TESTS.replace("NAMES", repr(list(PLANTS))), list(PLANTS))
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "ablate_check" in block)
    (folder / "tests" / "test_readme.py").write_text(example)
    (folder / "my_trainer.py").write_text(
        'def train(seed, optimizer):\n    return {"val_loss": len(optimizer) + seed}\n'
    )
    code, said = pytest_in(folder, "--ablate-update", "-k", "same or More or readme")
    assert code == 0, said
    same = baseline_of(folder, "test_learns-same").read_text()
    for name in PLANTS:
        baseline_of(folder, f"test_learns-{name}").write_text(same.replace("[same]", f"[{name}]"))
    return folder, said


@pytest.fixture(scope="module")
def changed(saved: tuple[Path, str]) -> tuple[dict[str, str], str]:
    """The outcomes after everything was planted, and what was printed."""
    folder, _ = saved
    for name, plants in PLANTS.items():
        for old, new in plants:
            change(folder, name, old, new)
    other = baseline_of(folder, "test_learns-other_torch")
    found = json.loads(other.read_text())
    found["environment"]["torch"] = "1.0"
    other.write_text(json.dumps(found))
    baseline_of(folder, "test_learns-broken_file").write_text("{")
    tests = folder / "tests" / "test_trainer.py"
    tests.write_text(tests.read_text().replace('{"steps": 15}', '{"steps": 16}') + NEW)
    code, said = pytest_in(folder, "-p", "no:cacheprovider", "--junit-xml", "junit.xml")
    assert code == 1
    return outcomes(said), said


def baseline_of(folder: Path, name: str) -> Path:
    return folder / "tests" / "ablate-baselines" / "test_trainer" / f"{name}.json"


def test_baselines_are_written_where_they_are_asked_for(saved: tuple[Path, str]) -> None:
    names = ["test_learns-same", "TestMore.test_settings", "TestMore.test_two_in_one.narrow", "TestMore.test_two_in_one.wide",
             "TestMore.test_is_timed_by_another_plugin"]  # fmt: skip
    for name in names:
        assert f"wrote tests/ablate-baselines/test_trainer/{name}.json\n" in saved[1]
    assert (
        "wrote tests/ablate-baselines/test_readme/test_learns-muon.json; the noise of its loss is not known" in saved[1]
    )


def test_only_what_is_worse_fails(changed: tuple[dict[str, str], str]) -> None:
    found, said = changed
    failed = {"worse", "diverged", "waits", "busier", "hungry", "other_torch", "broken_file"}
    expected = {
        f"test_learns[{name}]": "FAILED" if name in failed else "SKIPPED" if name == "lucky" else "PASSED"
        for name in PLANTS
    }
    assert {name: outcome for name, outcome in found.items() if name in expected} == expected, said
    others = {name: outcome for name, outcome in found.items() if name not in expected}
    assert others == {
        "test_start_up_loads_no_library": "PASSED", "test_the_project_has_its_own_packages": "PASSED", "test_is_new": "FAILED",
        "TestMore::test_settings": "FAILED", "TestMore::test_two_in_one": "PASSED",
        "TestMore::test_is_timed_by_another_plugin": "PASSED", "test_learns[adamw]": "PASSED", "test_learns[muon]": "PASSED",
    }, said  # fmt: skip


@pytest.mark.parametrize(
    "says",
    [
        "test_learns[worse]: val_loss is worse: ",
        " (+1.00%); interval +0.00",
        "test_learns[diverged]: val_loss is worse: no loss with seed 1, which had one\n",
        "test_learns[lucky]: val_loss cannot be told: ",
        "test_learns[better]: val_loss is better: ",
        "test_learns[waits]: host_syncs is worse: 121 -> 141 (+16.53%)\n",
        "test_learns[busier]: operators is worse: ",
        "test_learns[hungry]: peak_memory_gib is worse: ",
        "all: environment needs a new baseline: torch 1.0 -> ",
        "TestMore.test_settings: settings needs a new baseline: steps=15 -> steps=16\n",
        "test_learns-broken_file.json: it is not JSON: ",
        "test_is_new has no baseline yet. To write tests/ablate-baselines/test_trainer/test_is_new.json:\n"
        "  pytest --ablate-update tests/test_trainer.py::test_is_new\n",
        "If that is meant:\n  pytest --ablate-update 'tests/test_trainer.py::test_learns[worse]'\n",
        "To measure it anew:\n  pytest --ablate-update 'tests/test_trainer.py::test_learns[other_torch]'\n",
    ],
)
def test_it_says_what_it_found_and_what_to_do(changed: tuple[dict[str, str], str], says: str) -> None:
    assert says in changed[1]


@pytest.mark.slow
def test_the_commands_that_it_names_write_the_baselines_from_several_processes_too(
    saved: tuple[Path, str], changed: tuple[dict[str, str], str]
) -> None:
    lines = {line.strip() for line in changed[1].splitlines() if line.startswith("  pytest --ablate-update")}
    assert len(lines) == 9
    named = [word for line in lines for word in shlex.split(line)[1:] if "::" in word]
    code, said = pytest_in(saved[0], "-n", "2", "--ablate-update", *named)
    failed = {name for name, outcome in outcomes(said).items() if outcome == "FAILED"}
    assert failed == {"test_learns[diverged]"}, said
    assert "the loss with seed 1 is nan: a baseline needs one that is finite" in said
    assert said.count("wrote tests/ablate-baselines/test_trainer/") == 8
    code, said = pytest_in(saved[0], "-n", "2", *(one for one in named if "diverged" not in one))
    assert code == 0, said


def test_a_baseline_is_a_small_file_that_holds_the_noise(saved: tuple[Path, str]) -> None:
    path = baseline_of(saved[0], "test_learns-same")
    assert path.stat().st_size < 2000
    found = Baseline.read(path)
    arm = found.arms["test_learns[same]"]
    assert sorted(arm.runs) == [0, 1, 2, 3, 4, 5]
    assert set(arm.counts) == {"operators", "host_syncs", "peak_memory_gib"}
    assert set(found.environment) == {"device", "torch"}
    assert 0 < found.noise["val_loss"].sd < 1e-5
    assert found.noise["val_loss"].n == 6


WRONG = """
import pytest


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seeds": []}, "a check needs a seed"),
        ({"seeds": [-1]}, "seeds are whole numbers from 0 on"),
        ({"seeds": [0.5]}, "seeds are whole numbers from 0 on"),
        ({"seeds": [1, 1]}, "no seed twice"),
        ({"seeds": [1], "fresh": [1]}, "no seed twice"),
        ({"settings": {"model": object()}}, "settings: Object of type object is not JSON serializable"),
        ({"settings": {"lr": float("nan")}}, "settings: Out of range float values are not JSON compliant"),
    ],
)
def test_arguments(ablate_check, given, says):
    with pytest.raises((TypeError, ValueError), match=says):
        ablate_check(None, **given)


def test_twice(ablate_check):
    for _ in range(2):
        try:
            ablate_check(None)
        except ValueError as error:
            assert "two checks in a test need a name each" in str(error)
        except pytest.fail.Exception:
            pass


@pytest.mark.parametrize("option", ["a b/c"])
def test_new(ablate_check, option):
    ablate_check(None)
"""


def test_what_is_wrong_is_said_before_anything_is_trained_and_the_folder_can_be_chosen(tmp_path: Path) -> None:
    folder = build(tmp_path, WRONG, [])
    code, said = pytest_in(folder, "-o", "ablate_baselines=gate")
    assert [name for name, outcome in outcomes(said).items() if outcome != "PASSED"] == ["test_new[a"], said
    assert "To write gate/tests/test_trainer/test_new-a_b_c-" in said
    (folder / "pytest.ini").write_text("[pytest]\nablate_baselines = gate/cpu\n")
    code, said = pytest_in(folder, "-k", "new")
    assert code == 1
    assert "To write gate/cpu/tests/test_trainer/test_new-a_b_c-" in said
    code, said = pytest_in(folder, "-k", "new", "--ablate-baselines", "other place")
    assert code == 1
    assert "To write other place/tests/test_trainer/test_new-a_b_c-" in said
    assert (
        "  pytest --ablate-update --ablate-baselines 'other place' 'tests/test_trainer.py::test_new[a b/c]'\n" in said
    )


def test_the_plugin_alone_loads_no_library() -> None:
    code = (
        "import ablate.pytest_plugin, sys; print({'torch', 'numpy', 'mlflow', 'registry', 'typer'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_no_two_tests_have_one_file() -> None:
    assert plain("test_x[adam-0.1]") == "test_x-adam-0.1"
    names = ["test_x[a/b]", "test_x[a_b]", "test_x[a:b]", f"test_x[{'a' * 200}]", f"test_x[{'a' * 201}]"]
    files = [plain(name) for name in names]
    assert len(set(files)) == len(names)
    assert all(len(file) < 120 and "/" not in file for file in files)
