"""One optimizer step: micro-batches forward and backward, clipping, the update. Eager on a CPU, compiled on a GPU."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ablate.model import Decoder
from ablate.recipe import Recipe


class Step:
    """The step of one recipe on one device.

    `mode` says how it runs: `eager`, or `compiled` (torch.compile of the loss; on a GPU, where that works).
    """

    def __init__(self, recipe: Recipe, model: Decoder, *, compile: bool) -> None:
        self.recipe, self.model = recipe, model
        self.device = next(model.parameters()).device
        self.optimizer: torch.optim.Optimizer = recipe.optimizer.build(*model.decayed())
        self.peak_lr = float(recipe.optimizer.options["lr"])
        self.mode = "compiled" if compile else "eager"
        if compile:
            # the compiler counts recompilations per function, not per model, and after eight of them silently runs eager
            torch.compiler.reset()
        self._loss = torch.compile(model.loss, dynamic=False) if compile else model.loss

    def losses(self, windows: Tensor) -> Tensor:
        """Cross-entropy of every target [B, T], in the recipe's precision."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.recipe.train.precision == "bf16"):
            return self._loss(windows)

    def gradients(self, windows: Tensor) -> Tensor:
        """Accumulate the gradient of the mean loss over `windows` [sequences, T + 1]; returns that loss, a scalar on the device.

        Micro-batches are equal in size, so the mean of their means is the mean: any split gives the same gradient.
        """
        total = torch.zeros((), device=self.device)
        for micro in windows.split(self.recipe.batch.micro_sequences):
            loss = self.losses(micro).mean() / self.recipe.batch.accumulation
            loss.backward()
            total += loss.detach()
        return total

    def __call__(self, windows: Tensor, lr_factor: float) -> tuple[Tensor, Tensor]:
        """Step once on `windows` [sequences, T + 1] at `lr_factor` times the peak rate; returns loss and gradient norm."""
        self.model.train()
        loss = self.gradients(windows)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if self.recipe.train.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.recipe.train.grad_clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_lr * lr_factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    @torch.no_grad()
    def evaluate(self, windows: Tensor) -> Tensor:
        """Mean loss of each sequence [n] of `windows` [n, T + 1], without dropout."""
        self.model.eval()
        size = self.recipe.batch.micro_sequences
        return torch.cat([self.losses(micro).mean(dim=1) for micro in windows.split(size)])

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
            self.mode, self._loss = "eager", self.model.loss
            self._warm_up(windows)

    def _warm_up(self, windows: Tensor) -> None:
        self.model.train()
        for _ in range(2):
            self.gradients(windows)
        self.model.zero_grad(set_to_none=True)
        self.evaluate(windows[: self.recipe.batch.micro_sequences])
