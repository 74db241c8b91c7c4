"""Which earlier positions a query sees.

`sees(query, key)` takes positions of queries and keys, which broadcast, and says which pairs meet: each position with
itself, none with a later key. `unlimited` marks the window that leaves nothing out.
"""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor

from ablate.variants._factor import Factor

window = Factor("window", "model.window", "Which earlier positions a query sees.")


class Window(Protocol):
    unlimited: bool

    def sees(self, query: Tensor, key: Tensor) -> Tensor: ...


@window.variant("full", reference="arXiv:1706.03762", capturable=True)
class Full:
    """Its own position and every earlier one: j <= i."""

    unlimited = True

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return key <= query


@window.variant("sliding", reference="arXiv:2004.05150", capturable=True)
class Sliding:
    """Its own position and the size - 1 before it: i - size < j <= i (as in Mistral, arXiv:2310.06825)."""

    unlimited = False

    def __init__(self, *, size: Annotated[int, Field(ge=1)] = 256) -> None:
        self.size = size

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key < self.size)
