"""A run from end to end: each stage is planned, declared and trained, until the design is complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ablate import render
from ablate.design import Design
from ablate.errors import Interrupted
from ablate.plan import Plan, Row, make_plan
from registry import Spool, Store
from registry.record import DesignRecord, TrialRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run. See `ablate.scheduler.run`."""

    address: str | None = None
    retry_failed: bool = False
    workers: int | None = None
    pack: int | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended: the last plan, what was trained, and whether trials are missing that should have been."""

    plan: Plan
    ran: tuple[tuple[Row, TrialRecord], ...]
    missing: bool = False

    @property
    def failed(self) -> list[TrialRecord]:
        """What was trained now and went wrong."""
        return [record for row, record in self.ran if row.failed(record.status)]

    @property
    def good(self) -> bool:
        """Whether nothing is missing and nothing failed, now or, where nothing was left to train, before."""
        rows = [] if self.ran else self.plan.rows
        return not (self.failed or self.missing or any(row.failed(row.status) for row in rows))


def run(
    design: Design, whole: Design, options: Options, *, home: Path, started: float, say: Callable[[str], None]
) -> Ended:
    """Train what is pending of `design`, a part of the `whole` that is declared; `say` hears how it goes.

    Raises:
        Interrupted: by SIGINT or SIGTERM.
        UserError: a corpus that is missing or too small, a cluster that does not answer.
        StoreUnavailable: a tracking server that does not answer.
    """
    tried: set[str] = set()
    ran: list[tuple[Row, TrialRecord]] = []

    def planned(design: Design) -> Plan:
        return make_plan(
            design, home=home, retry_failed=options.retry_failed, workers=options.workers, pack=options.pack, tried=tried
        )  # fmt: skip

    while True:
        plan = planned(design)
        say(render.summary(plan))
        declared = (plan if whole is design else planned(whole)).design_record()
        if not plan.pending:
            _open(home, declared)
            return Ended(plan=plan, ran=tuple(ran))

        from ablate import scheduler
        from ablate.display import Display

        with Display(render.console(stderr=True), design.suite.name) as display:
            outcome = scheduler.run(
                plan.jobs(), home=home, open_store=lambda declared=declared: _open(home, declared), address=options.address,
                workers_per_device=options.workers, timeout=options.timeout, on_event=display, pack=options.pack, started=started,
            )  # fmt: skip
        if outcome.waiting_in_spool:
            say(f"{outcome.waiting_in_spool} records wait in the spool for the tracking store")
        rows = {row.trial_id: row for row in plan.pending}
        ran += [(rows[record.trial_id], record) for record in outcome.records]
        tried |= rows.keys()
        if outcome.interrupted:
            raise Interrupted(outcome.interrupted, "what is finished is kept, and the same command goes on from there")
        if outcome.missing or plan.last:
            return Ended(plan=plan, ran=tuple(ran), missing=bool(outcome.missing))


def _open(home: Path, declared: DesignRecord) -> Store:
    """The store, with what waits in the spool and the design."""
    store = Store.open(home)
    store.ingest(Spool(home))
    store.declare(declared)
    return store
