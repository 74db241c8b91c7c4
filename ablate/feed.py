"""The training sequences of each step, brought to where they are trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ablate.corpus import Corpus

RESIDENT_SHARE = 0.25
"""A corpus that takes no more of a GPU's memory than this is kept there."""
AHEAD = 3
"""How many steps' sequences of a larger corpus are on their way to the GPU."""


def resident(corpus: Corpus, device: torch.device) -> Tensor | None:
    """The training tokens on a GPU, int32 [tokens], where they fit; None on a CPU, which reads the file."""
    if device.type != "cuda":
        return None
    most = RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory
    if corpus.train_tokens * 4 > most:
        return None
    # int32, for not every CUDA kernel indexes unsigned tensors
    return torch.from_numpy(np.asarray(corpus.tokens).astype(np.int32)).to(device)


class Feed:
    """The windows [sequences, T + 1] of each step, from an order of starts [steps * sequences] in a corpus.

    From `tokens` that lie on the device; else read on the host, and for a GPU sent ahead of the step that needs them.
    """

    def __init__(
        self, corpus: Corpus, order: np.ndarray, sequences: int, length: int, device: torch.device, tokens: Tensor | None
    ) -> None:  # fmt: skip
        self.corpus, self.device, self.length = corpus, device, length
        self.starts = order.reshape(-1, sequences)
        self.views = None if tokens is None else tokens.unfold(0, length + 1, 1)
        if self.views is not None:
            self.on_device = torch.from_numpy(self.starts).to(device)
        elif device.type == "cuda":
            shape = (sequences, length + 1)
            self.host = [torch.empty(shape, dtype=torch.int32, pin_memory=True) for _ in range(AHEAD)]
            self.sent = [torch.empty(shape, dtype=torch.int32, device=device) for _ in range(AHEAD)]
            self.arrived, self.used = ([torch.cuda.Event() for _ in range(AHEAD)] for _ in range(2))
            self.stream = torch.cuda.Stream()
            self.coming = 0

    def windows(self, step: int, out: Tensor | None = None) -> Tensor:
        """Those of a step, counted from 0, written to `out` if it is given. What is returned may be overwritten by the next call."""
        if self.views is not None:
            return torch.index_select(self.views, 0, self.on_device[step], out=out)
        found = self._sent(step) if self.device.type == "cuda" else torch.from_numpy(self._read(step).astype(np.int64))
        return found if out is None else out.copy_(found)

    def _read(self, step: int) -> np.ndarray:
        return self.corpus.tokens[self.starts[step][:, None] + np.arange(self.length + 1)]

    def _sent(self, step: int) -> Tensor:
        current = torch.cuda.current_stream()
        self.used[(step - 1) % AHEAD].record(current)
        self.coming = max(self.coming, step)
        while self.coming < min(step + AHEAD, len(self.starts)):
            self._send(self.coming)
            self.coming += 1
        current.wait_event(self.arrived[step % AHEAD])
        return self.sent[step % AHEAD]

    def _send(self, step: int) -> None:
        i = step % AHEAD
        self.arrived[i].synchronize()  # until then the host's copy is being read
        self.host[i].copy_(torch.from_numpy(self._read(step).astype(np.int32)))
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.used[i])
            self.sent[i].copy_(self.host[i], non_blocking=True)
            self.arrived[i].record()
