"""What inference keeps of the tokens before, so that each new one is computed alone (arXiv:1911.02150, section 2.3.1)."""

from __future__ import annotations

from torch import Tensor


class Cache:
    """What one layer keeps: tensors [B, heads, slots, width], as wide as what the first write brings; `slots` are tokens."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.tensors: list[Tensor] = []

    @property
    def width(self) -> int:
        """Numbers per token and sequence."""
        return sum(kept.shape[1] * kept.shape[3] for kept in self.tensors)

    def write(self, slots: Tensor, new: tuple[Tensor, ...]) -> None:
        """Keep `new` tensors [B, heads, T, width]: of the last tokens as many as there are `slots` to put them in."""
        if not self.tensors:
            self.tensors = [values.new_zeros((*values.shape[:2], self.slots, values.shape[3])) for values in new]
        for kept, values in zip(self.tensors, new, strict=True):
            kept.index_copy_(2, slots, values[:, :, -len(slots) :])
