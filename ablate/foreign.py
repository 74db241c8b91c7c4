"""Measures a trainer that is not ours: any callable that takes a seed and gives back a loss."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ablate

if TYPE_CHECKING:
    from ablate.operators import Footprint
    from registry.baseline import Baseline
    from registry.gate import Finding

LOSS, LOSSES = "val_loss", ("val_loss", "loss")
"""As a baseline has it; as a trainer may call it, the first that it gives."""
RESOLUTION = 2.0**-24
"""Of a loss of 32 bits, as a share: two that are the same may differ by as much."""
ALIAS = "_ablate_registry"


def registry(module: str) -> Any:
    """A module of our registry under a name of its own: the process is that of somebody else's project, whose `registry` may be another."""
    if ALIAS not in sys.modules:
        folder = Path(ablate.__file__).resolve().parent.parent / "registry"
        spec = spec_from_file_location(ALIAS, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None
        sys.modules[ALIAS] = package = module_from_spec(spec)
        spec.loader.exec_module(package)
    return import_module(f"{ALIAS}.{module}")


class Trainer:
    """`train(seed, **settings)`, with what it gave back and what was counted of it. Settings are JSON.

    A mapping that it gives back has its loss as `val_loss` or `loss`; of the rest, what a gate has bounds for (`parameters`,
    `flops_per_token`, ...) is held, too, and goes before what is counted here. Less of each is better.
    """

    def __init__(self, train: Callable[..., Any], settings: Mapping[str, Any]) -> None:
        self.train = train
        self.settings = dict(settings)
        text = json.dumps(self.settings, sort_keys=True, allow_nan=False)
        self.recipe = hashlib.sha256(text.encode()).hexdigest()[:16]
        """Tells whether the settings are still the same."""
        self.results: dict[int, Any] = {}
        """What it gave back first with each seed."""
        self.losses: dict[int, float] = {}
        self.counts: dict[str, float] = {}
        self.environment: dict[str, str] = {}
        self.stepped = False
        """Whether an optimizer of torch's took a step in a nudged training."""

    def shown(self) -> list[str]:
        """The settings, for people."""
        return [f"{name}={json.dumps(value)}" for name, value in self.settings.items()]

    def run(self, seed: int, *, counted: bool = False, nudged: bool = False) -> tuple[float, dict[str, float]]:
        """Train once: the loss, and where `counted` the counts. `nudged` rounds otherwise, and is kept in no result."""
        __tracebackhide__ = True
        footprint = _footprint() if counted else None
        with footprint or nullcontext(), nudge(footprint) if nudged else nullcontext([]) as stepped:
            result = self.train(seed, **self.settings)
        loss = loss_of(result)
        self.stepped = self.stepped or bool(stepped)
        if not nudged:
            self.results.setdefault(seed, result)
            self.losses.setdefault(seed, loss)
        found: dict[str, float] = {}
        if footprint is not None and footprint.found:  # a trainer without torch's operators has none to count
            found = footprint.counts()
            self.environment = _surroundings(footprint)
        if counted and isinstance(result, Mapping):
            found |= {name: float(result[name]) for name in registry("gate").BOUNDS if name in result}
        return loss, found

    def measure(self, seeds: Sequence[int]) -> None:
        """Train with each seed, and count in the last of these trainings.

        It is not the first in this process (a single seed is trained twice): what it prepares once and keeps is prepared, whatever
        tests ran before.
        """
        __tracebackhide__ = True
        for seed in seeds[:-1] or seeds:
            self.run(seed)
        _, self.counts = self.run(seeds[-1], counted=True)

    def arm(self) -> Any:
        """As a baseline has it; a loss that is not finite is none."""
        runs = {seed: {LOSS: loss} if math.isfinite(loss) else {} for seed, loss in self.losses.items()}
        return registry("baseline").Arm(self.recipe, runs, self.counts)


def loss_of(result: Any) -> float:
    """Raises `TypeError` where a trainer has given back no loss."""
    __tracebackhide__ = True
    if isinstance(result, Mapping):
        name = next((name for name in LOSSES if name in result), None)
        if name is None:
            raise TypeError(
                f"a trainer gives back `val_loss` or `loss`, and this one {', '.join(map(str, result)) or 'nothing'}"
            )
        result = result[name]
    try:
        return float(result.detach() if hasattr(result, "detach") else result)
    except (TypeError, ValueError):
        raise TypeError(
            f"a trainer gives back a loss or a mapping with one, and this one a {type(result).__name__}"
        ) from None


def baseline(trainer: Trainer, name: str, seeds: Sequence[int], fresh: Sequence[int]) -> tuple[Baseline, list[str]]:
    """Train with every seed, twice: the second time only to round otherwise, which tells the noise. And what is to be said of it.

    Raises:
        ValueError: a loss that is not finite: nothing could be held against it later.
    """
    __tracebackhide__ = True
    trainer.measure(seeds)
    for seed in fresh:
        trainer.run(seed)
    for seed, loss in trainer.losses.items():
        if not math.isfinite(loss):
            raise ValueError(f"the loss with seed {seed} is {loss}: a baseline needs one that is finite")
    notes, differences = [], []
    for seed in (*seeds, *fresh):
        loss, again = trainer.run(seed, counted=seed == seeds[-1], nudged=True)
        if seed == seeds[-1]:
            unsteady = sorted(metric for metric, value in trainer.counts.items() if again.get(metric) != value)
            if unsteady:
                notes.append(f"not held, for it differs from call to call: {', '.join(unsteady)}")
                trainer.counts = {k: v for k, v in trainer.counts.items() if k not in unsteady}
        differences.append(loss - trainer.losses[seed])
    if len(trainer.losses) > 1 and len(set(trainer.losses.values())) == 1:
        notes.append("the loss is the same with each seed: is the seed used?")
    sd = math.sqrt(sum(one * one for one in differences) / len(differences))
    if trainer.stepped:
        sd = max(sd, RESOLUTION * max(map(abs, trainer.losses.values())))
    known = math.isfinite(sd) and sd > 0.0
    if not known:
        notes.append(
            "the noise of its loss is not known: no optimizer of torch's took a step, and trained again it came out the same"
        )
    module = registry("baseline")
    made = module.Baseline(
        suite=name, scale="pytest", settings=trainer.shown(),
        arms={name: trainer.arm()}, environment=trainer.environment,
        noise={LOSS: module.Noise(sd, len(differences))} if known else {},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"), ablate_version=ablate.__version__,
    )  # fmt: skip
    return made, notes


def held(
    trainer: Trainer, known: Baseline, name: str, seeds: Sequence[int], fresh: Sequence[int], margin: float | None
) -> list[Finding]:
    """What a gate finds. A loss that did not pass is looked at again with the fresh seeds, a count that is worse in another training."""
    __tracebackhide__ = True
    gate = registry("gate")
    if known.arms[name].recipe != trainer.recipe:
        before, now = (", ".join(one) or "none" for one in (known.settings, trainer.shown()))
        return [gate.Finding(name, "settings", "rebaseline", why=f"{before} -> {now}")]
    if missing := [seed for seed in seeds if seed not in known.arms[name].runs]:
        return [gate.Finding(name, "seeds", "rebaseline", why=f"it has no seed {missing[0]}")]

    def findings() -> list[Finding]:
        found = gate.against_baseline(known, {name: trainer.arm()}, trainer.environment, margin)
        return [replace(one, why=one.why.replace(" nats/token", "")) for one in found]  # its unit is not ours to know

    trainer.measure(seeds)
    found = findings()
    if any(one.metric == LOSS and one.verdict != "pass" for one in found):
        for seed in fresh:
            if seed in known.arms[name].runs:
                trainer.run(seed)
    if any(one.metric != LOSS and one.verdict == "regression" for one in found):
        _, again = trainer.run(seeds[-1], counted=True)
        trainer.counts = {metric: min(value, again.get(metric, value)) for metric, value in trainer.counts.items()}
    return findings()


def _footprint() -> Footprint | None:
    try:
        from ablate.operators import Footprint
    except ImportError:  # there is no torch
        return None
    gc.collect()  # what earlier tests left goes now, and the collector starts from the same count each time
    return Footprint()


def _surroundings(footprint: Footprint) -> dict[str, str]:
    """What the numbers depend on beside the code, as `ablate.check` has it."""
    import torch

    version, _, build = torch.__version__.partition("+")
    gpus = sorted(torch.cuda.get_device_name(one) for one in footprint.devices if one.type == "cuda")
    if gpus:
        return {"device": gpus[0], "torch": version, "cuda": str(torch.version.cuda or build)}
    others = sorted({one.type for one in footprint.devices} - {"cpu", "meta"})
    return {"device": others[0] if others else "cpu", "torch": version}


@contextmanager
def nudge(footprint: Footprint | None) -> Iterator[list[Any]]:
    """Each optimizer's first step starts from weights whose last bit is another, up or down at random: all that follows is rounded
    otherwise. Of optimizers that are torch's, or derived from `torch.optim.Optimizer`: those that took a step are in the list. Not counted.
    """
    stepped: list[Any] = []
    try:
        import torch
        from torch.optim.optimizer import register_optimizer_step_pre_hook
    except ImportError:
        yield stepped
        return
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def before(optimizer: Any, *_: Any) -> None:
        if any(one is optimizer for one in stepped):
            return
        stepped.append(optimizer)
        with footprint.paused() if footprint is not None else nullcontext():
            for weights in (p for group in optimizer.param_groups for p in group["params"] if p.is_floating_point()):
                up = torch.rand(weights.shape, generator=generator) < 0.5
                way = torch.where(up, math.inf, -math.inf).to(weights)
                weights.copy_(torch.nextafter(weights, way))

    handle = register_optimizer_step_pre_hook(before)
    try:
        yield stepped
    finally:
        handle.remove()
