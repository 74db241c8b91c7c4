"""What a run would do: every trial with its identity, what is done already, what the rest costs. Nothing is started."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import environment
from ablate.design import Design, Trial
from ablate.known import Forecast, Results, selected
from ablate.match import size
from ablate.recipe import Recipe, digest
from ablate.tune import Arm, Stages, stages, value_of
from registry.record import RETRYABLE, DesignRecord, attempt_key, cell_label, new_record_id

if TYPE_CHECKING:
    from ablate.worker import Job

START_UP_SECONDS = 15.0
"""Ray and the imports of its workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trial: who it is, where it stands, what it takes. `status` is None where nothing was recorded here.

    `seconds` and `memory_gib` are forecasts, `seconds` from measured step times where `timed`; `memory_gib` is of the device, `epochs`
    passes over the corpus.
    """

    trial: Trial
    trial_id: str
    cell_id: str
    status: str | None
    corpus_fingerprint: str
    evaluation_fingerprint: str
    text_fingerprint: str
    code_fingerprint: str
    parameters: int
    flops_per_token: int
    tokens: int
    epochs: float
    seconds: float
    timed: bool
    memory_gib: float

    def failed(self, status: str | None) -> bool:
        """Whether that is an outcome to look into; a value that is tried may diverge, and so may what is known to be bad."""
        may_diverge = self.trial.stage == "tune" or self.trial.control == "bad"
        return status not in (("finished", "diverged") if may_diverge else ("finished",))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A design against what is known. `pending` are the rows that a run would train next, in order, by so many `workers`; `at_once` of
    them train at the same time.

    Where a suite tunes, `arms` say how far each is, and `later` holds rows of reported trials whose value is yet to be chosen, with
    what their cell has of its own; `rows` are all others.
    """

    design: Design
    rows: tuple[Row, ...]
    later: tuple[Row, ...]
    arms: tuple[Arm, ...]
    pending: tuple[Row, ...]
    environment: dict[str, Any]
    environment_id: str
    workers: int
    at_once: int
    finished_before: dict[str, int]
    warnings: tuple[str, ...]

    @functools.cached_property
    def drift(self) -> dict[str, dict[str, float]]:
        """By cell, how far it is from the baseline on every axis (`ablate.match.drift`)."""
        return {row.trial.label: self.design.arms.drift(row.trial.recipe) for row in self.cells}

    @property
    def cells(self) -> tuple[Row, ...]:
        """A row of each cell, without controls."""
        return tuple({row.trial.label: row for row in self.reported if not row.trial.control}.values())

    @property
    def reported(self) -> tuple[Row, ...]:
        """The rows of trials that do not only serve to tune."""
        return (*(row for row in self.rows if not row.trial.stage), *self.later)

    @property
    def waiting(self) -> tuple[Row, ...]:
        """The rows of all trials that are to be trained, now or later, if no grid is extended."""
        return tuple(row for row in (*self.rows, *self.later) if row.seconds)

    @property
    def last(self) -> bool:
        """Whether nothing follows the pending trials."""
        return not self.later and not any(row.trial.stage for row in self.pending)

    @property
    def seconds(self) -> float:
        """Forecast of the wall time of the pending trials."""
        return self._wall(self.pending)

    @property
    def seconds_later(self) -> float:
        """Forecast of the wall time of what follows them, if no grid is extended."""
        now = {row.trial_id for row in self.pending}
        return self._wall([row for row in self.waiting if row.trial_id not in now])

    def _wall(self, rows: Sequence[Row]) -> float:
        return START_UP_SECONDS + sum(row.seconds for row in rows) / self.at_once if rows else 0.0

    def jobs(self) -> list[Job]:
        """What the scheduler is to do."""
        from ablate import __version__
        from ablate.worker import Job

        revision, dirty = environment.git_revision()
        return [
            Job(
                trial_id=row.trial_id, cell_id=row.cell_id, label=row.trial.name, suite=self.design.suite.name,
                scale=self.design.scale, seed=row.trial.seed, recipe=row.trial.recipe.to_dict(), levels=dict(row.trial.levels),
                corpus_fingerprint=row.corpus_fingerprint, evaluation_fingerprint=row.evaluation_fingerprint,
                text_fingerprint=row.text_fingerprint, code_fingerprint=row.code_fingerprint, shape=row.trial.recipe.shape(),
                estimated_seconds=row.seconds, purpose="primary", git_revision=revision, git_dirty=dirty,
                finished_before=self.finished_before[row.trial_id], ablate_version=__version__, memory_gib=row.memory_gib,
            )
            for row in self.pending
        ]  # fmt: skip

    def design_record(self) -> DesignRecord:
        """The design as the registry keeps it."""
        suite = self.design.suite
        trials = [
            {"trial_id": r.trial_id, "cell_id": r.cell_id, "levels": dict(r.trial.levels), "seed": r.trial.seed}
            | ({"control": r.trial.control, "label": r.trial.label} if r.trial.control else {})
            | ({"stage": r.trial.stage} if r.trial.stage else {})
            for r in self.rows
        ]  # fmt: skip
        record = DesignRecord(
            design_id=new_record_id(), created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            suite=suite.name, scale=self.design.scale, description=suite.description, kind=suite.design,
            factors={factor: [level.label for level in levels] for factor, levels in suite.factors.items()},
            command=self.design.command, baseline=dict(suite.baseline),
            seeds=sorted(self.design.seeds), match=suite.match, margin=suite.margin,
            contrasts=[dict(contrast) for contrast in suite.contrasts], trials=trials, suite_text=suite.text,
            cells_stood_for=prod(map(len, suite.factors.values())),
            aliases=[
                {"effect": list(alias.effect), "aliases": [{"effect": list(e), "coefficient": c} for e, c in alias.others]}
                for alias in self.design.aliases()
            ],
        )  # fmt: skip
        drift = {cell_label(record, dict(row.trial.levels)): self.drift[row.trial.label] for row in self.cells}
        return replace(record, drift=drift, tuning=self._tuning(record))

    def _tuning(self, record: DesignRecord) -> dict[str, dict[str, Any]]:
        """The search of every cell, with its values as numbers and the ids of their trials."""
        tune = self.design.suite.tune
        if tune is None:
            return {}
        ids = {(row.trial.label, row.trial.tuned, row.trial.seed): row.trial_id for row in self.rows if row.trial.stage}
        found = {}
        for arm in self.arms:
            trials, chosen = [arm.trials[value] for value in arm.search.values], arm.search.chosen
            numbers = [value_of(same[0].recipe, tune.field) for same in trials]
            found[cell_label(record, dict(arm.cell.levels))] = {
                "field": tune.field, "values": numbers, "seeds": [trial.seed for trial in trials[0]],
                "trials": [[ids[trial.label, trial.tuned, trial.seed] for trial in same] for same in trials],
                "chosen": None if chosen is None else numbers[arm.search.values.index(chosen)], "bracketed": arm.search.bracketed,
            }  # fmt: skip
        return found


