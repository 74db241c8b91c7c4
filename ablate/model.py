"""The decoder: a transformer assembled from the variants that a recipe selects.

Shapes: B sequences, T tokens, V vocabulary. Every parameter is initialized from a stream of its own, named after
the seed and the parameter, so that arms which share a parameter start from the same values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ablate._loss import autocast_dtype, bounded, chunked_cross_entropy, cross_entropy
from ablate.recipe import Model, Recipe
from ablate.variants._attend import BlockMask, Context, context, seen_blocks
from ablate.variants._merged import Merged
from ablate.variants.optimizer import Group


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
        self.up = Merged(model.dim, (model.ffn_dim,) * (2 if self.gated else 1), model.bias)
        self.down = nn.Linear(model.ffn_dim, model.dim, bias=model.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        return self.down(self.activation(*hidden.chunk(2, dim=-1)) if self.gated else self.activation(hidden))


class Block(nn.Module):
    """Attention and feed-forward, each with dropout on what it adds, in the recipe's order and with its norms."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.attention = model.attention.build(model)
        self.feed_forward = FeedForward(model)
        self.attention_dropout = nn.Dropout(model.dropout.attention_output)
        self.feed_forward_dropout = nn.Dropout(model.dropout.feed_forward_output)
        self.arrange = model.block.bind()
        branches = len(self.arrange(nn.Identity(), nn.Identity()))
        self.residuals = nn.ModuleList(
            model.placement.build(lambda: model.norm.build(model.dim, model.bias)) for _ in range(branches)
        )

    def forward(self, x: Tensor, seen: Context) -> Tensor:
        branches = self.arrange(
            lambda y: self.attention_dropout(self.attention(y, seen)),
            lambda y: self.feed_forward_dropout(self.feed_forward(y)),
        )
        for residual, branch in zip(self.residuals, branches, strict=True):
            x = residual(x, branch)
        return x


class Decoder(nn.Module):
    """A language model: token ids [B, T] to logits [B, T, V]."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        model, train, data = recipe.model, recipe.train, recipe.data
        self.sizes = model
        self.scheme = model.init.build(model)
        self.embedding = _embedding(model.vocab_size, model.dim)
        self.embedding_dropout = nn.Dropout(model.dropout.embedding)
        blocks = [Block(model) for _ in range(model.n_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.position = model.position.build(model.dim, blocks[0].attention.rotated_dim, data.seq_len)
        final = model.placement.variant.trait("final_norm")
        self.norm = model.norm.build(model.dim, model.bias) if final else nn.Identity()
        self.head = nn.Linear(model.dim, model.vocab_size, bias=False)
        if model.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.separator = data.tokenizer.build().separator if data.document_masking else None
        self.call_block = train.checkpointing.bind()
        self.narrow_stream = train.precision.variant.trait("narrow_stream", False)
        self.loss_chunks, self.z_loss, self.label_smoothing = train.loss_chunks, train.z_loss, train.label_smoothing
        self.decay_skips = train.decay_skips
        vectors = [(name, p) for name, p in self.named_parameters() if p.dim() <= 1]
        self._built = {name: tensor.detach().clone() for name, tensor in [*vectors, *self.named_buffers()]}

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(self.hidden(tokens))

    def seen_blocks(self, tokens: Tensor) -> BlockMask | None:
        """What a compiled `losses` needs besides its windows, whose first T tokens [B, T] these are."""
        return seen_blocks(self.sizes, self.position, tokens, self.separator)

    def hidden(self, tokens: Tensor, blocks: BlockMask | None = None) -> Tensor:
        """What the head reads: [B, T, dim]."""
        seen = context(self.sizes, self.position, tokens, self.separator, blocks)
        x = self.position.embed(self.embedding(tokens))
        x = self.embedding_dropout(x.to(autocast_dtype(x)) if self.narrow_stream else x)
        for block in self.blocks:
            x = self.call_block(block, x, seen)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] to [..., V]."""
        return bounded(self.head(hidden), self.scheme.output_scale, self.sizes.output_soft_cap)

    def losses(self, windows: Tensor, blocks: BlockMask | None = None) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every target [B, T] in nats, from windows of T + 1 tokens, and the mean of what training minimizes.

        The two differ in training by label smoothing and z-loss; the first has no gradient.
        """
        hidden, targets = self.hidden(windows[:, :-1], blocks).flatten(0, 1), windows[:, 1:]
        smoothing, z_loss = (self.label_smoothing, self.z_loss) if self.training else (0.0, 0.0)
        if self.loss_chunks == 1:
            entropy, objective = cross_entropy(self.logits(hidden), targets.flatten(), smoothing, z_loss)
        else:
            entropy, objective = chunked_cross_entropy(
                hidden, self.head.weight, targets.flatten(), self.loss_chunks, scale=self.scheme.output_scale,
                cap=self.sizes.output_soft_cap, smoothing=smoothing, z_loss=z_loss,
            )  # fmt: skip
        return entropy.view(targets.shape), objective

    def initial_values(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every parameter and buffer with the values from which a run starts: matrices and embeddings from the recipe's scheme,
        zero biases, the rest as built.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                generator = torch.Generator().manual_seed(stream_seed(seed, "init", name))
                std = self.scheme.std(name, parameter)
                yield parameter, torch.empty(parameter.shape).normal_(0, std, generator=generator)
            elif name.endswith("bias"):
                yield parameter, torch.zeros(parameter.shape)
            else:
                yield parameter, self._built[name]
        for name, buffer in self.named_buffers():
            yield buffer, self._built[name]

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        for tensor, values in self.initial_values(seed):
            tensor.copy_(values)

    def groups(self) -> list[Group]:
        """The parameters, grouped by what an optimizer must know of them."""
        embeddings = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        parts = {id(module.weight): module.parts for module in self.modules() if isinstance(module, Merged)}
        found: dict[tuple[bool, bool, float, tuple[int, ...]], Group] = {}
        for name, parameter in self.named_parameters():
            matrix, embedding = parameter.dim() > 1, id(parameter) in embeddings
            skipped = {"nothing": False, "vectors": not matrix, "vectors_and_embeddings": not matrix or embedding}
            key = (
                matrix and name.startswith("blocks."),
                not skipped[self.decay_skips],
                self.scheme.rate(name, parameter),
                parts.get(id(parameter), ()),
            )
            found.setdefault(key, Group([], *key)).params.append(parameter)
        return [found[key] for key in sorted(found, reverse=True)]


def build(recipe: Recipe, device: torch.device | str) -> Decoder:
    """The recipe's decoder on `device`, initialized from its seed (on the meta device: shapes only)."""
    with torch.device(device):
        decoder = Decoder(recipe).to(device)
    if torch.device(device).type != "meta":
        decoder.initialize(recipe.seed)
    return decoder


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
