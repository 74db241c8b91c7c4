"""Training losses of the first 20 steps for every variant that this package ships, kept per platform in tests/golden/.

A refactor that should change nothing gives identical ones. `python tests/golden.py` rewrites the file of the platform that it runs on
(of its GPU with the argument `cuda`): after a change that should change numbers, and for a new variant.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from tiny import tiny

from ablate.data import prepare
from ablate.errors import UserError
from ablate.train import train
from ablate.variants import load_factors

FOLDER = Path(__file__).resolve().parent / "golden"
ELSEWHERE = "x86_64-amd-epyc-avx2-torch-2.13.json"
"""What a platform without a file of its own is compared with."""
STEPS = 20
BEYOND: dict[str, Any] = {
    "model.attention_soft_cap": 2.0,
    "model.output_soft_cap": 2.0,
    "model.window": {"sliding": {"size": 5}},
    "model.bias": True,
    "model.tie_embeddings": True,
    "batch.micro_sequences": 2,
    "data.curation": {"quality": {"min_stop_words": 0}},
    "train.clipping": {"value": {"limit": 0.001}},
    "train.z_loss": 0.01,
    "train.label_smoothing": 0.1,
    "train.loss_chunks": 4,
    "train.decay_skips": "nothing",
}
"""Choices that are no factor, and options that act at this size."""


def cases() -> dict[str, dict[str, Any]]:
    """By name, what is set. The source stays the synthetic one, and what must be given a file is left out."""
    found = {
        f"{factor.field}: {variant.name}": {factor.field: variant.name}
        for factor in load_factors().values()
        if factor.name != "source"
        for variant in factor
        if variant.build.__module__.startswith("ablate.") and not any(f.is_required() for f in variant.options.model_fields.values())
    }  # fmt: skip
    return found | {f"{field}: {json.dumps(value)}": {field: value} for field, value in BEYOND.items()}


def key(device: str) -> str:
    """Names all that the last bit of a loss may hang on."""
    release = ".".join(torch.__version__.split(".")[:2])
    if device == "cuda":
        return _slug(f"{torch.cuda.get_device_name()} torch {release}")
    return _slug(f"{platform.machine()} {_processor()} {torch.backends.cpu.get_cpu_capability()} torch {release}")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-")


def losses(case: dict[str, Any], device: str, cache: Path) -> list[float] | str:
    """The loss of each step in nats, on the deterministic path without a compiler; or why the recipe is refused."""
    try:
        recipe = tiny(**{
            "data.source": {"synthetic": {"size": 200_000}}, "lr_schedule": "constant", "train.steps": STEPS,
            "train.warmup": 0.1, "train.deterministic": True, "evaluation.points": 1, **case,
        })  # fmt: skip
        corpus = prepare(recipe.data, cache)
    except UserError as error:
        return str(error)
    with torch.compiler.set_stance("force_eager") if device == "cuda" else nullcontext():
        result = train(recipe, corpus=corpus, device=device)
    return [loss for _, _, loss in result.curves["train_loss"]]


def load(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def reference(device: str) -> tuple[dict[str, Any], bool]:
    """The losses kept for this platform, or where there are none those of another; and whether they are its own."""
    own = FOLDER / f"{key(device)}.json"
    file = own if own.exists() else FOLDER / ELSEWHERE
    return load(file), file == own


def rewrite(device: str, folder: Path) -> Path:
    """Measure all cases and keep them in `folder`, one a line."""
    with tempfile.TemporaryDirectory() as cache:
        lines = [
            f"{json.dumps(name)}: {json.dumps(losses(case, device, Path(cache)))}" for name, case in cases().items()
        ]
    path = folder / f"{key(device)}.json"
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(rewrite(sys.argv[1] if len(sys.argv) > 1 else "cpu", FOLDER))
