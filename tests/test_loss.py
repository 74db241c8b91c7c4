"""The loss in chunks is the plain one, with its gradients, and holds no logits of all tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import ArrayCorpus, tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ablate._loss import bounded, chunked_cross_entropy, cross_entropy
from ablate.model import Decoder, build

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function:DeprecationWarning"
)  # torch's own, in tracing
TOKENS, WIDTH, VOCABULARY = 37, 8, 29
WINDOWS = torch.from_numpy(ArrayCorpus().validation(16, 8).tokens)
FORMS = st.fixed_dictionaries({
    "scale": st.sampled_from([1.0, 0.25]), "cap": st.sampled_from([None, 2.0]), "smoothing": st.sampled_from([0.0, 0.1]),
    "z_loss": st.sampled_from([0.0, 0.01]),
})  # fmt: skip
PLAIN = {"scale": 1.0, "cap": None, "smoothing": 0.0, "z_loss": 0.0}
FULL = {"scale": 0.25, "cap": 2.0, "smoothing": 0.1, "z_loss": 0.01}


def inputs(dtype: torch.dtype, tokens: int = TOKENS, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a head, targets."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, WIDTH, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, *, scale: float, cap: float | None, **form: float) -> Any:
    return cross_entropy(bounded(F.linear(hidden, weight), scale, cap), targets, **form)


def with_gradients(losses: Any, hidden: Tensor, weight: Tensor) -> list[Tensor]:
    """Cross-entropies, the objective and the gradients of three times the objective."""
    entropy, objective = losses
    return [entropy, objective, *torch.autograd.grad(3 * objective, (hidden, weight))]


@given(FORMS, st.sampled_from([2, 3, 5, 36, 37, 64]), st.sampled_from([(torch.float64, 1e-10), (torch.float32, 1e-4)]))
@settings(max_examples=30)
def test_chunks_change_neither_loss_nor_gradient(form: dict[str, Any], chunks: int, number: tuple[torch.dtype, float]):
    dtype, tolerance = number
    hidden, weight, targets = inputs(dtype)
    expected = with_gradients(plain(hidden, weight, targets, **form), hidden, weight)
    found = with_gradients(chunked_cross_entropy(hidden, weight, targets, chunks, **form), hidden, weight)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype and mine.requires_grad == theirs.requires_grad
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance / 100)
    with torch.no_grad():
        entropy, mean = chunked_cross_entropy(hidden, weight, targets, chunks, **form)
    torch.testing.assert_close(entropy, expected[0], rtol=tolerance, atol=tolerance / 100)
    assert torch.equal(entropy.mean(), mean)


@pytest.mark.parametrize("form", [PLAIN, FULL], ids=["plain", "full"])
def test_gradients_are_those_of_finite_differences(form: dict[str, Any]):
    hidden, weight, targets = inputs(torch.float64, tokens=7)
    assert torch.autograd.gradcheck(lambda h, w: chunked_cross_entropy(h, w, targets, 3, **form)[1], (hidden, weight))


# in a model


def gradients(model: Decoder, losses: Any, autocast: torch.dtype | None) -> tuple[list[Tensor], dict[str, Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        entropy, objective = losses(WINDOWS)
    (objective * 1024).backward()
    return [entropy, objective], {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def options(chunks: int, tied: bool) -> dict[str, Any]:
    return {"train__loss_chunks": chunks, "model__tie_embeddings": tied, "train__z_loss": 0.01, "train__label_smoothing": 0.1,
            "model__output_soft_cap": 5.0, "model__init": {"mup": {"base_dim": 16}}, "model__n_layers": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("format", "tied"), [("fp32", False), ("bf16", True), ("fp16", False), ("bf16 parameters", True)]
)
def test_a_model_in_chunks_trains_as_in_one_piece(format: str, tied: bool):
    """Compiled without a graph break, too. In few bits, within what those bits can tell, per parameter."""
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(format)
    whole, pieces = (build(tiny(**options(chunks, tied)), "cpu").train() for chunks in (1, 3))
    if format == "bf16 parameters":
        whole, pieces = whole.bfloat16(), pieces.bfloat16()
    losses, expected = gradients(whole, whole.losses, autocast)
    chunked, other = gradients(pieces, pieces.losses, autocast)
    torch.compiler.reset()
    compiled = torch.compile(pieces.losses, backend="eager", fullgraph=True, dynamic=False)
    traced, again = gradients(pieces, compiled, autocast)
    for a, b in zip([*chunked, *other.values()], [*traced, *again.values()], strict=True):
        assert torch.equal(a, b)
    bits = {"fp32": 1e-6, "fp16": 2**-10}.get(format, 2**-7)
    for mine, theirs in zip(chunked, losses, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=bits, atol=bits)
    assert expected.keys() == other.keys()
    for name, theirs in expected.items():
        assert other[name].dtype == theirs.dtype
        assert float((other[name] - theirs).norm()) <= 4 * bits * float(theirs.norm()), name


class Largest(TorchDispatchMode):
    """The most numbers that a result had."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_logits_are_one_chunks_and_computed_once(training: bool):
    tokens, vocabulary, chunks = 64, 512, 4
    hidden, weight, targets = inputs(torch.float32, tokens, vocabulary)
    with torch.set_grad_enabled(training), Largest() as largest, FlopCounterMode(display=False) as counter:
        _, objective = chunked_cross_entropy(hidden, weight, targets, chunks, **FULL)
        if training:
            objective.backward()
    assert largest.numbers == tokens // chunks * vocabulary
    assert counter.get_total_flops() == (6 if training else 2) * tokens * vocabulary * WIDTH


