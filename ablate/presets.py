"""The scales at which a suite can run: everything that a suite leaves unsaid.

Sizes follow GPT-2 and GPT-3 (arXiv:2005.14165, table 2.1) from 124m up, where the head is tied to the embeddings. Training
length is 20 tokens per parameter (arXiv:2203.15556) but for `nano`, which answers in seconds on a CPU. Learning rates are per
optimizer: AdamW's follow GPT-3's table downwards in size, Lion's are a fifth of them with five times the decay
(arXiv:2302.06675, section 5), Adafactor's multiply each parameter's root mean square (arXiv:1804.04235, section 8), Muon's steps are
scaled to AdamW's and take its rates (arXiv:2502.16982, section 2.2), and schedule-free AdamW takes three times AdamW's (1 to 10 times, says
its package). For SGD with momentum there are no published ones: 0.1 is the best at `nano` of 0.01, 0.03, 0.1, 0.3, 1 and 3.

Micro-batches from 124m up are for GPUs of 80 GB: 64 sequences at 124m, with which an H200 is 3 % faster than with 32. The loss is in
chunks there, for the logits of 65,536 tokens over 50,304 words and their gradient would take 12 GiB in bf16. For a smaller GPU, set
`batch.micro_limit`: the gradient stays the same.
"""

from __future__ import annotations

from typing import Any


def _scale(
    *, dim: int, n_layers: int, n_heads: int, vocab: int, seq_len: int, sequences: int, micro: int, tokens: int,
    lr: float, adafactor_lr: float = 0.01, warmup: float = 0.02, precision: str = "bf16", tie: bool = False,
    points: int = 20, evaluation: int = 2**20, chunks: int = 1,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model": {
            "dim": dim, "n_layers": n_layers, "n_heads": n_heads, "tie_embeddings": tie,
            "attention": "mha", "window": "full", "qk_norm": "none", "activation": "swiglu", "block": "sequential",
            "norm": "rmsnorm", "placement": "pre", "position": "rope",
            "init": {"gpt2": {}, "mup": {"base_dim": dim, "base_head_dim": dim // n_heads}},
        },
        "optimizer": {
            "adamw": {"lr": lr}, "lion": {"lr": lr / 5, "weight_decay": 0.5}, "adafactor": {"lr": adafactor_lr},
            "muon": {"lr": lr}, "schedule_free": {"lr": 3 * lr}, "sgd": {"lr": 0.1},
        },
        "lr_schedule": "cosine",
        "batch": {"sequences": sequences, "micro_limit": micro},
        "data": {"source": "stdlib", "curation": "none", "tokenizer": {"bpe": {"vocab_size": vocab}}, "seq_len": seq_len},
        "train": {
            "tokens": tokens, "warmup": warmup, "precision": precision, "clipping": "norm", "checkpointing": "none",
            "loss_chunks": chunks,
        },
        "evaluation": {"tokens": evaluation, "points": points},
    }  # fmt: skip


SCALES: dict[str, dict[str, Any]] = {
    "nano": _scale(dim=64, n_layers=2, n_heads=4, vocab=1024, seq_len=128, sequences=4, micro=8, tokens=300_000,
                   lr=3e-3, adafactor_lr=0.05, warmup=0.1, precision="fp32", points=5, evaluation=2**14),
    "1m": _scale(dim=128, n_layers=4, n_heads=4, vocab=8192, seq_len=512, sequences=32, micro=32, tokens=60_000_000, lr=2e-3),
    "10m": _scale(dim=384, n_layers=6, n_heads=6, vocab=8192, seq_len=512, sequences=32, micro=32, tokens=340_000_000, lr=1e-3),
    "30m": _scale(dim=512, n_layers=10, n_heads=8, vocab=8192, seq_len=512, sequences=128, micro=32, tokens=800_000_000, lr=1e-3),
    "124m": _scale(dim=768, n_layers=12, n_heads=12, vocab=50_257, seq_len=1024, sequences=256, micro=64,
                   tokens=2_500_000_000, lr=6e-4, tie=True, chunks=8),
    "350m": _scale(dim=1024, n_layers=24, n_heads=16, vocab=50_257, seq_len=1024, sequences=512, micro=16,
                   tokens=7_000_000_000, lr=3e-4, tie=True, chunks=8),
    "1b": _scale(dim=2048, n_layers=24, n_heads=16, vocab=50_257, seq_len=2048, sequences=512, micro=8,
                 tokens=26_000_000_000, lr=2e-4, tie=True, chunks=8),
}  # fmt: skip
"""Nested overrides by scale, in the words of a suite; of a factor with options for several variants, the first is selected."""

DEFAULT_SCALE = "nano"
