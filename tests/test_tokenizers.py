"""Text to tokens and back, and where each token ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablate.errors import UserError
from ablate.variants import load_factors
from ablate.variants.tokenizer import Tokenizer

TEXT = "The cat sat.\n\n  def f(x):\n\treturn x  # naïve café, 日本語 🙂 <|endoftext|> </s>\n" * 5
SPECS: dict[str, Any] = {
    "bpe": {"bpe": {"vocab_size": 300}},
    "characters": {"characters": {"vocab_size": 100}},
    "bytes": "bytes",
}


def build(spec: Any) -> Tokenizer:
    return load_factors()["tokenizer"].choose(spec).build()


def save(path: Path, special: tuple[str, ...] = ("<|endoftext|>",)) -> Path:
    """A byte-level tokenizer file as the library writes it, truncating and adding special tokens as published ones do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator([TEXT], trainer)
    if special:
        library.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], 0)]
        )
    library.enable_truncation(8)
    library.save(str(path))
    return path


@pytest.fixture(params=[*SPECS, "file"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param == "file":
        return build({"file": {"path": str(save(tmp_path / "tokenizer.json"))}})
    return build(SPECS[request.param])


def test_decoding_gives_the_text_back(tokenizer: Tokenizer) -> None:
    encoder = tokenizer.train([TEXT])
    for ids in encoder.encode([TEXT, "x", "café 🙂"]):
        assert ids.max() < tokenizer.vocab_size
        assert encoder.separator < tokenizer.vocab_size
        assert encoder.separator not in ids
    assert [encoder.decode(ids.tolist()) for ids in encoder.encode([TEXT, "x", "café 🙂"])] == [TEXT, "x", "café 🙂"]


def test_the_separator_is_known_before_training(tokenizer: Tokenizer) -> None:
    assert tokenizer.separator == tokenizer.train([TEXT]).separator == tokenizer.train([]).separator


def test_tokens_end_where_their_text_ends(tokenizer: Tokenizer) -> None:
    encoder = tokenizer.train([TEXT])
    ((ids, ends),) = encoder.encode_with_ends([TEXT])
    assert np.array_equal(ids, encoder.encode([TEXT])[0])
    assert ends[-1] == len(TEXT)
    assert (np.diff(ends, prepend=0) >= 0).all()
    for i in range(0, len(ids), 7):
        whole = encoder.decode(ids[: i + 1].tolist()).rstrip("\N{REPLACEMENT CHARACTER}")
        assert TEXT.startswith(whole)
        assert len(whole) <= ends[i] <= len(whole) + 1


def test_training_twice_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    first, second = (tokenizer.train([TEXT, "more text"]).encode([TEXT])[0] for _ in range(2))
    assert np.array_equal(first, second)


def test_vocabulary_sizes_follow_from_the_options(tmp_path: Path) -> None:
    assert build("bpe").vocab_size == 8192
    assert build("characters").vocab_size == 256
    assert build("bytes").vocab_size == 257
    path = save(tmp_path / "tokenizer.json")
    assert build({"file": {"path": str(path)}}).vocab_size == 280


def test_bpe_of_a_small_corpus_leaves_ids_unused() -> None:
    encoder = build({"bpe": {"vocab_size": 5000}}).train(["aaa bbb aaa"])
    (ids,) = encoder.encode(["aaa bbb aaa"])
    assert encoder.separator == 4999
    assert len(ids) < 11
    assert ids.max() < 300


def test_rare_characters_share_a_token() -> None:
    encoder = build({"characters": {"vocab_size": 4}}).train(["aaabbc"])
    (ids,) = encoder.encode(["abcd"])
    assert ids.tolist() == [2, 3, 1, 1]
    assert encoder.decode(ids.tolist()) == "ab\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"


def test_a_file_without_a_separator_gets_one(tmp_path: Path) -> None:
    path = save(tmp_path / "tokenizer.json", special=())
    tokenizer = build({"file": {"path": str(path)}})
    assert tokenizer.vocab_size == 281
    assert tokenizer.train([]).separator == 280
    named = build({"file": {"path": str(save(path, special=("<s>", "<doc>"))), "separator": "<doc>"}})
    assert (named.vocab_size, named.train([]).separator) == (280, 1)


def test_a_tokenizer_file_counts_by_content(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a.json"), save(tmp_path / "b.json")
    first, second = (build({"file": {"path": str(path)}}).content_hash() for path in (a, b))
    assert first == second
    save(b, special=("<other>",))
    assert build({"file": {"path": str(b)}}).content_hash() != first


@pytest.mark.parametrize(("name", "content", "message"), [
    ("none.json", None, "none.json: no such file"),
    (".", None, "cannot be read: Is a directory"),
    ("a.json", b'{"a": 1}', "is no tokenizer file"),
    ("a.json", b"\xff\xfe", "is no tokenizer file"),
    ("a.json", b"", "is no tokenizer file"),
])  # fmt: skip
def test_what_is_no_tokenizer_is_refused(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        build({"file": {"path": str(tmp_path / name)}})


def test_an_unknown_separator_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"has no token '<\|endoftex\|>'; did you mean"):
        build({"file": {"path": str(path), "separator": "<|endoftex|>"}})


@pytest.mark.parametrize("spec", [{"bpe": {"vocab_size": 100}}, {"bpe": {"vocab_size": 300.5}}, {"bytes": {"a": 1}}])
def test_options_are_strict(spec: Any) -> None:
    with pytest.raises(UserError):
        build(spec)