# fp16


def in_fp16(hidden: Tensor, weight: Tensor, targets: Tensor) -> list[Tensor]:
    with torch.autocast("cpu", dtype=torch.float16):
        losses = chunked_cross_entropy(hidden, weight, targets, 2, **PLAIN)
    return list(torch.autograd.grad(losses[1], (hidden, weight)))


def test_gradients_do_not_underflow_in_fp16():
    """Those of a mean over 4,096 tokens are below what fp16 can hold: without a scaler, the plain path loses them."""
    hidden, weight, targets = inputs(torch.float32, 4096, 512)
    weight = (weight / 64).detach().requires_grad_()
    expected = torch.autograd.grad(plain(hidden, weight, targets, **PLAIN)[1], (hidden, weight))
    with torch.autocast("cpu", dtype=torch.float16):
        lossy = torch.autograd.grad(plain(hidden, weight, targets, **PLAIN)[1], (hidden, weight))
    for mine, lost, theirs in zip(in_fp16(hidden, weight, targets), lossy, expected, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-3 < float((lost - theirs).norm() / theirs.norm())


def test_a_sum_over_tokens_does_not_overflow_in_fp16():
    hidden, weight, _ = inputs(torch.float32, 2048, 512)
    hidden = torch.full_like(hidden, 100.0).requires_grad_()
    targets = torch.full((2048,), int(weight.sum(1).argmin()))
    weight_grad = in_fp16(hidden, weight, targets)[1]
    assert 1024 * float(weight_grad.abs().max()) > torch.finfo(torch.float16).max
    expected = torch.autograd.grad(plain(hidden, weight, targets, **PLAIN)[1], weight)[0]
    torch.testing.assert_close(weight_grad, expected, rtol=3e-3, atol=1e-3)


# compiled in earnest


@pytest.mark.slow
def test_compiled_code_saves_gradients_and_no_logits():
    """The compiler, which is free to move work between forward and backward, leaves it where it stands."""
    hidden, weight, targets = inputs(torch.float32, 64, 512)
    saved = []
    torch.compiler.reset()
    compiled = torch.compile(chunked_cross_entropy, fullgraph=True, dynamic=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = with_gradients(chunked_cross_entropy(hidden, weight, targets, 4, **FULL), hidden, weight)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
            losses = compiled(hidden, weight, targets, 4, **FULL)
        found = with_gradients(losses, hidden, weight)
    assert sorted(saved) == [hidden.shape, weight.shape]
    for mine, theirs in zip(found, expected, strict=True):
        assert float((mine - theirs).detach().norm()) <= 0.02 * float(theirs.detach().norm())
