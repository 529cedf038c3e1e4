"""One connection: writes a request, reads its answer with llhttp, and knows whether another may follow.

llhttp is strict as httptools sets it up: it refuses bare line feeds, folded headers, two lengths, a length beside a
transfer encoding, and malformed chunks (RFC 9112). What it leaves to its caller is checked here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from orchestrator_core.http_client.errors import (
    HttpConnectError,
    HttpProtocolError,
    ResponseTooLarge,
    StaleConnection,
    fail_future,
)
from orchestrator_core.http_client.request import RequestHead
from orchestrator_core.http_client.response import Headers, HttpResponse, decompress

MAX_HEAD_BYTES = 64 * 2**10
MAX_HEADERS = 200
MAX_FRAMING_BYTES = 256 * 2**10
WRITE_SLICE = 64 * 2**10


class Connection(asyncio.Protocol):
    """One call at a time. Whoever took it from the pool owns it until giving it back, and nobody else may call it."""

    __slots__ = (
        "_answer",
        "_body_bytes",
        "_chunks",
        "_complete",
        "_encoding",
        "_fed_bytes",
        "_head",
        "_head_done",
        "_headers",
        "_keep_alive",
        "_limit",
        "_loop",
        "_on_lost",
        "_parser",
        "_paused",
        "_problem",
        "_status",
        "_transport",
        "_unsent",
        "_until_close",
        "answers",
        "closed",
        "idle_since",
        "lost",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, max_response_bytes: int, on_lost: Callable[[Connection], None]
    ) -> None:
        self._loop = loop
        self._limit = max_response_bytes
        self._on_lost = on_lost
        self._parser = HttpResponseParser(self)
        self._answer: asyncio.Future[HttpResponse] | None = None
        self._paused = False
        self._unsent: memoryview | None = None
        self.closed = False
        self.lost = False
        self.answers = 0
        self.idle_since = 0.0

    # -- its caller ----------------------------------------------------------------------------------------------------

    def send(self, head: RequestHead, body: bytes | None) -> asyncio.Future[HttpResponse]:
        """Write the request and return the future of its answer, which fails with the errors of this package."""
        self._head = head
        self._headers: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._status = 0
        self._fed_bytes = 0
        self._body_bytes = 0
        self._head_done = self._complete = self._keep_alive = self._until_close = False
        self._encoding: bytes | None = None
        self._problem: Exception | None = None
        answer = self._answer = self._loop.create_future()
        if body is None:
            self._transport.write(head.open_head + head.form.end_without_body)
        elif len(body) <= WRITE_SLICE:
            self._transport.write(b"%bContent-Length: %d\r\n\r\n%b" % (head.open_head, len(body), body))
        else:
            self._transport.write(b"%bContent-Length: %d\r\n\r\n" % (head.open_head, len(body)))
            self._unsent = memoryview(body)
            self._write_slices()
        return answer

    @property
    def usable(self) -> bool:
        """Whether another request may be sent: the last answer came whole and nothing came after it."""
        return self._answer is None and not self.closed

    def close(self) -> None:
        """Close politely, with TLS's farewell."""
        if not self.closed:
            self.closed = True
            self._transport.close()

    def abort(self) -> None:
        """Close now, whatever is unsent or unread."""
        self.closed = True
        self._unsent = None
        self._transport.abort()

    def cut_off(self) -> None:
        """Fail the call in progress, because the client is being closed."""
        if self._answer is not None:
            self._fail(self._answer, HttpConnectError(self._head.call, "the client is closed"))

    # -- its transport -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._write_slices()

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None or answer.done():
            # Nothing was asked, so whatever this is could only be taken for the next request's answer.
            self.abort()
            return
        self._fed_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._keep_alive = False
            if not self._complete:
                reason = str(error) if isinstance(error, HttpParserError) else "it switches to another protocol"
                self._problem = HttpProtocolError(self._head.call, f"the answer is not HTTP/1.1: {reason}")
        if self._problem is None:
            self._check_sizes()
        if self._problem is not None:
            self._fail(answer, self._problem)
        elif self._complete:
            self._finish(answer)

    def eof_received(self) -> None:
        if self._answer is None:
            self.closed = True

    def connection_lost(self, error: Exception | None) -> None:
        answer = self._answer
        self.closed = self.lost = True
        if answer is not None and not answer.done():
            if self._until_close and error is None:
                self._finish(answer)
            else:
                self._fail(answer, self._why_lost(error))
        self._on_lost(self)

    # -- its parser ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self._status = self._parser.get_status_code()
        if self._status < 200:
            self._check_interim()
            return
        self._head_done = True
        self._keep_alive = self._parser.should_keep_alive()
        self._read_headers()
        if self._head.form.has_no_answer_body:
            # llhttp cannot be told that this answer has no body: it is done here, and the next one needs a new parser.
            self._complete = True

    def on_body(self, data: bytes) -> None:
        if self._complete:
            self._keep_alive = False
            return
        self._body_bytes += len(data)
        self._chunks.append(data)

    def on_message_complete(self) -> None:
        if self._head_done:
            self._complete = True
        else:
            self._headers = []

    # ------------------------------------------------------------------------------------------------------------------

    def _write_slices(self) -> None:
        while self._unsent is not None and not self._paused:
            part, rest = self._unsent[:WRITE_SLICE], self._unsent[WRITE_SLICE:]
            self._unsent = rest or None
            self._transport.write(part)

    def _check_interim(self) -> None:
        if self._status < 100:
            self._problem = HttpProtocolError(self._head.call, f"the answer has the status {self._status}")

    def _read_headers(self) -> None:
        has_length = has_chunks = False
        for name, value in self._headers:
            # All that matters has 14, 16 or 17 letters; the length is much cheaper than lower().
            if 14 <= len(name) <= 17:
                lowered = name.lower()
                if lowered == b"content-encoding":
                    self._encoding = value if self._encoding is None else self._encoding + b"," + value
                elif lowered == b"content-length":
                    has_length = True
                    self._check_length(int(value))
                elif lowered == b"transfer-encoding":
                    self._check_transfer_encoding(value, again=has_chunks)
                    has_chunks = True
        self._until_close = not (has_length or has_chunks)
        self._check_head_size()

    def _check_length(self, length: int) -> None:
        # What has no body may still say how long one would be (RFC 9110 section 8.6).
        if length > self._limit and not self._head.form.has_no_answer_body and self._status not in (204, 304):
            self._problem = ResponseTooLarge(self._head.call, self._limit)

    def _check_transfer_encoding(self, value: bytes, *, again: bool) -> None:
        if again or value.strip().lower() != b"chunked":
            self._problem = HttpProtocolError(
                self._head.call, f"the answer has the transfer encoding {value.decode('latin-1')!r}, not 'chunked'"
            )

    def _check_head_size(self) -> None:
        size = self._fed_bytes
        if size > MAX_HEAD_BYTES:
            size = sum(len(name) + len(value) + 4 for name, value in self._headers)
        if len(self._headers) > MAX_HEADERS or size > MAX_HEAD_BYTES:
            self._problem = self._head_too_large()

    def _check_sizes(self) -> None:
        if not self._head_done:
            if self._fed_bytes > MAX_HEAD_BYTES:
                self._problem = self._head_too_large()
        elif self._body_bytes > self._limit:
            self._problem = ResponseTooLarge(self._head.call, self._limit)
        elif not self._complete and self._fed_bytes > self._limit + self._body_bytes + MAX_FRAMING_BYTES:
            self._problem = HttpProtocolError(self._head.call, "the answer's chunk headers or trailers are too large")

    def _head_too_large(self) -> HttpProtocolError:
        return HttpProtocolError(
            self._head.call, f"the answer's headers are more than {MAX_HEADERS} or larger than {MAX_HEAD_BYTES} bytes"
        )

    def _finish(self, answer: asyncio.Future[HttpResponse]) -> None:
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        if self._encoding is not None:
            try:
                body = decompress(body, self._encoding, self._limit, self._head.call)
            except (HttpProtocolError, ResponseTooLarge) as error:
                self._fail(answer, error)
                return
        self._answer = None
        self.answers += 1
        answer.set_result(HttpResponse(self._status, Headers(self._headers), body, self._head))
        self._chunks, self._headers = [], []
        if self._head.form.has_no_answer_body:
            self._parser = HttpResponseParser(self)
        if self._unsent is not None:
            self.abort()
        elif not self._keep_alive:
            self.close()

    def _fail(self, answer: asyncio.Future[HttpResponse], error: Exception) -> None:
        self.abort()
        fail_future(answer, error)

    def _why_lost(self, error: Exception | None) -> Exception:
        because = f": {error}" if error else ""
        if self._fed_bytes:
            return HttpProtocolError(
                self._head.call,
                f"the peer closed the connection in the middle of the answer{because}",
                transient=True,
                answered=True,
            )
        if self.answers:
            again = "" if self._head.form.may_resend else ", and the request must not be sent twice"
            return StaleConnection(
                self._head.call, f"the peer closed the kept-alive connection without an answer{again}{because}"
            )
        return HttpProtocolError(
            self._head.call, f"the peer closed the connection without an answer{because}", transient=True
        )
