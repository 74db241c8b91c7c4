"""The trainer: the same gradient whichever way a batch is split, exact resume, streams apart, divergence, measured numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from test_variants import recipe_with
from tiny import ArrayCorpus, tiny

from ablate.data import prepare
from ablate.model import build, stream_seed
from ablate.recipe import Recipe
from ablate.spec import Spec
from ablate.step import Step
from ablate.train import Checkpoint, Progress, evaluation_steps, train
from ablate.variants import Variant, load_factors

CORPUS = ArrayCorpus()


def final_state(recipe: Recipe, **options):
    """Result and final parameters of a run on the CPU."""
    kept = {}
    original = build

    def keep(r, device):
        kept["model"] = original(r, device)
        return kept["model"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ablate.step.build", keep)
        result = train(recipe, corpus=CORPUS, device="cpu", **options)
    return result, {name: p.detach() for name, p in kept["model"].named_parameters()}


@pytest.mark.parametrize("dropout", [0.0])
@pytest.mark.parametrize("split", [1, 2, 4])
def test_any_split_into_micro_batches_gives_the_same_gradient(split: int, dropout: float):
    windows = torch.randint(0, 64, (8, 17))
    gradients = []
    for micro in (8, split):
        recipe = tiny(batch__micro_sequences=micro)
        step = Step(recipe, "cpu")
        loss = step.gradients(windows)
        gradients.append([loss, *(p.grad for p in step.model.parameters())])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-7)


def test_batch_in_tokens_and_in_sequences_are_one():
    assert tiny(batch__tokens=8 * 16) == tiny(batch__sequences=8)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("optimizer", list(load_factors()["optimizer"]), ids=lambda variant: variant.name)
def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(tmp_path: Path, optimizer: Variant):
    recipe = recipe_with(optimizer, model__dropout=0.1, train__steps=30)
    checkpoint = Checkpoint(tmp_path / "c.pt", every_seconds=0)

    def stop(progress: Progress) -> None:
        if progress.step >= 20:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(recipe, stop, corpus=CORPUS, device="cpu", checkpoint=checkpoint)
    assert checkpoint.path.exists()
    resumed, parameters = final_state(recipe, checkpoint=checkpoint)
    whole, expected = final_state(recipe)
    assert resumed.context["resumed_at_step"] >= 15
    assert resumed.metrics["val_loss"] == whole.metrics["val_loss"]
    assert resumed.curves == whole.curves
    for name, value in parameters.items():
        assert torch.equal(value, expected[name]), name


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path):
    checkpoint = Checkpoint(tmp_path / "c.pt", every_seconds=0)
    train(tiny(), corpus=CORPUS, device="cpu", checkpoint=checkpoint)
    with pytest.raises(ValueError, match="another recipe"):
        train(tiny(seed=1), corpus=CORPUS, device="cpu", checkpoint=checkpoint)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    first, second, third = (train(tiny(seed=s, model__dropout=0.1), corpus=CORPUS, device="cpu") for s in (0, 0, 1))
    assert first.curves == second.curves
    assert first.metrics["val_loss"] != third.metrics["val_loss"]


def test_dropout_zero_is_off_and_each_place_acts():
    windows = torch.randint(0, 64, (8, 17))

    def loss(**overrides) -> torch.Tensor:
        recipe = tiny(**overrides)
        model = build(recipe, "cpu").train()
        torch.manual_seed(0)
        return model.losses(windows)[1].mean()

    off = loss()
    for place in ("attention_weights", "attention_output", "feed_forward_output", "embedding"):
        assert torch.equal(off, loss(**{f"model__dropout__{place}": 0.0}))
        assert not torch.equal(off, loss(**{f"model__dropout__{place}": 0.5})), place
    recipe = tiny(model__dropout=0.5)
    step = Step(recipe, "cpu")
    assert torch.equal(step.evaluate(windows), step.evaluate(windows)), "dropout acted in evaluation"


def test_arms_share_the_initial_values_of_the_parameters_they_share():
    mha, rope = (
        build(tiny(), "cpu"),
        build(tiny(model__position="rope", model__norm="rmsnorm", model__bias=True), "cpu"),
    )
    assert torch.equal(mha.blocks[1].feed_forward.up.weight, rope.blocks[1].feed_forward.up.weight)
    assert torch.equal(mha.embedding.weight, rope.embedding.weight)
    assert not torch.equal(mha.embedding.weight, build(tiny(seed=1), "cpu").embedding.weight)


def test_streams_have_seeds_of_their_own():
    seeds = {stream_seed(seed, name) for seed in range(50) for name in ("init", "dropout", "data")}
    assert len(seeds) == 150 and all(0 <= s < 2**63 for s in seeds)


def test_initial_weights_follow_gpt2():
    model = build(tiny(model__dim=128, model__n_layers=2), "cpu")
    block = model.blocks[0]
    assert float(block.feed_forward.up.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    for into_the_stream in (block.attention.out, block.feed_forward.down):
        assert float(into_the_stream.weight.detach().std()) == pytest.approx(0.02 / math.sqrt(4), rel=0.05)


def test_a_loss_that_is_not_finite_ends_the_run_as_a_result(monkeypatch: pytest.MonkeyPatch):
    original = Step.__call__

    def planted(self, *arguments):
        loss, norm = original(self, *arguments)
        planted.calls += 1
        return (loss * float("nan") if planted.calls == 5 else loss), norm

    planted.calls = 0
    monkeypatch.setattr(Step, "__call__", planted)
    result = train(tiny(), corpus=CORPUS, device="cpu")
    assert (result.status, result.metrics["diverged_at_step"]) == ("diverged", 5)
    assert "step 5 of 12" in result.cause and "val_loss" not in result.metrics
    assert all(math.isfinite(p[2]) for curve in result.curves.values() for p in curve)


def test_an_absurd_rate_really_diverges_or_is_really_bad():
    good = train(tiny(train__steps=40), corpus=CORPUS, device="cpu")
    bad = train(tiny(train__steps=40, optimizer={"adamw": {"lr": 1e4}}), corpus=CORPUS, device="cpu")
    assert bad.status == "diverged" or bad.metrics["val_loss"] > good.metrics["val_loss"] + 0.5


def test_what_on_step_raises_ends_the_run():
    def stop(progress: Progress) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(tiny(), stop, corpus=CORPUS, device="cpu")


def test_the_lease_is_held_for_the_steps_and_not_for_the_preparation():
    events = []

    class Lease:
        def __enter__(self):
            events.append("take")

        def __exit__(self, *_):
            events.append("free")

    train(tiny(), lambda p: events.append(p.step), corpus=CORPUS, device="cpu", exclusive=Lease())
    assert events[0] == "take" and events[-1] == "free" and 12 in events


def test_evaluations_are_evenly_spaced_and_the_last_is_the_end():
    assert evaluation_steps(tiny()) == {4, 8, 12}
    assert evaluation_steps(tiny(train__steps=2, evaluation__points=5)) == {1, 2}


def test_the_validation_loss_is_the_plain_mean_and_bits_per_byte_follow():
    recipe = tiny()
    result, parameters = final_state(recipe)
    model = build(recipe, "cpu").eval()
    model.load_state_dict(parameters, strict=False)
    windows = torch.from_numpy(CORPUS.validation(16, 8).tokens)
    logits = model(windows[:, :-1]).detach().double()
    targets = logits.log_softmax(-1).gather(-1, windows[:, 1:, None])
    assert result.metrics["val_loss"] == pytest.approx(-float(targets.mean()), rel=1e-5)
    assert result.metrics["val_bpb"] == pytest.approx((result.metrics["val_loss"] + 1) / math.log(2))
    assert result.metrics["val_loss_se"] == pytest.approx(
        float(-targets.mean(dim=(1, 2)).std() / math.sqrt(8)) * -1, rel=1e-4
    )


def test_clipping_bounds_what_reaches_the_optimizer():
    recipe = tiny(train__clipping={"norm": {"limit": 0.01}}, optimizer={"adamw": {"lr": 1e-3}})
    seen = []
    step = Step(recipe, "cpu")
    step.optimizer.register_step_pre_hook(
        lambda *_: seen.append(float(torch.stack([p.grad.norm() for p in step.parameters]).norm()))
    )
    _, norm = step(torch.randint(0, 64, (8, 17)), 1.0)
    assert float(norm) > 0.1 and seen[0] == pytest.approx(0.01, rel=1e-3)


def test_the_deterministic_mode_holds_for_the_run_and_not_beyond_it():
    seen = []
    train(
        tiny(train__deterministic=True),
        lambda p: seen.append(torch.are_deterministic_algorithms_enabled()),
        corpus=CORPUS,
        device="cpu",
    )
    assert set(seen) == {True} and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["mha", "mqa"])
def test_a_known_source_is_learnt_almost_to_its_floor_and_never_below_it(home: Path, attention: str):
    """The chain's own loss on the slice is the floor: less would mean that the model sees what it is to predict."""
    spec = Spec("nano")
    spec.set_all({"data.source": "synthetic", "data.tokenizer": "bytes", "model.attention": attention})
    recipe = spec.resolve()
    metrics = train(recipe, corpus=prepare(recipe.data, home / "cache"), device="cpu").metrics
    assert metrics["unigram_entropy"] > 2.9
    assert 0 < metrics["val_loss"] - metrics["loss_floor"] < 0.1


def test_a_validation_loss_that_is_not_finite_is_a_divergence_too():
    recipe = tiny(train__steps=1, train__warmup=0.0, lr_schedule="constant", optimizer={"adamw": {"lr": 1e30}})
    result = train(recipe, corpus=CORPUS, device="cpu")
    assert (result.status, result.metrics["diverged_at_step"]) == ("diverged", 1)
