"""The first losses of every variant are those that were kept: a refactor that should change nothing changes no bit of them."""

from __future__ import annotations

from pathlib import Path

import golden
import pytest
import torch

CASES = golden.cases()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


def assert_kept(case: str, device: str, cache: Path) -> None:
    """Identical where the platform has losses of its own, near those of the reference platform elsewhere."""
    tolerance = 1e-3 if "precision" in case else 1e-4
    expected, own = golden.reference(device)
    assert case in expected, f"no losses are kept of {case}: python tests/golden.py"
    found = golden.losses(CASES[case], device, cache)
    if own or isinstance(found, str):
        assert found == expected[case]
    else:
        assert found == pytest.approx(expected[case], rel=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_the_first_losses_are_those_that_were_kept(case: str, cache: Path):
    assert_kept(case, "cpu", cache)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:TensorFloat32")
@pytest.mark.parametrize("case", CASES)
def test_the_first_losses_on_a_gpu_are_those_that_were_kept(case: str, cache: Path):
    assert_kept(case, "cuda", cache)


def test_no_losses_are_kept_of_what_is_gone():
    for file in golden.FOLDER.glob("*.json"):
        assert set(golden.load(file)) <= set(CASES), file
