"""The command line: what it prints, where, and how it exits."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ablate.cli import commands
from ablate.suite import shipped

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--set", "data.source=synthetic", "--set", "train.tokens=8192"]


def left_in(home: Path) -> set[str]:
    """What lies in a home, but for the copy of the registry that is made for reading."""
    return {path.name for path in home.glob("*")} - {"mirror"}


@pytest.fixture
def refused(ablate, home: Path):
    """Run a command that is the user's mistake: its one line, with nothing else printed and nothing left behind."""

    def call(*argv: str) -> str:
        code, out, err = ablate(*argv)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: ")
        assert left_in(home) == set()
        return err

    return call


def test_no_arguments_print_help(ablate) -> None:
    code, out, err = ablate()
    assert (code, err) == (0, "")
    assert all(f"\n  {name.split()[0]} " in out for name in commands())
    assert ablate("--help") == (code, out, err)


def test_version(ablate) -> None:
    assert ablate("--version")[:2] == (0, "ablate 0.1.0\n")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["plan"], "Missing argument"),
        (["plan", "nonsense"], "no suite is called 'nonsense'"),
        (["plan", "quickstar"], "did you mean 'quickstart'?"),
        (["plan", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["plan", "quickstart", "--scale", "huge"], "unknown scale 'huge'"),
        (["plan", "quickstart", "--seeds", "0"], "--seeds must be from 1"),
        (["plan", "quickstart", "--seeds", "many"], "--seeds"),
        (["plan", "quickstart", "--set", "model.dim"], "must be field=value"),
        (["plan", "quickstart", "--set", "model.dimm=3"], "did you mean 'model.dim'?"),
        (["plan", "quickstart", "--set", "train.steps=-1"], "train.steps"),
        (["plan", "quickstart", "--only", "attention=nope"], "'nope' is not a level"),
        (["plan", "quickstart", "--wrong"], "No such option: --wrong"),
        (["run", "quickstart", "--set", "optimizer.lr=fast"], "optimizer"),
        (["run", "quickstart", "--workers", "0"], "--workers"),
        (["variants", "atention"], "did you mean 'attention'?"),
        (["leaderboard", "--format", "xml"], "--format"),
        (["leaderboard"], "no results yet"),
        (["query", "SELECT 1"], "no results yet"),
        (["status", "quickstart"], "no results yet"),
        (["logs", "0123"], "no trial begins with '0123'"),
        (["verify", "0123"], "no trial or record begins with '0123'"),
        (["retract", "0123", "--why", "wrong"], "no trial or record begins with '0123'"),
        (["compare", "0123", "4567"], "no trial or record or cell begins with '0123'"),
    ],
)
def test_mistakes_get_one_line(argv: list[str], says: str, refused) -> None:
    assert says in refused(*argv)


def test_missing_train_extra_is_named(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("ablate.variants.", "ablate.suite"))]:
        monkeypatch.delitem(sys.modules, name)
    from ablate.variants import load_factors

    load_factors.cache_clear()
    monkeypatch.setitem(sys.modules, "torch", None)
    try:
        assert "pip install 'ablate-bench[train]'" in refused("run", "quickstart")
    finally:
        load_factors.cache_clear()


def test_suites_and_show(ablate) -> None:
    code, out, _ = ablate("suites")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:]] == list(shipped())
    assert ablate("show", "quickstart")[1] == (ROOT / "suites" / "quickstart.yaml").read_text()


def test_variants_of_one_factor(ablate) -> None:
    code, out, _ = ablate("variants", "norm")
    assert code == 0
    assert {line.split()[1] for line in out.splitlines()[2:]} == {"layernorm", "rmsnorm", "dyt", "none"}


def test_variants_lists_plain_fields_and_what_stands_for_them(ablate) -> None:
    code, out, _ = ablate("variants", "batch")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:]] == [
        "batch.sequences", "batch.micro_sequences", "batch.tokens", "batch.micro_limit", "batch.accumulation"
    ]  # fmt: skip
    (line,) = ablate("variants", "train.z_loss")[1].splitlines()[2:]
    assert "squared log of the softmax's normalizer" in line and "default: 0.0" in line and "arXiv:2204.02311" in line


