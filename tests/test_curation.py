"""What a curation keeps, by rule, and what it never touches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate.data import peek, prepare
from ablate.errors import UserError
from ablate.recipe import Data
from ablate.variants import load_factors
from ablate.variants._documents import Curation, Document

SENTENCE = "The first of the days that we have seen began with rain and wind. "
GOOD = "\n".join([SENTENCE] * 10)


def build(spec: Any) -> Curation:
    return load_factors()["curation"].choose(spec).build()


def kept(spec: Any, texts: Sequence[str]) -> list[str]:
    documents = [Document(str(i), text, "train") for i, text in enumerate(texts)]
    found = list(build(spec).select(iter(documents)))
    assert [document for document in documents if document in found] == found, "a part, in the order of the whole"
    return [document.text for document in found]


@pytest.mark.parametrize("variant", list(load_factors()["curation"]), ids=lambda variant: variant.name)
def test_a_curation_takes_a_stream_and_keeps_a_part_of_it_in_order(variant: Any) -> None:
    texts = [GOOD, "", " \n", "x", GOOD, "### " * 100, *(f"{GOOD} {i}" for i in range(10))]
    found = kept(variant.name, texts)
    assert found == kept(variant.name, texts)
    assert {f"{GOOD} {i}" for i in range(10)} <= set(found)
    endless = (Document(str(i), f"{GOOD} {i}", "train") for i in range(10**9))
    assert next(build(variant.name).select(endless)).key == "0"


@given(st.lists(st.sampled_from(["a", "b", "b ", "B", "", "ab"]), max_size=20))
def test_of_equal_texts_the_first_is_kept(texts: list[str]) -> None:
    assert kept("none", texts) == texts
    assert kept("deduplicated", texts) == list(dict.fromkeys(texts))


PLANTED = {
    "words": "\n".join([SENTENCE] * 3),
    "word_length": GOOD.replace("rain", "r" * 150),
    "hashes": GOOD.replace("rain", "rain ##"),
    "ellipses": GOOD.replace("rain", "r... ...n"),
    "bullet_lines": "\n".join(["- " + SENTENCE] * 10),
    "ellipsis_lines": "\n".join([SENTENCE] * 6 + [SENTENCE + "..."] * 4),
    "alphabetic_words": GOOD.replace("rain", "3 4 5 6"),
    "stop_words": " ".join(["We", "saw", "the", "rain", "pass", "over", "fields"] * 20),
}


@pytest.mark.parametrize("rule", PLANTED)
def test_each_rule_of_quality_refuses_what_it_names_and_nothing_else_does(rule: str) -> None:
    quality: Any = build("quality")
    assert all(quality.rules(GOOD).values())
    assert list(quality.rules(GOOD)) == list(PLANTED)
    assert [name for name, passed in quality.rules(PLANTED[rule]).items() if not passed] == [rule]
    assert kept("quality", [PLANTED[rule], GOOD]) == [GOOD]


@pytest.mark.parametrize(
    ("rule", "option", "text", "at", "beyond"),
    [
        ("words", "min_words", "word " * 30, 30, 31),
        ("words", "max_words", "word " * 60, 60, 59),
        ("word_length", "min_word_length", "four letters", 5.5, 5.51),
        ("word_length", "max_word_length", "four letters", 5.5, 5.49),
        ("hashes", "max_symbols_per_word", "a# b c d", 0.25, 0.24),
        ("ellipses", "max_symbols_per_word", "a... b c d…", 0.5, 0.49),
        ("bullet_lines", "max_bullet_lines", "• a\n\n  - b\n* c\nd", 0.75, 0.74),
        ("ellipsis_lines", "max_ellipsis_lines", "a...\nb… \nc\n\nd", 0.5, 0.49),
        ("alphabetic_words", "min_alphabetic_words", "a1 22 = é", 0.5, 0.51),
        ("stop_words", "min_stop_words", "THE cat, the dog and I", 2, 3),
    ],
)
def test_thresholds_are_options_and_the_limit_passes(rule: str, option: str, text: str, at: Any, beyond: Any) -> None:
    limits = [build({"quality": {option: value}}) for value in (at, beyond)]
    assert [limit.rules(text)[rule] for limit in limits] == [True, False]  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{"min_words": -1}, {"max_bullet_lines": 1.5}, {"min_stop_words": 9}, {"words": 1}])
def test_thresholds_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        build({"quality": options})


# In a corpus


def recipe(path: Path, curation: Any, tokenizer: Any = "bytes", seq_len: int = 16) -> Data:
    source = {"files": {"paths": str(path)}}
    return Data.model_validate(
        {"sources": [{"source": source}], "curation": curation, "tokenizer": tokenizer, "seq_len": seq_len}
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """300 documents, each twice, every third of which is too short for the rules of quality."""
    texts = [f"{i} {GOOD if i % 3 else SENTENCE}" for i in range(300)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts * 2))
    return file


def documents(tokens: np.ndarray) -> list[str]:
    return bytes(np.where(tokens == 256, 0, tokens).tolist()).decode().split("\0")[1:]


def test_only_what_is_trained_on_is_curated(path: Path, tmp_path: Path) -> None:
    arms = {name: prepare(recipe(path, name), tmp_path) for name in ("none", "deduplicated", "quality")}
    training = {name: documents(corpus.tokens) for name, corpus in arms.items()}
    assert training["deduplicated"] == list(dict.fromkeys(training["none"]))
    assert training["quality"] == [text for text in training["none"] if len(text.split()) >= 50]
    assert 0 < len(training["quality"]) < len(training["none"])
    first = arms["none"].held_out[0].tokens
    assert any(len(text.split()) < 50 for text in documents(first))
    assert all(np.array_equal(corpus.held_out[0].tokens, first) for corpus in arms.values())


def test_arms_of_curation_share_a_tokenizer_and_compare(path: Path, tmp_path: Path) -> None:
    made = [recipe(path, name, {"bpe": {"vocab_size": 300}}) for name in ("none", "deduplicated", "quality")]
    corpora = [prepare(data, tmp_path) for data in made]
    assert all(np.array_equal(c.held_out[0].tokens, corpora[0].held_out[0].tokens) for c in corpora)
    peeks = [peek(data, tmp_path) for data in made]
    assert len({p.fingerprint for p in peeks}) == 3
    assert len({p.evaluation_fingerprint for p in peeks}) == 1


def test_a_threshold_is_part_of_the_fingerprint(path: Path, tmp_path: Path) -> None:
    arms = ["quality", {"quality": {"min_words": 50}}, {"quality": {"min_words": 10}}]
    names = [peek(recipe(path, arm), tmp_path).fingerprint for arm in arms]
    assert names[0] == names[1] != names[2]


def test_a_plan_guesses_what_a_curation_leaves(path: Path, tmp_path: Path) -> None:
    for arm in ("none", "deduplicated", "quality", {"quality": {"min_words": 10}}):
        guess = peek(recipe(path, arm), tmp_path).train_tokens
        assert guess == pytest.approx(prepare(recipe(path, arm), tmp_path).train_tokens, rel=0.02)


@pytest.mark.parametrize("call", [peek, prepare])
def test_a_curation_that_leaves_too_little_is_named(call: Any, path: Path, tmp_path: Path) -> None:
    all_out = {"quality": {"min_words": 90_000}}
    with pytest.raises(
        UserError, match=r"a.jsonl: too little training text .*left by data.curation: quality"
    ) as caught:
        call(recipe(path, all_out), tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()
    tokens = prepare(recipe(path, "quality"), tmp_path / "cache").train_tokens
    with pytest.raises(UserError, match=rf"{tokens} training tokens are too few .*left by data.curation: quality"):
        call(recipe(path, "quality", seq_len=tokens), tmp_path / "cache")
