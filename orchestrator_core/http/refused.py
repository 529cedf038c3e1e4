"""The log's lines of requests that never have their turn because there is too much.

They are refused, or their clients go while they wait. So many a second have a line, and one line counts the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from orchestrator_core.engine import CLIENT_CLOSED_REQUEST, new_execution_id
from orchestrator_core.http.answers import OVERLOADED
from orchestrator_core.http.routing import Route
from orchestrator_core.request_lines import RequestLine

log = structlog.get_logger("orchestrator.http")

GONE = "the client has gone while the request waited for its turn"
MOST_A_SECOND = 500
"""An overload has tens of thousands, and a line for each would cost those who are answered a tenth of the time."""


class RefusedLines:
    """Writes them as :meth:`use` says: with no line while there is none.

    ``room`` is for how many there is a line now. Who would do work to tell of another counts it as ``left_out``.
    """

    __slots__ = ("_later", "_line", "_routes", "left_out", "room")

    def __init__(self, later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._later = later
        self._line: RequestLine | None = None
        self._routes: Mapping[tuple[str, str], Route] = {}
        self.room = self.left_out = 0

    def use(self, line: RequestLine | None, routes: Mapping[tuple[str, str], Route]) -> None:
        """Write lines so from now on, with the routes that are served."""
        if line is None or self._line is None:
            self.room, self.left_out = 0 if line is None else MOST_A_SECOND, 0
        self._line, self._routes = line, routes

    def add(self, execution_id: str, method: str, target: str, seconds: float) -> None:
        self._add(execution_id, method, target, seconds, OVERLOADED.status, OVERLOADED.detail)

    def add_unread(self, execution_id: str, request: bytes, seconds: float) -> None:
        """Tell of a request that was refused without reading it."""
        if not self.room:
            self.left_out += 1
            return
        method, target, _ = request.split(b" ", 2)
        self.add(execution_id, method.decode(), target.decode(), seconds)

    def gone(self, method: str, target: str, seconds: float) -> None:
        """Tell of a request whose client went while it waited for its turn."""
        self._add(new_execution_id(), method, target, seconds, CLIENT_CLOSED_REQUEST, GONE)

    def _add(self, execution_id: str, method: str, target: str, seconds: float, status: int, error: str) -> None:
        if self._line is None or not self.room:
            self.left_out += 1
            return
        if self.room == MOST_A_SECOND:
            self._later(1.0, self._begin_second)
        self.room -= 1
        segments = target.partition("?")[0].split("/")
        route = self._routes.get((segments[2], segments[3])) if len(segments) > 3 else None
        path = "-" if route is None else route.path
        self._line(execution_id, "", method, path, status, seconds, error=error)

    def _begin_second(self) -> None:
        if self._line is not None:
            self.room = MOST_A_SECOND
        self.tell()

    def tell(self) -> None:
        """Log how many had no line since this was last told."""
        if self.left_out and self._line is not None:
            log.warning("requests were refused without a line for each: they are too many", count=self.left_out)
        self.left_out = 0


__all__ = ["RefusedLines"]
