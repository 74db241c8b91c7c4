"""Every pair of variants of two factors either goes together for a step, or is refused with a reason before anything runs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny import tiny

from ablate.recipe import Recipe, RecipeError, digest
from ablate.step import Step
from ablate.variants import Factor, Variant, load_factors

SIZES = {
    "model.dim": 16, "model.ffn_dim": 24, "model.vocab_size": 1024, "data.seq_len": 8, "batch.sequences": 2,
    "train.warmup": 0.5, "lr_schedule": "constant",
}  # fmt: skip
PAIRS = list(itertools.combinations(load_factors().values(), 2))
TRIED: set[str] = set()
"""Steps that went well: with the default of a factor, many pairs are one recipe, and where the text comes from is no matter here."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer, for the variants that want to be given a file."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = pre_tokenizers.ByteLevel.alphabet()
    library = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(sorted(letters))}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    path = tmp_path_factory.mktemp("pairs") / "tokenizer.json"
    library.save(str(path))
    return str(path)


def chosen(variant: Variant, file: str) -> Any:
    """The variant, with a value for each option that must be given."""
    required = [name for name, option in variant.options.model_fields.items() if option.is_required()]
    return {variant.name: dict.fromkeys(required, file)}


def assert_goes_together(recipe: Recipe) -> None:
    """A step has a finite loss and finite gradients, and moves the weights. fp16 leaves steps out until its scale fits."""
    torch.manual_seed(0)
    step = Step(recipe, "cpu")
    before = step.model.head.weight.detach().clone()
    windows = torch.randint(0, 256, (2, recipe.data.seq_len + 1))
    for _ in range(10 if step.scale is not None else 1):
        loss, norm = step(windows, 1.0, lambda parameters: assert_all_have_gradients(parameters, step))
        assert loss.isfinite()
        if norm.isfinite():
            break
    assert norm.isfinite() and norm > 0
    assert not torch.equal(before, step.model.head.weight)


def assert_all_have_gradients(parameters: list[torch.nn.Parameter], step: Step) -> None:
    assert all(p.grad is not None for p in parameters)
    assert step.scale is not None or all(p.grad.isfinite().all() for p in parameters)


def recipe_or_reason(overrides: dict[str, Any]) -> Recipe | str:
    try:
        return tiny(**overrides)
    except RecipeError as refusal:
        return refusal.message


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{a.name}-{b.name}" for a, b in PAIRS])
def test_a_pair_goes_together_or_is_refused_with_a_reason(first: Factor, second: Factor, file: str):
    for a, b in itertools.product(first, second):
        found = recipe_or_reason(SIZES | {first.field: chosen(a, file), second.field: chosen(b, file)})
        if isinstance(found, str):
            assert len(found.split()) > 4, f"{a.name} with {b.name}: {found}"
        elif (name := digest(found.to_dict() | {"data": None})) not in TRIED:
            assert_goes_together(found)
            TRIED.add(name)
