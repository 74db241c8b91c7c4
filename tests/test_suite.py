"""Suites: what a file may say, what it comes to, and that every shipped one is sound."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ablate import design, suite
from ablate._yaml import MAX_BYTES, SuiteError, read

FULL = """\
name: mine
description: >
  Asks
  something.
source: arXiv:1706.03762
base: {scale: 10m, model: {dim: 192}, optimizer.weight_decay: 0.2}
factors:
  model.attention: [mha, {gqa: {n_kv_heads: 2}}, {gqa: {n_kv_heads: 3}}]
  optimizer: [adamw, {lion: {lr: 1.0e-4, weight_decay: 1}}]
  model.dropout: [0.0, 0.1]
design: one_at_a_time
baseline: {optimizer: lion, model.attention: {gqa: {n_kv_heads: 3}}}
exclude: [{model.attention: [mha], optimizer: adamw}]
match: tokens
controls: {aa: 4, bad: {optimizer.lr: x10, model.norm: none}}
seeds: [3, 5]
margin: 5e-3
contrasts: [{factor: model.attention, level: mha, against: gqa(n_kv_heads=2)}]
"""


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def load(tmp_path: Path):
    return lambda text: suite.load_suite(write(tmp_path / "mine.yaml", text))


def test_every_key_is_read(load, tmp_path: Path) -> None:
    found = load(FULL)
    assert (found.name, found.description, found.source) == ("mine", "Asks something.", "arXiv:1706.03762")
    assert (found.scale, found.base) == ("10m", {"model": {"dim": 192}, "optimizer.weight_decay": 0.2})
    assert [level.label for level in found.factors["model.attention"]] == [
        "mha",
        "gqa(n_kv_heads=2)",
        "gqa(n_kv_heads=3)",
    ]
    assert [level.label for level in found.factors["optimizer"]] == ["adamw", "lion"]
    assert [level.label for level in found.factors["model.dropout"]] == ["0.0", "0.1"]
    assert found.baseline == {"model.attention": "gqa(n_kv_heads=3)", "optimizer": "lion", "model.dropout": "0.0"}
    assert found.exclude == ({"model.attention": ("mha",), "optimizer": ("adamw",)},)
    assert (found.design, found.match, found.seeds, found.margin) == ("one_at_a_time", "tokens", (3, 5), 0.005)
    assert found.contrasts == ({"factor": "model.attention", "level": "mha", "against": "gqa(n_kv_heads=2)"},)
    assert (found.controls.aa, found.controls.bad) == (4, {"optimizer.lr": "x10", "model.norm": "none"})
    assert (found.text, found.path, found.base_dir) == (FULL, tmp_path / "mine.yaml", tmp_path)


def test_what_is_left_out_has_a_plain_default(load) -> None:
    found = load("name: x\nfactors: {model.norm: [layernorm, rmsnorm]}\n")
    assert (found.scale, found.design, found.match, found.seeds, found.margin) == (
        "nano",
        "full",
        "tokens",
        (0, 1, 2),
        None,
    )
    assert found.baseline == {"model.norm": "layernorm"}
    assert found.contrasts == ({"factor": "model.norm", "level": "rmsnorm", "against": "layernorm"},)


def test_a_number_of_seeds_counts_from_zero(load) -> None:
    assert load("name: x\nseeds: 2\nfactors: {model.norm: [layernorm, rmsnorm]}\n").seeds == (0, 1)


def test_levels_are_found_by_value_however_the_number_is_written(load) -> None:
    found = load("name: x\nfactors: {optimizer.lr: [1e-3, 2e-3]}\nbaseline: {optimizer.lr: 0.0020}\n")
    assert found.baseline == {"optimizer.lr": "0.002"}


def test_base_sets_options_of_the_variant_that_it_selects(load) -> None:
    found = load("name: x\nbase: {optimizer: lion, optimizer.lr: 7e-4}\nfactors: {model.norm: [layernorm, rmsnorm]}\n")
    recipe = design.expand(found).trials[0].recipe
    assert (recipe.optimizer.name, recipe.optimizer.options["lr"]) == ("lion", 7e-4)


def test_outer_factors_are_set_before_inner_ones(load) -> None:
    found = load("name: x\nfactors: {optimizer.lr: [1e-3, 2e-3], optimizer: [lion, adamw]}\n")
    chosen = [trial.recipe.optimizer for trial in design.expand(found, seeds=1).trials]
    assert [(choice.name, choice.options["lr"]) for choice in chosen] == [
        ("lion", 1e-3), ("adamw", 1e-3), ("lion", 2e-3), ("adamw", 2e-3),
    ]  # fmt: skip


def test_yaml_is_of_version_1_2() -> None:
    text = "a: 3e-4\nb: yes\nc: 2020-01-01\nd: 0o17\ne: 010\nf: '1'\ng: ~\nh: True\ni: [1., -.5]\nj:\n"
    assert read(text, "x").value == {
        "a": 3e-4, "b": "yes", "c": "2020-01-01", "d": 15, "e": 10,
        "f": "1", "g": None, "h": True, "i": [1.0, -0.5], "j": None,
    }  # fmt: skip


def test_errors_know_their_line_and_key() -> None:
    document = read(b"\xef\xbb\xbfa:\n  b:\n  - c\n  - {d: 1}\n", "x.yaml")
    assert str(document.error(("a", "b", 1, "d"), "no")) == "x.yaml:4: a.b[1].d: no"
    assert str(document.error(("a", "b", 7), "no")) == "x.yaml:2: a.b[7]: no"
    assert str(document.error(("z",), "no")) == "x.yaml:1: z: no"


def test_the_example_of_the_documentation(load) -> None:
    text = "name: x\nfactors:\n  optimizer:\n    - adamw\n    - lion:\n        weight_decay: 1.0\n        lrr: 1.0e-4\n"
    with pytest.raises(
        SuiteError, match=r"mine.yaml:7: factors.optimizer\[1\].lion.lrr: .*'lrr'; did you mean 'lr'\?$"
    ):
        load(text)


def test_an_error_is_short_and_printable_whatever_the_file_holds(load) -> None:
    with pytest.raises(SuiteError) as caught:
        load('name: x\n"' + "\u202e\u2028k" * 1000 + '": 1\n')
    message = str(caught.value)
    assert message.isprintable() and len(message) < 5000


def test_shipped_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suites").mkdir()
    text = "name: {}\nfactors: {{model.norm: [layernorm, rmsnorm]}}\n"
    for name in ("attention", "mine"):
        write(tmp_path / "suites" / f"{name}.yaml", text.format(name))
    assert suite.load_suite("attention").path.parent != tmp_path / "suites"
    assert suite.load_suite("suites/attention.yaml").path == tmp_path / "suites" / "attention.yaml"
    with pytest.raises(SuiteError, match=r"no suite is called 'mine'; for the file, say suites/mine.yaml$"):
        suite.load_suite("mine")
    with pytest.raises(SuiteError, match="no suite is called 'atention'; did you mean 'attention'"):
        suite.load_suite("atention")
    with pytest.raises(SuiteError, match=r"^none.yaml: no such file$"):
        suite.load_suite("none.yaml")
    with pytest.raises(SuiteError, match="no such file"):
        suite.load_suite("suites/")
    with pytest.raises(SuiteError, match="no suite is called"):
        suite.load_suite("../"[:2] + "\0" + "x" * 5000)


def test_a_name_may_have_a_slash_and_is_then_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = suite.load_suite("reference/shakespeare-char")
    assert found.name == "reference/shakespeare-char"
    assert found.base_dir.name == "reference"
    with pytest.raises(SuiteError, match="no suite is called 'refrence/x'"):
        suite.load_suite("refrence/x")
    with pytest.raises(SuiteError, match=r"^reference/x: no such file$"):
        suite.load_suite("./reference/x")
    assert [suite.is_path(text) for text in ("a/b.yaml", "./a", "a/b/c", "A/b", "a/b", "a")] == [True] * 4 + [False] * 2


def test_a_suite_without_factors_has_one_cell(load) -> None:
    found = load("name: x\nbase: {train.steps: 3}\nseeds: 2\n")
    expanded = design.expand(found)
    assert (found.factors, found.baseline, found.contrasts) == ({}, {}, ())
    assert [(cell.levels, cell.label) for cell in expanded.cells] == [({}, "base")]
    assert [trial.recipe.train.steps for trial in expanded.trials] == [3, 3]


def test_multiples_are_of_what_base_and_scale_say(load) -> None:
    found = load(
        "name: x\nbase: {optimizer.lr: 1e-3, batch.tokens: x2, data.tokenizer: {bpe: {vocab_size: x2}}}\n"
        "factors: {optimizer.lr: [x1, x0.3], model.activation: [gelu, {swiglu: {beta: x2}}]}\n"
    )
    trials = design.expand(found, seeds=1).trials
    assert [trial.recipe.optimizer.options["lr"] for trial in trials] == [1e-3, 1e-3, 3e-4, 3e-4]
    assert [trial.recipe.model.activation.options.get("beta") for trial in trials] == [None, 2.0, None, 2.0]
    assert {(trial.recipe.batch.sequences, trial.recipe.model.vocab_size) for trial in trials} == {(8, 2048)}
    assert trials[3].label == "lr=x0.3 + swiglu"
    assert {trial.recipe.batch.sequences for trial in design.expand(found, scale="10m", seeds=1).trials} == {64}


def test_mixtures_are_named_by_their_weights(load) -> None:
    found = load(
        "name: x\nfactors:\n  data.sources:\n  - [stdlib]\n  - [{source: stdlib, weight: 3}, synthetic]\n"
        "  - [{source: {synthetic: {seed: 1}}, weight: 0.5}, {source: stdlib}]\n"
    )
    assert [level.label for level in found.factors["data.sources"]] == [
        "stdlib", "3 stdlib + 1 synthetic", "0.5 {synthetic={seed=1}} + 1 stdlib",
    ]  # fmt: skip


def test_listing_the_shipped_suites_loads_no_torch() -> None:
    code = (
        "import sys; from ablate import suite; assert suite.shipped(); "
        "assert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    found = suite.json_schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_the_schema_takes_every_key(schema: jsonschema.Draft202012Validator) -> None:
    schema.validate(read(FULL, "x").value)


@pytest.mark.parametrize(
    "base",
    [
        {"model.dim": "x2"}, {"optimizer.lr": "x1e-1"}, {"optimizer": {"lion": {"lr": "x.5"}}}, {"model": {"n_layers": "x2"}},
        {"model.dropout": "x2"}, {"train.tokens": "x0.1"}, {"data.validation": ["stdlib"]}, {"batch.accumulation": 2},
    ],
    ids=str,
)  # fmt: skip
def test_the_schema_takes_multiples_and_shorthands(base: dict, schema: jsonschema.Draft202012Validator) -> None:
    schema.validate({"name": "reference/x", "base": base})


TWO_LEVELS = {f"model.{name}": levels for name, levels in {
    "norm": ["layernorm", "rmsnorm"], "bias": [True, False], "dropout": [0.0, 0.1], "position": ["rope", "learned"],
}.items()}  # fmt: skip


@pytest.mark.parametrize(
    "keys",
    [
        {"design": "leave_one_out"}, {"design": {"fractional": {"resolution": 3}}}, {"design": {"optimal": {"cells": 8, "alias": 1}}},
        {"design": {"fractional": {"generators": {"model.norm": ["model.bias", "model.dropout"]}}}}, {"controls": {"aa": True}},
        {"controls": {"bad": {"model": {"norm": "none"}}}},
    ],
    ids=str,
)  # fmt: skip
def test_schema_and_loader_take_designs_and_controls(
    keys: dict, schema: jsonschema.Draft202012Validator, load, tmp_path: Path
) -> None:
    value = {"name": "x", "factors": TWO_LEVELS} | keys
    schema.validate(value)
    with (tmp_path / "text").open("w") as file:
        YAML(typ="safe", pure=True).dump(value, file)
    assert load((tmp_path / "text").read_text()).factors


@pytest.mark.parametrize(
    "change",
    [
        {"design": "fractional"}, {"design": {"fractional": {}}}, {"design": {"fractional": {"resolution": 6}}}, {"controls": {}},
        {"design": {"optimal": {"alias": 0.5}}}, {"design": {"optimal": {"cells": 4}, "fractional": {"resolution": 3}}},
        {"design": {"fractional": {"generators": {"model.norm": ["model.bias"]}}}}, {"controls": {"aa": 0}},
        {"controls": {"bad": {}}}, {"controls": {"bad": {"model.nrom": "none"}}},
        {"nmae": "x"}, {"name": "../x"}, {"seeds": 0}, {"design": "half"}, {"margin": -1}, {"base": {"scale": "11m"}},
        {"base": {"model.dmi": 1}}, {"base": {"model.dim": 0}}, {"base": {"model": {"dmi": 1}}}, {"factors": {}},
        {"factors": {"model.attention": ["mha", "gqq"]}}, {"factors": {"optimizer": ["adamw", {"lion": {"lrr": 1}}]}},
        {"base": {"model.dim": "2x"}}, {"base": {"model.bias": "x2"}}, {"factors": {"optimizer": ["adamw", {"lion": {"lr": "xx"}}]}},
        {"factors": {"optimizer": ["adamw", {"lion": {"lr": -1}}]}}, {"factors": {"optimizer.lr": [1, "high"]}},
    ],
    ids=str,
)  # fmt: skip
def test_the_schema_refuses_what_the_loader_refuses(
    change: dict, schema: jsonschema.Draft202012Validator, load, tmp_path: Path
) -> None:
    value = {"name": "x", "factors": {"model.norm": ["layernorm", "rmsnorm"]}} | change
    assert not schema.is_valid(value)
    with (tmp_path / "text").open("w") as file:
        YAML(typ="safe", pure=True).dump(value, file)
    with pytest.raises(SuiteError):
        load((tmp_path / "text").read_text())


WORDS = """
    name x factors base scale nano model model.attention mha gqa n_kv_heads optimizer adamw lion lr
    optimizer.lr design full baseline exclude seeds margin contrasts factor level against data.sources
    data.source source weight model.dropout batch.tokens batch tokens train.steps model.n_heads model.dim tune
    fractional optimal resolution generators cells alias controls aa bad
