"""A strict reader of YAML 1.2: plain data, and the line of every key and item.

It works on the parser's events, so that tags, anchors and aliases are refused before anything is built from them, and
resolves plain scalars by the core schema (YAML 1.2.2, section 10.3.2): `3e-4` is a float, `yes` and `2020-01-01` are
text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from ablate.errors import UserError

MAX_BYTES = 64 * 1024
"""A suite is a page; the parser takes a second for this much."""
MAX_DEPTH = 16
MAX_MESSAGE = 300
MAX_INTEGER = 2**63

Path = tuple[str | int, ...]


class SuiteError(UserError):
    """A file at fault: `where:line: key: message`, on one line and printable whatever the file holds."""

    def __init__(self, where: str, line: int | None, key: str, message: str) -> None:
        self.where, self.line, self.key = printable(where), line, printable(key)
        self.message = printable(message)
        place = self.where if line is None else f"{self.where}:{line}"
        super().__init__(": ".join(part for part in (place, self.key, self.message) if part))


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says as plain data, with the line of each path, from 1."""

    where: str
    value: Any
    lines: Mapping[Path, int]

    def error(self, path: Path, message: str) -> SuiteError:
        """An error at `path`, with the line of the innermost part of it that the file has."""
        known = next(path[:n] for n in range(len(path), -1, -1) if path[:n] in self.lines)
        return SuiteError(self.where, self.lines[known], dotted(path), message)


def read(text: bytes | str, where: str) -> Document:
    """The one document of `text`.

    Raises:
        SuiteError: not UTF-8, over `MAX_BYTES`, not YAML, or YAML beyond plain data.
    """
    if len(text) > MAX_BYTES:
        raise SuiteError(where, None, "", f"is larger than {MAX_BYTES} bytes")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = text.count(b"\n", 0, error.start) + 1
            raise SuiteError(where, line, "", f"byte 0x{text[error.start]:02x} is not UTF-8") from None
    return _Builder(text, where).document()


def dotted(path: Path) -> str:
    """`factors.optimizer[1].lion`"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def printable(text: str) -> str:
    """`text` on one line, cut where it is long, with what cannot be shown escaped."""
    text = text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def scalar(text: str) -> Any:
    """A plain scalar's value: null, boolean, integer, float or text."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?[0-9]{1,300}", text):
        return int(text)
    if re.fullmatch(r"0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}", text):
        return int(text, 0)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text):
        return float(text)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", text):
        return math.nan
    return text


class _Builder:
    """One document from the parser's events."""

    def __init__(self, text: str, where: str) -> None:
        self.where, self.lines = where, {}
        self.events = self._parse(text)

    def document(self) -> Document:
        next(self.events)
        event = next(self.events)
        if isinstance(event, StreamEndEvent):
            raise SuiteError(self.where, None, "", "is empty")
        assert isinstance(event, DocumentStartEvent)
        if event.version or event.tags:
            raise SuiteError(self.where, 1, "", "YAML directives are not allowed")
        value = self._value(next(self.events), (), ())
        next(self.events)
        event = next(self.events)
        if not isinstance(event, StreamEndEvent):
            raise SuiteError(self.where, event.start_mark.line + 1, "", "a second document starts; one file holds one")
        return Document(self.where, value, self.lines)

    def _parse(self, text: str) -> Iterator[Any]:
        try:
            yield from YAML(typ="safe", pure=True).parse(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            hint = "; indent with blanks, not with tabs" if "'\\t'" in str(error.problem) else ""
            problem = " ".join(str(error.problem or error.context).split())
            raise SuiteError(self.where, mark.line + 1 if mark else None, "", f"not YAML: {problem}{hint}") from None
        except Exception as error:  # the parser's own bugs on broken input come as anything
            problem = " ".join(str(error).split("\n")[0].split())
            raise SuiteError(self.where, None, "", f"not YAML: {problem}") from None

    def _value(self, event: Any, path: Path, outer: Path) -> Any:
        """The value that starts with `event`; `outer` is the path at which to report what is wrong with it."""
        line = event.start_mark.line + 1
        self.lines.setdefault(path, line)

        def refuse(message: str) -> SuiteError:
            return SuiteError(self.where, line, dotted(outer), message)

        if isinstance(event, AliasEvent):
            raise refuse(f"aliases (*{event.anchor}) are not allowed; write the value out")
        if event.anchor is not None:
            raise refuse(f"anchors (&{event.anchor}) are not allowed; write the value out where it is needed")
        if event.tag is not None:
            raise refuse(f"tags ({event.tag}) are not allowed; plain values only")
        if len(path) > MAX_DEPTH:
            raise refuse(f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, ScalarEvent):
            value = scalar(event.value) if event.style is None else event.value
            if isinstance(value, float) and not math.isfinite(value):
                raise refuse(f"{event.value[:40]} is not a finite number")
            if isinstance(value, int) and abs(value) > MAX_INTEGER:
                raise refuse(f"{event.value[:40]} is too large a number")
            if isinstance(value, str) and any(
                unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in value
            ):
                raise refuse("text with control characters")
            return value
        if isinstance(event, SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := next(self.events), SequenceEndEvent):
                here = (*path, len(items))
                items.append(self._value(event, here, here))
            return items
        assert isinstance(event, MappingStartEvent)
        found: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, (ScalarEvent, AliasEvent)):
                raise refuse("a key must be a word, not a list or a mapping")
            key = self._value(event, (*path, ""), outer)
            key = event.value if isinstance(event, ScalarEvent) else key
            del self.lines[(*path, "")]
            here = (*path, key)
            if key == "":
                raise refuse("a key is missing")
            if key == "<<":
                raise refuse("merge keys (<<) are not allowed; write the values out")
            if key in found:
                raise SuiteError(self.where, line, dotted(here), f"is given twice, first on line {self.lines[here]}")
            self.lines[here] = line
            found[key] = self._value(next(self.events), here, here)
        return found
