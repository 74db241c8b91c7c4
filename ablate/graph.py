"""A function captured in a CUDA graph (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Captured:
    """`function` of one tensor on a GPU as one launch: a call copies its argument in, and replays what the function did.

    The function has run before on `stream`, and changes nothing but tensors in place. Its result is overwritten by the next call of
    this and of what shares its `pool` of memory. A capture that fails raises what the function raised, and leaves the device usable;
    its default generator is a new one then.
    """

    def __init__(
        self, function: Callable[[Tensor], Any], argument: Tensor, stream: torch.cuda.Stream, pool: Any = None
    ) -> None:
        self.argument = argument.clone()
        self._graph = torch.cuda.CUDAGraph()
        # workspace that is made during capture is the graph's own; what it found, somebody else might free
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.cuda.graph(self._graph, stream=stream, pool=pool):
                self._result = function(self.argument)
        except Exception:
            # the generator still takes itself to be captured, and refuses all else (pytorch/pytorch#171263)
            generator = torch.cuda.default_generators[self.argument.device.index]
            generator.graphsafe_set_state(torch.Generator(self.argument.device).graphsafe_get_state())
            raise
        torch._C._cuda_clearCublasWorkspaces()
        self.pool = self._graph.pool()

    def __call__(self, argument: Tensor) -> Any:
        if argument is not self.argument:
            self.argument.copy_(argument)
        self._graph.replay()
        return self._result


@contextmanager
def side_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Work on `stream`, after all that was asked of the device before and before all that is asked of it after."""
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
