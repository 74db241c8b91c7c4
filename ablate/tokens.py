"""Texts as arrays of tokens, and the sealed folder that such arrays lie in."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ablate.variants._documents import Source
from ablate.variants._encoders import Encoder

FORMAT = 2
MANIFEST = "manifest.json"
BLOCK = 4096
BLOCKS = 256
PIECE = 2**20
LINE_START = re.compile(r"\n(?=\S)")


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


def seal(folder: Path, fields: Mapping[str, Any]) -> None:
    """Seal a folder of arrays: sizes and checksums of its files, and what a reader must know; all of it on disk on
    return."""
    files = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, **fields, "files": files}, indent=1))
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder was sealed with; None if it was not, in another format, or its files have changed since."""
    try:
        found = json.loads((folder / MANIFEST).read_text())
        whole = all(_checksum(folder / name) == expected for name, expected in found["files"].items())
        return found if found["format"] == FORMAT and whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def mapped(path: Path, dtype: str) -> np.ndarray:
    """An array of a folder, memory-mapped."""
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
