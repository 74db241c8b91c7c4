"""Pictures of a report: Vega-Lite specifications, and the SVG that vl-convert makes of them, offline.

Colours are Okabe and Ito's, which the colour-blind can tell apart, and never alone: shapes or dashes say the same. Whoever shows
the SVG may restyle `INK`, `FAINT`, `GRID` and the colours by their values (the page does, in the dark).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

Spec = dict[str, Any]
Data = Sequence[dict[str, Any]]

WIDTH = 390
"""Pixels that a plot is drawn for, labels included: two stand side by side on a screen, one fills a phone."""
INK, FAINT, GRID, PAPER = "#1f2328", "#6e7681", "#d1d9e0", "#fdfdfd"
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (4, 4), (10, 4))
MOST = len(SERIES)
"""Series that can be told apart in one plot."""
VERDICTS = {
    "better": (GREEN, "triangle-up"),
    "worse": (VERMILLION, "triangle-down"),
    "equivalent": (BLUE, "square"),
    "inconclusive": (FAINT, "circle"),
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"
_LAID_OUT, _DRAWN = 13, 11.5
"""Size of the texts when places are made for them, and on the page: a reader's font may be wider than the one they are measured in."""
_CONFIG: Spec = {
    "background": None,
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK, "titleColor": INK, "labelFontSize": _LAID_OUT, "titleFontSize": _LAID_OUT, "titleFontWeight": "normal",
        "gridColor": GRID, "domainColor": FAINT, "tickColor": FAINT, "labelLimit": 170, "titlePadding": 8,
    },
    "axisY": {"titleAnchor": "end", "titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom", "titleX": 0, "titleY": -10},
    "legend": {
        "labelColor": INK, "titleColor": INK, "labelFontSize": _LAID_OUT, "titleFontSize": _LAID_OUT, "titleFontWeight": "normal",
        "orient": "bottom", "columns": 2, "columnPadding": 28, "labelLimit": 170, "symbolSize": 70, "symbolStrokeWidth": 0,
        "layout": {"bottom": {"anchor": "start", "direction": "vertical", "margin": 6}},
    },
    "scale": {"zero": False},
}  # fmt: skip


def svg(spec: Spec, title: str) -> str:
    """The picture as an SVG element for an HTML page, `title` read out by screen readers; each mark tells its values
    when pointed at. Raises `ValueError` for a specification that Vega-Lite cannot draw."""
    import vl_convert

    return _for_page(vl_convert.vegalite_to_svg(spec), title)


_SVG = "http://www.w3.org/2000/svg"
_DROPPED = ("aria-roledescription", "pointer-events", "role", "class", "font-family", "aria-hidden")


def _for_page(text: str, title: str) -> str:
    """No fixed size, ids of its own (a page holds many), and each mark's description as a tooltip."""
    ET.register_namespace("", _SVG)
    root = ET.fromstring(text)
    own, ids = re.sub(r"\W+", "-", title).lower()[:40], {}

    def numbered(known: str) -> str:
        """Vega counts on from one picture to the next: the same picture is to be the same text."""
        return f"{own}-{ids.setdefault(known, len(ids))}"

    for parent in root.iter():
        for child in list(parent):
            empty = child.get("display") == "none" or (
                child.tag == f"{{{_SVG}}}path" and not child.get("d", "").strip("M0,hvZ")
            )
            if empty and not len(child):
                parent.remove(child)
    for element in root.iter():
        mark = element.get("role") == "graphics-symbol" and element.get("aria-roledescription") != "axis"
        told = element.attrib.pop("aria-label", "")
        kept = {"class": "mark"} if mark and not len(element) else {}
        if "font-size" in element.attrib:
            element.set("font-size", f"{_DRAWN}px")
        for name in _DROPPED:
            element.attrib.pop(name, None)
        element.attrib.update(kept)
        if kept and told:
            ET.SubElement(element, f"{{{_SVG}}}title").text = told
        for name, value in list(element.attrib.items()):
            if name == "id" or "url(#" in value:
                element.set(name, re.sub(r"(?<=#)[^)]+|^[^(]+$", lambda found: numbered(found[0]), value))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": "plot", "role": "img", "aria-label": title, "font-family": _FONT}
    return ET.tostring(root, encoding="unicode")


