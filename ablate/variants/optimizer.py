"""The rule that turns gradients into a step.

Built from groups of parameters. `lr` is the peak of the schedule; `weight_decay` is decoupled (a step takes lr weight_decay w
off the weights) unless a variant says otherwise. g is the gradient, w the weights. None of them waits for the device, and `lr` and
`decay` in a parameter group may be numbers or tensors. `state_numbers` is how many numbers of state a matrix parameter carries,
to estimate memory; `adam_like` says that a step is as large as the rate whatever the scale of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ablate.errors import UserError
from ablate.variants._factor import Factor
from ablate.variants._parameters import Group, by_shape, decayed, kept, param_groups, shrink, unmerged, with_gradients

if TYPE_CHECKING:
    from ablate.recipe import Recipe

optimizer = Factor("optimizer", "optimizer", "The rule that turns gradients into a step.")

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


@optimizer.variant("adamw", reference="arXiv:1711.05101", capturable=True, tensors=("lr", "weight_decay"))
class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay: w <- w - lr (m / (sqrt(v) + eps) + weight_decay w), m and v bias-corrected."""

    state_numbers = 2.0
    adam_like = True

    def __init__(
        self, groups: Sequence[Group], *, lr: Rate = 1e-3, weight_decay: Decay = 0.1,
        beta1: Beta = 0.9, beta2: Beta = 0.95, eps: Rate = 1e-8,
    ) -> None:  # fmt: skip
        rates = param_groups(groups, lr, weight_decay)
        super().__init__(rates, betas=(beta1, beta2), eps=eps, weight_decay=0.0, fused=True, capturable=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            # a gradient scaler sets found_inf to 1 where the step is to be skipped
            shrink(with_gradients(group)[0], group, getattr(self, "found_inf", None))
        super().step()


@optimizer.variant("sgd", reference="doi:10.1016/0041-5553(64)90137-5", capturable=True, tensors=("lr", "weight_decay"))
class SGD(torch.optim.SGD):
    """Gradient descent with momentum: m <- momentum m + g + weight_decay w; w <- w - lr m.

    Weight decay is an L2 penalty here, part of the gradient. `nesterov` looks ahead: w <- w - lr (g + weight_decay w + momentum m).
    """

    state_numbers = 1.0

    def __init__(
        self, groups: Sequence[Group], *, lr: Rate = 0.1, weight_decay: Decay = 0.0, momentum: Beta = 0.9,
        nesterov: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(param_groups(groups, lr, weight_decay), momentum=momentum, nesterov=nesterov, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            params, grads = with_gradients(group)
            if shrunk := decayed(params, group):
                of = dict(zip(map(id, params), grads, strict=True))
                torch._foreach_add_([of[id(p)] for p in shrunk], torch._foreach_mul(shrunk, group["decay"]))
            if group["momentum"]:
                # torch takes g for the first momentum: by a flag that a captured graph repeats, into memory that a skip leaves unset
                for p in params:
                    kept(self.state[p], "momentum_buffer", p)
        super().step()


@optimizer.variant("lion", reference="arXiv:2302.06675", capturable=True, tensors=("lr", "weight_decay"))
class Lion(torch.optim.Optimizer):
    """Evolved sign momentum: w <- w - lr (sign(beta1 m + (1 - beta1) g) + weight_decay w); m <- beta2 m + (1 - beta2) g."""

    state_numbers = 1.0
    adam_like = True

    def __init__(
        self, groups: Sequence[Group], *, lr: Rate = 1e-4, weight_decay: Decay = 1.0,
        beta1: Beta = 0.9, beta2: Beta = 0.99,
    ) -> None:  # fmt: skip
        super().__init__(param_groups(groups, lr, weight_decay), {"beta1": beta1, "beta2": beta2})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            params, grads = with_gradients(group)
            moments = [kept(self.state[p], "momentum", p) for p in params]
            directions = torch._foreach_lerp(moments, grads, 1 - group["beta1"])
            torch._foreach_sign_(directions)
            torch._foreach_mul_(directions, group["lr"])
            shrink(params, group)
            torch._foreach_sub_(params, directions)
            torch._foreach_lerp_(moments, grads, 1 - group["beta2"])


@optimizer.variant("adafactor", reference="arXiv:1804.04235", capturable=True, tensors=("lr", "weight_decay"))
class Adafactor(torch.optim.Optimizer):
    """Factored second moments: v_ij = r_i c_j / mean(r); the update g / sqrt(v) is clipped to a root mean square of `clip`.

    The step size is relative to the parameter's own root mean square: max(eps2, RMS(w)) min(lr, 1 / sqrt(t)); with lr <= 0.01
    the second bound is idle for 10,000 steps. The decay of the moments is 1 - t^decay. Equals `torch.optim.Adafactor`,
    which reads three scalars back to the host for every parameter and step.
    """

    state_numbers = 0.01

    def __init__(
        self, groups: Sequence[Group], *, lr: Rate = 1e-2, weight_decay: Decay = 0.0,
        decay: Annotated[float, Field(lt=0)] = -0.8, clip: Annotated[float, Field(ge=1)] = 1.0, eps2: Rate = 1e-3,
    ) -> None:  # fmt: skip
        super().__init__(param_groups(groups, lr, weight_decay), {"exponent": decay, "clip": clip, "eps2": eps2})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for params, grads in by_shape(*with_gradients(group)):
                self._update(params, grads, group)

    def _update(self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        steps = [kept(self.state[p], "step", p, lambda p: p.new_zeros(())) for p in params]
        torch._foreach_add_(steps, 1)
        g = torch.stack(grads)
        t = torch.stack(steps).view(-1, *(1 for _ in params[0].shape))
        squares, weight, eps1 = g.square(), t ** group["exponent"], torch.finfo(g.dtype).eps
        if params[0].dim() > 1:
            rows = self._average("rows", params, squares.mean(dim=-1, keepdim=True), weight)
            columns = self._average("columns", params, squares.mean(dim=-2, keepdim=True), weight)
            second = (rows * columns).div_(rows.mean(dim=-2, keepdim=True).clamp_(min=eps1))
        else:
            second = self._average("second_moment", params, squares, weight)
        update = second.clamp_(min=eps1 * eps1).rsqrt_().mul_(g)
        rate = _rms(torch.stack(params)).clamp(min=group["eps2"]) * t.rsqrt().clamp(max=group["lr"])
        shrink(params, group)
        update *= rate / (_rms(update) / group["clip"]).clamp(min=1.0)
        torch._foreach_sub_(params, update.unbind())

    def _average(self, name: str, params: list[Tensor], new: Tensor, weight: Tensor) -> Tensor:
        """Move the averages of a batch of parameters towards `new` [n, ...] by `weight`; a copy of them."""
        averages = [kept(self.state[p], name, first) for p, first in zip(params, new.unbind(), strict=True)]
        moved = torch.stack(averages).lerp_(new, weight)
        torch._foreach_copy_(averages, moved.unbind())
        return moved


@optimizer.variant(
    "muon",
    reference="https://kellerjordan.github.io/posts/muon, arXiv:2502.16982",
    capturable=True,
    tensors=("lr", "adamw_lr", "weight_decay"),
)
class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum for the matrices of the blocks: w <- w - lr (s NewtonSchulz(m) + weight_decay w); AdamW for the rest.

    m <- momentum m + (1 - momentum) g; with `nesterov`, momentum m + (1 - momentum) g is orthogonalized in place of m. The scale s of
    an R x C matrix is 0.2 sqrt(max(R, C)) (match_rms_adamw: as large a step as AdamW's, whose rates and decay fit) or
    sqrt(max(1, R / C)) (original: lr about 0.02). Matrices that are merged in one parameter (queries, keys and values; gate and
    up) are orthogonalized each by itself, as published. The rest has the rate `adamw_lr`, or `lr` where nothing is said.

    Equals `torch.optim.Muon`, which goes through the matrices one by one; here those of one shape are one batch.
    """

    state_numbers = 1.0

    def __init__(
        self, groups: Sequence[Group], *, lr: Rate = 1e-3, adamw_lr: Rate | None = None, weight_decay: Decay = 0.1,
        momentum: Beta = 0.95, nesterov: bool = True, ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5,
        adjust: Literal["match_rms_adamw", "original"] = "match_rms_adamw", beta1: Beta = 0.9, beta2: Beta = 0.95,
    ) -> None:  # fmt: skip
        rest = [group for group in groups if not group.matrices]
        self.adamw = AdamW(rest, lr=adamw_lr or lr, weight_decay=weight_decay, beta1=beta1, beta2=beta2)
        muon = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust": adjust}
        matrices = [
            g
            for group in groups
            if group.matrices
            for g in param_groups([group], lr, weight_decay, parts=group.parts, **muon)
        ]
        super().__init__(matrices + self.adamw.param_groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        self.adamw.state = self.state
        self.adamw.param_groups = [group for group in self.param_groups if "parts" not in group]
        self.adamw.step()
        for group in self.param_groups:
            if "parts" in group:
                self._update(group)

    def _update(self, group: dict[str, Any]) -> None:
        params, grads = with_gradients(group)
        moments = [kept(self.state[p], "momentum", p) for p in params]
        torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
        if group["nesterov"]:
            moments = torch._foreach_lerp(grads, moments, group["momentum"])
        shrink(params, group)
        parts = group["parts"]
        for weights, directions in by_shape(unmerged(params, parts), unmerged(moments, parts)):
            rows, columns = weights[0].shape
            original = group["adjust"] == "original"
            scale = max(1, rows / columns) ** 0.5 if original else 0.2 * max(rows, columns) ** 0.5
            updates = newton_schulz(torch.stack(directions), group["ns_steps"]).to(weights[0].dtype)
            torch._foreach_sub_(weights, updates.mul_(group["lr"] * scale).unbind())


def newton_schulz(matrices: Tensor, steps: int) -> Tensor:
    """Matrices [n, R, C] with all singular values near 1: `steps` times X <- a X + (b A + c A^2) X, A = X X^T.

    In bf16, which is enough; on a CPU, most of which are slow at that, in fp32.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@optimizer.variant("schedule_free", reference="arXiv:2405.15682", capturable=True, tensors=("lr", "weight_decay"))
class ScheduleFree(torch.optim.Optimizer):
    """AdamW that averages its iterates z into x in place of a schedule, and takes gradients between the two, at y.

    z <- z - lr (g(y) / (sqrt(v) + eps) + weight_decay y), v bias-corrected
    x <- (1 - c) x + c z, c = p / (sum of all p so far), p = (largest lr so far)^2
    y <- (1 - beta1) z + beta1 x

    The weights are y after `train()` and x after `eval()`. Equals the `schedulefree` package's AdamWScheduleFree, which counts steps
    and sums weights in Python.
    """

    state_numbers = 2.0
    adam_like = True
    sums = ("steps", "largest_lr", "total")

    def __init__(
        self, groups: Sequence[Group], *, lr: Rate = 2.5e-3, weight_decay: Decay = 0.1,
        beta1: Annotated[float, Field(gt=0, lt=1)] = 0.9, beta2: Beta = 0.95, eps: Rate = 1e-8,
    ) -> None:  # fmt: skip
        defaults = {"beta1": beta1, "beta2": beta2, "eps": eps, "at_y": True}
        super().__init__(param_groups(groups, lr, weight_decay), defaults)
        for group in self.param_groups:
            for name in self.sums:
                group[name] = torch.zeros((), dtype=torch.float64, device=group["params"][0].device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["beta1"], group["beta2"]
            y, grads = with_gradients(group)
            z = [kept(self.state[p], "z", p, torch.clone) for p in y]
            v = [kept(self.state[p], "second_moment", p) for p in y]
            largest = group["largest_lr"].clamp_(min=group["lr"]).square()
            c = (largest / group["total"].add_(largest)).to(y[0].dtype)
            correction = (1 - beta2 ** group["steps"].add_(1)).to(y[0].dtype)

            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
            roots = torch._foreach_div(v, correction)
            torch._foreach_sqrt_(roots)
            torch._foreach_add_(roots, group["eps"])
            changes = torch._foreach_div(grads, roots)
            if shrunk := decayed(y, group):
                of = dict(zip(map(id, y), changes, strict=True))
                torch._foreach_add_([of[id(p)] for p in shrunk], torch._foreach_mul(shrunk, group["decay"]))
            torch._foreach_mul_(changes, group["lr"])

            # x = (y - (1 - beta1) z) / beta1, put into the third equation
            towards_z = torch._foreach_sub(z, y)
            torch._foreach_mul_(towards_z, c)
            torch._foreach_add_(y, towards_z)
            torch._foreach_sub_(z, changes)
            torch._foreach_mul_(changes, 1 - beta1 * (1 - c))
            torch._foreach_sub_(y, changes)

    def train(self) -> None:
        """From x to y."""
        self._switch(to_y=True)

    def eval(self) -> None:
        """From y to x."""
        self._switch(to_y=False)

    @torch.no_grad()
    def _switch(self, to_y: bool) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p in self.state]
            if params and group["at_y"] is not to_y:
                z = [self.state[p]["z"] for p in params]
                torch._foreach_lerp_(params, z, 1 - group["beta1"] if to_y else 1 - 1 / group["beta1"])
            group["at_y"] = to_y

    def restart(self) -> None:
        """Begin again at the parameters as they are."""
        for group in self.param_groups:
            group["at_y"] = True
            for name in self.sums:
                group[name].zero_()
        for p, state in self.state.items():
            state["z"].copy_(p)
            state["second_moment"].zero_()

    @staticmethod
    def check(recipe: Recipe, **options: Any) -> None:
        if recipe.lr_schedule.name != "constant":
            raise UserError(
                f"schedule_free averages in place of a schedule, and wants lr_schedule 'constant', not {recipe.lr_schedule.name!r}"
            )


def _rms(x: Tensor) -> Tensor:
    """Root mean square of each of the tensors in a batch [n, ...], as [n, 1, ...]."""
    return x.view(len(x), -1).square().mean(dim=1).sqrt_().view(-1, *(1 for _ in x.shape[1:]))
