"""The trace that a call is part of (W3C Trace Context), and the header lines that carry it outward."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol

from attrs import frozen
from multidict import MultiMapping

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_KEY = r"(?:[a-z0-9][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_MEMBER = rf"[ \t]*(?:{_KEY}=[ -+\--<>-~]{{0,255}}[!-+\--<>-~][ \t]*)?"
_TRACESTATE = re.compile(rf"{_MEMBER}(?:,{_MEMBER}){{0,31}}\Z")
_LONGEST_STATE = 512
_SAMPLED = 0x01
_KNOWN_FLAGS = 0x03


class Carried(Protocol):
    """What calls carry outward: header lines, each with its line end."""

    @property
    def lines(self) -> bytes: ...
    def of_step(self, index: int) -> Carried: ...


current_trace: ContextVar[Carried | None] = ContextVar("current_trace", default=None)
"""The trace of the request, or of the step of it, that is under way. It is not set where a request is part of none."""


@frozen
class TraceParent:
    """The ``traceparent`` and ``tracestate`` of a request: who asked, in which trace, and whether it is recorded."""

    trace_id: str
    parent_id: str
    flags: int
    state: str = ""

    @property
    def sampled(self) -> bool:
        return bool(self.flags & _SAMPLED)

    @property
    def lines(self) -> bytes:
        """Return the header lines that pass the trace on as it came."""
        return trace_lines(f"00-{self.trace_id}-{self.parent_id}-{self.flags:02x}", self.state)

    def of_step(self, index: int) -> TraceParent:
        return self


def trace_lines(traceparent: str, state: str) -> bytes:
    more = f"tracestate: {state}\r\n" if state else ""
    return f"traceparent: {traceparent}\r\n{more}".encode("ascii")


def parse_traceparent(headers: Mapping[str, str]) -> TraceParent | None:
    """Return the trace that a request says it is part of; None where it says nothing, or not by the rules."""
    text = headers.get("traceparent")
    if text is None:
        return None
    if not isinstance(headers, MultiMapping):
        return _parse(text, headers.get("tracestate", ""))
    if len(headers.getall("traceparent")) > 1:  # one of them is somebody else's
        return None
    return _parse(text, ",".join(headers.getall("tracestate", ())))


def _parse(text: str, state: str) -> TraceParent | None:
    match = _TRACEPARENT.match(text.strip())
    if match is None:
        return None
    version, trace_id, parent_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    known = len(state) <= _LONGEST_STATE and _TRACESTATE.match(state)
    return TraceParent(trace_id, parent_id, int(flags, 16) & _KNOWN_FLAGS, state if known else "")
