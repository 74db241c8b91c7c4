"""Corpus: how texts become memory-mapped token arrays, the order in which training reads them, the fixed slice."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablate.errors import UserError
from ablate.variants._documents import Source
from ablate.variants.tokenizer import Encoder

FORMAT = 1
MANIFEST = "manifest.json"
BLOCK = 4096
BLOCKS = 256
PIECE = 2**20
LINE_START = re.compile(r"\n(?=\S)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one source contributes: tokens [start, stop) of the training array, and its held-out tokens.

    `bytes` are the UTF-8 bytes that each held-out token stands for (0 for separators), `nll` its nats under the true
    source.
    """

    weight: float
    start: int
    stop: int
    validation: np.ndarray
    bytes: np.ndarray
    nll: np.ndarray | None
    entropy_rate_per_byte: float | None

    def windows(self, seq_len: int) -> int:
        """Training sequences of `seq_len` targets that overlap in no target."""
        return max(0, self.stop - self.start - 1) // seq_len

    def held_out_windows(self, seq_len: int) -> int:
        return max(0, len(self.validation) - 1) // seq_len


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The fixed validation slice.

    `tokens` is int64[sequences, seq_len + 1]: inputs are [:, :-1], the `targets` targets [:, 1:]. `bytes` are the
    UTF-8 bytes of the targets, so that bits per byte are loss * targets / (ln 2 * bytes). `unigram_entropy` (nats per
    token) is what a model reaches that knows nothing but how often each target occurs in the slice. `loss_floor` is
    the cross-entropy of the true source on these very targets, `entropy_rate` its expectation, both in nats per token
    and None where the source is unknown. The true source knows where documents end and what came before the window.
    """

    tokens: np.ndarray
    targets: int
    bytes: int
    unigram_entropy: float
    loss_floor: float | None
    entropy_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Training tokens of all sources, one after another (uint16 or uint32, memory-mapped), and what was held out."""

    fingerprint: str
    vocab_size: int
    tokens: np.ndarray
    parts: tuple[Part, ...]
    document_bytes: int

    @property
    def train_tokens(self) -> int:
        return len(self.tokens)

    def check(self, seq_len: int) -> None:
        """Raise UserError unless every source has a training sequence and one is held out."""
        for i, part in enumerate(self.parts):
            if not part.windows(seq_len):
                which = f" from source {i}" if len(self.parts) > 1 else ""
                raise UserError(
                    f"{part.stop - part.start} training tokens{which} are too few for sequences of {seq_len}"
                )
        if not any(part.held_out_windows(seq_len) for part in self.parts):
            most = max(len(part.validation) for part in self.parts)
            raise UserError(f"{most} validation tokens are too few for a sequence of {seq_len}")

    def order(self, seed: int, seq_len: int, count: int, unique: int | None = None) -> np.ndarray:
        """Where each training sequence starts in `tokens`: int64[count]; it reads seq_len + 1 tokens from there.

        The stream depends on seed and seq_len alone: batch k of B sequences is order[k * B:(k + 1) * B], a longer
        stream continues a shorter one. Within a source every epoch is a permutation of its windows, which overlap in
        no target; sources are drawn by weight.

        Raises:
            UserError: a source is shorter than a sequence.
        """
        self.check(seq_len)
        if len(self.parts) == 1:
            source = np.zeros(count, np.intp)
        else:
            bounds = np.cumsum([part.weight for part in self.parts])
            uniform = (_raw_bits(("mixture", seed), count) >> np.uint64(11)) * 2.0**-53
            source = np.searchsorted(bounds[:-1], uniform * bounds[-1], side="right")
        starts = np.empty(count, np.int64)
        for i, part in enumerate(self.parts):
            places = np.flatnonzero(source == i)
            n = part.windows(seq_len)
            epochs = -(-len(places) // n)
            keys = _raw_bits(("data", seed, i), epochs * n).reshape(epochs, n)
            shuffled = np.argsort(keys, axis=1, kind="stable").ravel()[: len(places)]
            starts[places] = part.start + shuffled * seq_len
        return starts

    def validation(self, seq_len: int, sequences: int) -> Validation:
        """The first held-out windows of each source, shared out by weight: at most `sequences`, fewer where too
        little is held out.

        Raises:
            UserError: not even one.
        """
        self.check(seq_len)
        bounds = np.cumsum([0.0] + [part.weight for part in self.parts])
        quotas = np.diff(np.round(bounds / bounds[-1] * sequences)).astype(int)
        taken = [
            (part, min(int(n), part.held_out_windows(seq_len))) for part, n in zip(self.parts, quotas, strict=True)
        ]
        used = [(part, n) for part, n in taken if n]
        if not used:
            raise UserError(f"no validation sequence of {seq_len} tokens among {sequences}")
        tokens = np.concatenate([_windows(part.validation, seq_len, n) for part, n in used]).astype(np.int64)
        targets = sum(n * seq_len for _, n in used)
        sizes = [int(part.bytes[1 : n * seq_len + 1].sum()) for part, n in used]
        counts = np.bincount(tokens[:, 1:].ravel())
        share = counts[counts > 0] / targets
        floor = rate = 0.0
        for (part, n), size in zip(used, sizes, strict=True):
            if part.nll is None or part.entropy_rate_per_byte is None:
                floor = rate = None
                break
            floor += float(part.nll[1 : n * seq_len + 1].sum()) / targets
            rate += part.entropy_rate_per_byte * size / targets
        return Validation(
            tokens=tokens, targets=targets, bytes=sum(sizes), unigram_entropy=float(-(share * np.log(share)).sum()),
            loss_floor=floor, entropy_rate=rate,
        )  # fmt: skip


def _windows(tokens: np.ndarray, seq_len: int, count: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)[: count * seq_len : seq_len]


def _raw_bits(purpose: tuple[str | int, ...], count: int) -> np.ndarray:
    """uint64[count]. Only the bit generator's raw stream is the same in every numpy version, not what distributions
    make of it."""
    seed = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return np.random.PCG64(int.from_bytes(seed, "big")).random_raw(count)


def _pieces(text: str) -> Iterator[str]:
    """A long text cut before the first newline with a word behind it after every PIECE characters.

    A tokenizer needs about a hundred times the memory of its text. GPT-2's splitting of words never reaches over such
    a place, so that byte-level byte-pair encoding gives the same tokens.
    """
    start = 0
    while cut := LINE_START.search(text, start + PIECE):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def encode(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """Ids of texts, a separator before each: int64[tokens]."""
    pieces = [list(_pieces(text)) for text in texts]
    encoded = iter(encoder.encode([piece for text in pieces for piece in text]))
    found = [np.empty(0, np.int64)]
    for text in pieces:
        found.append(np.array([encoder.separator]))
        found.extend(next(encoded) for _ in text)
    return np.concatenate(found)


def encode_held_out(
    encoder: Encoder, source: Source, texts: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The same, the UTF-8 bytes of each token and, where the true source is known, its nats under it.

    Each character counts for the first token that reaches its end: a token inside a character has no bytes.
    """
    known = source.entropy_rate_per_byte is not None
    found, sizes, nats = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    for text in texts:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        byte_ends = np.append(0, np.cumsum(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)))
        nat_ends = np.append(0.0, np.cumsum(source.nll(text))) if known else np.zeros(1)
        pieces = list(_pieces(text))
        ids, ends, start = [np.array([encoder.separator])], [np.array([0])], 0
        for piece, (piece_ids, piece_ends) in zip(pieces, encoder.encode_with_ends(pieces), strict=True):
            ids.append(piece_ids)
            ends.append(piece_ends + start)
            start += len(piece)
        found.extend(ids)
        reached = np.concatenate(ends)
        sizes.append(np.diff(byte_ends[reached], prepend=0))
        nats.append(np.diff(nat_ends[reached], prepend=0.0) if known else nat_ends)
    return np.concatenate(found), np.concatenate(sizes), np.concatenate(nats) if known else None


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Seal a folder of arrays: sizes and checksums of its files, and what `load` needs to know; all of it on disk on
    return."""
    files = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, **fields, "files": files}, indent=1))
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def load(folder: Path, fingerprint: str, weights: Iterable[float]) -> Corpus | None:
    """The corpus in a folder; None if there is none, or it is another one's, of another format, or damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if (manifest["format"], manifest["fingerprint"]) != (FORMAT, fingerprint):
            return None
        if any(_checksum(folder / name) != expected for name, expected in manifest["files"].items()):
            return None
        dtype = manifest["dtype"]
        parts = []
        start = 0
        for i, (weight, source) in enumerate(zip(weights, manifest["sources"], strict=True)):
            rate = source["entropy_rate_per_byte"]
            parts.append(Part(
                weight=weight, start=start, stop=start + source["train"], entropy_rate_per_byte=rate,
                validation=_map(folder / f"validation-{i}.tokens", dtype),
                bytes=_map(folder / f"validation-{i}.bytes", "uint32"),
                nll=None if rate is None else _map(folder / f"validation-{i}.nll", "float64"),
            ))  # fmt: skip
            start += source["train"]
        return Corpus(
            fingerprint=fingerprint, vocab_size=manifest["vocab_size"], tokens=_map(folder / "train.tokens", dtype),
            parts=tuple(parts), document_bytes=manifest["document_bytes"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _map(path: Path, dtype: str) -> np.ndarray:
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _checksum(path: Path) -> str:
    """Size, and SHA-256 of the whole of a small file or of 256 blocks spread evenly over a large one (its ends
    included)."""
    size = path.stat().st_size
    running = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= BLOCK * BLOCKS * 16:
            while chunk := file.read(2**20):
                running.update(chunk)
        else:
            for i in range(BLOCKS):
                file.seek(math.floor(i * (size - BLOCK) / (BLOCKS - 1)))
                running.update(file.read(BLOCK))
    return running.hexdigest()
