"""Optimizers: equality with torch's, the packages' or the published ones, rates, decay, resuming."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from optimizing import (
    OPTIMIZERS,
    build,
    parameters,
    put,
    run,
    torch_groups,
)
from schedulefree import AdamWScheduleFree
from tiny import tiny
from torch import Tensor
from torch.nn import Parameter

from ablate import model
from ablate.errors import UserError
from ablate.variants import Variant
from ablate.variants.optimizer import Group, newton_schulz

EACH = pytest.mark.parametrize("variant", list(OPTIMIZERS), ids=lambda variant: variant.name)


def ours(choice, **keywords) -> list[Tensor]:
    params = parameters()
    return run(build(choice, params), params, **keywords)


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


def test_adamw_equals_torchs():
    params = parameters()
    theirs = torch.optim.AdamW(torch_groups(params, 0.02, 0.3), betas=(0.8, 0.95), eps=1e-6, foreach=False)
    close(ours({"adamw": {"lr": 0.02, "weight_decay": 0.3, "beta1": 0.8, "eps": 1e-6}}), run(theirs, params))


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_torchs(nesterov: bool):
    params = parameters()
    theirs = torch.optim.SGD(torch_groups(params, 0.002, 0.3), momentum=0.8, nesterov=nesterov, foreach=False)
    chosen = {"sgd": {"lr": 0.002, "weight_decay": 0.3, "momentum": 0.8, "nesterov": nesterov}}
    close(ours(chosen), run(theirs, params))


@pytest.mark.parametrize("options", [{}, {"lr": 0.3, "weight_decay": 0.1}, {"clip": 1.5, "decay": -0.5, "eps2": 0.5}])
def test_adafactor_equals_torchs(options: dict):
    o = OPTIMIZERS.choose({"adafactor": options}).options
    params = parameters()
    theirs = torch.optim.Adafactor(
        torch_groups(params, o["lr"], o["weight_decay"]), beta2_decay=o["decay"], d=o["clip"], eps=(None, o["eps2"]),
        foreach=False,
    )  # fmt: skip
    close(ours({"adafactor": options}), run(theirs, params))


def test_lion_equals_its_published_algorithm():
    class Published(torch.optim.Optimizer):
        """arXiv:2302.06675, algorithm 2, one parameter and one line at a time."""

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    m = self.state[p].get("m", torch.zeros_like(p))
                    c = 0.8 * m + 0.2 * p.grad
                    p.data = p.data - group["lr"] * (torch.sign(c) + group["weight_decay"] * p.data)
                    self.state[p]["m"] = 0.95 * m + 0.05 * p.grad

    params = parameters()
    theirs = Published(torch_groups(params, 0.01, 0.5), {})
    close(ours({"lion": {"lr": 0.01, "weight_decay": 0.5, "beta1": 0.8, "beta2": 0.95}}), run(theirs, params))


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {"adjust_lr_fn": "match_rms_adamw"}),
        ({"adjust": "original"}, {"adjust_lr_fn": "original"}),
        ({"nesterov": False, "momentum": 0.8}, {"adjust_lr_fn": "match_rms_adamw", "nesterov": False, "momentum": 0.8}),
        ({"ns_steps": 2}, {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 2}),
    ],
)
@pytest.mark.parametrize("adamw_lr", [None, 0.003])
def test_muon_equals_torchs_on_each_matrix_and_adamw_on_the_rest(
    options: dict, theirs: dict, adamw_lr: float | None, monkeypatch: pytest.MonkeyPatch
):
    """Also on each of the matrices that are merged in one parameter, which torch's must be given apart.

    Torch's multiplies in bf16 on a CPU too; here it is made to do so in fp32, as ours does.
    """
    monkeypatch.setattr(Tensor, "bfloat16", lambda matrix: matrix.to(torch.float32, copy=True))
    first, second, merged, embedding, vector = params = parameters()
    parts = [Parameter(part.detach().clone()) for part in merged.split((6, 4))]
    matrices, halved, *_ = torch_groups(params, 0.02, 0.1)
    *_, embeddings, vectors = torch_groups(params, adamw_lr or 0.02, 0.1)
    muon = torch.optim.Muon([matrices, halved | {"params": parts}], **theirs)
    adamw = torch.optim.AdamW([embeddings, vectors], betas=(0.9, 0.95), foreach=False)

    def give_the_parts_their_gradients(*_: object) -> None:
        for part, gradient in zip(parts, merged.grad.split((6, 4)), strict=True):
            part.grad = gradient

    muon.register_step_pre_hook(give_the_parts_their_gradients)
    run([muon, adamw], params)
    chosen = {"muon": {"lr": 0.02, "weight_decay": 0.1, "adamw_lr": adamw_lr} | options}
    close(ours(chosen), [first, second, torch.cat([*parts]), embedding, vector])


@pytest.mark.parametrize("shape", [(3, 64, 64), (3, 32, 96), (3, 96, 32)])
def test_newton_schulz_brings_singular_values_near_one(shape: tuple[int, ...]):
    matrices = torch.randn(*shape, generator=torch.Generator().manual_seed(5)) + 0.1 * torch.eye(*shape[1:])
    orthogonal = newton_schulz(matrices, 5)
    values = torch.linalg.svdvals(orthogonal)
    assert values.max() < 1.3 and values.median() > 0.6
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert F.cosine_similarity(orthogonal.flatten(1), (u @ v).flatten(1)).min() > 0.95


@pytest.mark.parametrize(("beta1", "decay"), [(0.9, 0.0), (0.95, 0.3)])
def test_schedule_free_equals_its_package(beta1: float, decay: float):
    """With the warmup that the trainer makes by the rate, which the package calls its own."""
    params = parameters()
    theirs = AdamWScheduleFree(
        torch_groups(params, 0.02, decay), betas=(beta1, 0.9), warmup_steps=15, weight_decay=decay
    )
    chosen = {"schedule_free": {"lr": 0.02, "weight_decay": decay, "beta1": beta1, "beta2": 0.9}}
    warming = ours(chosen, rates=lambda step: min(1.0, (step + 1) / 15))
    close(warming, run(theirs, params, rates=lambda step: 1.0))


def test_schedule_free_trains_at_one_point_and_is_evaluated_at_another():
    params = parameters()
    optimizer = build({"schedule_free": {"beta1": 0.8}}, params)
    x = run(optimizer, params)
    optimizer.train()
    for p, average in zip(params, x, strict=True):
        torch.testing.assert_close(p.detach(), torch.lerp(average, optimizer.state[p]["z"], 0.2))
        assert not torch.allclose(p, average)
    optimizer.train()
    optimizer.eval()
    close([p.detach() for p in params], x)


def test_schedule_free_wants_no_schedule():
    tiny(optimizer="schedule_free", lr_schedule="constant")
    with pytest.raises(UserError, match=r"^optimizer: schedule_free .* 'constant', not 'cosine'$"):
        tiny(optimizer="schedule_free", lr_schedule="cosine")


@EACH
def test_every_rate_follows_the_schedule(variant: Variant):
    """At a rate of (next to) zero nothing moves, whatever rates of its own an optimizer has."""
    before = [p.detach() for p in parameters()]
    after = ours(variant.name, steps=3, rates=lambda step: 1e-12)
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    moved = ours(variant.name, steps=3, rates=lambda step: 1.0)
    assert not any(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(moved, before, strict=True))


@EACH
def test_a_copy_of_the_state_goes_on_bitwise(variant: Variant):
    params, others = parameters(), parameters()
    optimizer = build(variant.name, params)
    put(others, run(optimizer, params, steps=5))
    resumed = build(variant.name, others)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    pairs = zip(run(optimizer, params, start=5), run(resumed, others, start=5), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@EACH
def test_state_is_as_large_as_it_is_said_to_be(variant: Variant):
    matrix, vector = Parameter(torch.randn(256, 256)), Parameter(torch.randn(2))
    groups = [Group([matrix], matrices=True, decayed=True, rate=1.0), Group([vector], False, False, 1.0)]
    optimizer = OPTIMIZERS.choose(variant.name).build(groups)
    run(optimizer, [matrix, vector], steps=1)
    state = optimizer.state[matrix].values()
    assert sum(t.numel() for t in state) / matrix.numel() == pytest.approx(variant.trait("state_numbers"), abs=0.01)


def vectors(name: str, parameter: Tensor) -> bool:
    return parameter.dim() == 1


def vectors_and_embeddings(name: str, parameter: Tensor) -> bool:
    return parameter.dim() == 1 or name.startswith(("embedding", "position"))


@EACH
@pytest.mark.parametrize("skipped", [None, vectors, vectors_and_embeddings])
def test_weight_decay_skips_what_it_is_told_to(variant: Variant, skipped):
    recipe = tiny(train__decay_skips=skipped.__name__ if skipped else "nothing", model__bias=True)
    decoder = model.build(recipe, "cpu")
    optimizer = OPTIMIZERS.choose({variant.name: {"weight_decay": 0.4}}).build(decoder.groups())
    decay = {
        id(p): group["decay"] if i < group["decayed"] else 0.0
        for group in optimizer.param_groups
        for i, p in enumerate(group["params"])
    }
    for name, parameter in decoder.named_parameters():
        assert decay[id(parameter)] == (0.0 if skipped and skipped(name, parameter) else 0.4), name
    assert len(decay) == len(list(decoder.parameters()))


def test_decay_takes_the_same_share_whatever_the_rate_of_a_group():
    """In a step without a gradient: 1 - lr weight_decay is left, also of the matrix whose rate is halved."""
    params = parameters()
    before = [p.detach().clone() for p in params]
    optimizer = build({"adamw": {"lr": 0.1, "weight_decay": 0.2}}, params)
    for parameter in params:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    close([p.detach() for p in params], [b * share for b, share in zip(before, (0.98,) * 4 + (1.0,), strict=True)])


def test_muon_takes_merged_projections_apart():
    """Queries, keys and values, and gate and up, each by itself."""
    decoder = model.build(tiny(model__attention="gqa", model__activation="swiglu"), "cpu")
    parts = {id(p): group.parts for group in decoder.groups() for p in group.params}
    for name, parameter in decoder.named_parameters():
        expected = {"qkv": (32, 16, 16), "up": (88, 88)}.get(name.split(".")[-2], ())
        assert parts[id(parameter)] == (expected if parameter.dim() == 2 else ()), name
