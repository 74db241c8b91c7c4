"""Preparing a corpus: what is held out, what identifies it, what survives, and in which order it is read."""

from __future__ import annotations

import ast
import json
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablate import _preparation, tokens
from ablate import fingerprint as code
from ablate.corpus import Corpus, HeldOut, Part
from ablate.data import fingerprint, peek, prepare
from ablate.errors import UserError
from ablate.recipe import Data
from ablate.tokens import encode
from ablate.variants import curation, load_factors

SYNTHETIC = {"synthetic": {"size": 200_000}}
WORDS = "alpha beta gamma delta epsilon zeta eta theta".split()


def make(
    *sources: Any, tokenizer: Any = "bytes", seq_len: int = 16, validation: Sequence[Any] = (), curation: Any = "none",
    **fields: Any,
) -> Data:  # fmt: skip
    listed, held_out = (
        [source if "source" in source else {"source": source} for source in some] for some in (sources, validation)
    )
    return Data.model_validate({
        "sources": listed, "validation": held_out, "curation": curation, "tokenizer": tokenizer, "seq_len": seq_len,
        **fields,
    })  # fmt: skip


def document(i: int) -> str:
    return f"<{i}> " + " ".join(WORDS[(i * k) % 8] for k in range(1, 30)) + f" </{i}>"


def jsonl(path: Path, texts: Sequence[str]) -> dict[str, Any]:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"files": {"paths": str(path)}}


def held_out_text(corpus: Corpus) -> str:
    return "".join(bytes(part.tokens[part.tokens != 256].tolist()).decode() for part in corpus.held_out)


def training_text(corpus: Corpus) -> str:
    return bytes(corpus.tokens[corpus.tokens != 256].tolist()).decode()


def toy(*sizes: int, weights: Sequence[float] | None = None) -> Corpus:
    """A corpus whose tokens are their own positions."""
    ends = np.cumsum(sizes).tolist()
    parts = tuple(
        Part(weight=weight, start=end - size, stop=end)
        for size, end, weight in zip(sizes, ends, weights or [1.0] * len(sizes), strict=True)
    )
    slice_ = HeldOut(weight=1.0, tokens=np.arange(100), bytes=np.ones(100, int), nll=None, entropy_rate_per_byte=None)
    return Corpus(fingerprint="", vocab_size=2**20, tokens=np.arange(ends[-1]), parts=parts, held_out=(slice_,))


# What is held out


def test_documents_are_trained_on_or_held_out_never_both(tmp_path: Path) -> None:
    texts = [document(i) for i in range(300)]
    corpus = prepare(make(jsonl(tmp_path / "a.jsonl", texts)), tmp_path)
    training, held_out = training_text(corpus), held_out_text(corpus)
    assert len(training) + len(held_out) == sum(map(len, texts))
    sides = [(text in training, text in held_out) for text in texts]
    assert Counter(sides).keys() == {(True, False), (False, True)}
    separators = (corpus.tokens == 256).sum() + (corpus.held_out[0].tokens == 256).sum()
    assert separators == len(texts)


def test_one_document_is_held_out_by_position(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text := "\n".join(document(i) for i in range(100)))
    corpus = prepare(make({"files": {"paths": str(path)}}), tmp_path)
    assert training_text(corpus) + held_out_text(corpus) == text


def test_what_one_source_holds_out_no_other_trains_on(tmp_path: Path) -> None:
    texts = [document(i) for i in range(60)]
    plain = jsonl(tmp_path / "a.jsonl", texts[:50])
    plain["files"]["validation_paths"] = jsonl(tmp_path / "v.jsonl", texts[40:60])["files"]["paths"]
    other = jsonl(tmp_path / "b.jsonl", [document(i) for i in range(45, 200)])
    corpus = prepare(make(plain, other, tokenizer={"bpe": {"vocab_size": 300}}), tmp_path)
    kept = prepare(make(plain, other), tmp_path)
    assert not [text for text in texts[40:] if text in training_text(kept)]
    assert [text for text in texts[:40] if text in training_text(kept)]
    assert corpus.held_out[0].tokens[0] == 299


