"""One optimizer step: micro-batches forward and backward, clipping, the update. Eager on a CPU, compiled on a GPU."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ablate.model import Decoder
from ablate.recipe import Recipe
from ablate.variants._attend import BlockMask

Watch = Callable[[list[Parameter]], None]


class Step:
    """The step of one recipe on one device.

    `mode` says how it runs: `eager`, or `compiled` (torch.compile of the loss; on a GPU, where that works). `updated` are what the
    optimizer updates: the model's parameters, or fp32 copies of them where the recipe keeps the model in bf16.
    """

    def __init__(self, recipe: Recipe, model: Decoder, *, compile: bool) -> None:
        self.recipe, self.model = recipe, model
        self.device = next(model.parameters()).device
        self.precision = recipe.train.precision.build()
        self.parameters = list(model.parameters())
        self.updated = self._masters() if self.precision.parameters != torch.float32 else self.parameters
        masters = dict(zip(map(id, self.parameters), self.updated, strict=True))
        groups = [dataclasses.replace(group, params=[masters[id(p)] for p in group.params]) for group in model.groups()]
        self.optimizer: torch.optim.Optimizer = recipe.optimizer.build(groups)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.clip = recipe.train.clipping.bind()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.scaled)
        self._masks: dict[torch.Size, BlockMask | None] = {}
        self.mode = "compiled" if compile else "eager"
        if compile:
            # the compiler counts recompilations per function, not per model, and after eight of them silently runs eager
            torch.compiler.reset()
        self._losses = torch.compile(model.losses, dynamic=False) if compile else model.losses

    def _masters(self) -> list[Parameter]:
        """fp32 copies of the parameters, which are rounded in place."""
        masters = [Parameter(p.detach().clone()) for p in self.parameters]
        for parameter in self.parameters:
            parameter.data = parameter.data.to(self.precision.parameters)
        return masters

    def losses(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every target [B, T] and what training minimizes, in the recipe's precision."""
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
        gradient is a multiple: the scaler's.
        """
        total = torch.zeros((), device=self.device)
        accumulation = self.recipe.batch.accumulation
        for micro in windows.split(self.recipe.batch.micro_sequences):
            entropy, objective = self.losses(micro)
            self.scaler.scale(objective.mean() / accumulation).backward()
            total += entropy.detach().mean() / accumulation
        return total

    def __call__(self, windows: Tensor, lr_factor: float, watch: Watch | None = None) -> tuple[Tensor, Tensor]:
        """Step once on `windows` [sequences, T + 1] at `lr_factor` times the peak rates; returns cross-entropy and gradient norm.

        `watch` is shown parameters when they have their gradients.
        """
        self._switch("train")
        self.model.train()
        loss = self.gradients(windows)
        if watch is not None:
            watch(self.parameters)
        norm = self._clip()
        if watch is not None:
            watch(self.updated)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_factor
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._round()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def _clip(self) -> Tensor:
        """Bring the gradients to what is updated, in fp32 and unscaled, and clip them; returns their norm before that."""
        if self.updated is not self.parameters:
            for master, parameter in zip(self.updated, self.parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        if self.precision.scaled:
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.updated if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self.clip(gradients, norm)
        return norm

    @torch.no_grad()
    def _round(self) -> None:
        """Give the model what was updated, where it keeps copies of its own."""
        if self.updated is not self.parameters:
            torch._foreach_copy_(list[Tensor](self.parameters), list[Tensor](self.updated))

    def _switch(self, to: str) -> None:
        """Tell an optimizer that evaluates at other points than it trains at which of them is wanted."""
        if switch := getattr(self.optimizer, to, None):
            switch()
            self._round()

    @torch.no_grad()
    def evaluate(self, windows: Tensor) -> Tensor:
        """Mean cross-entropy of each sequence [n] of `windows` [n, T + 1], without dropout."""
        self._switch("eval")
        self.model.eval()
        size = self.recipe.batch.micro_sequences
        return torch.cat([self.losses(micro)[0].mean(dim=1) for micro in windows.split(size)])

    def state_dict(self) -> dict[str, Any]:
        """All that training changes."""
        masters = [] if self.updated is self.parameters else self.updated
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
            "masters": [master.detach() for master in masters],
        }  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for master, value in zip(self.updated, state["masters"], strict=False):
            master.copy_(value)

    def warm_up(self, windows: Tensor) -> None:
        """Compile for training and evaluation without changing a parameter; falls back to eager, and says so in `mode`."""
        if self.mode == "eager":
            return
        try:
            self._warm_up(windows)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            warnings.warn(f"torch.compile failed, running eager: {error}", RuntimeWarning, stacklevel=2)
            self.mode, self._losses = "eager", self.model.losses
            self._warm_up(windows)

    def _warm_up(self, windows: Tensor) -> None:
        self.model.train()
        for _ in range(2):
            self.gradients(windows)
        self.model.zero_grad(set_to_none=True)
        self.evaluate(windows[: self.recipe.batch.micro_sequences])
