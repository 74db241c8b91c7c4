"""What training minimizes, from the logits of all tokens or from what the head reads, a piece of the tokens at a time.

For hidden states h [N, dim], the head's weight W [V, dim] and targets t [N], the logits of a token are l = cap tanh(scale h W^T / cap),
without a cap l = scale h W^T; with p = softmax(l) and Z = sum exp(l), its objective is

    -log p_t + smoothing (l_t - mean(l)) + z_loss log^2 Z

(label smoothing: arXiv:1512.00567, section 7; z-loss: arXiv:2204.02311, section 5). Its gradient by h W^T is

    ((1 + 2 z_loss log Z) p - (1 - smoothing) onehot(t) - smoothing / V) (1 - l^2 / cap^2) scale

With chunks, logits exist for one of them at a time and are computed once: the gradients by h and W are made beside the loss
(arXiv:2411.09009, section 4, does so within a kernel).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

FP16_SHRINK = 2.0**-5
"""What hidden states are multiplied by where their products with gradients are summed in fp16, whose largest number is 65,504."""


def bounded(products: Tensor, scale: float, cap: float | None) -> Tensor:
    """Logits of h W^T, in fp32 or more: cap tanh(scale h W^T / cap)."""
    logits = _wide(products)
    if scale != 1.0:  # the compiler takes a product before a softmax for a reason to look for infinities
        logits = logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float, z_loss: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every token [N] in nats, without gradient, and the mean objective, of logits [N, V]."""
    entropy = objective = F.cross_entropy(logits, targets, reduction="none")
    if smoothing:
        objective = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    if z_loss:
        objective = objective + z_loss * logits.logsumexp(-1).square()
    return entropy.detach(), objective.mean()


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunks: int, *,
    scale: float, cap: float | None, smoothing: float, z_loss: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same of hidden states [N, dim] and a head [V, dim], in `chunks` pieces as torch.chunk cuts them.

    Products are in autocast's format where it is on; the sum over chunks of the head's gradient is in fp32.
    """
    dtype = autocast_dtype(hidden)
    if torch.is_grad_enabled():
        return _Chunked.apply(hidden, weight, targets, chunks, dtype, scale, cap, smoothing, z_loss)
    weight = weight.to(dtype)
    pieces = zip(hidden.to(dtype).chunk(chunks), targets.chunk(chunks), strict=True)
    entropy = torch.cat([F.cross_entropy(bounded(h @ weight.mT, scale, cap), t, reduction="none") for h, t in pieces])
    return entropy, entropy.mean()


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The format of matrix products of x: autocast's where that is on, else its own."""
    device = x.device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else x.dtype


class _Chunked(Function):
    """Gradients are kept at the scale of one token, where fp16 holds them, and brought to that of the mean in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunks: int, dtype: torch.dtype,
        scale: float, cap: float | None, smoothing: float, z_loss: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.tokens, ctx.dtypes = len(targets), (hidden.dtype, weight.dtype)
        rounded = weight.to(dtype)
        shrink = FP16_SHRINK if dtype == torch.float16 else None
        weight_grad = None
        entropies, objectives, hidden_grads = [], [], []
        for h, t in zip(hidden.to(dtype).chunk(chunks), targets.chunk(chunks), strict=True):
            entropy, objective, grad = _with_gradient(h @ rounded.mT, t, scale, cap, smoothing, z_loss)
            grad = grad.to(dtype)
            entropies.append(entropy)
            objectives.append(objective.sum())
            hidden_grads.append(grad @ rounded)
            piece = _wide(grad.mT @ h) if shrink is None else _wide(grad.mT @ (h * shrink)) / shrink
            weight_grad = piece if weight_grad is None else weight_grad + piece
        ctx.save_for_backward(torch.cat(hidden_grads), weight_grad)
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return entropy, torch.stack(objectives).sum() / ctx.tokens

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        grad = grads[1] / ctx.tokens
        by_hidden = (_wide(hidden_grad) * grad).to(hidden_dtype)
        return by_hidden, (weight_grad * grad).to(weight_dtype), *[None] * 7


def _with_gradient(
    products: Tensor, targets: Tensor, scale: float, cap: float | None, smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy and objective of every token [n], and the objective's gradient by h W^T [n, V]."""
    logits = bounded(products, scale, cap)
    logs = logits.log_softmax(-1)
    entropy = objective = -logs.gather(1, targets[:, None]).squeeze(1)
    grad = logs.exp()
    if smoothing:
        objective = objective + smoothing * (logits.gather(1, targets[:, None]).squeeze(1) - logits.mean(1))
    if z_loss:
        log_z = logits.logsumexp(1)
        objective = objective + z_loss * log_z.square()
        grad = grad * (1 + 2 * z_loss * log_z)[:, None]
    here = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    grad = torch.where(here, grad - (1 - smoothing), grad)
    if smoothing:
        grad = grad - smoothing / logits.shape[1]
    if cap is not None:
        grad = grad * (1 - (logits / cap).square())
    return entropy, objective, grad * scale


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
