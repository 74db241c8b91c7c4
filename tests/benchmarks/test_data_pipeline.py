"""The data pipeline with every source, tokenizer and curation, and the feed: `pytest -m slow tests/benchmarks/test_data_pipeline.py`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import Held
from test_variants import FACTORS, name
from tiny import tiny

from ablate.data import prepare
from ablate.feed import Feed, resident
from ablate.recipe import Data
from ablate.variants import Variant

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {"synthetic": {"size": 200_000}, "stdlib": {"max_bytes": 200_000}}
STEPS = 50


@pytest.fixture
def in_place(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What a variant needs that reads files, by its name: a dataset of a hundred documents, as a folder of the hub has them."""
    from tokenizers import Tokenizer, models

    folder = tmp_path / "dataset"
    folder.mkdir()
    documents = [f"Document {number} says: {'one more of its words, ' * (10 + number % 7)}" for number in range(100)]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    letters = sorted({letter for text in documents for letter in text} | {*"abcdefghijklmnopqrstuvwxyz "})
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(tmp_path / "tokenizer.json"))
    return {
        "files": {"paths": str(path)}, "hub": {"name": str(folder)}, "file": {"path": str(tmp_path / "tokenizer.json")},
        "bpe": {"vocab_size": 512}, "quality": {"min_stop_words": 0},
    }  # fmt: skip


@pytest.fixture
def empty_cache(tmp_path: Path) -> Callable[[], tuple[Path]]:
    """Each call gives a cache that nothing was prepared in."""
    numbers = itertools.count()
    return lambda: (tmp_path / "caches" / f"{next(numbers):03d}",)


def prepared(variant: Variant, in_place: dict[str, dict[str, Any]]) -> Data:
    """What to prepare: little of the synthetic source, in bytes, and this choice."""
    options = in_place.get(variant.name, SMALL.get(variant.name, {}))
    chosen: dict[str, Any] = {FACTORS[variant.factor].field.replace(".", "__"): {variant.name: options}}
    return tiny(0, **{"data__source": {"synthetic": SMALL["synthetic"]}} | chosen).data


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "variant", [*FACTORS["source"], *FACTORS["tokenizer"], *FACTORS["curation"]], ids=name
)  # fmt: skip
def test_preparing_a_corpus(
    variant: Variant, in_place: dict[str, dict[str, Any]], empty_cache: Callable[[], tuple[Path]], held: Held
) -> None:
    data = prepared(variant, in_place)
    held.python(lambda cache: prepare(data, cache), empty_cache)


def test_opening_a_corpus_that_is_prepared(tmp_path: Path, held: Held) -> None:
    data = tiny(data__source={"synthetic": SMALL["synthetic"]}).data
    prepare(data, tmp_path)
    held.python(lambda: prepare(data, tmp_path))


def test_the_order_of_a_training(tmp_path: Path, held: Held) -> None:
    corpus = prepare(tiny(data__source={"synthetic": SMALL["synthetic"]}).data, tmp_path)
    held.python(lambda: corpus.order(0, 16, 10_000))


def test_feeding_the_windows_of_fifty_steps(tmp_path: Path, held: Held) -> None:
    recipe, device = tiny(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    corpus, sequences = prepare(recipe.data, tmp_path), recipe.batch.sequences
    order = corpus.order(0, recipe.data.seq_len, STEPS * sequences)
    feed = Feed(corpus, order, sequences, recipe.data.seq_len, device, resident(corpus, device))

    def windows() -> None:
        for step in range(STEPS):
            feed.windows(step)

    held.python(windows)
