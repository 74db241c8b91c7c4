"""`ablate check` on a real suite: what is planted in a copy of the package is found, and what changes nothing passes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import copied
import pytest
import torch
from tiny import ArrayCorpus, tiny

from ablate import check, counts, operators, session
from ablate.design import Design, expand
from ablate.errors import UserError
from ablate.plan import Row, make_plan
from ablate.rounding import Nudged
from ablate.suite import load_suite
from ablate.train import Kept, train
from registry.baseline import Arm, Baseline, Noise

RIGHT = "        return entropy.view(targets.shape), objective\n"
WORSE = """
        torch._dynamo.graph_break()
        objective.detach().item()
        self.kept = torch.empty(3_000_000)
        return entropy.view(targets.shape), 0.0 * objective + hidden.square().mean()
"""
SAME = """
        shape_of_it = targets.shape
        return entropy.view(shape_of_it), objective
"""


def test_operators_are_counted_without_views() -> None:
    with operators.Operators() as found:
        x = torch.ones(4, 4)
        (x.view(16) + 1).sum().item()
    assert found.counts() == {"operators": 4.0, "host_syncs": 1.0}


def test_a_step_is_counted_the_same_each_time_and_a_wait_of_the_host_in_the_loop_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ablate import train as module

    recipe, corpus = tiny(), ArrayCorpus(259)
    first = counts.of_recipe(recipe, corpus)
    assert counts.of_recipe(recipe, corpus) == first
    assert first["graph_breaks"] == 0.0
    one_step = module._Run._one_step

    def waits(self) -> None:
        one_step(self)
        float(self.losses[0])

    monkeypatch.setattr(module._Run, "_one_step", waits)
    assert counts.of_recipe(recipe, corpus) == first | {
        "host_syncs": first["host_syncs"] + 1.0, "operators": first["operators"] + 1.0,
    }  # fmt: skip


def test_a_graph_break_is_counted() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    assert counts.breaks_of(broken, torch.ones(3)) == 1
    assert counts.breaks_of(torch.nn.Linear(3, 3), torch.ones(3)) == 0


def test_a_nudged_training_differs_in_its_rounding_alone() -> None:
    recipe, corpus = tiny(train__steps=60), ArrayCorpus()
    losses = [
        train(recipe, corpus=corpus, device="cpu", kept=kept).metrics["val_loss"] for kept in (Kept(), Kept(), Nudged())
    ]
    assert losses[0] == losses[1] != losses[2]
    assert losses[2] == pytest.approx(losses[0], abs=1e-3)


def ablate(folder: Path, *argv: str) -> tuple[int, str]:
    """Run a command with the package in `folder`: its exit code and what it printed."""
    done = copied.ablate(folder, *argv)
    return done.returncode, done.stdout + done.stderr


def changed(folder: Path, text: str) -> Path:
    """A copy of the package with `text` at the end of the model's loss."""
    copied.copy_to(folder)
    copied.Change("ablate/model.py", RIGHT, text).make(folder)
    return folder


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_what_is_planted_is_found_and_what_changes_nothing_passes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, told = tmp_path / "b.json", tmp_path / "summary.md"
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    suite = tmp_path / "one-arm.yaml"
    suite.write_text(copied.ONE_ARM, encoding="utf-8")
    code, said = ablate(copied.ROOT, "baseline", "save", str(suite), "--seeds", "5", "-o", str(file))
    assert code == 0, said
    code, said = ablate(copied.ROOT, "baseline", "show", str(file))
    assert code == 0 and "(seeds 0, 1, 2, 3, 4)" in said, said

    same = changed(tmp_path / "same", SAME)
    code, said = ablate(same, "check", str(suite), "--baseline", str(file))
    assert code == 0 and "ablate check one-arm at nano: pass" in said.splitlines(), said

    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(told))
    worse, junit = changed(tmp_path / "worse", WORSE), tmp_path / "junit.xml"
    code, said = ablate(worse, "check", str(suite), "--baseline", str(file), "--json", "--junit", str(junit))
    assert code == 1, said
    found = json.loads(said[said.index("{") : said.rindex("}") + 1])
    verdicts = {one["metric"]: one["verdict"] for one in found["findings"]}
    assert verdicts["parameters"] == "pass"
    for metric in ("graph_breaks", "host_syncs", "operators", "peak_memory_gib", "val_loss"):
        assert verdicts[metric] == "regression", said
    assert told.read_text(encoding="utf-8").startswith("## ablate check one-arm at nano: regression")
    assert ElementTree.parse(junit).getroot().get("failures") == str(list(verdicts.values()).count("regression"))

    other = json.loads(file.read_text(encoding="utf-8"))
    other["environment"]["torch"] = "1.0"
    file.write_text(json.dumps(other), encoding="utf-8")
    code, said = ablate(copied.ROOT, "check", str(suite), "--baseline", str(file))
    assert code == 4 and "environment needs a new baseline: torch 1.0 -> " in said, said