def test_eighty_columns_break_no_name_and_no_number(ablate, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ablate import render
    from ablate.variants import load_factors

    monkeypatch.setattr(render, "WIDE", 80)
    out = ablate("variants")[1]
    assert max(map(len, out.splitlines())) <= 80
    assert {f"{one.field}: {v.name}" for one in load_factors().values() for v in one} <= {
        re.split(r"\s{2,}", line)[0] for line in out.splitlines()
    }
    out = ablate("plan", "sizing")[1]
    assert "tie_embeddings=true" in out and "FLOP/token" in out


def test_everything_that_varies_has_a_reference_and_says_what_it_is(ablate) -> None:
    from ablate._words import words
    from ablate.variants import load_factors

    out = ablate("variants")[1]
    for variant in (variant for factor in load_factors().values() for variant in factor):
        assert variant.reference and variant.doc and variant.doc in out, f"{variant.factor} {variant.name}"
    for path, word in words().items():
        assert word.reference and word.doc and word.doc in out, path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("factors:\n  lr_schedule: [constant, cosine]\n  optimizer: [adamw, schedule_free]\n",
         "x.yaml:3: factors.lr_schedule[1]: lr_schedule cosine with optimizer schedule_free is impossible: optimizer: "),
        ("base: {optimizer: muon}\nfactors:\n  model.norm: [layernorm, rmsnorm]\n  model.init:\n  - gpt2\n  - mup\n",
         "x.yaml:7: factors.model.init[1]: "),
        ("base:\n  optimizer: schedule_free\n  lr_schedule: linear\n", "x.yaml:3: base."),
    ],
    ids=["two factors", "base and factor", "base alone"],
)  # fmt: skip
def test_plan_refuses_what_cannot_go_together_with_line_and_reason(
    text: str, says: str, refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("name: x\n" + text)
    line = refused("plan", "x.yaml")
    assert says in line
    assert "schedule" in line or "mup" in line


def test_schema_is_a_json_schema(ablate) -> None:
    import jsonschema

    code, out, _ = ablate("schema")
    assert code == 0
    jsonschema.Draft202012Validator.check_schema(json.loads(out))


def test_plan_prints_every_cell_and_writes_nothing(ablate, home: Path) -> None:
    code, out, err = ablate("plan", "quickstart", *SMALL)
    assert (code, err) == (0, "")
    cells, _, _ = out.partition("off the baseline")
    assert cells.count("swiglu") == 2
    assert "8 trials; 8 to run" in out
    assert left_in(home) == set()


def test_plan_warns_of_a_corpus_that_is_too_small_for_so_many_fresh_tokens(ablate, home: Path) -> None:
    warning = "repetitions=1 asks for 999,936 different tokens, and the corpus has about "
    source = ("--set", "data.source={synthetic: {size: 100000}}")
    assert warning in ablate("plan", "repetition", *source, "--set", "train.tokens=1e6")[1]
    assert (
        "asks for"
        not in ablate("plan", "repetition", *source, "--set", "train.tokens=65536", "--only", "repetitions=64")[1]
    )


def test_plan_as_json_has_every_trial(ablate, home: Path) -> None:
    code, out, _ = ablate("plan", "quickstart", *SMALL, "--seeds", "3", "--only", "attention=mha", "--json")
    found = json.loads(out)
    assert code == 0
    assert [trial["seed"] for trial in found["trials"]] == [0, 0, 1, 1, 2, 2]
    assert all(trial["pending"] and trial["parameters"] > 0 for trial in found["trials"])
    assert len({trial["trial_id"] for trial in found["trials"]}) == 6


def test_leaderboard_in_every_format(ablate, filled: Path) -> None:
    shown = {form: ablate("leaderboard", "attention", "--format", form) for form in ("table", "markdown", "latex")}
    assert all(code == 0 and "mha" in out and "gqa" in out for code, out, _ in shown.values())
    rows = json.loads(ablate("leaderboard", "attention", "--format", "json")[1])["rows"]
    assert [(row["attention"], row["n"], row["val_loss"]) for row in rows] == [("mha", 2, 3.005), ("gqa", 2, 4.005)]
    table = list(csv.DictReader(io.StringIO(ablate("leaderboard", "--format", "csv")[1])))
    assert [float(row["val_loss"]) for row in table] == [3.005, 4.005]


def test_leaderboard_filters_and_sorts(ablate, filled: Path) -> None:
    argv = [
        "leaderboard",
        "attention",
        "--sort",
        "tokens_per_second",
        "--where",
        "attention = 'gqa'",
        "--format",
        "json",
    ]
    assert [row["attention"] for row in json.loads(ablate(*argv)[1])["rows"]] == ["gqa"]
    assert ablate("leaderboard", "--where", "nonsense = 1")[0] == 2
    assert ablate("leaderboard", "--sort", "val_los")[2].count("did you mean") == 1


def test_leaderboard_takes_the_path_of_a_suite(ablate, filled: Path) -> None:
    assert "gqa" in ablate("leaderboard", str(ROOT / "suites" / "attention.yaml"))[1]


def test_query_reads_and_never_writes(ablate, filled: Path) -> None:
    code, out, _ = ablate("query", "SELECT count(*) AS n FROM trials", "--format", "csv")
    assert (code, out) == (0, "n\n4\n")
    assert ablate("query", "DROP TABLE trials")[0] == 2
    assert ablate("query", "SELECT * FROM nowhere")[2].count("\n") == 1


def test_status_counts_trials(ablate, filled: Path) -> None:
    code, out, _ = ablate("status", "attention")
    assert code == 0
    assert [line.split()[-2:] for line in out.splitlines()[2:]] == [["finished", "2"], ["finished", "2"]]


def test_logs_finds_a_trial_by_its_first_digits(ablate, home: Path) -> None:
    (home / "logs").mkdir(parents=True)
    (home / "logs" / "abcdef0123456789.log").write_text("step 1\n")
    assert ablate("logs", "abc") == (0, "step 1\n", "")


def test_doctor_finds_all_in_order(ablate, home: Path) -> None:
    code, out, _ = ablate("doctor")
    assert code == 0
    assert "WRONG" not in out
    assert left_in(home) == set()


def test_doctor_names_what_is_wrong(ablate, home: Path) -> None:
    home.write_text("a file where the folder should be")
    code, out, _ = ablate("doctor")
    assert code == 2
    assert "WRONG  ABLATE_HOME" in out


@pytest.mark.parametrize("argv", ["--help", "leaderboard --format csv"])
def test_a_closed_pipe_is_quiet(argv: str, filled: Path) -> None:
    script = f"{sys.executable} -m ablate {argv} | true; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout in ("0\n", "141\n")


def test_a_closed_stdout_is_no_error(filled: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = f"{sys.executable} -m ablate leaderboard >&-"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


WITHOUT_DUCKDB = "import sys; sys.modules['duckdb'] = None; from ablate.cli import main; sys.exit(main(sys.argv[1:]))"
"""Machines that train may lack what only queries need."""


def without_duckdb(*argv: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_DUCKDB, *argv], env=environment, capture_output=True, text=True, timeout=300
    )


def test_planning_needs_no_duckdb(filled: Path) -> None:
    done = without_duckdb("plan", "quickstart", *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    assert "this needs duckdb" in without_duckdb("leaderboard").stderr


@pytest.mark.fire
def test_running_needs_no_duckdb(ablate, home: Path) -> None:
    for seeds in "12":  # the second finds records, by which it tells how long it takes
        done = without_duckdb("run", "quickstart", *SMALL, "--seeds", seeds, "--only", "attention=mha")
        assert (done.returncode, done.stderr.count("val_loss")) == (0, 2)
    assert [row["n"] for row in json.loads(ablate("leaderboard", "quickstart", "--format", "json")[1])["rows"]] == [
        2,
        2,
    ]


@pytest.mark.fire
def test_run_then_nothing_to_run(ablate, home: Path) -> None:
    code, _, err = ablate("run", "quickstart", *SMALL, "--seeds", "1", "--only", "attention=mha")
    assert code == 0
    assert err.count("val_loss") == 2
    ray = sys.modules.pop("ablate.scheduler")
    code, _, err = ablate("run", "quickstart", *SMALL, "--seeds", "1", "--only", "attention=mha")
    assert (code, "nothing to run" in err) == (0, True)
    assert "ablate.scheduler" not in sys.modules
    sys.modules["ablate.scheduler"] = ray
    out = ablate("leaderboard", "quickstart", "--format", "json")[1]
    assert [row["n"] for row in json.loads(out)["rows"]] == [1, 1]


@pytest.mark.fire
def test_a_run_that_was_killed_goes_on_where_it_was(ablate, home: Path) -> None:
    """The real command, the real trainer: `kill -9` after the third of eight trials, then the same command again."""
    command = [sys.executable, "-m", "ablate", "run", "quickstart", *SMALL]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        next(line for line in run.stderr if line.startswith("[3/8]"))
        run.kill()
    code, _, err = ablate("run", "quickstart", *SMALL)
    assert code == 0
    again = sum("val_loss" in line for line in err.splitlines())
    assert 0 < again <= 5
    trials = json.loads(ablate("query", "SELECT trial_id, status FROM trials", "--format", "json")[1])["rows"]
    assert len(trials) == len({row["trial_id"] for row in trials}) == 8
    assert {row["status"] for row in trials} == {"finished"}
    code, _, err = ablate("run", "quickstart", *SMALL, "--seeds", "3")
    assert sum("val_loss" in line for line in err.splitlines()) == 4


@pytest.mark.fire
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_check_that_is_interrupted_is_no_regression(home: Path, number: signal.Signals) -> None:
    """Its exit code says so, to CI and to `git bisect run`."""
    baseline = ROOT / "results" / "baselines" / "ci-cpu.json"
    command = [sys.executable, "-m", "ablate", "check", "ci", "--baseline", str(baseline)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as check:
        assert check.stderr is not None
        next(line for line in check.stderr if line.startswith("[1/15]"))
        check.send_signal(number)
        last = check.stderr.read().splitlines()[-1]
    assert check.returncode == 128 + number
    assert last == "interrupted; what is finished is kept, and the same command goes on from there"


@pytest.mark.fire
def test_a_suite_without_factors_goes_the_whole_way(ablate, home: Path, tmp_path: Path) -> None:
    """A name with a slash, one cell, and a text that the user names."""
    text = tmp_path / "text.txt"
    text.write_text((ROOT / "ablate" / "cli.py").read_text(encoding="utf-8") * 3, encoding="utf-8")
    name = "reference/shakespeare-char-cpu"
    small = [
        "--set",
        f"data.source={{files: {{paths: {text}}}}}",
        "--set",
        "train.steps=x0.01",
        "--set",
        "evaluation.sequences=4",
    ]
    assert ablate("run", name, *small, "--seeds", "2")[0] == 0
    assert "2 finished; nothing to run" in ablate("plan", name, *small, "--seeds", "2")[1]
    (row,) = json.loads(ablate("leaderboard", name, "--format", "json")[1])["rows"]
    assert (row["suite"], row["n"], row["rank"]) == (name, 2, 1)
    assert name in ablate("leaderboard")[1]
    assert ablate("status", name)[1].splitlines()[-1].split() == ["nano", "base", "finished", "2"]
    assert json.loads(ablate("query", "SELECT cell FROM cells", "--format", "json")[1])["rows"] == [{"cell": "base"}]
