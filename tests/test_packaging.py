"""However it is installed, and wherever it is started, the package finds its own suites and registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SUITES = sorted(
    path.relative_to(ROOT / "suites").with_suffix("").as_posix() for path in (ROOT / "suites").rglob("*.yaml")
)
WHERE = "import ablate, registry; print(ablate.__file__); print(registry.__file__)"


def test_package_list_names_every_folder() -> None:
    folders = {path.parent for top in ("ablate", "registry") for path in (ROOT / top).rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(CONFIG["tool"]["setuptools"]["packages"]) == found | {"ablate.suites"}


def test_dependencies_are_locked() -> None:
    def name(line: str) -> str:
        for mark in "[<>=!~ ":
            line = line.split(mark)[0]
        return line.lower().replace("_", "-")

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = {name(line) for line in lines if not line.startswith("#")}
    project = CONFIG["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    assert {name(line) for line in asked} <= locked


def run(argv: list[str | Path], cwd: Path, **environment: str) -> str:
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(argv, cwd=cwd, env=keep | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def names(table: str) -> list[str]:
    """The first column of a printed table."""
    return sorted(line.split()[0] for line in table.splitlines()[2:])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, so that building leaves nothing behind."""
    copy = tmp_path_factory.mktemp("source") / "tree"
    for name in ("ablate", "registry", "suites"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, checkout], cwd=out)
    return out


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with a `suites` and a `registry` of its own."""
    folder = tmp_path / "elsewhere"
    for name in ("suites", "registry"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise ImportError('not ours')")
    (folder / "suites" / "mine.yaml").write_text("name: mine")
    return folder


def install(what: list[str | Path], folder: Path) -> Path:
    """The bin folder of a new environment that sees this one's libraries, with `what` installed."""
    venv.create(folder, with_pip=False)
    interpreter = folder / "bin" / "python"
    site = Path(run([interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], cwd=folder).strip())
    import typer

    (site / "libraries.pth").write_text(str(Path(typer.__file__).parent.parent))
    flags = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    run([sys.executable, "-m", "pip", "--python", interpreter, "install", *flags, *what], cwd=folder)
    return folder / "bin"


def test_wheel_holds_the_suites_and_nothing_else_of_the_tree(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    found = [name.removeprefix("ablate/suites/").removesuffix(".yaml") for name in names if name.endswith(".yaml")]
    assert sorted(found) == SUITES
    assert {name.split("/")[0] for name in names} == {"ablate", "registry"}


@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_installed(kind: str, built: Path, checkout: Path, elsewhere: Path, tmp_path: Path) -> None:
    what: dict[str, list[str | Path]] = {
        "wheel": [*built.glob("*.whl")], "sdist": [*built.glob("*.tar.gz")], "editable": ["--editable", checkout]
    }  # fmt: skip
    scripts = install(what[kind], tmp_path / "venv")
    assert names(run([scripts / "ablate", "suites"], cwd=elsewhere)) == SUITES
    home = checkout if kind == "editable" else tmp_path / "venv"
    for file in run([scripts / "python", "-P", "-c", WHERE], cwd=elsewhere).splitlines():
        assert Path(file).is_relative_to(home)


def test_pytest_finds_the_plugin_of_a_wheel(built: Path, elsewhere: Path, tmp_path: Path) -> None:
    interpreter = install([*built.glob("*.whl")], tmp_path / "venv") / "python"
    (elsewhere / "test_mine.py").write_text("def test_mine(ablate_check):\n    ablate_check(lambda seed: 1.0 + seed)\n")
    pytest = [interpreter, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error"]
    run([*pytest, "--ablate-update"], cwd=elsewhere)
    assert "1 passed" in run(pytest, cwd=elsewhere)
    assert (elsewhere / "ablate-baselines" / "test_mine" / "test_mine.json").exists()


def test_bare_checkout(checkout: Path, elsewhere: Path) -> None:
    for cwd in (elsewhere, checkout):
        assert names(run([sys.executable, "-m", "ablate", "suites"], cwd=cwd, PYTHONPATH=str(checkout))) == SUITES


@pytest.mark.fire
def test_workers_find_the_package_too(checkout: Path, elsewhere: Path, tmp_path: Path) -> None:
    small = ["--set", "data.source=synthetic", "--set", "train.tokens=8192", "--seeds", "1", "--only", "attention=mha"]
    argv: list[str | Path] = [sys.executable, "-m", "ablate", "run", "quickstart", *small]
    run(argv, cwd=elsewhere, PYTHONPATH=str(checkout), ABLATE_HOME=str(tmp_path / "home"))
