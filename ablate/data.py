"""Corpus -> tokenizer -> token array: prepared once per content and options, cached by that, memory-mapped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from ablate._preparation import Input, Inputs, build, encoded
from ablate.corpus import Corpus, Validation, load
from ablate.errors import UserError
from ablate.fingerprint import code_fingerprint
from ablate.recipe import Data, digest
from ablate.tokens import FORMAT
from ablate.variants import Choice
from ablate.variants._documents import Curation, Document, Source

__all__ = ["Corpus", "Peek", "Validation", "fingerprint", "peek", "prepare"]

HEAD = 2**20
MAKERS = ("ablate._preparation", "ablate.tokens", "ablate.variants._documents", "ablate.variants._encoders")
"""Modules that make tokens of every text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peek:
    """What is known of a corpus before it is prepared. `exact`: it is prepared already, the number is not estimated.

    Losses compare where `evaluation_fingerprint` is the same: that of the held-out text and of the tokenizer with what
    it is trained on, whatever the model is trained on. Bits per byte compare across tokenizers too, where
    `text_fingerprint` is the same: that of the held-out text alone. `note` is set where something must be fetched first:
    the fingerprints are then provisional, and nothing can be done with them yet.
    """

    fingerprint: str
    evaluation_fingerprint: str
    text_fingerprint: str
    train_tokens: int
    exact: bool
    note: str | None = None


def fingerprint(data: Data, cache: Path) -> str:
    """16 hexadecimal digits for content, options and weights of what is trained on and held out, curation and tokenizer,
    wherever the files lie.

    Reads every byte of local files. Fetches what a hub source has not fetched yet, for its identity is what was
    fetched; `peek` does not.

    Raises:
        UserError: a source or tokenizer that cannot be read.
    """
    return _fingerprints(data, Inputs.of(data), lambda source: source.content_hash(cache))[0]


def peek(data: Data, cache: Path) -> Peek:
    """Fingerprints and size of a corpus, without writing or fetching anything.

    Raises:
        UserError: a corpus that is missing, unreadable or certainly too small.
    """
    inputs = Inputs.of(data)
    missing = dict.fromkeys(what for given in inputs.all if (what := given.source.unfetched(cache)))
    name, evaluation, text = _fingerprints(
        data, inputs, lambda source: "" if source.unfetched(cache) else source.content_hash(cache)
    )
    corpus = None if missing else _load(inputs, name, _code(data), cache)
    if corpus is not None:
        _check(data, corpus)
        tokens = corpus.train_tokens
    else:
        tokens = int(_training_bytes(data, inputs, cache) / data.tokenizer.build().bytes_per_token)
    return Peek(
        fingerprint=name, evaluation_fingerprint=evaluation, text_fingerprint=text, train_tokens=tokens,
        exact=corpus is not None, note=f"not fetched yet: {'; '.join(missing)}" if missing else None,
    )  # fmt: skip


def prepare(data: Data, cache: Path, on_message: Callable[[str], None] | None = None) -> Corpus:
    """The corpus, from `cache/tokens/<fingerprint>` or put there first (again, where the code that makes it has changed).

    Any number of processes may call this at once.

    A tokenizer that is trained is trained on training documents before curation: on those of `data.validation` where that
    is given, so that arms which are trained on something else share it.

    Raises:
        UserError: a corpus that cannot be read, changes while it is read, or is too short for a sequence.
    """
    say = on_message or (lambda message: None)
    inputs = Inputs.of(data)
    for what in dict.fromkeys(given.source.unfetched(cache) for given in inputs.all):
        if what:
            say(f"fetching {what}")
    name, *_ = _fingerprints(data, inputs, lambda source: source.content_hash(cache))
    code = _code(data)
    corpus = _load(inputs, name, code, cache)
    if corpus is None:
        _training_bytes(data, inputs, cache)
        folder = _folder(cache, name)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(FileLock(f"{folder}.lock"), lambda: say("waiting for another process to prepare the corpus")):
            corpus = _load(inputs, name, code, cache)
            if corpus is None:
                say(f"preparing {', '.join(given.choice.name for given in inputs.training)} with {data.tokenizer.name}")
                build(data, inputs, name, code, folder, cache)
                if fingerprint(data, cache) != name:
                    shutil.rmtree(folder)
                    raise UserError("the corpus changed while it was being prepared")
                corpus = _load(inputs, name, code, cache)
    assert corpus is not None
    _check(data, corpus)
    return corpus