def test_validation_is_the_head_of_what_is_held_out_whatever_the_seed_and_length(tmp_path: Path) -> None:
    corpus = prepare(make(SYNTHETIC), tmp_path)
    few, many = corpus.validation(16, 5), corpus.validation(16, 50)
    assert few.tokens.shape == (5, 17)
    assert few.targets == 80
    assert np.array_equal(few.tokens, many.tokens[:5])
    assert np.array_equal(few.tokens[1:, 0], few.tokens[:-1, -1])
    everything = corpus.validation(16, 10**9)
    assert len(everything.tokens) == (len(corpus.held_out[0].tokens) - 1) // 16
    assert not np.isin(everything.tokens, 257).any()


def test_validation_is_shared_out_by_weight(tmp_path: Path) -> None:
    upper = jsonl(tmp_path / "a.jsonl", [document(i).upper() for i in range(300)])
    lower = jsonl(tmp_path / "b.jsonl", [document(i) for i in range(300)])
    data = make({"source": upper, "weight": 1.0}, {"source": lower, "weight": 3.0})
    tokens = prepare(data, tmp_path).validation(16, 40).tokens
    assert len(tokens) == 40
    is_upper = [bytes(row[row != 256].tolist()).decode().isupper() for row in tokens]
    assert sum(is_upper) == 10


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", {"bpe": {"vocab_size": 400}}])
def test_bytes_of_the_targets_are_those_of_their_text(tokenizer: Any, tmp_path: Path) -> None:
    texts = [document(i) + " naïve 日本語 🙂\n\n  x" for i in range(300)]
    corpus = prepare(make(jsonl(tmp_path / "a.jsonl", texts), tokenizer=tokenizer), tmp_path)
    part = corpus.held_out[0]
    plain = held_out_text(prepare(make(jsonl(tmp_path / "a.jsonl", texts)), tmp_path))
    held_out = [text for text in texts if text in plain]
    assert part.bytes.sum() == sum(len(text.encode()) for text in held_out)
    validation = corpus.validation(8, 10)
    assert validation.bytes == part.bytes[1:81].sum()
    assert (part.bytes[part.tokens == part.tokens[0]] == 0).all()


def test_characters_without_a_token_are_not_told_for_nothing(tmp_path: Path) -> None:
    """Else the smallest vocabulary would win by bits per byte."""
    source = jsonl(tmp_path / "a.jsonl", [document(i) for i in range(300)])

    def lost(tokenizer: Any) -> float:
        return prepare(make(source, tokenizer=tokenizer), tmp_path).validation(16, 20).lost

    assert lost("bytes") == lost("characters") == 0
    corpus = prepare(make(source, tokenizer={"characters": {"vocab_size": 8}}), tmp_path)
    unknown = int((corpus.validation(16, 20).tokens[:, 1:] == 1).sum())
    assert unknown > 50
    assert corpus.validation(16, 20).lost == pytest.approx(unknown * math.log(1_112_064 - 6))


def test_unigram_entropy_is_that_of_the_targets(tmp_path: Path) -> None:
    validation = prepare(make(SYNTHETIC), tmp_path).validation(16, 100)
    counts = Counter(validation.tokens[:, 1:].ravel().tolist())
    expected = -sum(n / 1600 * math.log(n / 1600) for n in counts.values())
    assert validation.unigram_entropy == pytest.approx(expected)


def test_the_loss_floor_is_the_true_source_on_the_slice(tmp_path: Path) -> None:
    corpus = prepare(make(SYNTHETIC), tmp_path)
    source = load_factors()["source"].choose(SYNTHETIC).build()
    first = next(d.text for d in source.documents(tmp_path) if d.split == "validation")
    validation = corpus.validation(100, 20)
    assert validation.loss_floor == pytest.approx(source.nll(first)[:2000].sum() / 2000)
    assert validation.entropy_rate == pytest.approx(source.entropy_rate_per_byte)
    assert validation.unigram_entropy > 1.5 * source.nll(first).mean()
    merged = prepare(make(SYNTHETIC, tokenizer={"bpe": {"vocab_size": 400}}), tmp_path).validation(100, 20)
    assert merged.bytes > 1.5 * merged.targets
    assert merged.loss_floor == pytest.approx(source.nll(first)[: merged.bytes].sum() / 2000)
    assert merged.entropy_rate == pytest.approx(source.entropy_rate_per_byte * merged.bytes / 2000)


