"""Every test has a home of its own; nothing reaches the user's registry."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# or Ray's workers get next to nothing of the machine while other tests compute
os.environ.setdefault("RAY_worker_niceness", "0")
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """A background job of a shell ignores Ctrl-C, and so would all processes that tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Workers of the test run do not compete for cores."""
    try:
        import torch
    except ModuleNotFoundError:
        return
    torch.set_num_threads(1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `ABLATE_HOME` (not created), with no tracking server or Ray address in the environment."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "home"
    monkeypatch.setenv("ABLATE_HOME", str(path))
    return path


@pytest.fixture
def ablate(capsys: pytest.CaptureFixture[str]):
    """Run a command: its exit code, stdout and stderr."""

    def call(*argv: str) -> tuple[int, str, str]:
        from ablate.cli import main

        code = main(list(argv))
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def filled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a finished suite `attention`, two cells with two seeds."""
    from registry_records import design, record

    from registry import Store

    cells = [{"model.attention": "mha"}, {"model.attention": "gqa"}]
    folder = tmp_path_factory.mktemp("filled")
    store = Store.open(folder, f"sqlite:///{folder / 'mlflow.db'}")
    store.write_design(design(cells))
    for number, levels in enumerate(cells):
        for seed in range(2):
            store.write_trial(record(levels, seed, loss=3 + number + seed / 100))
    return folder


@pytest.fixture
def filled(filled_folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `ABLATE_HOME` with results, for tests that read."""
    monkeypatch.setenv("ABLATE_HOME", str(filled_folder))
    return filled_folder
