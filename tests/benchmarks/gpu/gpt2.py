"""Our step at GPT-2's 124M shape against an eager loop and transformers' compiled Llama: tokens/s, MFU, peak memory.

Width 768, 12 layers, 12 heads, SwiGLU of width 2,048, tied embeddings of 50,304 rows, T 1,024, 262,144 tokens an optimizer step, bf16,
fused AdamW, clipping at 1. transformers' Llama has the same widths and is trained by its own Trainer with torch_compile, from
tokens in memory. One contender at a time, alone in the process; what came before is freed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import bench
import torch

from ablate.recipe import Recipe
from ablate.variants import load_factors

WARM, TIMED, EAGER_TIMED = 2, 4, 2
THEIRS_LEFT_OUT, THEIRS_TIMED, THEIRS_MICRO = 3, 5, 32
"""The Trainer's first steps compile; it runs 32 sequences at once, at which it is fastest."""
SECONDS = 45.0
"""What a contender may take at most; none is begun with less left."""


def recipe_of(micro: int, precision: str, chunks: int, sizes: dict[str, Any]) -> Recipe:
    return bench.recipe(
        "124m", batch__micro_sequences=micro, train__precision=precision, train__loss_chunks=chunks, **sizes
    )  # fmt: skip


def transformers_llama(
    recipe: Recipe, rates: bench.Rates, options: Any, micro: int
) -> tuple[bench.Measurements, dict[str, Any]]:
    """Llama of the recipe's widths in transformers' own training loop."""
    import transformers
    from torch.utils.data import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    before = bench.empty(options.device)
    model, batch, length = recipe.model, recipe.batch.sequences, recipe.data.seq_len
    config = LlamaConfig(
        vocab_size=model.vocab_size, hidden_size=model.dim, intermediate_size=model.ffn_dim, num_hidden_layers=model.n_layers,
        num_attention_heads=model.n_heads, num_key_value_heads=model.n_heads, max_position_embeddings=length,
        tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip

    class Tokens(Dataset):
        """A step's worth of random sequences."""

        def __init__(self) -> None:
            self.tokens = torch.randint(0, model.vocab_size, (batch, length))

        def __len__(self) -> int:
            return batch

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": self.tokens[index], "labels": self.tokens[index]}

    class Clock(TrainerCallback):
        """When each optimizer step had ended on the device."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            bench.synchronize(options.device)
            self.ends.append(time.perf_counter())

    clock, cuda = Clock(), options.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=micro, gradient_accumulation_steps=batch // micro,
            max_steps=THEIRS_LEFT_OUT + THEIRS_TIMED, bf16=True, torch_compile=cuda, use_cpu=not cuda,
            optim="adamw_torch_fused" if cuda else "adamw_torch", learning_rate=6e-4, weight_decay=0.1, max_grad_norm=1.0,
            lr_scheduler_type="constant", logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=Tokens(), callbacks=[clock])
        loss = trainer.train().training_loss
    seconds = [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)][THEIRS_LEFT_OUT - 1 :]
    peak = bench.allocated_gib(options.device)
    found = rates.speed(recipe.batch_tokens, seconds) | {"peak_memory_gib": peak, "allocated_gib": peak}
    facts = {
        "mode": "compiled" if cuda else "eager", "transformers": transformers.__version__, "loss": loss, "held_before_gib": before,
        **bench.described(recipe), "micro_sequences": micro, "loss_chunks": 1,
    }  # fmt: skip
    return found, facts


def main() -> int:
    parser = bench.parser(__doc__ or "", budget=200)
    parser.add_argument("--micro", nargs=2, type=int, default=[64, 32], help="the large and the small micro-batch")
    parser.add_argument("--no-transformers", action="store_true")
    options = parser.parse_args()
    large, small = options.micro
    sizes: dict[str, Any] = {"batch__sequences": 256}
    theirs_micro, seconds = THEIRS_MICRO, SECONDS
    if options.tiny:
        large, small, theirs_micro, seconds = 4, 2, 2, 0.0
        sizes = {
            "batch__sequences": 4, "model__dim": 64, "model__n_layers": 2, "model__n_heads": 2, "model__vocab_size": 512,
            "model__ffn_dim": 128, "data__tokenizer": "bytes", "data__seq_len": 32,
        }  # fmt: skip
    results = bench.Results("gpt2", (__doc__ or "").partition("\n")[0], options)
    case = f"GPT-2 shape, {recipe_of(large, 'bf16', 1, sizes).batch_tokens:,} tokens a step"

    def ours(micro: int, precision: str, chunks: int) -> None:
        contender = f"ablate, micro-batch {micro}, {precision}, loss in {chunks}"
        if precision in load_factors()["precision"].variants and results.affords(seconds, case, contender):
            with results.guard(case, contender):
                recipe = recipe_of(micro, precision, chunks, sizes)
                found, facts = bench.one_step(recipe, options.device, warm=WARM, timed=TIMED)
                results.add(case, contender, found, **facts)

    ours(large, "bf16", 8)
    theirs = f"transformers' Llama, micro-batch {theirs_micro}, compiled"
    if not options.no_transformers and results.affords(seconds, case, theirs):
        with results.guard(case, theirs):
            recipe = recipe_of(theirs_micro, "bf16", 1, sizes)
            found, facts = transformers_llama(recipe, bench.Rates.of(recipe, options.device), options, theirs_micro)
            results.add(case, theirs, found, **facts)
    ours(large, "bf16", 1)
    ours(large, "bf16_activations", 8)
    ours(large, "bf16_activations", 1)
    ours(small, "bf16", 8)
    contender = f"ablate's plain eager loop, micro-batch {small}, bf16, loss in 1"
    if results.affords(seconds / 3, case, contender):
        with results.guard(case, contender):
            recipe = recipe_of(small, "bf16", 1, sizes)
            found, facts = bench.one_step(recipe, options.device, warm=1, timed=EAGER_TIMED, prepare=False)
            results.add(case, contender, found, **facts)
    results.compare(theirs)
    return results.finish()


if __name__ == "__main__":
    sys.exit(main())
