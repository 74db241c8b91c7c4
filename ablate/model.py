"""The decoder: a pre-norm transformer, assembled from the variants that a recipe selects.

Shapes: B sequences, T tokens, V vocabulary. Every parameter is initialized from a stream of its own, named after
the seed and the parameter, so that arms which share a parameter start from the same values.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.recipe import Model, Recipe

INIT_STD = 0.02
"""GPT-2's; the projections back into the residual stream have it divided by sqrt(2 n_layers) (GPT-2, section 2.3)."""


def stream_seed(seed: int, *names: object) -> int:
    """A seed for the random stream of this name: streams of different names do not shift one another."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _embedding(count: int, dim: int) -> nn.Embedding:
    """An embedding whose values are still to be set: on the meta device torch's own would load its compiler, for seconds."""
    return nn.Embedding.from_pretrained(torch.empty(count, dim), freeze=False)


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x), up(x))) for a gated unit; gate and up are one matrix."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.activation = model.activation.build()
        self.gated = model.activation.variant.trait("gated", False)
        self.up = nn.Linear(model.dim, model.ffn_dim * (2 if self.gated else 1), bias=model.bias)
        self.down = nn.Linear(model.ffn_dim, model.dim, bias=model.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        return self.down(self.activation(*hidden.chunk(2, dim=-1)) if self.gated else self.activation(hidden))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), each with dropout on what it adds."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.attention_norm = model.norm.build(model.dim, model.bias)
        self.attention = model.attention.build(model)
        self.feed_forward_norm = model.norm.build(model.dim, model.bias)
        self.feed_forward = FeedForward(model)
        self.attention_dropout = nn.Dropout(model.dropout.attention_output)
        self.feed_forward_dropout = nn.Dropout(model.dropout.feed_forward_output)

    def forward(self, x: Tensor, position: nn.Module) -> Tensor:
        x = x + self.attention_dropout(self.attention(self.attention_norm(x), position.rotate))
        return x + self.feed_forward_dropout(self.feed_forward(self.feed_forward_norm(x)))


class Decoder(nn.Module):
    """A language model: token ids [B, T] to logits [B, T, V]."""

    def __init__(self, model: Model, seq_len: int) -> None:
        super().__init__()
        self.embedding = _embedding(model.vocab_size, model.dim)
        self.position = model.position.build(model.dim, model.head_dim, seq_len)
        self.embedding_dropout = nn.Dropout(model.dropout.embedding)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.n_layers))
        self.norm = model.norm.build(model.dim, model.bias)
        self.head = nn.Linear(model.dim, model.vocab_size, bias=False)
        if model.tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding_dropout(self.position.embed(self.embedding(tokens)))
        for block in self.blocks:
            x = block(x, self.position)
        return self.head(self.norm(x))

    def loss(self, windows: Tensor) -> Tensor:
        """Cross-entropy of every target [B, T] in nats, from windows of T + 1 tokens."""
        logits = self(windows[:, :-1])
        losses = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
        return losses.view(windows.shape[0], -1)

    def initialize(self, seed: int) -> None:
        """Normal(0, 0.02) for matrices and embeddings, scaled down into the residual stream; zero biases; norms as built."""
        residual = {
            f"blocks.{i}.{name}.weight"
            for i in range(len(self.blocks))
            for name in ("attention.out", "feed_forward.down")
        }
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                std = INIT_STD / math.sqrt(2 * len(self.blocks)) if name in residual else INIT_STD
                generator = torch.Generator().manual_seed(stream_seed(seed, "init", name))
                values = torch.empty(parameter.shape).normal_(0, std, generator=generator)
                with torch.no_grad():
                    parameter.copy_(values)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def decayed(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters that weight decay acts on (matrices of the hidden layers and the head), and the rest."""
        embeddings = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        decayed = [p for p in self.parameters() if p.dim() > 1 and id(p) not in embeddings]
        chosen = {id(p) for p in decayed}
        return decayed, [p for p in self.parameters() if id(p) not in chosen]


def build(recipe: Recipe, device: torch.device | str) -> Decoder:
    """The recipe's decoder on `device`, initialized from its seed (on the meta device: shapes only)."""
    with torch.device(device):
        decoder = Decoder(recipe.model, recipe.data.seq_len).to(device)
    if torch.device(device).type != "meta":
        decoder.initialize(recipe.seed)
    return decoder