def test_only_a_known_source_has_a_floor(tmp_path: Path) -> None:
    data = make(SYNTHETIC, jsonl(tmp_path / "a.jsonl", [document(i) for i in range(300)]))
    validation = prepare(data, tmp_path).validation(16, 40)
    assert (validation.loss_floor, validation.entropy_rate) == (None, None)


def test_a_long_text_gives_the_tokens_that_it_gives_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PIECE", 1000)
    bpe = load_factors()["tokenizer"].choose({"bpe": {"vocab_size": 500}}).build()
    text = "".join(document(i) + "\n" * (i % 3 + 1) + " " * (i % 2) for i in range(600))
    assert len(text) > 50_000
    encoder = bpe.train([text[:20_000]])
    whole = np.append(encoder.separator, encoder.encode([text])[0])
    assert np.array_equal(encode(encoder, [text]), whole)


# Other sources for validation


def other(path: Path, n: int = 300, first: int = 1000) -> dict[str, Any]:
    return jsonl(path, [document(i).upper() for i in range(first, first + n)])


def test_the_slice_is_of_the_validation_sources_and_no_text_of_it_is_trained_on(tmp_path: Path) -> None:
    texts = [document(i) for i in range(300)]
    plain, upper = jsonl(tmp_path / "a.jsonl", texts), other(tmp_path / "b.jsonl")
    alone = prepare(make(upper), tmp_path)
    corpus = prepare(make(plain, validation=[upper]), tmp_path)
    assert held_out_text(corpus) == held_out_text(alone)
    assert np.array_equal(corpus.validation(16, 20).tokens, alone.validation(16, 20).tokens)
    assert training_text(corpus) == training_text(prepare(make(plain), tmp_path))
    theirs = [document(i).upper() for i in range(1000, 1300)]
    held_out = [text for text in theirs if text in held_out_text(alone)]
    copied = jsonl(tmp_path / "c.jsonl", [*texts, *theirs])
    copied["files"]["validation_paths"] = jsonl(tmp_path / "d.jsonl", texts[:10])["files"]["paths"]
    found = training_text(prepare(make(copied, validation=[upper]), tmp_path))
    assert held_out
    assert [text for text in texts + theirs if text not in found] == texts[:10] + held_out


def test_validation_sources_are_shared_out_by_their_own_weights(tmp_path: Path) -> None:
    plain, upper = jsonl(tmp_path / "a.jsonl", [document(i) for i in range(300)]), other(tmp_path / "b.jsonl")
    data = make(plain, validation=[{"source": upper, "weight": 3.0}, {"source": plain, "weight": 1.0}])
    rows = prepare(data, tmp_path).validation(16, 40).tokens
    assert sum(bytes(row[row != 256].tolist()).decode().isupper() for row in rows) == 30


