"""Where the norm stands around a branch f of a block.

Built from a function that makes a norm; maps the residual stream x [B, T, dim] and f to the new stream. `final_norm` says
whether the stream needs a norm before the head.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ablate.variants._factor import Factor

placement = Factor("placement", "model.placement", "Where the norm stands around a branch of a block.")

Branch = Callable[[Tensor], Tensor]


@placement.variant("pre", reference="arXiv:2002.04745", capturable=True)
class Pre(nn.Module):
    """Before the branch: x + f(norm(x))."""

    final_norm = True

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm = norm()

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + branch(self.norm(x))


@placement.variant("post", reference="arXiv:1706.03762", capturable=True)
class Post(nn.Module):
    """On the stream, after the branch was added: norm(x + f(x))."""

    final_norm = False

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm = norm()

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return self.norm(x + branch(x))


@placement.variant("sandwich", reference="arXiv:2105.13290")
class Sandwich(nn.Module):
    """Before the branch and on what it adds: x + norm(f(norm(x)))."""

    final_norm = True

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm, self.output_norm = norm(), norm()

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        return x + self.output_norm(branch(self.norm(x)))
