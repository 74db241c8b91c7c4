"""Which activations of a block are kept for the backward pass, and which computed again.

A variant calls a block: `function(*args)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ablate.variants._factor import Factor

checkpointing = Factor(
    "checkpointing", "train.checkpointing", "Which activations of a block are computed again in backward."
)

KEPT = {
    torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default, torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}  # fmt: skip


@checkpointing.variant("none", reference="Rumelhart et al. 1986, doi:10.1038/323533a0", capturable=True)
def none(function: Callable[..., Any], *args: Any) -> Any:
    """All are kept."""
    return function(*args)


@checkpointing.variant("selective", reference="arXiv:2205.05198", capturable=True)
def selective(function: Callable[..., Any], *args: Any) -> Any:
    """The results of matrix products and attention are kept; what is cheap (norms, activations, rotations) is computed again."""
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


@checkpointing.variant("full", reference="arXiv:1604.06174", capturable=True)
def full(function: Callable[..., Any], *args: Any) -> Any:
    """Only the input of each block is kept; the block runs again in the backward pass."""
    return checkpoint(function, *args, use_reentrant=False)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
