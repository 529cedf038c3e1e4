"""One connection: aiohttp's, with our answers, also where its client does not speak HTTP, or hardly speaks at all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from aiohttp import HttpVersion11, web
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import HttpProcessingError, InvalidURLError
from aiohttp.web_protocol import MAX_MSG_QUEUE_SIZE, _ErrInfo
from attrs import frozen

from orchestrator_core.config.model import ServerOptions
from orchestrator_core.engine import Failure, new_execution_id
from orchestrator_core.http.answers import Answer, common_headers, own_timing, problem, refusal
from orchestrator_core.http.limit import Limit
from orchestrator_core.http.sockets import has_unread
from orchestrator_core.http.whole import is_whole_request
from orchestrator_core.run import clock

log = structlog.get_logger("orchestrator.http")

LINGERING_SECONDS = 2.0
LINGERING_BYTES = 8 * 2**20
SWEEP_SECONDS = 1.0
HEAD_END = b"\r\n\r\n"

_SENT = re.compile(r"(?: when reading)?: (?:bytearray\()?b?['\"].*")
"""Where the parser repeats what was sent: that can be a client's cookie, which is not to be logged."""

Malformed = Callable[[str, int, str], None]
"""Is told of what was no request: the execution id, status and detail that its sender was answered."""


@frozen
class Limits:
    """What a listener takes of a client. The times are in seconds, to which up to a second of the sweep comes."""

    max_body: int = 2**20
    max_connections: int = 1000
    header_timeout: float = 8.0
    send_timeout: float = 8.0

    @classmethod
    def of(cls, options: ServerOptions) -> Limits:
        return cls(
            int(options.max_body_size),
            options.max_connections,
            float(options.header_timeout),
            float(options.send_timeout),
        )