def make_plan(
    design: Design,
    *,
    home: Path,
    retry_failed: bool = False,
    workers: int | None = None,
    pack: int | None = None,
    tracking_uri: str | None = None,
    tried: Collection[str] = (),
) -> Plan:
    """Hold `design` against the registry in `home`.

    Every recipe's corpus must be there: it is hashed, not prepared. With `retry_failed`, what failed is pending again, but for the
    trials that were `tried` since.

    Raises:
        UserError: a corpus that is missing, unreadable or too small.
        StoreUnavailable: a tracking server that does not answer.
    """
    from registry import Spool, Store

    found = environment.expected(workers=workers)
    place = environment.environment_id(found)
    identities = Identities(home / "cache")
    store = Store.open(home, tracking_uri, create=False)
    again = RETRYABLE if retry_failed else ()
    unfolded, results, finished_before = _unfold(
        design, identities, home, place, lambda: Results(store, Spool(home), place, again=again, tried=tried)
    )
    pending = {identities(trial.recipe).trial_id for trial in unfolded.pending}
    forecast = Forecast(store, place, found) if pending else None

    def row(trial: Trial) -> Row:
        i = identities(trial.recipe)
        seconds, timed = forecast(trial.recipe, i.flops) if forecast and results(i.trial_id) is None else (0.0, False)
        return Row(
            trial=trial, trial_id=i.trial_id, cell_id=i.cell_id, status=results.statuses.get(i.trial_id), tokens=trial.recipe.tokens,
            corpus_fingerprint=i.corpus, evaluation_fingerprint=i.evaluation, text_fingerprint=i.text, code_fingerprint=i.code,
            parameters=i.parameters, flops_per_token=i.flops, memory_gib=i.memory / 2**30,
            epochs=trial.recipe.tokens / trial.recipe.fresh_tokens(i.corpus_tokens), seconds=seconds, timed=timed,
        )  # fmt: skip

    rows, later = ([row(trial) for trial in trials] for trials in (unfolded.trials, unfolded.later))
    waiting = tuple({row.trial_id: row for row in rows if row.trial_id in pending}.values())
    share = environment.share(workers, pack=pack, memory_gib=max((row.memory_gib for row in waiting), default=0.0))
    at_once = share.workers(len(waiting))
    if share.device == "cuda" and pack is None:
        at_once = min(at_once, share.devices)  # one trains on each, whatever the others do
    return Plan(
        design=design, rows=tuple(rows), later=tuple(later), arms=unfolded.arms, pending=waiting, environment=found, environment_id=place,
        workers=share.workers(len(waiting)), at_once=at_once, finished_before=finished_before,
        warnings=tuple(_warnings([one for one in (*rows, *later) if not one.trial.stage], identities)),
    )  # fmt: skip


