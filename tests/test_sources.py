"""Where text comes from: what is read, what is held out, what identifies it, and how each source refuses."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablate.data import prepare
from ablate.errors import UserError
from ablate.recipe import Data
from ablate.variants import load_factors
from ablate.variants._documents import Document, Source, fraction, split_documents


def build(spec: Any) -> Source:
    return load_factors()["source"].choose(spec).build()


def files(*paths: Path, **options: Any) -> Source:
    return build({"files": {"paths": [str(path) for path in paths], **options}})


def split(documents: Sequence[Document]) -> tuple[list[str], list[str]]:
    return tuple([d.text for d in documents if d.split == side] for side in ("train", "validation"))  # type: ignore[return-value]


def jsonl(path: Path, texts: Sequence[str | None], column: str = "text") -> Path:
    path.write_text("".join(json.dumps({"n": i, column: text}) + "\n" for i, text in enumerate(texts)))
    return path


def parquet(path: Path, texts: Sequence[str], column: str = "text") -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": list(range(len(texts))), column: texts}), path)
    return path


TEXTS = [f"Number {i} squared is {i * i}. " * 3 for i in range(200)]


def test_stdlib_holds_out_whole_files_and_leaves_tests_and_tables_out(tmp_path: Path) -> None:
    documents = list(build("stdlib").documents(tmp_path))
    keys = [d.key for d in documents]
    assert len(set(keys)) == len(keys) > 300
    assert {"argparse.py", "asyncio/events.py"} <= set(keys)
    unwanted = {"test", "tests", "site-packages", "encodings", "pydoc_data", "idlelib"}
    assert not [key for key in keys if unwanted & set(key.split("/")) or "_sysconfigdata" in key]
    share = sum(d.split == "validation" for d in documents) / len(documents)
    assert 0.02 < share < 0.09


def test_stdlib_limit_takes_the_head_of_a_fixed_order(tmp_path: Path) -> None:
    whole = list(build("stdlib").documents(tmp_path))
    limited = build({"stdlib": {"max_bytes": 500_000}})
    documents = list(limited.documents(tmp_path))
    assert documents == whole[: len(documents)]
    assert 300_000 < sum(limited.sizes(tmp_path)) <= 500_000
    assert limited.content_hash(tmp_path) != build("stdlib").content_hash(tmp_path)
    with pytest.raises(UserError, match="within 5 bytes"):
        build({"stdlib": {"max_bytes": 5}}).content_hash(tmp_path)


def test_synthetic_is_the_same_everywhere(tmp_path: Path) -> None:
    text = "".join(d.text for d in build({"synthetic": {"size": 100_000}}).documents(tmp_path))
    assert len(text) == 98_304
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN
    other = "".join(d.text for d in build({"synthetic": {"size": 100_000, "seed": 1}}).documents(tmp_path))
    assert hashlib.sha256(other.encode()).hexdigest() != GOLDEN


GOLDEN = "351f911c530290ba5986452210935089880a4a9869de40c4b0175048b3d1c820"


def test_a_larger_synthetic_source_begins_with_the_smaller(tmp_path: Path) -> None:
    small = list(build({"synthetic": {"size": 100_000}}).documents(tmp_path))
    large = list(build({"synthetic": {"size": 2_500_000}}).documents(tmp_path))
    assert large[: len(small)] == small
    assert len({d.text for d in large}) == len(large) == 305
    assert build({"synthetic": {"size": 2_500_000}}).sizes(tmp_path) == tuple(sum(map(len, s)) for s in split(large))


def test_synthetic_entropy_rate_equals_what_counting_finds(tmp_path: Path) -> None:
    source = build("synthetic")
    counts = Counter[str]()
    for document in source.documents(tmp_path):
        counts.update(document.text[i : i + 3] for i in range(len(document.text) - 2))
    pairs = Counter[str]()
    for triple, count in counts.items():
        pairs[triple[:2]] += count
    total = sum(counts.values())
    estimate = -sum(count / total * math.log(count / pairs[triple[:2]]) for triple, count in counts.items())
    assert source.entropy_rate_per_byte == pytest.approx(estimate, abs=0.004)


def test_synthetic_surprise_averages_to_its_entropy_rate(tmp_path: Path) -> None:
    source = build({"synthetic": {"size": 1_000_000, "seed": 3}})
    nats = [source.nll(d.text) for d in source.documents(tmp_path)]
    assert all(len(n) == 8192 and np.isfinite(n).all() for n in nats)
    assert np.mean(nats) == pytest.approx(source.entropy_rate_per_byte, abs=0.006)
    text = next(iter(source.documents(tmp_path))).text
    assert [len(source.nll(text[:n])) for n in (1, 2, 3)] == [1, 2, 3]
    assert source.nll(text[:100]) == pytest.approx(source.nll(text)[:100])


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(rows.read_bytes()))
    columns = parquet(tmp_path / "c.parquet", TEXTS)
    found = [split(list(files(path).documents(tmp_path))) for path in (rows, tmp_path / "b.jsonl.gz", columns)]
    assert found[0] == found[1] == found[2]
    training, held_out = found[0]
    assert sorted(training + held_out) == sorted(TEXTS)
    assert 8 <= len(held_out) <= 35
    assert not set(training) & set(held_out)


def test_one_document_is_cut_by_position(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text := "".join(f"line {i}\n" for i in range(1000)))
    (training,), (held_out,) = split(list(files(path).documents(tmp_path)))
    assert training + held_out == text
    assert len(held_out) == len(text) // 10


def test_several_text_files_are_held_out_whole(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(TEXTS[i])
    training, held_out = split(list(files(*(tmp_path / f"{i}.txt" for i in range(3))).documents(tmp_path)))
    assert sorted(training + held_out) == sorted(TEXTS[:3])
    assert len(held_out) == 1


@pytest.mark.parametrize("n", range(2, 12))
def test_copies_stay_on_one_side_and_both_sides_have_something(n: int) -> None:
    texts = [f"{n} {i}" for i in range(n)] * 3
    training, held_out = split(list(split_documents((str(i), text) for i, text in enumerate(texts))))
    assert sorted(training + held_out) == sorted(texts)
    assert training
    assert held_out
    assert not set(training) & set(held_out)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_texts_that_the_hash_holds_out_one_and_all_are_trained_on_too(n: int) -> None:
    low = [text for i in range(1000) if fraction(text := f"number {i}") < 0.1][:n]
    training, held_out = split(list(split_documents((text, text) for text in low * 2)))
    assert "".join(training + held_out) == low[0] if n == 1 else len(training) == 2 and len(held_out) == 2 * n - 2
    assert training
    assert held_out


def test_what_is_held_out_does_not_depend_on_the_other_documents(tmp_path: Path) -> None:
    _, all_held_out = split(list(split_documents((text, text) for text in TEXTS)))
    _, half = split(list(split_documents((text, text) for text in TEXTS[::2])))
    assert set(half) == set(all_held_out) & set(TEXTS[::2])


def test_validation_files_are_held_out_instead(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", TEXTS[:50]), parquet(tmp_path / "b.parquet", TEXTS[50:60])
    assert split(list(files(a, validation_paths=str(b)).documents(tmp_path))) == (TEXTS[:50], TEXTS[50:60])


def test_of_a_text_that_is_cut_by_position_nothing_held_out_is_trained_on_through_another_source(
    tmp_path: Path,
) -> None:
    """A file is cut where it is alone, and on one side as a whole where it is among others."""
    paths = [str(tmp_path / f"{i}.txt") for i in range(3)]
    for path in paths:
        Path(path).write_text(" ".join(f"{Path(path).name}:{i}" for i in range(300)))
    alone, among = ({"source": {"files": {"paths": chosen}}} for chosen in (paths[:1], paths))
    rest = {"source": {"files": {"paths": paths[1:]}}}
    for training, validation in (([among], [alone]), ([alone, among], []), ([alone, rest], [among])):
        data = {"sources": training, "validation": validation, "curation": "none", "tokenizer": "bytes", "seq_len": 8}
        corpus = prepare(Data.model_validate(data), tmp_path / "cache")
        arrays = (corpus.tokens, *(part.tokens for part in corpus.held_out))
        trained, *held_out = ({*bytes(tokens[tokens < 256].tolist()).decode().split()} for tokens in arrays)
        assert trained
        assert len(trained.intersection(set().union(*held_out))) <= 1, "more than a word that the cut splits"


def test_rows_without_text_are_left_out(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ["one", None, "", " \n", "two"])
    assert sorted(d.text for d in files(path).documents(tmp_path)) == ["one", "two"]


def test_content_counts_and_not_place_time_or_size(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "elsewhere" / "b.jsonl"
    b.parent.mkdir()
    jsonl(a, ["one", "two"])
    b.write_bytes(a.read_bytes())
    before = files(a).content_hash(tmp_path)
    assert files(b).content_hash(tmp_path) == before
    assert sorted(d.text for d in files(a).documents(tmp_path)) == ["one", "two"]
    stamp = a.stat()
    jsonl(a, ["ONE", "TWO"])
    os.utime(a, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert a.stat().st_size == stamp.st_size
    assert files(a).content_hash(tmp_path) != before
    assert sorted(d.text for d in files(a).documents(tmp_path)) == ["ONE", "TWO"]


def test_training_and_validation_files_are_told_apart(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", ["one"]), jsonl(tmp_path / "b.jsonl", ["two"])
    hashes = {files(a, b).content_hash(tmp_path), files(b, a).content_hash(tmp_path)}
    hashes |= {files(a, validation_paths=str(b)).content_hash(tmp_path)}
    assert len(hashes) == 3


def _wrong(folder: Path) -> dict[str, tuple[Source, str]]:
    (folder / "undecodable.txt").write_bytes(b"caf\xe9 " * 10)
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text(" \n ")
    (folder / "words.docx").write_text("a")
    (folder / "broken.parquet").write_text("no such thing")
    (folder / "broken.jsonl").write_text('{"text": \n rubbish')
    (folder / "surrogate.jsonl").write_text('{"text": "half \\ud800 pair"}\n')
    (folder / "number.jsonl").write_text('{"text": 3}\n')
    jsonl(folder / "column.jsonl", ["a"], "body")
    parquet(folder / "column.parquet", ["a"], "body")
    return {
        "missing": (files(folder / "none.txt"), "none.txt: no such file"),
        "directory": (files(folder), "is a directory"),
        "undecodable": (files(folder / "undecodable.txt"), "undecodable.txt: not UTF-8 text .byte 0xe9"),
        "empty": (files(folder / "empty.txt"), "holds no text"),
        "blank": (files(folder / "blank.txt"), "holds no text"),
        "format": (files(folder / "words.docx"), "unknown format; known: .txt"),
        "parquet": (files(folder / "broken.parquet"), "broken.parquet: cannot be read"),
        "jsonl": (files(folder / "broken.jsonl"), "broken.jsonl: cannot be read"),
        "surrogate": (files(folder / "surrogate.jsonl"), "surrogate.jsonl: cannot be read"),
        "number": (files(folder / "number.jsonl"), "holds int, not text"),
        "column, JSON": (files(folder / "column.jsonl"), "no column 'text'; known: body, n"),
        "column, Parquet": (files(folder / "column.parquet"), "no column 'text'; known: body, n"),
        "no dataset": (build({"hub": {"name": str(folder / "none")}}), "none .train.: cannot be read"),
    }


@pytest.mark.parametrize("case", [
    "missing", "directory", "undecodable", "empty", "blank", "format", "parquet", "jsonl", "surrogate", "number",
    "column, JSON", "column, Parquet", "no dataset",
])  # fmt: skip
def test_unreadable_files_are_refused_in_one_line(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, message = _wrong(tmp_path)[case]
    with pytest.raises(UserError, match=message) as caught:
        list(source.documents(tmp_path))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset as the hub has them: a folder with a file per split."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    jsonl(folder / "train.jsonl", TEXTS[:100], "body")
    jsonl(folder / "test.jsonl", TEXTS[100:110], "body")
    return folder


def test_a_hub_dataset_is_fetched_once_and_kept(dataset: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub = build({"hub": {"name": str(dataset), "text": "body"}})
    assert hub.unfetched(cache) == f"{dataset}, at most 1000 MB"
    assert not cache.exists()
    kept = hub.content_hash(cache)
    assert hub.unfetched(cache) is None
    documents = list(hub.documents(cache))
    assert sorted(d.text for d in documents) == sorted(TEXTS[:100])
    (dataset / "train.jsonl").unlink()
    assert list(hub.documents(cache)) == documents
    assert hub.content_hash(cache) == kept
    assert sum(hub.sizes(cache)) == pytest.approx(sum(map(len, TEXTS[:100])), rel=0.5)


def test_hub_limits_and_splits(dataset: Path, tmp_path: Path) -> None:
    options = {"name": str(dataset), "text": "body"}
    few = build({"hub": {**options, "max_documents": 3}})
    assert sorted(d.text for d in few.documents(tmp_path)) == sorted(TEXTS[:3])
    short = build({"hub": {**options, "max_bytes": 200}})
    assert 100 < sum(len(d.text) for d in short.documents(tmp_path)) <= 200
    both = build({"hub": {**options, "validation_split": "test"}})
    assert split(list(both.documents(tmp_path))) == (TEXTS[:100], TEXTS[100:110])
    with pytest.raises(UserError, match="no column 'text'; known: body, n"):
        build({"hub": {"name": str(dataset)}}).content_hash(tmp_path)


def test_a_damaged_copy_of_a_hub_dataset_is_fetched_again(dataset: Path, tmp_path: Path) -> None:
    hub = build({"hub": {"name": str(dataset), "text": "body"}})
    kept = hub.content_hash(tmp_path)
    (copy,) = tmp_path.glob("sources/*/train.parquet")
    copy.write_bytes(copy.read_bytes()[:50])
    assert hub.unfetched(tmp_path)
    assert hub.content_hash(tmp_path) == kept