class Connection(web.RequestHandler):
    """aiohttp's connection, whose requests wait to be let in, and whose client is told in a problem document if it
    does not speak HTTP.

    ``passed`` says that the request about to be handled has waited for its turn, and ``refused`` that it is to be
    refused. ``pending`` counts those that were read and not begun. ``answered`` says that whatever was begun has its
    answer: aiohttp waits for the next request a turn of the loop later, and by then it may be there. ``odd`` says that
    what arrived is not all ASCII, so that a head may be no text at all. ``closing`` says that the next answer is the
    last one on the connection.
    """

    __slots__ = (
        "answered",
        "closing",
        "discarded",
        "head_began",
        "head_since",
        "limit",
        "malformed",
        "odd",
        "passed",
        "pending",
        "refused",
        "sending_begun",
        "sending_since",
        "unread",
        "waits",
        "waits_since",
    )

    def __init__(self, server: web.Server, limit: Limit | None, malformed: Malformed, **options: Any) -> None:
        super().__init__(server, **options)
        self.limit = limit
        self.malformed = malformed
        self.closing = False
        self.waits = self.passed = self.refused = False
        self.answered = True
        self.head_since = self.waits_since = self._loop.time()
        self.head_began = False
        self.odd = False
        self.pending = 0
        self.sending_since = 0.0
        self.sending_begun = 0
        self.discarded = -1
        self.unread = b""

    # --- being let in ----------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        limit = self.limit
        if not data.isascii():
            self.odd = True
        before = self._request_count
        if limit is not None and (limit.engaged or self.waits):
            if self._refuse_unread(data, limit):
                return
            # Without its waiter aiohttp only reads the request: taking it up is for the limit to say.
            waiter, self._waiter = self._waiter, None
            try:
                super().data_received(data)
            finally:
                self._waiter = waiter
            came = self._request_count - before
            if came:
                if self._messages[-1][0].__class__ is _ErrInfo:
                    came += self._read_again(data)
                self.pending += came
                limit.read(came)
                if waiter is not None and not waiter.done() and not self.waits:
                    if self._is_for_endpoint():
                        self.waits_since = self._loop.time()
                        limit.ask(self)
                    else:
                        self._take_up()
        else:
            super().data_received(data)
            came = self._request_count - before
            if came:
                if self._messages[-1][0].__class__ is _ErrInfo:
                    came += self._read_again(data)
                if limit is not None:
                    self.pending += came
                    limit.came(came)
        if came:
            self.head_since = 0.0
            self.discarded = -1
        elif self.discarded >= 0:
            self._discard(len(data))
        elif self.head_since == 0.0 or not self.head_began:
            self._begin_head()

    def _read_again(self, data: bytes) -> int:
        """Have the requests answered that came whole before what is no HTTP; return how many they are.

        aiohttp's parser forgets them when it fails, so that another reads them, if it can begin where a request does.
        """
        if not self.answered or len(self._messages) > 1 or self._has_part_of_head() or self.discarded >= 0:
            return 0
        parser = HttpRequestParser(
            self,
            self._loop,
            self._read_bufsize,
            max_line_size=self.max_line_size,
            max_field_size=self.max_field_size,
            max_headers=self.max_headers,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
        )
        whole = []
        *heads, rest = data.split(HEAD_END, MAX_MSG_QUEUE_SIZE)
        with suppress(HttpProcessingError):
            for head in heads:
                whole += parser.feed_data(head + HEAD_END)[0]
            parser.feed_data(rest)
        whole = [message for message in whole if message[1].is_eof()]
        self._messages.extendleft(reversed(whole))
        self._request_count += len(whole)
        return len(whole)

    def _is_for_endpoint(self) -> bool:
        """Return whether the next request is for an endpoint; health, documentation and lists are never refused."""
        path: str = getattr(self._messages[0][0], "path", "")  # none where it is no HTTP
        return path.startswith("/orchestrator/") and path.find("/", 14) > 0

    def _take_up(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def let_in(self) -> None:
        """Take up the request that waits."""
        self.waits = False
        self.passed = True
        self._take_up()

    def refuse(self, waited_seconds: float) -> None:
        """Refuse the request that waits, or one that has not been read, in the cheapest way that there is for it."""
        if not self._messages and self.limit is not None:
            self._request_count += 1
            self._answer_refused(self.limit, waited_seconds)
            self.unread = b""
            self.head_since = 0.0
            return
        message: Any
        message, payload = self._messages[0]
        if (
            not payload.is_eof()
            or message.should_close
            or self.closing
            or message.method == "HEAD"
            or message.version != HttpVersion11
            or len(self._messages) > 1
            or self._paused
            or self._upgraded  # aiohttp reads on when its handler has declined
            or self.transport is None
            or self.limit is None
            or self._parser is None
        ):
            self.refused = True  # the handler tells the client, and aiohttp sees to the rest
            self._take_up()
            return
        self._messages.popleft()
        self._parser.message_consumed()
        self.begin()
        self._answer_refused(self.limit, waited_seconds, message)

    def _refuse_unread(self, data: bytes, limit: Limit) -> bool:
        """Refuse a request without reading it, if it is to be refused and has arrived whole; return whether it was."""
        if (
            not limit.is_full(limit.waiting)
            or not self.answered
            or self._messages
            or (self.head_since and self.head_began)
            or self.discarded >= 0
            or self.closing
            or self._paused
            or self.transport is None
            or not is_whole_request(data)
        ):
            return False
        self.unread = data
        limit.refuse(self, 0.0)
        return True

    def _answer_refused(self, limit: Limit, waited_seconds: float, message: Any = None) -> None:
        assert self.transport is not None
        execution_id = new_execution_id()
        self.transport.write(refusal(execution_id, limit.retry_after, waited_seconds))
        if message is None:
            limit.lines.add_unread(execution_id, self.unread, waited_seconds)
        else:
            limit.lines.add(execution_id, message.method, message.path, waited_seconds)
        self.answered = True
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout

    def forget_turn(self) -> None:
        """Forget what the limit said of the request: it is for none of those that are limited."""
        self.passed = self.refused = False

    def begin(self) -> None:
        """Count a request that leaves the backlog. One behind a declined upgrade was never in it."""
        self.answered = False
        if self.pending and self.limit is not None:
            self.pending -= 1
            self.limit.backlog -= 1

    # --- clients that take their time ------------------------------------------------------------------------------

    def _begin_head(self) -> None:
        """Note that a part of a head has arrived, if this is one."""
        if (self.answered or self._waiter is not None) and not self._messages:
            self.head_began = True
            self.head_since = self.head_since or self._loop.time()

    def _has_part_of_head(self) -> bool:
        return self.head_began and self.head_since > 0.0

    def linger(self, seconds: float) -> None:
        """Ignore what the client still sends of its request, for so long and up to a size; then close.

        A connection that is closed while something of the client's is unread loses the answer on the way.
        """
        self._lingering_time = seconds
        self.discarded = 0

    def _discard(self, count: int) -> None:
        self.discarded += count
        if self.discarded > LINGERING_BYTES:
            self.force_close()

    def sweep(self, now: float, limits: Limits) -> bool:
        """Close the connection if its client has taken more time than it may; return whether it was closed."""
        transport = self.transport
        if transport is None:
            return False
        if self.head_since and now - self.head_since > limits.header_timeout:
            if self.head_began:
                failure = Failure(408, "bad request", f"no request came within {limits.header_timeout:g} s")
                transport.write(self._refusal(failure).written(keep_alive=False))
            elif has_unread(transport):
                return False
            self.force_close()
            return True
        begun = self._request_count - len(self._messages)
        if not transport.get_write_buffer_size():
            self.sending_since = 0.0
        elif not self.sending_since or begun != self.sending_begun:  # the answer before has been read, or nearly
            self.sending_since, self.sending_begun = now, begun
        elif now - self.sending_since > limits.send_timeout:
            transport.abort()
            return True
        return False

    # --- its end ---------------------------------------------------------------------------------------------------

    def _process_keepalive(self) -> None:
        """Close the connection when no request has come for long, and none waits for its turn or is on its way."""
        due = self._loop.time() >= self._next_keepalive_close_time
        if due and self._waiter is not None and not self.is_over():
            self._keepalive_handle = self._loop.call_later(SWEEP_SECONDS, self._process_keepalive)
        else:
            super()._process_keepalive()

    def idle(self) -> bool:
        """Return whether the connection waits for a request."""
        return self._waiter is not None and not self._messages

    def is_over(self) -> bool:
        """Return whether the connection waits for a request of which nothing has come.

        Timers run before what has come is read: a client that asked meanwhile would be hung up on.
        """
        if self.transport is None or not self.idle():
            return False
        return not self._has_part_of_head() and not has_unread(self.transport)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.limit is not None:
            self.limit.connections += 1

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.waits and self.limit is not None and self._messages:
            message: Any = self._messages[0][0]
            self.limit.lines.gone(message.method, message.path, self._loop.time() - self.waits_since)
        self.waits = False
        if self.limit is not None:
            self.limit.connections -= 1
            self.limit.backlog -= self.pending
            self.pending = 0
        super().connection_lost(exc)

    # --- what is no HTTP -------------------------------------------------------------------------------------------

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        execution_id = new_execution_id()
        if status >= 500:
            log.error("defect", execution_id=execution_id, exc_info=exc)
            failure = Failure(500, "internal error", "an internal error; the log tells more under the execution id")
        else:
            said = "its target is no URL" if isinstance(exc, InvalidURLError) else message or ""
            reason = _SENT.sub("", said.strip().partition("\n")[0]).rstrip(":")
            failure = Failure(status, "bad request", f"this is not HTTP: {reason}" if reason else "this is not HTTP")
        answer = self._refusal(failure, execution_id)
        answer.closes = True
        return answer  # type: ignore[return-value]  # an Answer has all that the protocol asks of a response

    def _refusal(self, failure: Failure, execution_id: str = "") -> Answer:
        execution_id = execution_id or new_execution_id()
        self.malformed(execution_id, failure.status, failure.detail)
        return answer_of(failure, execution_id)


def answer_of(failure: Failure, execution_id: str) -> Answer:
    """Return the problem document for what did not come so far that an endpoint or a page was looked for."""
    return problem(failure, execution_id, common_headers(execution_id, own_timing(clock())))


__all__ = [
    "LINGERING_SECONDS",
    "SWEEP_SECONDS",
    "Connection",
    "Limits",
    "Malformed",
    "answer_of",
]
