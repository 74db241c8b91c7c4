"""Corpus: memory-mapped token arrays, the order in which training reads them, the fixed validation slice."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ablate.errors import UserError
from ablate.tokens import manifest, mapped


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one source is trained on: tokens [start, stop) of the training array."""

    weight: float
    start: int
    stop: int

    def windows(self, seq_len: int, offset: int = 0) -> int:
        """Training sequences of `seq_len` targets that overlap in no target, the first of them at `start + offset`."""
        return max(0, self.stop - self.start - offset - 1) // seq_len

    def epochs(self, purpose: tuple[str | int, ...], seq_len: int, count: int) -> np.ndarray:
        """Where `count` sequences start: epochs, each a permutation of the windows.

        The first epoch cuts its windows from `start` on, later ones from an offset in [0, seq_len) that is drawn for
        each, so that repeated passes do not see the same cuts.
        """
        n, span = self.windows(seq_len), min(seq_len, self.stop - self.start - seq_len)
        passes = 1 + max(0, -(-(count - n) // self.windows(seq_len, span - 1)))
        keys = _raw_bits(("data", *purpose), passes * n).reshape(passes, n)
        offsets = (_raw_bits(("offset", *purpose), passes) % np.uint64(span)).astype(np.int64)
        offsets[0] = 0
        starts = [
            offset + seq_len * np.argsort(row[: self.windows(seq_len, offset)], kind="stable")
            for row, offset in zip(keys, offsets.tolist(), strict=True)
        ]
        return self.start + np.concatenate(starts)[:count]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What one source is validated on.

    `bytes` are the UTF-8 bytes that each token stands for (0 for separators), `nll` its nats under the true source.
    """

    weight: float
    tokens: np.ndarray
    bytes: np.ndarray
    nll: np.ndarray | None
    entropy_rate_per_byte: float | None

    def windows(self, seq_len: int) -> int:
        return max(0, len(self.tokens) - 1) // seq_len


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The fixed validation slice.

    `tokens` is int64[sequences, seq_len + 1]: inputs are [:, :-1], the `targets` targets [:, 1:]. `bytes` are the
    UTF-8 bytes of the targets, `lost` the nats that tokens leave out of them (`Encoder.unknown`), so that bits per byte are
    (loss * targets + lost) / (ln 2 * bytes). `unigram_entropy` (nats per
    token) is what a model reaches that knows nothing but how often each target occurs in the slice. `loss_floor` is
    the cross-entropy of the true source on these very targets, `entropy_rate` its expectation, both in nats per token
    and None where the source is unknown. The true source knows where documents end and what came before the window.
    """

    tokens: np.ndarray
    targets: int
    bytes: int
    lost: float
    unigram_entropy: float
    loss_floor: float | None
    entropy_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Training tokens of all sources, one after another (uint16 or uint32, memory-mapped), and what is held out.

    `unknown` is the encoder's.
    """

    fingerprint: str
    vocab_size: int
    tokens: np.ndarray
    parts: tuple[Part, ...]
    held_out: tuple[HeldOut, ...]
    unknown: tuple[int, float] | None = None

    @property
    def train_tokens(self) -> int:
        return len(self.tokens)

    def check_training(self, seq_len: int, unique: int | None = None) -> None:
        """Raise UserError unless every source has a training sequence, and enough for its share of `unique` ones."""
        total = sum(part.weight for part in self.parts)
        for i, part in enumerate(self.parts):
            which = f" from source {i}" if len(self.parts) > 1 else ""
            windows, share = part.windows(seq_len), part.weight / total
            if not windows:
                raise UserError(
                    f"{part.stop - part.start} training tokens{which} are too few for sequences of {seq_len}"
                )
            if unique is not None:
                # its share is drawn, and beyond five standard deviations once in three million times
                most = math.ceil(unique * share + 5 * math.sqrt(unique * share * (1 - share)))
                if most > windows:
                    raise UserError(
                        f"data.unique_sequences: {windows} training sequences of {seq_len} tokens{which} "
                        f"are too few for {most}"
                    )

    def check_held_out(self, seq_len: int) -> None:
        """Raise UserError unless a sequence is held out."""
        if not any(part.windows(seq_len) for part in self.held_out):
            most = max(len(part.tokens) for part in self.held_out)
            raise UserError(f"{most} validation tokens are too few for a sequence of {seq_len}")

    def order(self, seed: int, seq_len: int, count: int, unique: int | None = None) -> np.ndarray:
        """Where each training sequence starts in `tokens`: int64[count]; it reads seq_len + 1 tokens from there.

        The stream depends on seed, seq_len and `unique` alone: batch k of B sequences is order[k * B:(k + 1) * B], a
        longer stream continues a shorter one. Sources are drawn by weight, and run through in epochs (`Part.epochs`).
        With `unique` only the first so many sequences of that stream are read, over and over, each epoch in another
        order: a smaller number of them is contained in a larger one.

        Raises:
            UserError: a source is shorter than a sequence, or has too few for its share of `unique`.
        """
        self.check_training(seq_len, unique)
        if unique is None:
            return self._stream(seed, seq_len, count)
        windows = self._stream(seed, seq_len, unique)
        assert len(np.unique(windows)) == unique, "a source had fewer sequences than were drawn of it"
        passes = -(-count // unique)
        keys = _raw_bits(("unique", seed), passes * unique).reshape(passes, unique)
        keys[:1] = np.arange(unique)
        return windows[np.argsort(keys, axis=1, kind="stable").ravel()[:count]]

    def _stream(self, seed: int, seq_len: int, count: int) -> np.ndarray:
        if len(self.parts) == 1:
            source = np.zeros(count, np.intp)
        else:
            bounds = np.cumsum([part.weight for part in self.parts])
            uniform = (_raw_bits(("mixture", seed), count) >> np.uint64(11)) * 2.0**-53
            source = np.searchsorted(bounds[:-1], uniform * bounds[-1], side="right")
        starts = np.empty(count, np.int64)
        for i, part in enumerate(self.parts):
            places = np.flatnonzero(source == i)
            starts[places] = part.epochs((seed, i), seq_len, len(places))
        return starts

    def validation(self, seq_len: int, sequences: int) -> Validation:
        """The first held-out windows of each source, shared out by weight: at most `sequences`, fewer where too
        little is held out.

        Raises:
            UserError: not even one.
        """
        self.check_held_out(seq_len)
        bounds = np.cumsum([0.0] + [part.weight for part in self.held_out])
        quotas = np.diff(np.round(bounds / bounds[-1] * sequences)).astype(int)
        taken = [(part, min(int(n), part.windows(seq_len))) for part, n in zip(self.held_out, quotas, strict=True)]
        used = [(part, n) for part, n in taken if n]
        if not used:
            raise UserError(f"no validation sequence of {seq_len} tokens among {sequences}")
        tokens = np.concatenate([_windows(part.tokens, seq_len, n) for part, n in used]).astype(np.int64)
        targets = sum(n * seq_len for _, n in used)
        sizes = [int(part.bytes[1 : n * seq_len + 1].sum()) for part, n in used]
        counts = np.bincount(tokens[:, 1:].ravel())
        share = counts[counts > 0] / targets
        unknown, nats = self.unknown or (-1, 0.0)
        floor = rate = 0.0
        for (part, n), size in zip(used, sizes, strict=True):
            if part.nll is None or part.entropy_rate_per_byte is None:
                floor = rate = None
                break
            floor += float(part.nll[1 : n * seq_len + 1].sum()) / targets
            rate += part.entropy_rate_per_byte * size / targets
        return Validation(
            tokens=tokens, targets=targets, bytes=sum(sizes), lost=nats * int((tokens[:, 1:] == unknown).sum()),
            unigram_entropy=float(-(share * np.log(share)).sum()),
            loss_floor=floor, entropy_rate=rate,
        )  # fmt: skip


def load(
    folder: Path, fingerprint: str, code: str, weights: Sequence[float], held_out_weights: Sequence[float]
) -> Corpus | None:
    """The corpus in a folder; None if there is none, or it is another one's, of other code or format, or damaged."""
    found = manifest(folder)
    if found is None or (found["fingerprint"], found.get("code")) != (fingerprint, code):
        return None
    stops = np.cumsum([0, *found["train"]]).tolist()
    bounds = zip(weights, stops[:-1], stops[1:], strict=True)
    held_out = [
        HeldOut(
            weight=weight, entropy_rate_per_byte=rate, tokens=mapped(folder / f"validation-{i}.tokens", found["dtype"]),
            bytes=mapped(folder / f"validation-{i}.bytes", "uint32"),
            nll=None if rate is None else mapped(folder / f"validation-{i}.nll", "float64"),
        )
        for i, (weight, rate) in enumerate(zip(held_out_weights, found["entropy_rates_per_byte"], strict=True))
    ]  # fmt: skip
    return Corpus(
        fingerprint=fingerprint, vocab_size=found["vocab_size"], tokens=mapped(folder / "train.tokens", found["dtype"]),
        parts=tuple(Part(weight=weight, start=start, stop=stop) for weight, start, stop in bounds),
        held_out=tuple(held_out), unknown=found["unknown"],
    )  # fmt: skip


def _windows(tokens: np.ndarray, seq_len: int, count: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[: count * seq_len : seq_len]


def _raw_bits(purpose: tuple[str | int, ...], count: int) -> np.ndarray:
    """uint64[count]. Only the bit generator's raw stream is the same in every numpy version, not what distributions
    make of it."""
    seed = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return np.random.PCG64(int.from_bytes(seed, "big")).random_raw(count)
