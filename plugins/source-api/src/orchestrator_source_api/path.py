"""Paths with placeholders: ``/scores/{applicant_id}``.

What a placeholder stands for is percent-encoded, all but letters, digits and ``-._~``, so that it stays inside its
segment. Two kinds of values no encoding keeps there, and they are refused: one that makes the segment ``.`` or ``..``,
which also percent-encoded leads up (RFC 3986, section 6.2.2.3), and one that makes it empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Final
from urllib.parse import quote

from attrs import frozen

from orchestrator_core.plugin_api import JSON, InvalidParam

__all__ = ["PathTemplate", "parse_path", "text_of"]

_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PART: Final = re.compile(r"\{[^{}]*\}|[^{}]+|[{}]")
_KEPT: Final = "/%:@!$&'()*+,;=~-._"
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9_~-]*")
_DOTS: Final = (".", "..")
_UNFIT: Final = ("", *_DOTS)
_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")


@frozen
class PathTemplate:
    """A path: ``parts`` are texts, percent-encoded, and the names of placeholders in turn, beginning with a text."""

    parts: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.parts[1::2]))

    @property
    def guarded(self) -> tuple[tuple[str, ...], ...]:
        """The segments that a value can make empty or dots: placeholders and literal dots only, parts as above."""
        segments: list[list[str]] = [[""]]
        for index, part in enumerate(self.parts):
            if index % 2:
                segments[-1] += [part, ""]
                continue
            first, *others = _decoded_dots(part).split("/")
            segments[-1][-1] += first
            segments += [[text] for text in others]
        return tuple(
            tuple(segment) for segment in segments if len(segment) > 1 and not "".join(segment[::2]).strip(".")
        )

    def filler(self) -> Callable[[Mapping[str, JSON]], str]:
        """Return the function from parameters to path; it raises ``InvalidParam`` for what cannot stand in one."""
        first, names, texts = self.parts[0], self.parts[1::2], self.parts[2::2]
        pairs = tuple(zip(names, texts, strict=True))
        # Nearly always a segment is one placeholder and nothing else, and then its value is all there is to look at.
        alone = tuple(segment[1] for segment in self.guarded if _is_alone(segment))
        beside = tuple(segment for segment in self.guarded if not _is_alone(segment))

        def fill(params: Mapping[str, JSON]) -> str:
            path = first
            for name, text in pairs:
                path += _encoded(name, params[name]) + text
            for name in alone:
                if params[name] in _UNFIT:
                    _refuse_unfit((name,), str(params[name]))
            for segment in beside:
                _refuse_unfit(segment[1::2], _joined(segment, params))
            return path

        return fill


def parse_path(path: str) -> PathTemplate:
    """Take a path apart. Raises ``ValueError`` for one that cannot be sent as it is meant."""
    if not path.startswith("/"):
        raise ValueError(f"expected a path that starts with /, got '{path}'")
    for char, instead in (("?", "write query: {name: value}"), ("#", "the fragment of a URL is never sent")):
        if char in path:
            raise ValueError(f"a path has no '{char}'; {instead}")
    if _PERCENT.search(path):
        raise ValueError("a '%' in a path begins a percent-encoding; write %25 for the character itself")
    parts = [""]
    for part in _PART.findall(path):
        if part[0] not in "{}":
            parts[-1] += quote(part, safe=_KEPT)
        elif match := _PLACEHOLDER.fullmatch(part):
            parts += [match[1], ""]
        else:
            raise ValueError(f"'{part}' is not a placeholder; write {{name}}, with letters, digits and _")
    template = PathTemplate(tuple(parts))
    for segment in path.split("/"):
        if _decoded_dots(segment) in _DOTS:
            raise ValueError(f"a path has no '{segment}' segment")
    return template


def text_of(name: str, value: JSON, place: str) -> str:
    """Return a string, number or boolean as it is written in URLs and headers; ``InvalidParam`` for other values."""
    if isinstance(value, str):
        return value
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int | float):
        if not isfinite(value):
            raise InvalidParam(
                name, f"parameter '{name}' is a number that is not finite, which cannot stand in {place}"
            )
        return str(value)
    kind = "null" if value is None else "an object" if isinstance(value, Mapping) else "a list"
    raise InvalidParam(name, f"parameter '{name}' is {kind}, which cannot stand in {place}")


def encoded(name: str, text: str, encode: Callable[..., str] = quote) -> str:
    """Percent-encode all but letters, digits and ``-._~``. ``name`` is the parameter to blame."""
    if _UNRESERVED.fullmatch(text):
        return text
    try:
        return encode(text, safe="")
    except UnicodeEncodeError as error:
        raise InvalidParam(name, f"parameter '{name}' is not Unicode text: it has half of a surrogate pair") from error


def _decoded_dots(path: str) -> str:
    return path.replace("%2e", ".").replace("%2E", ".")


def _encoded(name: str, value: JSON) -> str:
    return encoded(name, text_of(name, value, "a path"))


def _is_alone(segment: Sequence[str]) -> bool:
    return len(segment) == 3 and not segment[0] + segment[2]


def _joined(segment: Sequence[str], params: Mapping[str, JSON]) -> str:
    return "".join(text_of(part, params[part], "a path") if index % 2 else part for index, part in enumerate(segment))


def _refuse_unfit(names: Sequence[str], text: str) -> None:
    if text in _UNFIT:
        what = f"makes a path's segment '{text}', which leads elsewhere" if text else "is empty, which leads elsewhere"
        raise InvalidParam(names[0], f"parameter '{names[0]}' {what}")