""".split()
MARKS = [
    ": ",
    "\n",
    "\n  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "&a ",
    "*a",
    "!!int ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "?",
    "---\n",
    "\t",
]
SCALARS = st.one_of(
    st.sampled_from(WORDS),
    st.none(),
    st.booleans(),
    st.integers(-4, 600),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=8,
)


def places(value: object, place: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, part in inner for found in places(part, (*place, key)))]


@st.composite
def broken_suites(draw: st.DrawFn) -> object:
    """A good suite in which some values are replaced, left out or put under another key."""
    top = [read(FULL, "x").value]
    for _ in range(draw(st.integers(1, 3))):
        *outer, last = draw(st.sampled_from(places(top)[1:]))
        at: Any = top
        for part in outer:
            at = at[part]
        if isinstance(at, dict) and draw(st.booleans()):
            kept = at.pop(last)
            if draw(st.booleans()):
                at[draw(st.sampled_from(WORDS))] = kept
        else:
            at[last] = draw(VALUES)
    return top[0]


FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def load_or_refuse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        suite.load_suite(path)
    except SuiteError as error:
        message = str(error)
    else:
        return
    assert message.isprintable()
    assert message.startswith(str(path))


@FUZZ
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(content=b"")
@example(content=b"[" * MAX_BYTES)
@example(content=b"- " * 1000)
@example(content=b"{a: " * 1000)
@example(content=b"? " * 1000)
@example(content=b"%YAML 9.9\n--- a")
@example(content=b"\xff\xfe\x00")
@example(content=b"!<tag:x> &a *a")
def test_random_bytes_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    load_or_refuse(tmp_path / "x.yaml", content)


@FUZZ
@given(parts=st.lists(st.sampled_from([*WORDS, *MARKS])))
def test_random_yaml_is_refused_in_one_line(parts: list[str], tmp_path: Path) -> None:
    load_or_refuse(tmp_path / "x.yaml", "".join(parts).encode())


@FUZZ
@given(value=broken_suites())
def test_random_suites_are_taken_or_refused_in_one_line(value: object, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        YAML(typ="safe", pure=True).dump(value, file)
    load_or_refuse(path, path.read_bytes())
