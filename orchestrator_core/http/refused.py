"""The log's lines of requests that are refused because there is too much: of so many a second, and how many more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from orchestrator_core.http.answers import OVERLOADED
from orchestrator_core.http.routing import Route
from orchestrator_core.request_lines import RequestLine

log = structlog.get_logger("orchestrator.http")

MOST_A_SECOND = 500
"""An overload has tens of thousands, and a line for each would cost those who are answered a tenth of the time."""


class RefusedLines:
    """Writes them as :meth:`use` says: with no line while there is none."""

    __slots__ = ("_later", "_left_out", "_line", "_routes", "_told")

    def __init__(self, later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._later = later
        self._line: RequestLine | None = None
        self._routes: Mapping[tuple[str, str], Route] = {}
        self._told = self._left_out = 0

    def use(self, line: RequestLine | None, routes: Mapping[tuple[str, str], Route]) -> None:
        """Write lines so from now on, with the routes that are served."""
        self._line, self._routes = line, routes

    def add(self, execution_id: str, method: str, target: str, seconds: float) -> None:
        if self._line is None:
            return
        if self._told >= MOST_A_SECOND:
            self._left_out += 1
            return
        if not self._told:
            self._later(1.0, self._begin_second)
        self._told += 1
        segments = target.partition("?")[0].split("/")
        route = self._routes.get((segments[2], segments[3])) if len(segments) > 3 else None
        path = "-" if route is None else route.path
        self._line(execution_id, "", method, path, OVERLOADED.status, seconds, error=OVERLOADED.detail)

    def _begin_second(self) -> None:
        self._told = 0
        self.tell()

    def tell(self) -> None:
        """Log how many had no line since this was last told."""
        if self._left_out:
            log.warning("requests were refused without a line for each: they are too many", count=self._left_out)
            self._left_out = 0


__all__ = ["RefusedLines"]
