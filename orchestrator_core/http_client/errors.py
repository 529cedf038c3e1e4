"""What can go wrong with an outbound call.

Every message starts with the call, ``POST http://host:1/path?…``: without credentials and without the query.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from orchestrator_core.errors import SourceError

Phase = Literal["pool", "connect", "total"]


class HttpConnectError(SourceError):
    """There is no connection to send on: DNS, refused, TLS, proxy, or a kept-alive connection that the peer closed.

    Transient, except where trying again must end the same way (a certificate that does not verify).
    """

    def __init__(self, call: str, reason: str, *, transient: bool = True) -> None:
        super().__init__(f"{call}: {reason}", transient=transient)


class StaleConnection(HttpConnectError):
    """The peer closed a kept-alive connection without any answer; it may or may not have read the request."""


class HttpTimeout(SourceError):
    """The time ran out: ``phase`` says waiting for what, ``seconds`` how long that may take. 504 for the client."""

    status = 504
    title = "deadline passed"

    def __init__(self, call: str, phase: Phase, seconds: float, *, busy: bool = False) -> None:
        waited_for = {
            "pool": "no connection of the pool was free",
            "connect": "no connection was made",
            "total": "no complete answer came",
        }
        super().__init__(f"{call}: {waited_for[phase]} within {seconds:g} s", transient=True, busy=busy)
        self.phase = phase
        self.seconds = seconds


class HttpProtocolError(SourceError):
    """The answer is not HTTP, or ended too soon (then transient)."""

    def __init__(self, call: str, reason: str, *, transient: bool = False, answered: bool = False) -> None:
        super().__init__(f"{call}: {reason}", transient=transient, answered=answered)


class ResponseTooLarge(SourceError):
    """The answer's body, as sent or decompressed, is larger than ``max_response_bytes``."""

    def __init__(self, call: str, limit: int) -> None:
        super().__init__(f"{call}: the answer is larger than max_response_bytes, {limit}")


def fail_future(future: asyncio.Future[Any], error: Exception) -> None:
    """Fail the future, unless it is done.

    The error counts as seen: a task that is cancelled in the same moment never asks for it, and asyncio would log that.
    """
    if not future.done():
        future.set_exception(error)
        future.exception()
