"""In which order attention and the feed-forward block add to the residual stream.

A variant receives the two as functions of [B, T, dim] and gives the branches that are added to the stream one after another.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ablate.variants._factor import Factor

block = Factor("block", "model.block", "Whether attention and feed-forward follow one another or share an input.")

Branch = Callable[[Tensor], Tensor]


@block.variant("sequential", reference="arXiv:1706.03762", capturable=True)
def sequential(attention: Branch, feed_forward: Branch) -> tuple[Branch, ...]:
    """One after the other: x <- x + attention(x), then x <- x + feed_forward(x)."""
    return attention, feed_forward


@block.variant("parallel", reference="arXiv:2204.02311", capturable=True)
def parallel(attention: Branch, feed_forward: Branch) -> tuple[Branch, ...]:
    """Side by side on one normalized input: x <- x + attention(x) + feed_forward(x)."""
    return (lambda x: attention(x) + feed_forward(x),)
