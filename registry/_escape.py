"""Text from outside, as it may stand in a page, a Markdown file, a LaTeX file: shown, never run."""

from __future__ import annotations

import re

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""Control characters, surrogates and what turns the direction of writing: no file format wants them."""
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "·": r"\textperiodcentered{}",
    "•": r"\textbullet{}",
    "…": r"\ldots{}",
    "–": "--",
    "—": "---",
    "\n": " ",
    **{sign: rf"\ensuremath{{{name}}}" for sign, name in {
        "−": "-", "±": r"\pm", "×": r"\times", "≤": r"\le", "≥": r"\ge", "≈": r"\approx", "→": r"\to", "²": "^2",
        "α": r"\alpha", "β": r"\beta", "η": r"\eta", "μ": r"\mu", "σ": r"\sigma", "Δ": r"\Delta", "∞": r"\infty",
        "▲": r"\blacktriangle", "▼": r"\blacktriangledown", "■": r"\blacksquare", "○": r"\circ", "◆": r"\blacklozenge",
    }.items()},
}  # fmt: skip
_NO_T1 = "ĦħĸĿŀŉŦŧſ"
_MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{sign: f"\\{sign}" for sign in "\\`*|$~"}}


def seen(text: str) -> str:
    """`text` with a replacement character for what cannot be shown; line breaks and tabs stay."""
    return _UNSEEN.sub("\ufffd", text)


def coded(text: str) -> str:
    """For JSON, whose strings may hold what a terminal obeys: by its number there."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def latex(text: str) -> str:
    """For LaTeX with `amssymb`, on one line. Letters that the T1 encoding lacks are given by their number: `U+4E2D`."""
    known = (
        _LATEX.get(sign) or (sign if sign <= "\u017f" and sign not in _NO_T1 else f"U+{ord(sign):04X}")
        for sign in seen(text)
    )
    return "".join(known)


def markdown(text: str) -> str:
    """For Markdown, a cell of a table too: neither markup nor HTML, on one line."""
    line = re.sub(r"\s*\n\s*", " ", seen(text))
    line = "".join(_MARKDOWN.get(sign, sign) for sign in line)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])|\](?=[\[(])", r"\\\g<0>", line)