def forest(rows: Data, axis: str, *, margin: float | None = None) -> Spec:
    """Effects with their intervals against no effect.

    Args:
        rows: `label`, `estimate`, `low`, `high` (None where there is no interval), `verdict` ("" for none), `told`.
        axis: what the effects are, with the unit.
        margin: what counts as equal, in the same unit; drawn as a band.
    """
    y = {
        "field": "label",
        "type": "nominal",
        "sort": None,
        "title": None,
        "axis": {"grid": False, "ticks": False, "domain": False},
    }
    x = {
        "type": "quantitative",
        "title": axis,
        "scale": {"zero": True, "nice": False, "padding": 12},
        "axis": {"tickCount": 5},
    }
    verdict = {"field": "verdict", "type": "nominal", "legend": None}
    colour = verdict | {"scale": {"domain": [*VERDICTS, ""], "range": [*(c for c, _ in VERDICTS.values()), BLUE]}}
    shape = verdict | {"scale": {"domain": [*VERDICTS, ""], "range": [*(s for _, s in VERDICTS.values()), "circle"]}}
    layers: list[Spec] = []
    if margin:
        edges = {"x": {"field": "from", "type": "quantitative"}, "x2": {"field": "to"}}
        data = {"values": [{"from": -margin, "to": margin}]}
        layers.append(
            {"mark": {"type": "rect", "color": GRID, "opacity": 0.55, "aria": False}, "data": data, "encoding": edges}
        )
    layers += [
        {"mark": {"type": "rule", "color": FAINT, "aria": False}, "encoding": {"x": {"datum": 0}}},
        {"mark": {"type": "rule", "strokeWidth": 2.5, "strokeCap": "round", "aria": False}, "transform": [{"filter": "datum.low != null"}],
         "encoding": {"y": y, "x": x | {"field": "low"}, "x2": {"field": "high"}, "color": colour}},
        {"mark": {"type": "point", "filled": True, "size": 120, "opacity": 1, "stroke": PAPER, "strokeWidth": 1},
         "encoding": {"y": y, "x": x | {"field": "estimate"}, "color": colour, "shape": shape, "description": {"field": "told"}}},
    ]  # fmt: skip
    return _view(rows, layers) | {"height": {"step": 26}}


def lines(rows: Data, x: str, y: str, series: str, *, names: Sequence[str], kind: str = "linear", band: bool = False,
          top: float | None = None) -> Spec:  # fmt: skip
    """Lines over `x`, one for each of the `names` (`MOST` at most).

    Args:
        rows: `x`, `y`, `series`, `told`; with `band` also `low` and `high`; `mark` false where a point has no symbol of its own, and
            "ring" or "chosen" for the hollow and the large one.
        x, y, series: titles of the axes, with units, and of the legend.
        kind: `linear`, `values` for a logarithmic axis (where all are positive) with a tick at each value, `labels` for text in order.
        top: the highest `y` that is drawn.
    """
    key = {"field": "series", "type": "nominal", "sort": list(names), "title": series}
    up: Spec = {"field": "y", "type": "quantitative", "title": y, "axis": {"tickCount": 6}}
    up["scale"] = {"zero": False, "padding": 10} if top is None else {"zero": False, "domainMax": top}
    # else its symbols are as faint as the bands
    colour = key | {"scale": _among(names, SERIES), "legend": {"symbolOpacity": 1}}
    both: Spec = {"x": _across(rows, x, kind), "y": up, "color": colour}
    cut = {"clip": top is not None}
    quiet = colour | {"legend": None}
    layers: list[Spec] = []
    if band:
        bounds = {"y": up | {"field": "low"}, "y2": {"field": "high"}}
        layers.append({"mark": {"type": "area", "opacity": 0.18, "aria": False, **cut}, "encoding": both | bounds})
    dashed = {"strokeDash": key | {"scale": _among(names, [list(dash) for dash in DASHES])}}
    layers.append({"mark": {"type": "line", "strokeWidth": 2, "aria": False, **cut}, "encoding": both | dashed})
    shape = key | {"scale": _among(names, SHAPES)}
    size = {"condition": {"test": "datum.mark === 'chosen'", "value": 190}, "value": 60}
    points = {"shape": shape, "size": size, "description": {"field": "told"}}
    mark = {"type": "point", "filled": True, "opacity": 1}
    solid = [{"filter": "datum.mark !== false && datum.mark !== 'ring'"}]
    layers.append({"mark": mark, "transform": solid, "encoding": both | points})
    if any(row.get("mark") == "ring" for row in rows):
        hollow = {"mark": mark | {"filled": False, "size": 190}, "transform": [{"filter": "datum.mark === 'ring'"}]}
        layers.append(
            hollow
            | {"encoding": both | {"color": quiet, "shape": shape | {"legend": None}, "description": {"field": "told"}}}
        )
    return _view(rows, layers) | {"height": 250}


