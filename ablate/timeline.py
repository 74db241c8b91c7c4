"""Where the wall time of a run went: what each worker did when, and how much of the time somebody was training."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

COLOURS = {"prepare": "#BBBBBB", "compile": "#E69F00", "wait": "#F0E442", "train": "#0072B2"}
"""By phase: grey, and of the palette of Okabe and Ito, which most colour-blind people tell apart."""
MEANING = {
    "prepare": "read the corpus", "compile": "compile and warm up", "wait": "wait for the device", "train": "train and evaluate"
}  # fmt: skip
WIDTH, LEFT, RIGHT, LANE, GAP, TOP, FONT = 1200, 150, 20, 24, 6, 78, 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A trial in a phase, in a worker (host and process) at a device; times in seconds since the epoch."""

    trial: str
    phase: str
    start: float
    end: float
    worker: tuple[str, int]
    device: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The bars of one run, from its `start` to the `end` of its last trial."""

    bars: tuple[Bar, ...]
    start: float

    @classmethod
    def of(cls, attempts: Iterable[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> Timeline | None:
        """From (name, context, environment) of the records of trials: those of the newest run among them.

        None where no record says what its worker did when.
        """
        told = [attempt for attempt in attempts if attempt[1].get("timeline")]
        if not told:
            return None
        start = max(context["run_started"] for _, context, _ in told)
        bars = [
            Bar(
                trial=name, phase=phase, start=begin, end=end,
                worker=(environment.get("host", ""), context["worker"]), device=context["device_uuid"],
            )
            for name, context, environment in told
            if context["run_started"] == start
            for phase, begin, end in context["timeline"]
        ]  # fmt: skip
        return cls(tuple(sorted(bars, key=lambda bar: bar.start)), start)

    @property
    def end(self) -> float:
        return max(bar.end for bar in self.bars)

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def devices(self) -> list[str]:
        return sorted({bar.device for bar in self.bars})

    @property
    def share(self) -> float:
        """How much of the time somebody was training on a device: of all devices the mean."""
        busy = 0.0
        for device in self.devices:
            until = self.start
            for bar in self.bars:
                if bar.device == device and bar.phase == "train":
                    busy += max(0.0, bar.end - max(until, bar.start))
                    until = max(until, bar.end)
        return busy / (len(self.devices) * self.seconds) if self.seconds else 0.0

    def summary(self) -> str:
        """`somebody was training 91 % of 312 s of wall time`."""
        where = f" on each of {len(self.devices)} devices" if len(self.devices) > 1 else ""
        return f"somebody was training{where} {100 * self.share:.0f} % of {self.seconds:,.0f} s of wall time"

    def svg(self, title: str) -> str:
        """A picture: a lane for each device with who trains there, and one for each worker with all that it does."""
        workers = sorted({(bar.device, bar.worker) for bar in self.bars})
        numbers = {worker: str(number) for number, (_, worker) in enumerate(workers, start=1)}
        lanes: list[tuple[str, list[Bar]]] = []
        for device in self.devices:
            training = [bar for bar in self.bars if bar.device == device and bar.phase == "train"]
            lanes.append((_device_name(device), training))
        for device, worker in workers:
            name = f"worker {numbers[worker]} ({worker[1]})"
            lanes.append((name, [bar for bar in self.bars if (bar.device, bar.worker) == (device, worker)]))
        height = TOP + len(lanes) * (LANE + GAP) + 2 * GAP + 40
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
            f'font-family="sans-serif" font-size="{FONT}" fill="#222">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            _text(LEFT, 24, title, size=16, weight="bold"),
            _text(LEFT, 44, self.summary()),
            *_legend(),
        ]
        for number, (name, bars) in enumerate(lanes):
            y = TOP + number * (LANE + GAP) + (2 * GAP if number >= len(self.devices) else 0)
            parts.append(_text(LEFT - 8, y + LANE / 2 + 4, name, anchor="end"))
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{WIDTH - LEFT - RIGHT}" height="{LANE}" fill="#F4F4F4"/>')
            shared = any(after.start < bar.end for bar, after in pairwise(bars))
            parts += [self._bar(bar, y, () if shared else (bar.trial, numbers[bar.worker])) for bar in bars]
        parts += self._axis(height - 34)
        return "\n".join([*parts, "</svg>", ""])

    def _x(self, time: float) -> float:
        return LEFT + (time - self.start) / (self.seconds or 1.0) * (WIDTH - LEFT - RIGHT)

    def _bar(self, bar: Bar, y: float, names: Sequence[str]) -> str:
        """A rectangle in the lane at `y`; where it trains it bears the first of these names that it has room for."""
        x, width = self._x(bar.start), max(0.5, self._x(bar.end) - self._x(bar.start))
        about = f"{bar.trial}: {bar.phase} {bar.end - bar.start:.1f} s, from {bar.start - self.start:.1f} s on"
        room = int((width - 6) / (0.56 * FONT))
        label = next((label for label in names if len(label) <= room), "") if bar.phase == "train" else ""
        text = _text(x + width / 2, y + LANE / 2 + 4, label, anchor="middle", fill="white") if label else ""
        edge = ' stroke="white" stroke-width="0.5"' if width > 2 else ""
        return (
            f'<g><title>{escape(about)}</title><rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{LANE}" '
            f'fill="{COLOURS[bar.phase]}"{edge}/>{text}</g>'
        )

    def _axis(self, y: float) -> list[str]:
        step = _round_step(self.seconds / 10)
        parts = [f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#222"/>']
        for number in range(int(self.seconds / step) + 1):
            x = self._x(self.start + number * step)
            parts.append(f'<line x1="{x:.2f}" y1="{y}" x2="{x:.2f}" y2="{y + 4}" stroke="#222"/>')
            parts.append(_text(x, y + 16, f"{number * step:g}", anchor="middle"))
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, y + 31, "seconds since the run began", anchor="middle"))
        return parts


def recorded(suite: str, scale: str | None) -> Timeline | None:
    """The newest run of a suite (at a scale) that the registry knows."""
    from registry import Leaderboard

    rows = Leaderboard().suite(suite, scale).trials().to_dict("records")
    return Timeline.of(
        (f"{row['cell']} seed {row['seed']}", json.loads(row["context"]), json.loads(row["environment"]))
        for row in rows
    )


def save(found: Timeline, title: str, folder: Path) -> Path:
    """Write the picture to the first free `TITLE-N.svg` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "-".join(title.replace("/", " ").split())
    number = 1
    while (path := folder / f"{stem}-{number}.svg").exists():
        number += 1
    path.write_text(found.svg(title), encoding="utf-8")
    return path


def _legend() -> list[str]:
    parts, x = [], LEFT
    for phase, colour in COLOURS.items():
        parts.append(f'<rect x="{x}" y="55" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 17, 65, f"{phase}: {MEANING[phase]}"))
        x += 45 + int(0.52 * FONT * len(f"{phase}: {MEANING[phase]}"))
    return parts


def _device_name(device: str) -> str:
    return f"GPU {device[:8]}" if device != "cpu" else "CPU"


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... (or 0.1, 0.2, ...) that is not less."""
    size = 10 ** math.floor(math.log10(max(least, 1e-3)))
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= least)


def _text(x: float, y: float, text: str, *, anchor: str = "", size: int = 0, weight: str = "", fill: str = "") -> str:
    given = {"text-anchor": anchor, "font-size": size or "", "font-weight": weight, "fill": fill}
    extra = "".join(f' {name}="{value}"' for name, value in given.items() if value)
    return f'<text x="{x:.2f}" y="{y:.2f}"{extra}>{escape(text)}</text>'
