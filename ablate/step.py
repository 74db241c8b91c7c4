"""One optimizer step: micro-batches forward and backward, clipping, the update.

On a GPU the loss is compiled, and where all that takes part allows it the whole step is captured in a CUDA graph, which one launch
replays (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs). A prepared step outlives its trial: `begin` makes it
that of another recipe of the same `Recipe.shape`. What such recipes differ in (rates, decay, limits of clipping) lies on the device.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ablate import measure, memory
from ablate.graph import Captured, side_stream
from ablate.model import Decoder, build
from ablate.recipe import Recipe
from ablate.scaling import LossScale
from ablate.variants._attend import BlockMask
from ablate.variants._parameters import Group, restart

Watch = Callable[[list[Parameter]], None]


class Step:
    """The step of a recipe on one device.

    `mode` says how it runs: `graph` (compiled, and the whole step one CUDA graph), `compiled` (torch.compile of the loss) or `eager`;
    `prepare` decides. `memory` is the peak that it measured, with its parts (GiB). `updated` are what the optimizer updates: the
    model's parameters, or fp32 copies of them where the recipe keeps the model in bf16.
    """

    def __init__(self, recipe: Recipe, device: torch.device | str) -> None:
        self.recipe, self.device = recipe, torch.device(device)
        self.model = build(recipe, self.device)
        self.precision = recipe.train.precision.build()
        self.parameters = list(self.model.parameters())
        self.updated = self._masters() if self.precision.parameters != torch.float32 else self.parameters
        self.scale = LossScale(self.device) if self.precision.scaled else None
        self.mode, self.memory = "eager", dict[str, float]()
        self._losses = functools.partial(_of_model, self.model)
        self._masks: dict[torch.Size, BlockMask | None] = {}
        self._step: Captured | None = None
        self._evaluation: Captured | None = None
        self._factor = torch.ones((), device=self.device)
        self._results = torch.zeros(2, device=self.device)
        self._clipping = {name: torch.tensor(0.0, device=self.device) for name in recipe.train.clipping.variant.tensors}
        self.clip = functools.partial(recipe.train.clipping.bind(), **self._clipping)
        self.optimizer = self._take(self._optimizer())
        self._set_rates(recipe)

    # From trial to trial

    @torch.no_grad()
    def begin(self, recipe: Recipe) -> None:
        """Make this the step of `recipe`, which has the same shape, before its first step."""
        assert recipe.shape() == self.recipe.shape(), "a prepared step serves recipes of one shape"
        self.recipe = recipe
        masters = dict(zip(map(id, self.parameters), self.updated, strict=True))
        for tensor, values in self.model.initial_values(recipe.seed):
            masters.get(id(tensor), tensor).copy_(values)
        self._lower()
        if self._on_device:
            restart(self.optimizer)
        else:
            self.optimizer = self._take(self._optimizer())
        self._set_rates(recipe)
        if self.scale is not None:
            self.scale.restart()

    @property
    def _on_device(self) -> bool:
        """Whether the optimizer takes its rates from the device, and can be restarted in place."""
        return self.recipe.optimizer.variant.capturable

    def _optimizer(self) -> torch.optim.Optimizer:
        masters = dict(zip(map(id, self.parameters), self.updated, strict=True))
        groups: list[Group] = [
            dataclasses.replace(group, params=[masters[id(p)] for p in group.params]) for group in self.model.groups()
        ]
        return self.recipe.optimizer.build(groups)

    def _take(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Let the groups of a new optimizer have their rates from here."""
        groups = optimizer.param_groups
        self._peaks, self._rates, self._decays = torch.zeros((3, len(groups)), device=self.device)
        if self._on_device:
            for i, group in enumerate(groups):
                group["lr"] = self._rates[i]
                if group["decay"]:
                    group["decay"] = self._decays[i]
        return optimizer

    def _set_rates(self, recipe: Recipe) -> None:
        """Rates, decays and limits of clipping as the recipe has them."""
        groups = self._optimizer().param_groups
        self._initial = [group["lr"] for group in groups]
        if self._on_device:
            self._peaks.copy_(torch.tensor(self._initial))
            self._decays.copy_(torch.tensor([group["decay"] for group in groups]))
        for name, value in self._clipping.items():
            value.fill_(recipe.train.clipping.options[name])

    # One step

    def __call__(self, windows: Tensor, lr_factor: float, watch: Watch | None = None) -> tuple[Tensor, Tensor]:
        """Step once on `windows` [sequences, T + 1] at `lr_factor` times the peak rates; returns cross-entropy and gradient norm.

        What is returned is overwritten by the next step. `watch` is shown parameters when they have their gradients; a graph
        shows nothing.
        """
        self._switch("train")
        self._factor.fill_(lr_factor)
        if self._step is not None:
            self._step(windows)
        else:
            if not self._on_device:
                for group, initial in zip(self.optimizer.param_groups, self._initial, strict=True):
                    group["lr"] = initial * lr_factor
            self._whole(windows, watch)
        loss, norm = self._results
        return loss, norm

    def _whole(self, windows: Tensor, watch: Watch | None = None) -> None:
        """All of a step, from tokens to new weights: what a graph captures."""
        self.model.train()
        loss = self.gradients(windows)
        if watch is not None:
            watch(self.parameters)
        norm = self._clip()
        if watch is not None:
            watch(self.updated)
        torch.mul(self._peaks, self._factor, out=self._rates)
        self._update()
        self._lower()
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack((loss, norm), out=self._results)

    def losses(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every target [B, T], and the mean over targets of what training minimizes, in the recipe's precision."""
        dtype = self.precision.autocast
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            return self._losses(windows, self._blocks(windows[:, :-1]))

    def _blocks(self, tokens: Tensor) -> BlockMask | None:
        """The mask of a compiled step; kept, where the tokens do not matter to it."""
        if self.mode == "eager":
            return None
        if self.recipe.data.document_masking:
            return self.model.seen_blocks(tokens)
        if tokens.shape not in self._masks:
            self._masks[tokens.shape] = self.model.seen_blocks(tokens)
        return self._masks[tokens.shape]

    def gradients(self, windows: Tensor) -> Tensor:
        """Accumulate the gradient of the mean objective over `windows` [sequences, T + 1]; returns the mean cross-entropy.

        Micro-batches are equal in size, so the mean of their means is the mean: any split gives the same gradient. In fp16 the
        gradient is a multiple: the loss scale's.
        """
        total = torch.zeros((), device=self.device)
        accumulation = self.recipe.batch.accumulation
        for micro in windows.split(self.recipe.batch.micro_sequences):
            entropy, objective = self.losses(micro)
            objective = objective / accumulation
            (objective if self.scale is None else objective * self.scale.factor).backward()
            total += entropy.detach().mean() / accumulation
        return total

    def _clip(self) -> Tensor:
        """Bring the gradients to what is updated, in fp32 and unscaled, and clip them; returns their norm before that."""
        if self.updated is not self.parameters:
            for master, parameter in zip(self.updated, self.parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        gradients = [p.grad for p in self.updated if p.grad is not None]
        if self.scale is not None:
            torch._foreach_div_(gradients, self.scale.factor)
        norm = nn.utils.get_total_norm(gradients)
        self.clip(gradients, norm)
        if self.scale is not None:
            self.scale.update(norm)
        return norm

    def _update(self) -> None:
        """The optimizer's step; none where gradients overflowed."""
        if self.scale is None:
            self.optimizer.step()
        elif getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.found_inf = self.scale.overflowed.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif self.optimizer.state or not self.scale.overflowed:  # there is no state to keep before the first step
            before = [tensor.clone() for tensor in self._changing()]
            self.optimizer.step()
            with torch.no_grad():
                for tensor, kept in zip(self._changing(), before, strict=False):
                    tensor.copy_(torch.where(self.scale.overflowed, kept, tensor))

    def _changing(self) -> Iterator[Tensor]:
        """The tensors that the optimizer changes."""
        yield from (p.detach() for p in self.updated)
        for group in self.optimizer.param_groups:
            yield from (
                value for key, value in group.items() if isinstance(value, Tensor) and key not in ("lr", "decay")
            )
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def _masters(self) -> list[Parameter]:
        """fp32 copies of the parameters, which are rounded in place."""
        masters = [Parameter(p.detach().clone()) for p in self.parameters]
        for parameter in self.parameters:
            parameter.data = parameter.data.to(self.precision.parameters)
        return masters

    @torch.no_grad()
    def _lower(self) -> None:
        """Give the model what was updated, where it keeps copies of its own."""
        if self.updated is not self.parameters:
            torch._foreach_copy_(list[Tensor](self.parameters), list[Tensor](self.updated))

    def _switch(self, to: str) -> None:
        """Tell an optimizer that evaluates at other points than it trains at which of them is wanted."""
        if switch := getattr(self.optimizer, to, None):
            switch()
            self._lower()

    # Evaluation

    def evaluate(self, windows: Tensor) -> Tensor:
        """Mean cross-entropy of each sequence [n] of `windows` [n, T + 1], without dropout."""
        self._switch("eval")
        size = self.recipe.batch.micro_sequences
        found = []
        for micro in windows.split(size):
            # compiled for one shape
            missing = 0 if self.mode == "eager" else size - len(micro)
            full = torch.cat((micro, micro[-1:].expand(missing, -1))) if missing else micro
            entropies = self._entropies(full) if self._evaluation is None else self._evaluation(full)
            found.append(entropies[: len(micro)].clone())
        return torch.cat(found)

    def _entropies(self, windows: Tensor) -> Tensor:
        # a model that is the same in training need not be compiled a second time
        model, same = self.recipe.model, self.mode != "eager" and self.recipe.train.loss_chunks == 1
        same = same and not any(model.dropout.model_dump().values())
        self.model.train(same)
        with torch.set_grad_enabled(same):
            return self.losses(windows)[0].detach().mean(dim=1)

    # Preparing

    def prepare(self, windows: Tensor) -> None:
        """Compile and capture what can be, on `windows` [sequences, T + 1], and measure memory. `begin` makes it undone.

        No other step of this process should be alive in a graph while memory is measured.

        Raises:
            torch.OutOfMemoryError: the device's memory is exhausted.
        """
        stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        if stream is not None:
            self.mode = "compiled"
            self._losses = functools.partial(torch.compile(_of_model, dynamic=False), self.model)
        try:
            self._warm_up(windows, stream)
        except Exception as error:
            if self.mode == "eager" or memory.is_exhausted(error):
                raise
            warnings.warn(f"torch.compile failed, running eager: {error}", RuntimeWarning, stacklevel=2)
            self.mode, self._losses = "eager", functools.partial(_of_model, self.model)
            self.optimizer.zero_grad(set_to_none=True)
            self._warm_up(windows, stream)
        if stream is not None and self.mode == "compiled" and self.recipe.capturable:
            try:
                self._capture(windows, stream)
            except Exception as error:
                if memory.is_exhausted(error):
                    raise
                warnings.warn(f"the step was not captured in a graph: {error}", RuntimeWarning, stacklevel=2)
                self._step = self._evaluation = None
                self.optimizer.zero_grad(set_to_none=True)

    def _warm_up(self, windows: Tensor, stream: torch.cuda.Stream | None) -> None:
        """Run all that training runs. The second step meets every tensor of a step, the optimizer's state included."""
        with nullcontext() if stream is None else side_stream(stream):
            self._whole(windows)
            with measure.StepMemory(self.model, self.optimizer) as measured:
                self._whole(windows, measured.watch)
            self.memory = measured.metrics()
            self._entropies(windows[: self.recipe.batch.micro_sequences])

    def _capture(self, windows: Tensor, stream: torch.cuda.Stream) -> None:
        step = Captured(self._whole, windows, stream)
        micro = windows[: self.recipe.batch.micro_sequences]
        self._evaluation = Captured(self._entropies, micro, stream, step.pool)
        self._step, self.mode = step, "graph"

    @property
    def windows(self) -> Tensor | None:
        """Where a captured step reads its windows [sequences, T + 1]: what is written here need not be copied."""
        return None if self._step is None else self._step.argument

    # What a checkpoint keeps

    def state_dict(self) -> dict[str, Any]:
        """All that training changes."""
        masters = [] if self.updated is self.parameters else self.updated
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scale": None if self.scale is None else self.scale.state_dict(),
            "masters": [master.detach() for master in masters],
        }  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of another step of the recipe, in place: this one is prepared, and a graph knows its tensors."""
        self.model.load_state_dict(state["model"])
        for master, value in zip(self.updated, state["masters"], strict=False):
            master.copy_(value)
        if self.scale is not None:
            self.scale.load_state_dict(state["scale"])
        new = state["optimizer"]
        for mine, its in zip(self.optimizer.param_groups, new["param_groups"], strict=True):
            _put(mine, {key: value for key, value in its.items() if key not in ("params", "lr", "decay")})
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, values in new["state"].items():
            _put(cast(dict[str, Any], self.optimizer.state[parameters[index]]), values)


def _of_model(model: Decoder, windows: Tensor, blocks: BlockMask | None) -> tuple[Tensor, Tensor]:
    return model.losses(windows.long(), blocks)


def _put(own: dict[str, Any], values: dict[str, Any]) -> None:
    """Set `own` to `values`, tensors in place where there are some."""
    for key, value in values.items():
        if isinstance(value, Tensor) and isinstance(own.get(key), Tensor):
            own[key].copy_(value)
        else:
            own[key] = value