def _unfold(
    design: Design, identities: Identities, home: Path, place: str, look: Callable[[], Results]
) -> tuple[Stages, Results, dict[str, int]]:  # fmt: skip
    """The stages of a design, what they follow from, and what the locks of its trials had counted before that was looked up."""
    from registry.locks import TrialLock

    trials = design.trials
    while True:
        # counters first, then what is done: a trial that is finished in between shows in its counter when it is about to be trained
        ids = {identities(trial.recipe).trial_id for trial in trials}
        before = {trial_id: TrialLock(home, attempt_key(trial_id, place)).finished() for trial_id in ids}
        results = look()
        found = stages(design, lambda trial, known=results: known(identities(trial.recipe).trial_id))
        trials = (*found.trials, *found.later)
        if before.keys() >= {identities(trial.recipe).trial_id for trial in trials}:
            return found, results, before


@dataclass(frozen=True, slots=True)
class _Identity:
    trial_id: str
    cell_id: str
    corpus: str
    evaluation: str
    text: str
    code: str
    corpus_tokens: int
    corpus_exact: bool
    note: str | None
    parameters: int
    flops: int
    memory: float


class Identities:
    """Identity and size of recipes; corpora are hashed and code is parsed once each."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._memo: dict[Any, Any] = {}

    def __call__(self, recipe: Recipe) -> _Identity:
        from ablate import data, measure
        from ablate.fingerprint import code_fingerprint

        peek = self._once(("corpus", digest(recipe.to_dict()["data"])), lambda: data.peek(recipe.data, self.cache))
        chosen = selected(recipe)
        code = self._once(("code", chosen), lambda: code_fingerprint(chosen))
        counts = size(recipe)
        return _Identity(
            recipe.trial_id(peek.fingerprint, code), recipe.cell_id(peek.fingerprint, code), peek.fingerprint,
            peek.evaluation_fingerprint, peek.text_fingerprint, code, peek.train_tokens, peek.exact, peek.note, counts.parameters,
            counts.flops_per_token, measure.estimated_memory(recipe, counts.parameters),
        )  # fmt: skip

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]


def _warnings(rows: list[Row], identities: Identities) -> list[str]:
    """What a user should know before spending anything."""
    ids = [identities(row.trial.recipe) for row in rows]
    found = sorted({i.note for i in ids if i.note})
    most = max(rows, key=lambda row: row.epochs)
    if most.epochs > 1:
        about = "" if all(i.corpus_exact for i in ids) else "about "
        fresh = round(most.tokens / most.epochs)
        found.append(
            f"the data is passed over up to {about}{most.epochs:.1f} times "
            f"({most.tokens:,} tokens of training, {fresh:,} of them different): "
            "regularisation acts differently on repeated data than on fresh data"
        )
    for row, i in zip(rows, ids, strict=True):
        data = row.trial.recipe.data
        if data.unique_sequences and (asked := data.unique_sequences * data.seq_len) > i.corpus_tokens:
            found.append(
                f"{row.trial.label} asks for {asked:,} different tokens, and the corpus has about {i.corpus_tokens:,}: "
                "a run will refuse it; take a larger corpus or a shorter run"
            )
            break
    if len({row.trial.seed for row in rows}) == 1:
        found.append("one seed shows no noise, so no difference can be told from chance; ask for more with --seeds")
    return found