def _fingerprints(data: Data, inputs: Inputs, content_hash: Callable[[Source], str]) -> tuple[str, str, str]:
    """Of the corpus, of what its losses are measured on and in, and of the held-out text alone."""

    def described(given: Input) -> dict[str, object]:
        return {**_identity(given.choice), "weight": given.weight, "content": content_hash(given.source)}

    training = [described(given) for given in inputs.training]
    held_out = training if inputs.held_out is inputs.training else [described(given) for given in inputs.held_out]
    tokenizer = {**_identity(data.tokenizer), "content": data.tokenizer.build().content_hash()}
    evaluation = {"format": FORMAT, "held_out": held_out, "tokenizer": tokenizer}
    everything = {**evaluation, "training": training, "curation": _identity(data.curation)}
    return digest(everything), digest(evaluation), digest({"format": FORMAT, "held_out": held_out})


def _identity(choice: Choice) -> dict[str, object]:
    paths = choice.variant.trait("path_options", ())
    return {"name": choice.name, "options": {key: value for key, value in choice.options.items() if key not in paths}}


def _folder(cache: Path, name: str) -> Path:
    return cache / "tokens" / name


def _code(data: Data) -> str:
    """Identity of the code that makes the tokens, which are made again where it has changed: a rule of curation, say."""
    choices = [data.tokenizer, data.curation, *(entry.source for entry in (*data.sources, *data.validation))]
    made = {(choice.variant.build.__module__, choice.variant.build.__qualname__) for choice in choices}
    return code_fingerprint(sorted(made), MAKERS)


def _load(inputs: Inputs, name: str, code: str, cache: Path) -> Corpus | None:
    weights = [[given.weight for given in side] for side in (inputs.training, inputs.held_out)]
    return load(_folder(cache, name), name, code, *weights)


def _check(data: Data, corpus: Corpus) -> None:
    """Raise UserError where there are too few tokens, naming the curation that left them."""
    try:
        corpus.check_training(data.seq_len, data.unique_sequences)
    except UserError as error:
        raise UserError(f"{error}{_left_by(data)}") from None
    corpus.check_held_out(data.seq_len)


def _left_by(data: Data) -> str:
    return "" if data.curation.name == "none" else f" (left by data.curation: {data.curation.name})"


def _training_bytes(data: Data, inputs: Inputs, cache: Path) -> int:
    """UTF-8 bytes of training text after curation; of a large source an estimate, made from its first documents.

    Raises:
        UserError: sources that are unreadable or certainly too small.
    """
    curation: Curation = data.curation.build()
    heads = {id(given): _head(given.source, cache) for given in inputs.all}
    total = 0
    for given in inputs.training:
        size, (documents, whole) = given.source.sizes(cache)[0], heads[id(given)]
        training = [document for document in documents if document.split == "train"]
        kept = _most_tokens(curation.select(iter(training)))
        if whole and kept <= data.seq_len:
            raise UserError(
                f"{given.where}: too little training text for a sequence of {data.seq_len} tokens{_left_by(data)}"
            )
        total += kept if whole else int(size * kept / _most_tokens(training)) if training else size
    held_out = [heads[id(given)] for given in inputs.held_out]
    enough = data.seq_len + 1
    if not any(not whole or _most_tokens(d for d in head if d.split != "train") >= enough for head, whole in held_out):
        where = ", ".join(given.where for given in inputs.held_out)
        raise UserError(f"{where}: too little text held out for a validation sequence of {data.seq_len} tokens")
    return total


def _head(source: Source, cache: Path) -> tuple[list[Document], bool]:
    """The first documents, and whether they are all; none of a source that must be fetched."""
    found: list[Document] = []
    size = 0
    for document in source.documents(cache) if source.unfetched(cache) is None else ():
        found.append(document)
        size += _most_tokens([document])
        if size > HEAD:
            return found, False
    return found, bool(found)


def _most_tokens(documents: Iterable[Document]) -> int:
    """Tokens that documents have at most: a byte each, and a separator for each document."""
    return sum(len(encoded(document)) + 1 for document in documents)


@contextmanager
def _locked(lock: BaseFileLock, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock; `on_wait` is called if somebody else has it."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
