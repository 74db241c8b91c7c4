"""A recorded trial is trained again, from what its record says, to see whether it comes out the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate import environment
from ablate.errors import Interrupted, UserError
from registry import Spool, Store
from registry.locks import TrialLock
from registry.lookup import as_record, find
from registry.mirror import Mirror, sync
from registry.record import TrialRecord, attempt_key
from registry.standing import retracted
from registry.verification import VERIFIABLE, claim, plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The record that was put to the test, and the attempt to repeat it; without one, whether another process was at it."""

    recorded: TrialRecord
    again: TrialRecord | None
    elsewhere: bool = False


def verify(
    given: str, *, home: Path, other_code: bool = False, timeout: float | None = None, say: Callable[[str], None]
) -> Verified:
    """Train the trial or record with the id `given`, or its first digits, once more on this machine; both records are kept.

    With `other_code` also by code that differs from what made the record.

    Raises:
        Interrupted: by SIGINT or SIGTERM.
        UserError: the record says nothing that could be repeated, or here it would be another trial.
        LookupFailed: no such trial, or several.
        StoreUnavailable: a tracking server that does not answer.
    """
    from ablate import data, scheduler
    from ablate.display import Display
    from ablate.known import Forecast
    from ablate.plan import Identities
    from ablate.recipe import Recipe
    from ablate.render import console
    from ablate.worker import Job

    store = _open(home)
    mirror = sync(store)
    # the mirror is a copy, and what is put to the test is the record itself
    recorded = store.trial(chosen(mirror, given).record_id)
    recipe = Recipe.from_dict(recorded.recipe)
    data.prepare(recipe.data, home / "cache", say)
    here = Identities(home / "cache")(recipe)
    _same(recorded, here.corpus, here.code, other_code=other_code)
    workers = _workers(recorded.environment)
    found = environment.expected(workers=workers)
    place = environment.environment_id(found)
    seconds, _ = Forecast(store, place, found)(recipe, here.flops)
    revision, dirty = environment.git_revision()
    job = Job(
        trial_id=here.trial_id, cell_id=here.cell_id, label=_label(recorded), suite=recorded.suite, scale=recorded.scale,
        seed=recorded.seed, recipe=recipe.to_dict(), levels=dict(recorded.context.get("levels", {})),
        corpus_fingerprint=here.corpus, evaluation_fingerprint=here.evaluation, text_fingerprint=here.text,
        code_fingerprint=here.code, shape=recipe.shape(), estimated_seconds=seconds, purpose="verify", git_revision=revision,
        git_dirty=dirty, finished_before=TrialLock(home, attempt_key(here.trial_id, place, "verify")).finished(),
        ablate_version=_version(), memory_gib=here.memory / 2**30, verifies=plain(claim(recorded, mirror)),
    )  # fmt: skip
    if place != recorded.environment_id:
        say(f"recorded on {recorded.environment.get('device', 'another machine')}: speed and memory are not compared")
    with Display(console(stderr=True), recorded.suite) as display:
        outcome = scheduler.run(
            [job], home=home, open_store=lambda: _open(home), workers_per_device=workers, timeout=timeout, on_event=display
        )  # fmt: skip
    if outcome.waiting_in_spool:
        say("the record waits in the spool for the tracking store")
    if outcome.interrupted:
        raise Interrupted(outcome.interrupted, "nothing is recorded")
    again = outcome.records[0] if outcome.records else None
    return Verified(recorded=recorded, again=again, elsewhere=bool(outcome.elsewhere))


def chosen(mirror: Mirror, given: str) -> TrialRecord:
    """The record to verify: of a trial that which counts, of this environment if it has several."""
    kind, rows = find(mirror, given)
    reasons = retracted(mirror)
    records = [as_record(row) for row in rows]
    if kind == "record" and records[0].record_id in reasons:
        raise UserError(f"record {records[0].record_id} was retracted: {reasons[records[0].record_id]}")
    left = [record for record in records if record.purpose == "primary" and record.record_id not in reasons]
    if not left:
        what = (
            "it is of a pass for speed or a verification" if kind == "record" else "all of its records were retracted"
        )
        raise UserError(f"{kind} {given!r} has no result to verify: {what}")
    ended = sorted((r for r in left if r.status in VERIFIABLE), key=lambda r: VERIFIABLE.index(r.status))
    if not ended:
        raise UserError(
            f"{kind} {given!r} ended as {left[-1].status}, which says nothing that could be repeated: {left[-1].cause}"
        )
    places = {record.environment_id for record in ended}
    if len(places) > 1:
        here = environment.environment_id(environment.expected())
        ended = [record for record in ended if record.environment_id == here]
        if not ended:
            ids = ", ".join(record.record_id for record in left)
            raise UserError(
                f"trial {given!r} was run in {len(places)} environments, none of them here: name one of {ids}"
            )
    return ended[0]


def _same(recorded: TrialRecord, corpus: str, code: str, *, other_code: bool) -> None:
    """Refuse what would be another trial."""
    if recorded.corpus_fingerprint != corpus:
        raise UserError(
            f"trial {recorded.trial_id} was trained on another corpus ({recorded.corpus_fingerprint}) than this machine has under "
            f"that name ({corpus}): it cannot be verified here"
        )
    if recorded.code_fingerprint != code and not other_code:
        raise UserError(
            f"trial {recorded.trial_id} was made by code {recorded.code_fingerprint}, here it is {code}: check out git revision "
            f"{recorded.git_revision or 'of then'}, or ask with --other-code whether the code of today repeats it"
        )


def _workers(recorded: Mapping[str, Any]) -> int | None:
    """How many workers a run here has for its environment to be the recorded one: on a CPU they decide the threads of each."""
    wanted = (
        environment.environment_id(dict(recorded)) if {"device", "torch", "cuda", "threads"} <= recorded.keys() else ""
    )
    if recorded.get("device_type") != "cpu" or environment.expected()["device_type"] != "cpu":
        return None
    numbers = [None, *range(1, environment.cores() + 1)]
    return next((n for n in numbers if environment.environment_id(environment.expected(workers=n)) == wanted), None)


def _label(recorded: TrialRecord) -> str:
    return " · ".join(recorded.context.get("levels", {}).values()) or "base"


def _open(home: Path) -> Store:
    spool = Spool(home)
    store = Store.open(home, create=bool(spool.records()))  # without any record there is nothing to verify
    store.ingest(spool)
    return store


def _version() -> str:
    from ablate import __version__

    return __version__