@pytest.mark.fire
@pytest.mark.timeout(900)
def test_git_bisect_finds_the_commit_by_the_command_of_the_readme(home: Path, tmp_path: Path) -> None:
    """Of three commits after the good one, the second is worse."""
    folder, good = copied.repository(tmp_path / "repository"), tmp_path / "good.json"

    def git(*argv: str) -> str:
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(
            ["git", *who, *argv],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert ablate(folder, "baseline", "save", "one-arm.yaml", "-o", str(good))[0] == 0
    for step, old, new in (
        ("same", RIGHT, SAME),
        ("worse", SAME, WORSE),
        ("other", "import torch\n", "import torch as torch\n"),
    ):
        copied.Change("ablate/model.py", old, new).make(folder)
        git("commit", "--quiet", "--all", "--message", step)
    readme = (copied.ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^git bisect run (sh -c '.*')$", readme, re.MULTILINE)
    shell, flag, script = shlex.split(line)
    script = script.replace("ablate check ci", f"{sys.executable} -m ablate check one-arm.yaml").replace(
        "/tmp/good.json", str(good)
    )
    git("bisect", "start", "HEAD", "HEAD~3")
    found = git("bisect", "run", shell, flag, script)
    assert f"{git('rev-parse', 'bisect/bad')} is the first bad commit" in found, found
    assert git("log", "-1", "--format=%s", "bisect/bad") == "worse"


def test_what_failed_is_tried_once_more_before_it_is_held_against_the_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def run(design: object, whole: object, options: session.Options, **_: object) -> SimpleNamespace:
        asked.append(options.retry_failed)
        return SimpleNamespace(good=len(asked) > 1, missing=True)

    monkeypatch.setattr(check.session, "run", run)
    with pytest.raises(UserError, match="run it again"):
        check.run(None, None, session.Options(), home=tmp_path, started=0.0, say=lambda text: None)  # type: ignore[arg-type]
    assert asked == [False, True]


def test_the_step_of_an_arm_that_was_counted_is_not_counted_again(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    recorded = dict.fromkeys(check.RECORDED, 2.0)
    design = expand(load_suite("ci"))
    counted = []

    def ran(design: Design, whole: Design, options: session.Options, **_: object) -> SimpleNamespace:
        plan = make_plan(design, home=home)
        said = [
            SimpleNamespace(
                trial_id=row.trial_id, status="finished", metrics={"val_loss": 3.0 + row.trial.seed, **recorded}
            )
            for row in plan.reported
        ]
        return SimpleNamespace(good=True, missing=False, plan=plan, ran=[(None, one) for one in said])

    def counted_now(row: Row, folder: Path) -> dict[str, float]:
        counted.append(row.trial.label)
        return {"operators": 7.0}

    monkeypatch.setattr(check.session, "run", ran)
    monkeypatch.setattr(check, "_counted", counted_now)
    before = {"optimizer=muon": Arm("r", {}, {"operators": 9.0, "parameters": 1.0})}
    part = design.part(["baseline", "optimizer=muon"])
    arms, _ = check.run(part, design, session.Options(), home=home, started=0.0, say=print, counted=before)
    assert counted == ["baseline"]
    assert arms["baseline"].counts == recorded | {"operators": 7.0}
    assert arms["optimizer=muon"].counts == before["optimizer=muon"].counts
    runs = {seed: {"val_loss": 3.0 + seed} for seed in range(3)}
    assert [arm.runs for arm in arms.values()] == [runs, runs]


def test_only_arms_whose_loss_is_in_doubt_are_run_with_more_seeds(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    from ablate import cli  # first, for commands are listed in the order of their import
    from ablate.commands import gate

    assert cli.commands
    asked: list[tuple[int, list[str], int]] = []
    counted: list[list[str]] = []

    def measured(
        whole: Design, labels: Collection[str], earlier: dict[str, Arm]
    ) -> tuple[dict[str, Arm], dict[str, str]]:
        design = whole.part(labels) if labels else whole
        asked.append((len(whole.seeds), list(labels), len(design.trials)))
        counted.append(list(earlier))
        return {
            cell.label: Arm("r", {seed: {"val_loss": loss(cell.label, seed)} for seed in whole.seeds})
            for cell in design.cells
        }, {}

    def loss(label: str, seed: int) -> float:
        return 3.605 if label == "norm=rmsnorm" and seed < 2 else 3.6

    labels = ["baseline", "attention=gqa", "activation=swiglu", "norm=rmsnorm", "optimizer=muon"]
    arms = {label: Arm("r", {seed: {"val_loss": 3.6} for seed in range(6)}) for label in labels}
    known = Baseline("ci", "nano", [], arms, {}, {"val_loss": Noise(0.002, 20)})
    monkeypatch.setattr(gate, "_measured", measured)
    findings = gate._held("ci", known, None, None)
    assert asked == [(3, [], 15), (6, ["norm=rmsnorm"], 6)]
    assert counted == [[], labels]
    assert {one.arm: one.verdict for one in findings} == dict.fromkeys(labels, "pass")
    assert {one.arm: one.n for one in findings} == dict.fromkeys(labels, 3) | {"norm=rmsnorm": 6}
