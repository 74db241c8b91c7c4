"""What a person sees while trials run: live on a terminal, one line per finished trial elsewhere."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ablate.status import Event, Finished, Message, Snapshot
from registry.record import TrialRecord

ROWS = 16
"""Running trials that are shown at most."""
STYLES = {"prepare": "dim", "compile": "dim", "wait": "yellow", "train": "green"}


class Display:
    """A context manager whose instance takes the events of `scheduler.run`."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Finished):
            failed = event.record.status != "finished"
            self._console.print(Text(finished_line(event), style="red" if failed else ""), soft_wrap=True)
        elif isinstance(event, Message):
            self._console.print(Text(event.text, style="yellow"), soft_wrap=True)
        elif self._live:
            self._live.update(self._frame(event))

    def _frame(self, now: Snapshot) -> Group:
        head = Table.grid(padding=(0, 1))
        head.add_row(
            Text(self._title, style="bold"), ProgressBar(total=now.total, completed=now.done, width=24), summary(now)
        )
        rows = Table.grid(padding=(0, 2))
        for status in now.running[:ROWS]:
            steps = f"{status.step}/{status.steps}" if status.steps else ""
            loss = f"loss {status.loss:.3f}" if status.loss is not None else ""
            rate = f"{status.tokens_per_second:,.0f} tok/s" if status.tokens_per_second else ""
            rows.add_row(Text(f"  {status.label}"), Text(status.phase, style=STYLES[status.phase]), steps, loss, rate)
        if len(now.running) > ROWS:
            rows.add_row(f"  and {len(now.running) - ROWS} more")
        return Group(head, rows)


def finished_line(event: Finished) -> str:
    """`[3/8] gqa · rmsnorm seed 0  val_loss 4.210  12 s`, or how it failed."""
    record = event.record
    head = f"[{event.done}/{event.total}] {event.label} seed {record.seed}"
    return f"{head}  {_result(record)}  {record.metrics.get('total_seconds', 0):.0f} s"


def summary(now: Snapshot) -> str:
    """`3/8 done, 1 failed, 2 training, 1 preparing, 1 waiting, 0:32 left`; what is zero is left out."""
    phases = Counter(
        {"prepare": "preparing", "compile": "preparing", "wait": "waiting", "train": "training"}[s.phase]
        for s in now.running
    )
    parts = [f"{now.done}/{now.total} done"]
    parts += [f"{now.failed} failed"] if now.failed else []
    parts += [f"{phases[name]} {name}" for name in ("training", "preparing", "waiting") if phases[name]]
    if not now.running and now.done < now.total:
        parts.append("starting")
    if now.seconds_left is not None and now.done < now.total:
        minutes, seconds = divmod(round(now.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left")
    return ", ".join(parts)


def _result(record: TrialRecord) -> str:
    if record.status == "finished":
        return f"val_loss {record.metrics['val_loss']:.3f}" if "val_loss" in record.metrics else "finished"
    return f"{record.status}: {record.cause}"
