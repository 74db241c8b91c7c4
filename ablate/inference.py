"""Inference with a cache of keys and values: prompts at once, then one token after another; and how fast each is."""

from __future__ import annotations

import functools
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ablate import memory
from ablate.errors import UserError
from ablate.graph import Captured, side_stream
from ablate.measure import StepClock
from ablate.model import Decoder, build
from ablate.recipe import Recipe
from ablate.variants._attend import BlockMask, Context, context
from ablate.variants._cache import Cache
from ablate.variants.window import Window

BATCH = 64
"""Sequences that are served at once where nothing is said: enough for the cache, and not the weights, to be most of what is read."""
DECODED = 32
"""Tokens that are decoded to be timed, at most; a prompt fills the rest of the context."""


class Inference:
    """A decoder that goes on with `batch` sequences, each at most `context` tokens long.

    After `prefill`, each `decode` takes the next token of every sequence. Where the model's window is shorter than `context`,
    the cache keeps no more than that. `mode` is `graph` after `prepare` on a GPU (compiled, and each of the two one CUDA graph),
    else `eager`.
    """

    def __init__(self, model: Decoder, batch: int, context: int) -> None:
        self.model = model.eval().requires_grad_(False)
        device = model.embedding.weight.device
        self.window: Window = model.sizes.window.build()
        self.slots = min(context, _reach(self.window, context))
        self.caches = [Cache(self.slots) for _ in model.blocks]
        self.slopes = model.position.slopes(model.sizes.n_heads, device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        shape = (1 if model.separator is None else batch, 1, 1, 1)
        self.starts = torch.zeros(shape, dtype=torch.long, device=device)
        """Where the document begins that a sequence is in, if documents do not see one another."""
        self.mode = "eager"
        self._blocks: BlockMask | None = None
        self._fill: Callable[[Tensor], Tensor] = self._prefill
        self._next: Callable[[Tensor], Tensor] = self._decode

    @torch.no_grad()
    def prefill(self, prompts: Tensor) -> Tensor:
        """Take in prompts [B, P]; logits of what follows [B, V], which the next call overwrites."""
        return self._fill(prompts)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Take in the next token of every sequence [B]; logits of what follows [B, V], which the next call overwrites."""
        return self._next(tokens)

    @torch.no_grad()
    def prepare(self, prompts: Tensor) -> None:
        """Make the caches for prompts [B, P] and, on a GPU, compile and capture.

        Raises:
            UserError: an attention variant that does not cache what it says.
        """
        self.prefill(prompts[:, :1])
        for block, cache in zip(self.model.blocks, self.caches, strict=True):
            said: int = block.attention.kv_width  # type: ignore[union-attr, assignment]
            if cache.width != said:
                name = self.model.sizes.attention.name
                raise UserError(
                    f"attention {name!r} says that it caches {said} numbers a token, and caches {cache.width}"
                )
        if prompts.is_cuda:
            try:
                self._capture(prompts)
            except Exception as error:
                if memory.is_exhausted(error):
                    raise
                warnings.warn(f"inference was not captured in a graph: {error}", RuntimeWarning, stacklevel=2)

    def _capture(self, prompts: Tensor) -> None:
        torch.compiler.reset()  # it counts recompilations per function, not per model
        # as the copy that a graph reads, or it would be compiled again while it is captured
        prompts = prompts.contiguous()
        self._blocks = self.model.seen_blocks(prompts)
        compiled = torch.compile(self._prefill_seen, dynamic=False)
        decode = torch.compile(self._decode, dynamic=False)

        def prefill(prompts: Tensor) -> Tensor:
            return compiled(prompts, self._seen_blocks(prompts))

        stream = torch.cuda.Stream()
        with side_stream(stream):
            for _ in range(2):
                tokens = prefill(prompts).argmax(-1)
                decode(tokens)
        captured = Captured(prefill, prompts, stream)
        self._next = Captured(decode, tokens, stream)
        self._fill, self.mode = captured, "graph"

    def _seen_blocks(self, prompts: Tensor) -> BlockMask | None:
        return self._blocks if self.model.separator is None else self.model.seen_blocks(prompts)

    def _prefill(self, prompts: Tensor) -> Tensor:
        return self._prefill_seen(prompts, None)

    def _prefill_seen(self, prompts: Tensor, blocks: BlockMask | None) -> Tensor:
        model, length = self.model, prompts.shape[1]
        seen = context(model.sizes, model.position, prompts, model.separator, blocks)
        positions = torch.arange(length, device=prompts.device)
        slots = positions[-self.slots :] % self.slots
        x = model.position.embed(model.embedding(prompts))
        for block, cache in zip(model.blocks, self.caches, strict=True):
            x = block(x, Context(seen.rotate, seen.mask, seen.slopes, cache, slots))
        self.position.fill_(length)
        if model.separator is not None:
            self.starts.copy_(torch.where(prompts == model.separator, positions, 0).amax(1).view_as(self.starts))
        return model.logits(model.norm(x[:, -1]))

    def _decode(self, tokens: Tensor) -> Tensor:
        model, position = self.model, self.position.clone()
        if model.separator is not None:
            self.starts.copy_(torch.where((tokens == model.separator).view_as(self.starts), position, self.starts))
        rotate = functools.partial(model.position.rotate, at=position)
        mask, slot = self._bias(position), position % self.slots
        x = model.position.embed(model.embedding(tokens[:, None]), position)
        for block, cache in zip(model.blocks, self.caches, strict=True):
            x = block(x, Context(rotate, mask, cache=cache, slots=slot, decoding=True))
        self.position.add_(1)
        return model.logits(model.norm(x[:, 0]))

    def _bias(self, position: Tensor) -> Tensor:
        """What is added to the scores of the query at `position` [1] and all slots: [B or 1, H or 1, 1, slots]."""
        distance = (position - torch.arange(self.slots, device=position.device)) % self.slots
        key = position - distance
        seen = self.window.sees(position, key) & (key >= self.starts)
        bias = torch.zeros((), device=key.device) if self.slopes is None else -self.slopes[:, None, None] * distance
        return torch.where(seen, bias, -math.inf)


def _reach(window: Window, context: int) -> int:
    """How many tokens a query sees at most, from the farthest to itself."""
    key = torch.arange(context)
    query = key[:, None]
    return int(torch.where(window.sees(query, key), query - key, 0).max()) + 1


class TimedInference:
    """Inference of a recipe, to be timed: on a GPU in bf16, else in fp32; weights and prompts are random, which costs the same.

    A prompt of most of the `context`, then tokens until it is full: the rest, at most `DECODED`.

    Raises:
        UserError: an attention variant that does not cache what it says.
        torch.OutOfMemoryError: the device's memory is exhausted.
    """

    def __init__(self, recipe: Recipe, device: torch.device, *, batch: int, context: int) -> None:
        assert 2 <= context <= recipe.data.seq_len
        model = build(recipe, device)
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        for parameter in model.parameters():
            parameter.data = parameter.data.to(self.dtype)
        self.decoded = min(DECODED, context // 2)
        shape = (batch, context - self.decoded)
        generator = torch.Generator().manual_seed(0)
        self.prompts = torch.randint(recipe.model.vocab_size, shape, generator=generator).to(device)
        self.inference = Inference(model, batch, context)
        self.inference.prepare(self.prompts)
        self.clock = StepClock(device)

    def seconds(self) -> dict[str, float]:
        """Of taking in the prompts, and of decoding a token of each sequence (the median of those that follow)."""
        self.clock.seconds.clear()
        self.clock.start()
        tokens = self.inference.prefill(self.prompts).argmax(-1)
        self.clock.step()
        for _ in range(self.decoded):
            tokens = self.inference.decode(tokens).argmax(-1)
            self.clock.step()
        self.clock.read()
        prefill, *decode = self.clock.seconds
        return {"prefill": prefill, "decode": statistics.median(decode)}

    def metrics(self, windows: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Tokens per second, over the windows that `seconds` gave; the first token comes with the prompt and is no decoding."""
        prefill, decode = (statistics.median(window[name] for window in windows) for name in ("prefill", "decode"))
        return {
            "prefill_tokens_per_second": self.prompts.numel() / prefill,
            "decode_tokens_per_second": len(self.prompts) / decode,
        }

    @property
    def conditions(self) -> dict[str, Any]:
        """Under which the figures hold."""
        batch, prompt = self.prompts.shape
        return {
            "batch": batch, "context": prompt + self.decoded, "prompt": prompt, "dtype": str(self.dtype).removeprefix("torch."),
            "mode": self.inference.mode,
        }  # fmt: skip


def measure_inference(
    recipe: Recipe, device: torch.device | str, *, batch: int = BATCH, context: int | None = None, repeats: int = 5
) -> dict[str, float]:
    """`prefill_tokens_per_second` and `decode_tokens_per_second` (`registry.record.METRICS`), medians of repeats after one that warms up.

    `context` is the recipe's sequence length where nothing is said.
    """
    timed = TimedInference(recipe, torch.device(device), batch=batch, context=context or recipe.data.seq_len)
    timed.seconds()
    return timed.metrics([timed.seconds() for _ in range(repeats)])