def _among(names: Sequence[str], values: Sequence[Any]) -> Spec:
    return {"domain": list(names), "range": list(values[: len(names)])}


def _across(rows: Data, title: str, kind: str) -> Spec:
    axis: Spec = {"grid": False, "labelOverlap": True}
    if kind == "labels":
        axis |= {"labelAngle": 0, "labelLimit": 90, "ticks": False}
        return {"field": "x", "title": title, "type": "ordinal", "sort": None, "scale": {"padding": 0.3}, "axis": axis}
    values = sorted({row["x"] for row in rows})
    axis |= {"format": "~s" if values[-1] >= 1e4 else "~g"} | (
        {"values": values} if kind == "values" else {"tickCount": 5}
    )
    log = kind == "values" and values[0] > 0
    scale = {"type": "log", "nice": False, "padding": 12} if log else {"zero": False, "nice": False}
    return {"field": "x", "title": title, "type": "quantitative", "scale": scale, "axis": axis}


def tradeoff(rows: Data, x: str, y: str, size: str) -> Spec:
    """Cells by speed and loss, by memory too where it is known; those that none beats in everything are joined.

    Args:
        rows: `x`, `y`, `size` (None: not known), `pareto`, `label` ("" for none), `told`.
        x, y, size: titles with units.
    """
    front = ["on the front", "beaten by another"]
    shown = [row | {"front": front[0] if row["pareto"] else front[1]} for row in rows]
    place: Spec = {
        "x": {
            "field": "x",
            "title": x,
            "scale": {"zero": False, "padding": 30},
            "axis": {"format": "~s", "tickCount": 5},
        },
        "y": {"field": "y", "title": y, "scale": {"zero": False, "padding": 24}, "axis": {"tickCount": 6}},
    }
    place = {axis: spec | {"type": "quantitative"} for axis, spec in place.items()}
    kind: Spec = {"field": "front", "type": "nominal", "title": None, "legend": {"symbolSize": 90}}
    look = place | {
        "color": kind | {"scale": _among(front, (BLUE, FAINT))},
        "shape": kind | {"scale": _among(front, ("diamond", "circle"))},
        "description": {"field": "told"},
        "size": {"value": 110},
    }
    if any(row["size"] is not None for row in rows):
        legend = {"format": "~g", "tickCount": 3, "columns": 4, "symbolFillColor": FAINT}
        look["size"] = {
            "field": "size",
            "type": "quantitative",
            "title": size,
            "legend": legend,
            "scale": {"range": [70, 420], "zero": False},
        }
    # away from the nearer edge
    middle = sum(end(row["x"] for row in rows) for end in (min, max)) / 2
    align = {"expr": f"datum.x < {middle} ? 'left' : 'right'"}
    text = {"type": "text", "dy": -15, "align": align, "limit": 150, "fontSize": _LAID_OUT, "aria": False}
    named = {"transform": [{"filter": "datum.label !== ''"}], "encoding": place | {"text": {"field": "label"}}}
    steps = {"type": "line", "color": BLUE, "interpolate": "step-after", "strokeDash": [4, 3], "aria": False}
    points = {"type": "point", "filled": True, "opacity": 0.9, "stroke": PAPER, "strokeWidth": 1}
    layers: list[Spec] = [
        {"mark": steps, "transform": [{"filter": "datum.pareto"}], "encoding": place | {"order": {"field": "x"}}},
        {"mark": points, "encoding": look},
        named | {"mark": text | {"color": PAPER, "stroke": PAPER, "strokeWidth": 4}},
        named | {"mark": text | {"color": INK}},
    ]
    return _view(shown, layers) | {"height": 280}


def _view(rows: Data, layers: list[Spec]) -> Spec:
    fit = {"type": "fit-x", "contains": "padding"}
    return {
        "data": {"values": list(rows)},
        "layer": layers,
        "width": WIDTH,
        "autosize": fit,
        "config": _CONFIG,
        "padding": 4,
    }
