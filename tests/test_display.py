from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import fake_training
import pytest
from rich.console import Console

from ablate import environment
from ablate.display import Display, finished_line, summary
from ablate.status import Finished, Message, Snapshot, TrialStatus
from ablate.worker import make_record


def status(phase: Any, step: int = 0) -> TrialStatus:
    return TrialStatus(
        trial_id="a" * 16, label="gqa [x]", suite="s", phase=phase, pid=1, host="h", started_at=0, updated_at=0, step=step,
        steps=10, loss=3.25, tokens_per_second=1234.0,
    )  # fmt: skip


def finished(**changes: Any) -> Finished:
    record = make_record(fake_training.job(), environment.describe("cpu", 1), status="finished", cause="")
    record = replace(record, metrics={"val_loss": 4.21, "total_seconds": 12.3})
    return Finished(record=replace(record, **changes), label="gqa · rmsnorm", done=3, total=8)


def test_finished_line_tells_the_result_or_the_cause() -> None:
    assert finished_line(finished()) == "[3/8] gqa · rmsnorm seed 0  val_loss 4.210  12 s"
    failed = finished_line(finished(status="crashed", cause="ValueError: no"))
    assert failed == "[3/8] gqa · rmsnorm seed 0  crashed: ValueError: no  12 s"


def test_summary_counts_phases_and_leaves_out_what_is_zero() -> None:
    now = Snapshot(
        total=8, done=3, failed=1, running=(status("train"), status("compile"), status("prepare")), seconds_left=92.4
    )
    assert summary(now) == "3/8 done, 1 failed, 1 training, 2 preparing, 1:32 left"
    assert summary(Snapshot(total=2, done=0, failed=0, running=(), seconds_left=None)) == "0/2 done, starting"
    assert summary(replace(now, running=(status("wait"),), failed=0, seconds_left=3661)).endswith(
        "1 waiting, 1:01:01 left"
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_live_rows_and_a_pipe_plain_lines(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, no_color=True)
    with Display(console, "suite") as display:
        display(Snapshot(total=8, done=3, failed=0, running=(status("train", 5),), seconds_left=None))
        display(finished())
        display(Message("the store is away"))
    text = out.getvalue()
    assert ("gqa [x]" in text and "5/10" in text) is terminal
    assert ("\x1b" in text) is terminal
    assert "val_loss 4.210" in text
    assert "the store is away" in text
