"""A listener: aiohttp's server with our answers, also where a client does not speak HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog
from aiohttp import web

from orchestrator_core.engine import Failure, new_execution_id
from orchestrator_core.http.answers import Answer, common_headers, own_timing, problem
from orchestrator_core.run import clock

log = structlog.get_logger("orchestrator.http")

BACKLOG = 1024
KEEPALIVE_SECONDS = 75.0
LINGERING_SECONDS = 2.0

Handler = Callable[[web.BaseRequest], Awaitable[Answer]]


class _Protocol(web.RequestHandler):
    """aiohttp's connection, which tells a client that does not speak HTTP so in a problem document."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        started, execution_id = clock(), new_execution_id()
        if status >= 500:
            log.error("defect", execution_id=execution_id, exc_info=exc)
            failure = Failure(500, "internal error", "an internal error; the log tells more under the execution id")
        else:
            reason = (message or "").strip().partition("\n")[0].rstrip(":")
            failure = Failure(status, "bad request", f"this is not HTTP: {reason}" if reason else "this is not HTTP")
        answer = problem(failure, execution_id, common_headers(execution_id, own_timing(started)))
        answer.closes = True
        return answer  # type: ignore[return-value]  # an Answer has all that the protocol asks of a response


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


@asynccontextmanager
async def listen(
    handler: Handler, address: tuple[str, int], max_body: int, grace_seconds: float
) -> AsyncIterator[tuple[str, int]]:
    """Accept connections while the block runs; the value is the host and port as bound.

    At the end no new connection is accepted, and requests in flight get ``grace_seconds`` to finish. Raises
    ``OSError`` when the address cannot be bound.
    """
    server = _Server(
        handler,  # type: ignore[arg-type]  # an Answer has all that the protocol asks of a response
        request_factory=partial(web.BaseRequest, loop=asyncio.get_running_loop(), client_max_size=max_body),
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=KEEPALIVE_SECONDS,
        lingering_time=LINGERING_SECONDS,
    )
    runner = web.ServerRunner(server, shutdown_timeout=grace_seconds)
    await runner.setup()
    try:
        site = web.TCPSite(runner, *address, backlog=BACKLOG)
        await site.start()
        bound = runner.addresses[0]
        yield str(bound[0]), int(bound[1])
    finally:
        await runner.cleanup()