def test_too_little_to_validate_on_is_refused(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("abc def ghi " * 8)
    data = make(SYNTHETIC, validation=[{"files": {"paths": str(short)}}])
    for call in (peek, prepare):
        with pytest.raises(UserError, match=r"short.txt: too little text held out"):
            call(data, tmp_path / "cache")


# What compares


def test_arms_compare_where_the_slice_and_the_tokenizer_are_the_same(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", [document(i) for i in range(300)]), other(tmp_path / "b.jsonl")
    bpe = {"bpe": {"vocab_size": 300}}
    same = [
        make(a, validation=[b]), make(b, validation=[b]), make(a, b, validation=[b]), make(b),
        make({"source": a, "weight": 9.0}, b, validation=[{"source": b, "weight": 5.0}]),
        make(b, curation="deduplicated"), make(b, seq_len=8, unique_sequences=5, document_masking=True),
    ]  # fmt: skip
    assert len({peek(data, tmp_path).evaluation_fingerprint for data in same}) == 1
    assert len({peek(data, tmp_path).fingerprint for data in same}) == 5
    apart = [
        make(a), make(b), make(a, b), make(a, {"source": b, "weight": 2.0}), make(b, tokenizer=bpe),
        make(b, tokenizer={"bpe": {"vocab_size": 301}}), make(b, validation=[a, b]),
        make(a, validation=[a, {"source": b, "weight": 3.0}]),
    ]  # fmt: skip
    found = [peek(data, tmp_path).evaluation_fingerprint for data in apart]
    assert len(set(found)) == 7
    assert found[2] == found[6]


def test_the_text_that_bits_per_byte_are_of_is_the_same_whatever_the_tokenizer(tmp_path: Path) -> None:
    a, b = jsonl(tmp_path / "a.jsonl", [document(i) for i in range(300)]), other(tmp_path / "b.jsonl")
    same = [make(b), make(b, tokenizer="characters"), make(a, tokenizer={"bpe": {"vocab_size": 300}}, validation=[b])]
    assert len({peek(data, tmp_path).text_fingerprint for data in same}) == 1
    assert len({peek(data, tmp_path).evaluation_fingerprint for data in same}) == 3
    assert peek(make(a), tmp_path).text_fingerprint != peek(make(b), tmp_path).text_fingerprint


def test_arms_that_compare_share_a_trained_tokenizer(tmp_path: Path) -> None:
    """Though they are trained on other sources, one of which holds out what the others train on."""
    tokenizer = {"bpe": {"vocab_size": 400}}
    plain, upper = jsonl(tmp_path / "a.jsonl", [document(i) for i in range(300)]), other(tmp_path / "b.jsonl")
    both = {"files": {"paths": plain["files"]["paths"], "validation_paths": upper["files"]["paths"]}}
    arms = [make(*some, validation=[upper], tokenizer=tokenizer) for some in ([plain], [upper], [plain, upper], [both])]
    slices = [prepare(data, tmp_path).held_out[0].tokens for data in arms]
    assert all(np.array_equal(slices[0], tokens) for tokens in slices)
    assert not np.array_equal(slices[0], prepare(make(plain, tokenizer=tokenizer), tmp_path).held_out[0].tokens)


def test_sources_are_mixed_in_the_asked_proportions(tmp_path: Path) -> None:
    plain, upper = jsonl(tmp_path / "a.jsonl", [document(i) for i in range(900)]), other(tmp_path / "b.jsonl")
    for weight in (0.05, 0.5, 0.9):
        mix = [{"source": plain, "weight": 1.0 - weight}, {"source": upper, "weight": weight}]
        corpus = prepare(make(*mix, validation=[plain]), tmp_path)
        for seed, count in ((0, 3000), (1, 20_000)):
            rows = corpus.tokens[corpus.order(seed, 16, count)[:, None] + np.arange(17)]
            is_upper = (((rows >= 65) & (rows <= 90)).sum(1) > ((rows >= 97) & (rows <= 122)).sum(1)).sum()
            assert abs(is_upper - weight * count) < 4.5 * math.sqrt(count * weight * (1 - weight))


# Identity


def test_the_fingerprint_is_of_content_and_not_of_place_or_length(tmp_path: Path) -> None:
    texts = [document(i) for i in range(100)]
    here, there = jsonl(tmp_path / "a.jsonl", texts), jsonl(tmp_path / "there" / "b.jsonl", texts)
    name = fingerprint(make(here), tmp_path)
    assert len(name) == 16
    assert fingerprint(make(there, seq_len=99), tmp_path / "other") == name
    assert fingerprint(make({"source": here, "weight": 7.0}), tmp_path) == name
    assert fingerprint(make(here, validation=[there]), tmp_path) == name
    assert fingerprint(make(here, unique_sequences=3, document_masking=True), tmp_path) == name


def test_whatever_changes_the_tokens_or_their_order_changes_the_fingerprint(tmp_path: Path) -> None:
    texts = [document(i) for i in range(100)]
    a, b = jsonl(tmp_path / "a.jsonl", texts), jsonl(tmp_path / "b.jsonl", texts[::-1])
    variations = [
        make(a), make(b), make(a, b), make(b, a), make({"source": a, "weight": 2.0}, b),
        make(a, tokenizer="characters"), make(a, tokenizer={"characters": {"vocab_size": 30}}), make(SYNTHETIC),
        make({"synthetic": {"size": 200_000, "seed": 1}}), make(a, validation=[b]), make(b, validation=[a]),
        make(a, validation=[a, b]), make(a, validation=[a, {"source": b, "weight": 2.0}]),
        make(a, curation="deduplicated"), make(a, curation="quality"),
        make(a, curation={"quality": {"min_stop_words": 1}}),
    ]  # fmt: skip
    assert len({fingerprint(data, tmp_path) for data in variations}) == len(variations)


def test_changed_content_of_the_same_size_and_time_gives_new_tokens(tmp_path: Path) -> None:
    path, texts = tmp_path / "a.jsonl", [document(i) for i in range(100)]
    data = make(jsonl(path, texts))
    stamp = path.stat()
    before = prepare(data, tmp_path)
    jsonl(path, [text.upper() for text in texts])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stamp.st_size, stamp.st_mtime_ns)
    after = prepare(data, tmp_path)
    assert after.fingerprint != before.fingerprint
    assert training_text(after).isupper()


def test_a_corpus_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, texts = tmp_path / "a.jsonl", [document(i) for i in range(100)]
    data = make(jsonl(path, texts))
    seal = _preparation.seal

    def change(folder: Path, fields: Any) -> None:
        jsonl(path, texts[1:])
        seal(folder, fields)

    monkeypatch.setattr(_preparation, "seal", change)
    with pytest.raises(UserError, match="changed while"):
        prepare(data, tmp_path)
    assert not [p for p in (tmp_path / "tokens").iterdir() if p.is_dir()]


# The cache


def test_a_prepared_corpus_is_loaded_and_not_made_again(tmp_path: Path) -> None:
    said: list[str] = []
    first = prepare(make(SYNTHETIC), tmp_path, said.append)
    assert said == ["preparing synthetic with bytes"]
    second = prepare(make(SYNTHETIC), tmp_path, said.append)
    assert len(said) == 1
    assert isinstance(second.tokens, np.memmap)
    assert second.tokens.dtype == np.uint16
    assert np.array_equal(first.tokens, second.tokens)
    assert second.vocab_size == 257
    assert second.tokens.max() <= 256


def test_an_edit_of_what_makes_the_tokens_makes_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a trial with a new identity would be trained on what the old code made."""
    source = jsonl(tmp_path / "a.jsonl", [document(i % 50) for i in range(100)])
    whole = prepare(make(source), tmp_path).train_tokens
    data = make(source, curation="deduplicated")
    assert prepare(data, tmp_path).train_tokens < whole
    read = ast.parse
    edited = "def select(self, documents): return documents"

    def with_edit(raw: bytes) -> ast.Module:
        tree = read(raw)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == "Deduplicated":
                node.body = read(edited).body
        return tree

    monkeypatch.setattr(ast, "parse", with_edit)
    monkeypatch.setattr(curation.Deduplicated, "select", lambda self, documents: documents)
    code._module.cache_clear()
    try:
        assert peek(data, tmp_path).exact is False
        assert prepare(data, tmp_path).train_tokens == whole
        assert peek(make(source), tmp_path).exact, "the code of another rule is unchanged"
    finally:
        code._module.cache_clear()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "foreign", "no manifest", "old format"])
def test_a_damaged_cache_is_made_again(damage: str, tmp_path: Path) -> None:
    data = make(SYNTHETIC)
    good = np.array(prepare(data, tmp_path).tokens)
    folder = tmp_path / "tokens" / fingerprint(data, tmp_path)
    tokens, manifest = folder / "train.tokens", folder / "manifest.json"
    raw = tokens.read_bytes()
    if damage == "truncated":
        tokens.write_bytes(raw[:-1000])
    elif damage == "flipped":
        tokens.write_bytes(raw[:5000] + b"\1" + raw[5001:])
    elif damage == "missing":
        (folder / "validation-0.bytes").unlink()
    elif damage == "foreign":
        manifest.write_text(manifest.read_text().replace(folder.name, "0" * 16))
    elif damage == "no manifest":
        manifest.write_text("")
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    assert not peek(data, tmp_path).exact
    said: list[str] = []
    assert np.array_equal(prepare(data, tmp_path, said.append).tokens, good)
    assert said == ["preparing synthetic with bytes"]
    assert peek(data, tmp_path).exact


def test_the_checksum_of_a_large_file_sees_its_size_and_ends(tmp_path: Path) -> None:
    from ablate.tokens import _checksum

    path = tmp_path / "large"
    path.write_bytes(bytes(20_000_000))
    before = _checksum(path)
    for change in (lambda f: f.seek(0), lambda f: f.seek(-1, 2), lambda f: f.seek(0, 2)):
        with path.open("r+b") as file:
            change(file)
            file.write(b"x")
        assert _checksum(path) != before
        before = _checksum(path)


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    data = make(SYNTHETIC)
    partial = tmp_path / "tokens" / f"{fingerprint(data, tmp_path)}.partial"
    partial.mkdir(parents=True)
    (partial / "train.tokens").write_bytes(b"half")
    (partial / "foreign").write_bytes(b"")
    prepare(data, tmp_path)
    assert not partial.exists()
    assert not list(tmp_path.glob("tokens/*/foreign"))


def _prepare_in_process(cache: str, together: Any, queue: Any) -> None:
    said: list[str] = []
    together.wait(60)
    corpus = prepare(make(SYNTHETIC), Path(cache), said.append)
    queue.put((corpus.fingerprint, int(corpus.tokens.astype(np.int64).sum()), sum("preparing" in s for s in said)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the children do nothing with threads
def test_several_processes_prepare_one_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue, together = context.Queue(), context.Barrier(4)
    workers = [context.Process(target=_prepare_in_process, args=(str(tmp_path), together, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    answers = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert len({answer[:2] for answer in answers}) == 1
    assert sum(answer[2] for answer in answers) == 1
    assert [p.name for p in (tmp_path / "tokens").iterdir() if p.is_dir()] == [answers[0][0]]


# Peek


def test_peek_writes_nothing_and_estimates(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = jsonl(tmp_path / "a.jsonl", [document(i) for i in range(300)])
    for data in (
        make(source),
        make(SYNTHETIC),
        make("stdlib"),
        make(SYNTHETIC, tokenizer={"bpe": {"vocab_size": 300}}),
    ):
        guess = peek(data, cache)
        assert not cache.exists()
        assert (guess.exact, guess.note) == (False, None)
        assert guess.fingerprint == fingerprint(data, cache)
    known = prepare(make(source), cache)
    exact = peek(make(source), cache)
    assert (exact.exact, exact.train_tokens) == (True, known.train_tokens)


def test_peek_guesses_the_tokens_well(tmp_path: Path) -> None:
    for tokenizer in ("bytes", {"bpe": {"vocab_size": 1024}}):
        data = make({"stdlib": {"max_bytes": 800_000}}, tokenizer=tokenizer)
        guess = peek(data, tmp_path).train_tokens
        assert guess == pytest.approx(prepare(data, tmp_path).train_tokens, rel=0.2)


def test_peek_does_not_fetch(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    jsonl(tmp_path / "dataset" / "train.jsonl", [document(i) for i in range(300)])
    data = make({"hub": {"name": str(tmp_path / "dataset"), "max_bytes": 20_000}})
    unfetched = peek(data, cache)
    assert not cache.exists()
    assert unfetched.note is not None
    assert unfetched.note.startswith("not fetched yet: ")
    assert unfetched.train_tokens == pytest.approx(18_000, rel=0.01)
    said: list[str] = []
    corpus = prepare(data, cache, said.append)
    assert [message.split()[0] for message in said] == ["fetching", "preparing"]
    fetched = peek(data, cache)
    assert (fetched.exact, fetched.note, fetched.fingerprint) == (True, None, corpus.fingerprint)
    assert fetched.fingerprint != unfetched.fingerprint


@pytest.mark.parametrize("call", [peek, prepare])
@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.txt", b"abc", "a.txt: too little training text for a sequence of 16 tokens"),
    ("a.txt", b"abc def ghi " * 8, "a.txt: too little text held out for a validation sequence of 16 tokens"),
    ("a.txt", b"", "a.txt: holds no text"),
    ("a.txt", bytes(range(256)) * 10, "a.txt: not UTF-8 text"),
    ("a.txt", b"text " * 400_000 + b"\xff", "a.txt: not UTF-8 text"),
    ("a.parquet", b"PAR1", "a.parquet: cannot be read"),
    ("a.jsonl", b'{"body": "a"}\n', "a.jsonl: no column 'text'; known: body"),
    ("a.txt", None, "a.txt: no such file"),
])  # fmt: skip
def test_a_bad_corpus_is_refused_in_one_line_and_leaves_nothing(
    call: Any, name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=message) as caught:
        call(make({"files": {"paths": str(tmp_path / name)}}), cache)
    assert "\n" not in str(caught.value)
    assert not cache.exists()


def test_a_prepared_corpus_may_be_too_short_for_longer_sequences(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [document(i) for i in range(30)])
    corpus = prepare(make(source), tmp_path)
    with pytest.raises(UserError, match="too few for sequences of 100000"):
        peek(make(source, seq_len=100_000), tmp_path)
    with pytest.raises(UserError, match="too few for sequences of 100000"):
        prepare(make(source, seq_len=100_000), tmp_path)
    with pytest.raises(UserError, match="validation tokens are too few"):
        corpus.validation(len(corpus.held_out[0].tokens), 1)


# Order


def test_the_order_is_one_stream_that_batches_and_length_do_not_change() -> None:
    corpus = toy(1000, 500)
    stream = corpus.order(3, 8, 1000)
    assert stream.dtype == np.int64
    assert np.array_equal(corpus.order(3, 8, 333), stream[:333])
    assert not np.array_equal(corpus.order(4, 8, 1000), stream)


@pytest.mark.parametrize("size", [1001, 1005, 1010])
def test_every_epoch_sees_every_window_once_in_another_order_and_cut_elsewhere(size: int) -> None:
    starts = toy(size).order(0, 10, 2000)
    assert sorted(starts[:100]) == list(range(0, 1000, 10))
    offsets, done = [], 0
    while done < 1800:
        offset = int(starts[done] % 10)
        epoch = starts[done : done + (size - 1 - offset) // 10]
        assert sorted(epoch) == list(range(offset, size - 10, 10))
        assert not np.array_equal(epoch, np.sort(epoch))
        offsets.append(offset)
        done += len(epoch)
    assert offsets[0] == 0
    assert len(set(offsets)) > 5


def test_the_cuts_of_later_epochs_are_uniform() -> None:
    counts = np.bincount([toy(801).order(seed, 8, 150)[100] % 8 for seed in range(1600)], minlength=8)
    assert ((counts - 200) ** 2 / 200).sum() < 24.3  # chi-squared with 7 degrees of freedom, p = 0.001


@pytest.mark.parametrize("size", [9, 10, 16, 17, 20])
def test_a_corpus_of_a_window_or_two_is_never_read_beyond_its_end(size: int) -> None:
    starts = toy(size).order(0, 8, 300)
    assert len(starts) == 300
    assert starts.min() == 0
    assert starts.max() == size - 9


# Repetition


@pytest.mark.parametrize("corpus", [toy(1001), toy(901, 601, 501, weights=[1.0, 2.0, 0.5])], ids=["one", "three"])
def test_repeated_data_are_the_same_sequences_each_epoch_in_another_order(corpus: Corpus) -> None:
    epochs = corpus.order(5, 10, 4 * 40, unique=40).reshape(4, 40)
    assert len(set(epochs[0].tolist())) == 40
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    tokens = [np.sort(np.concatenate([corpus.tokens[start : start + 11] for start in epoch])) for epoch in epochs]
    assert all(np.array_equal(tokens[0], some) for some in tokens)


def test_fewer_repeated_sequences_are_among_more() -> None:
    corpus = toy(901, 601, weights=[1.0, 2.0])
    fresh = corpus.order(5, 10, 40)
    for unique in (40, 20, 10, 1):
        stream = corpus.order(5, 10, 90, unique)
        assert np.array_equal(stream[:unique], fresh[:unique])
        assert set(stream.tolist()) == set(fresh[:unique].tolist())
        assert np.array_equal(corpus.order(5, 10, 33, unique), stream[:33])
    assert set(corpus.order(6, 10, 40, 20).tolist()) != set(fresh[:20].tolist())


def test_repeated_sequences_are_drawn_by_weight() -> None:
    corpus = toy(80_001, 80_001, weights=[1.0, 3.0])
    starts = corpus.order(0, 8, 4000, unique=4000)
    assert (starts > 80_000).mean() == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 4000))


def test_more_unique_sequences_than_there_are_are_refused(tmp_path: Path) -> None:
    assert len(set(toy(1001).order(0, 10, 200, unique=100).tolist())) == 100
    with pytest.raises(UserError, match="100 training sequences of 10 tokens are too few for 101"):
        toy(1001).order(0, 10, 200, unique=101)
    with pytest.raises(UserError, match="100 training sequences of 10 tokens from source 1 are too few"):
        toy(10_001, 1001, weights=[1.0, 1.0]).order(0, 10, 200, unique=300)
    source = jsonl(tmp_path / "a.jsonl", [document(i) for i in range(300)])
    assert not peek(make(source, unique_sequences=10**6), tmp_path / "cache").exact
    for call in (prepare, peek):
        with pytest.raises(UserError, match=r"data.unique_sequences: .* are too few for 1000000"):
            call(make(source, unique_sequences=10**6), tmp_path / "cache")


def test_windows_overlap_in_no_target_and_straddle_no_sources() -> None:
    corpus = toy(103, 57, 9)
    starts = corpus.order(1, 8, 2000)
    source = np.searchsorted([103, 160], np.arange(169), side="right")
    assert all(source[start] == source[start + 8] for start in starts)
    for i, windows in enumerate((102 // 8, 56 // 8, 1)):
        first = starts[source[starts] == i][:windows]
        targets = np.concatenate([np.arange(start + 1, start + 9) for start in first])
        assert len(np.unique(targets)) == len(targets)


def test_sources_are_drawn_by_weight_and_run_through_on_their_own() -> None:
    corpus = toy(1601, 801, weights=[1.0, 3.0])
    starts = corpus.order(0, 8, 40_000)
    second = starts >= 1601
    assert second.mean() == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / 40_000))
    assert sorted(starts[second][:100]) == list(range(1601, 2401, 8))
    assert sorted(starts[~second][:200]) == list(range(0, 1600, 8))


def test_the_order_is_the_same_on_every_machine() -> None:
    assert toy(1000, 500).order(7, 8, 12).tolist() == ORDER


ORDER = [832, 976, 568, 1160, 136, 1272, 1448, 600, 1384, 1256, 752, 848]


def test_the_first_window_is_uniform_over_seeds() -> None:
    corpus = toy(81)
    counts = np.bincount([corpus.order(seed, 8, 1)[0] // 8 for seed in range(2000)], minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-squared with 9 degrees of freedom, p = 0.001
