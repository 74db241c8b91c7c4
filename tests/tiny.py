"""A recipe that trains in a second, and a corpus that needs no file."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ablate.recipe import Recipe
from ablate.spec import Spec

SIZES: dict[str, Any] = {
    "model.dim": 32, "model.n_layers": 2, "model.n_heads": 4, "data.tokenizer": "bytes", "data.seq_len": 16,
    "model.activation": "gelu", "model.norm": "layernorm", "model.position": "learned", "optimizer.lr": 3e-3,
    "train.warmup": 0.1, "train.steps": 12, "batch.sequences": 8, "batch.micro_limit": 8, "evaluation.sequences": 8,
    "evaluation.points": 3,
}  # fmt: skip


def tiny(seed: int = 0, **overrides: Any) -> Recipe:
    """The tiny recipe; overrides are dotted fields with `__` for the dot."""
    spec = Spec("nano")
    spec.set_all(SIZES | {"data.source": "synthetic"})
    spec.set_all({name.replace("__", "."): value for name, value in overrides.items()})
    return spec.resolve(seed)


class ArrayCorpus:
    """What `train` asks of a corpus, over a seeded random walk of tokens."""

    def __init__(self, vocabulary: int = 64, length: int = 20_000) -> None:
        generator = np.random.default_rng(7)
        self.fingerprint, self.vocab_size, self.train_tokens = f"array-{vocabulary}-{length}", vocabulary, length
        self.tokens = (generator.integers(0, 3, length).cumsum() % vocabulary).astype(np.uint16)

    def order(self, seed: int, seq_len: int, count: int, unique: int | None = None) -> np.ndarray:
        starts = np.random.default_rng(seed).integers(0, self.train_tokens - seq_len - 1, unique or count)
        return np.resize(starts, count)

    def validation(self, seq_len: int, sequences: int) -> Any:
        windows = self.tokens[: sequences * (seq_len + 1)].reshape(sequences, seq_len + 1).astype(np.int64)
        targets = sequences * seq_len
        return SimpleNamespace(
            tokens=windows, targets=targets, bytes=targets, lost=float(targets), unigram_entropy=4.0, loss_floor=None,
            entropy_rate=None,
        )  # fmt: skip
