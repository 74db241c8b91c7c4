"""Our step at every scale from 1m to 1b, and against the micro-batch at two of them: tokens/s, MFU, peak memory.

The presets, with an optimizer step capped at two micro-batches so that it is short: tokens/s counts one update for every two
micro-batches, where the presets of 124m and more have 4 to 64 of them.
"""

from __future__ import annotations

import sys
from typing import Any

import bench

from ablate.presets import SCALES

WARM, TIMED = 2, 5
ACCUMULATION = 2
FORECAST = {"1m": 15, "10m": 20, "30m": 25, "124m": 35, "350m": 60, "1b": 75}
"""Seconds that a scale may take, most of them compiling; one is not begun with less left."""
MICRO_BATCHES = {"10m": (8, 128), "124m": (8, 32)}
"""Beside the preset's."""


def main() -> int:
    parser = bench.parser(__doc__ or "", budget=300)
    parser.add_argument("--scales", nargs="+", default=["10m", "124m", "1m", "30m", "350m", "1b"], choices=SCALES)
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    sizes: dict[str, Any] = {}
    micro_batches, forecast = MICRO_BATCHES, FORECAST
    if options.tiny:
        options.scales, forecast, micro_batches = ["nano"], {"nano": 0}, {"nano": (2,)}
        sizes = {"data__tokenizer": "bytes", "data__seq_len": 32}
    results = bench.Results("scaling", (__doc__ or "").partition("\n")[0], options)

    def measured(scale: str, micro: int) -> None:
        case = f"{scale}, micro-batch {micro}"
        if results.affords(forecast[scale], case, "ablate"):
            with results.guard(case, "ablate"):
                recipe = bench.recipe(
                    scale, batch__sequences=ACCUMULATION * micro, batch__micro_sequences=micro,
                    train__precision=options.precision, **sizes,
                )  # fmt: skip
                found, facts = bench.one_step(recipe, options.device, warm=WARM, timed=TIMED)
                results.add(case, "ablate", found, **facts, scale=scale)

    for scale in options.scales:
        measured(scale, SCALES[scale]["batch"]["micro_limit"])
    for scale, others in micro_batches.items():
        for micro in others if scale in options.scales else ():
            measured(scale, micro)
    results.rows.sort(key=lambda row: (list(SCALES).index(row.facts["scale"]), row.facts["micro_sequences"]))
    return results.finish()


if __name__ == "__main__":
    sys.exit(main())
