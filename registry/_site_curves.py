"""The curves of a cell as SVG. Vega takes 50 ms for a picture, and a site holds a thousand: these are written straight, in its style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from . import _escape
from . import _wording as w
from .plots import BLUE, FAINT, GRID, INK

Points = Sequence[Sequence[float]]
"""`[step, tokens, value]`."""
_WIDTH, _HEIGHT = 420, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 408, 24, 196
_LATE = 0.3
"""The share of the run from which on a curve is seen whole: its steep start would flatten what matters."""


def svg(runs: Mapping[str, Points], reference: Points, y_title: str, title: str) -> str:
    """Values over tokens, a line for each of `runs`, which its name and last value tell when pointed at; `reference` is drawn
    dashed. Empty where nothing has two points."""
    drawn = {name: points for name, points in runs.items() if len(points) > 1}
    if not drawn:
        return ""
    shown = [point for points in (*drawn.values(), reference) for point in points]
    last = max(point[1] for point in shown)
    late = [point[2] for point in shown if point[1] >= _LATE * last]
    low, high = min(point[2] for point in shown), max(late)
    pad = 0.06 * (high - low) or abs(high) * 0.01 or 1.0
    low, high = low - pad, high + pad

    def at(point: Sequence[float]) -> str:
        return f"{_x(point[1], last):.1f},{_y(point[2], low, high):.1f}"

    own = "".join(sign if sign.isalnum() else "-" for sign in y_title)[:40]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" class="plot" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="11.5px">',
        f'<clipPath id="clip-{own}"><rect x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}"/></clipPath>',
        f'<text x="0" y="12" fill="{INK}">{escape(y_title)}</text>',
        *_axes(last, low, high),
        f'<g clip-path="url(#clip-{own})" fill="none" stroke-linejoin="round">',
    ]
    if len(reference) > 1:
        line = " ".join(map(at, reference))
        parts.append(f'<polyline points="{line}" stroke="{FAINT}" stroke-width="1.5" stroke-dasharray="5 4"/>')
    for name, points in drawn.items():
        told = _escape.seen(f"{name}: {w.number(points[-1][2], 4)} at the end")
        line = " ".join(map(at, points))
        parts.append(
            f'<polyline class="mark" points="{line}" stroke="{BLUE}" stroke-width="1.6" stroke-opacity="0.75">'
            f"<title>{escape(told)}</title></polyline>"
        )
    return "".join([*parts, "</g></svg>"])


def _x(tokens: float, last: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * (tokens / last if last else 0.0)


def _y(value: float, low: float, high: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)


def _axes(last: float, low: float, high: float) -> list[str]:
    parts = [f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}" stroke="{FAINT}"/>']
    values = _ticks(low, high, 5)
    decimals = max(0, 1 - math.floor(math.log10(high - low)))
    for value in values:
        y = f"{_y(value, low, high):.1f}"
        parts.append(f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}" stroke="{GRID}"/>')
        text = f"{value:.{decimals}f}" if abs(value) < 1e4 else w.count(value)
        parts.append(f'<text x="{_LEFT - 6}" y="{y}" dy="0.32em" text-anchor="end" fill="{INK}">{text}</text>')
    for tokens in _ticks(0.0, last, 4):
        x, end = f"{_x(tokens, last):.1f}", "end" if tokens > 0.96 * last else "middle"
        parts.append(f'<text x="{x}" y="{_BOTTOM + 17}" text-anchor="{end}" fill="{INK}">{w.count(tokens)}</text>')
    middle = (_LEFT + _RIGHT) / 2
    return [*parts, f'<text x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle" fill="{INK}">tokens</text>']


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two ends, about as many as `most`."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough)
    first, count = math.ceil(low / step), math.floor(high / step)
    return [number * step for number in range(first, count + 1)]
