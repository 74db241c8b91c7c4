"""Ray Tune as one would first write it: a function that trains a compiled 10M-parameter loop and logs to MLflow at its end.

Two trials, one at a time on the GPU, then four at once on a quarter each: tokens over the wall time of the process that
runs them, from its start to its end, and over that of `fit` alone, for so few trials do not make up for the start. Tune's
defaults otherwise. All trials have one shape, and the compile cache is warm from a short run before. The model is
Llama-like in plain modules, of the widths of the preset 10m; tokens are random, in memory. `--against FILE` gives ratios
to a result of suite.py, made on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PARTS = {"one at a time": (2, 1), "at once": (4, 4)}
"""How many trials, and how many of them at once on the GPU."""
SIZES = {"dim": 384, "layers": 6, "heads": 6, "ffn": 1024, "vocabulary": 8192, "length": 512, "sequences": 32}
TINY = {"dim": 32, "layers": 1, "heads": 2, "ffn": 64, "vocabulary": 256, "length": 32, "sequences": 4}
LOG_EVERY = 50
FIT = "fit-seconds"
FORECAST = 100
"""Seconds that a part may take; none is begun with less left."""


def train(config: dict[str, Any]) -> float:
    """One trial; returns its last loss. All that it needs is in here, for workers get it by value."""
    import mlflow
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    dim, heads, length = config["dim"], config["heads"], config["length"]
    device = config["device"]

    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
            self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
            self.gate, self.up = (nn.Linear(dim, config["ffn"], bias=False) for _ in range(2))
            self.down = nn.Linear(config["ffn"], dim, bias=False)

        def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            h = self.norm1(x)
            q, k, v = (f(h).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
            x = x + self.o(y.transpose(1, 2).flatten(2))
            h = self.norm2(x)
            return x + self.down(F.silu(self.gate(h)) * self.up(h))

    class Llama(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(config["vocabulary"], dim)
            self.blocks = nn.ModuleList(Block() for _ in range(config["layers"]))
            self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, config["vocabulary"], bias=False)
            half = dim // heads // 2
            angles = torch.outer(torch.arange(length), 10_000.0 ** (-torch.arange(half) / half))
            self.register_buffer("cos", angles.cos())
            self.register_buffer("sin", angles.sin())

        def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            return F.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), targets.flatten())

    torch.manual_seed(config["seed"])
    torch.set_float32_matmul_precision("high")
    text = torch.randint(0, config["vocabulary"], (2_000_000,))
    model = Llama().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=device == "cuda")
    compiled = torch.compile(model) if device == "cuda" else model
    losses = []
    for step in range(config["steps"]):
        starts = torch.randint(len(text) - length, (config["sequences"],)).tolist()
        x = torch.stack([text[s : s + length] for s in starts]).to(device, non_blocking=True)
        y = torch.stack([text[s + 1 : s + length + 1] for s in starts]).to(device, non_blocking=True)
        with torch.autocast(device, torch.bfloat16):
            loss = compiled(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % config["log_every"] == 0 or step + 1 == config["steps"]:
            losses.append((step, loss.item()))
    if config["tracking_uri"]:
        mlflow.set_tracking_uri(config["tracking_uri"])
        mlflow.set_experiment("plain")
        with mlflow.start_run():
            mlflow.log_params(config)
            for step, value in losses:
                mlflow.log_metric("train_loss", value, step=step)
    return losses[-1][1]


def tune_trials(config: dict[str, Any], part: str, folder: Path) -> None:
    """Run a part's trials by Ray Tune; leaves the seconds that `fit` took."""
    import mlflow
    import ray
    from ray import tune

    trials, at_once = PARTS[part]
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("plain")  # makes the database, which trials that start at once cannot

    def trial(given: dict[str, Any]) -> dict[str, float]:
        return {"loss": train(given)}

    resources: dict[str, float] = {"cpu": 4, "gpu": 1 / at_once} if config["device"] == "cuda" else {"cpu": 1}
    tuner = tune.Tuner(
        tune.with_resources(trial, resources),
        param_space=config | {"tracking_uri": uri, "seed": tune.grid_search(list(range(trials)))},
        run_config=tune.RunConfig(storage_path=str(folder / "tune")),
    )
    ray.init()
    begin = time.perf_counter()
    done = tuner.fit()
    assert not done.errors, done.errors
    (folder / FIT).write_text(repr(time.perf_counter() - begin), encoding="utf-8")


def in_a_process(config: dict[str, Any], part: str, folder: Path, limit: float) -> float:
    """Seconds of a process that does a part."""
    cache = {
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "inductor" / "triton"),
    }
    environment = os.environ | cache | {"RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, __file__, "--part", part, "--config", json.dumps(config), "--folder", str(folder)]
    start = time.time()
    with (folder / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(max(1.0, limit))
        finally:
            process.kill()
        log.seek(0)
        if code:
            raise RuntimeError(log.read()[-1000:])
    return time.time() - start


def main() -> int:
    import bench

    parser = bench.parser(__doc__ or "", budget=330)
    parser.add_argument("--tokens", type=float, default=20e6, help="of each trial")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--against", type=Path, metavar="FILE", help="a result of suite.py")
    options = parser.parse_args()
    sizes = TINY if options.tiny else SIZES
    tokens_a_step = sizes["length"] * sizes["sequences"]
    steps = 20 if options.tiny else round(options.tokens / tokens_a_step)
    config = {**sizes, "steps": steps, "device": options.device, "log_every": LOG_EVERY, "seed": 0, "tracking_uri": ""}
    results = bench.Results("plain_tune", (__doc__ or "").partition("\n")[0], options)
    case = f"trials of {steps * tokens_a_step:,} tokens"
    folder = Path(tempfile.mkdtemp(prefix="plain-"))
    try:
        with results.guard(case, "priming"):
            in_a_process(config | {"steps": 20}, "priming", folder, results.left)
        for part in options.parts:
            trials, _ = PARTS[part]
            if results.affords(0 if options.tiny else FORECAST, case, part):
                with results.guard(case, part):
                    whole = in_a_process(config, part, folder, results.left)
                    fit = float((folder / FIT).read_text(encoding="utf-8"))
                    for about, seconds in (("", whole), (", `fit` alone", fit)):
                        found = {"tokens_per_second": [trials * steps * tokens_a_step / seconds], "seconds": [seconds]}
                        results.add(case, f"plain Ray Tune, {trials} trials {part}{about}", found)
        if options.against is not None:
            compare(results, case, json.loads(options.against.read_text(encoding="utf-8")))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return results.finish()


def compare(results: Any, case: str, suite: dict[str, Any]) -> None:
    """Our suite's tokens over wall time, and every row's ratio to it."""
    ours = next(row for row in suite["rows"] if row["contender"] == "the whole command")
    found = {name: [ours["median"][name]] for name in ("tokens_per_second", "seconds")}
    results.add(case, f"ablate run, {ours['case']}", found, suite=suite)
    results.compare(results.rows[-1].contender)


if __name__ == "__main__":
    if "--part" in sys.argv:
        inner = argparse.ArgumentParser()
        inner.add_argument("--part")
        inner.add_argument("--config", type=json.loads)
        inner.add_argument("--folder", type=Path)
        given = inner.parse_args()
        if given.part == "priming":
            train(given.config)
        else:
            tune_trials(given.config, given.part, given.folder)
    else:
        sys.exit(main())
