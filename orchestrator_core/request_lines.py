"""The lines of the log on their way to its stream, and the line of a request.

Lines are only added to a list, which a thread writes: a log that nobody reads must not hold up a request. That of a
request does not go through structlog, which would take longer than many a step: everything in it is known to be plain,
so it is written out here.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import gmtime, monotonic, strftime, time
from typing import Any, Protocol, TextIO

import orjson

DROPPED = "lines were dropped: the log is read too slowly"
MOST_WAITING = 20_000
PAUSE_SECONDS = 0.02
FLUSH_SECONDS = 1.0
"""How long the end of the process waits for whoever reads the log."""
ATOMIC_BYTES = 4096
"""So much is written to a pipe in one piece (POSIX's PIPE_BUF on Linux): no other line gets in between."""


class RequestLine(Protocol):
    """Writes the line of one request. ``error`` and what else is in ``more`` hold no secrets."""

    def __call__(
        self, execution_id: str, trace_id: str, method: str, route: str, status: int, seconds: float, **more: Any
    ) -> None: ...


class Lines:
    """Lines on their way to a stream. A thread, which the first line starts, writes what has come together in a while.

    While ``most`` wait further ones are dropped; ``told`` makes the line that says how many were.
    """

    def __init__(self, stream: TextIO, told: Callable[[int], str], most: int = MOST_WAITING) -> None:
        self._stream = stream
        self._told = told
        self._most = most
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._dropped_before = 0
        self._wake = threading.Event()
        self._at_once = threading.Event()
        self._writing = threading.Lock()
        self._starting = threading.Lock()
        self._started = False

    def add(self, line: str) -> None:
        """Have a line written, which ends with a line feed. Never waits; for any thread."""
        waiting = self._waiting
        if len(waiting) >= self._most:
            self._dropped += 1
            return
        waiting.append(line)
        if not self._wake.is_set():
            self._wake.set()
            if not self._started:
                self._start()

    def add_at_once(self, line: str) -> None:
        """Do the same for one that is not to wait for others."""
        self.add(line)
        self._at_once.set()

    def _start(self) -> None:
        with self._starting:
            if not self._started:
                self._started = True
                threading.Thread(target=self._work, name="orchestrator log", daemon=True).start()
                atexit.register(self.flush)

    def flush(self) -> None:
        """Write what waits, unless that is held up: then the log is not read."""
        if self._writing.acquire(timeout=FLUSH_SECONDS):
            try:
                self._write(monotonic() + FLUSH_SECONDS)
            finally:
                self._writing.release()

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._at_once.wait(PAUSE_SECONDS)
            self._at_once.clear()
            self._wake.clear()
            with self._writing:
                self._write()

    def _write(self, until: float | None = None) -> None:
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        dropped = self._dropped
        if dropped > self._dropped_before:
            lines.append(self._told(dropped - self._dropped_before))
            self._dropped_before = dropped
        try:
            for piece in _pieces(lines):
                _write_whole(self._stream, piece, until)
        except (OSError, ValueError):
            pass  # the stream is closed, or nobody reads it: there is nowhere left to say so


class LineStream:
    """What structlog and logging take for a stream. They write a line at a time, and none of them waits."""

    def __init__(self, lines: Lines) -> None:
        self.write = lines.add_at_once

    def flush(self) -> None:
        """It is about to be written."""


class FileStream:
    """A stream that takes every line at once, such as a file. Nobody fails when its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(line)
            self._stream.flush()

    def flush(self) -> None:
        """It is written already."""


def may_hold_up(stream: TextIO) -> bool:
    """Return whether who writes to a stream can have to wait for a reader, as with a pipe."""
    try:
        return not stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # a stream of the test's, or a closed one
        return False


def _pieces(lines: list[str]) -> list[bytes]:
    pieces: list[bytes] = []
    piece = b""
    for line in lines:
        encoded = line.encode("utf-8", "backslashreplace")
        if piece and len(piece) + len(encoded) > ATOMIC_BYTES:
            pieces.append(piece)
            piece = b""
        piece += encoded
    return [*pieces, piece] if piece else pieces


def _write_whole(stream: TextIO, piece: bytes, until: float | None) -> None:
    """Write all of it. With ``until``, a moment of ``monotonic``, raise ``TimeoutError`` if it is not taken by then."""
    try:
        number = stream.fileno()
    except OSError:  # a stream of the test's
        stream.write(piece.decode())
        return
    while piece:
        part = piece
        if until is not None:
            part = piece[:ATOMIC_BYTES]
            if not _is_taken(number, until - monotonic()):
                raise TimeoutError
        piece = piece[os.write(number, part) :]


def _is_taken(number: int, seconds: float) -> bool:
    """Wait until ``ATOMIC_BYTES`` can be written to a descriptor without waiting. Return whether they can."""
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(max(0.0, seconds) * 1000))


class _Clock:
    """The time as ISO 8601 in UTC, with microseconds. All but these is made once a second."""

    __slots__ = ("_prefix", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._prefix = ""

    def __call__(self) -> str:
        now = time()
        second = int(now)
        if second != self._second:
            self._second, self._prefix = second, strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        return f"{self._prefix}.{int((now - second) * 1_000_000):06d}Z"


def json_line(add: Callable[[str], None], **bound: int) -> RequestLine:
    """Return what adds a request's line as a JSON object, with the keys that structlog gives its lines.

    What is ``bound`` is in each of them.
    """
    now = _Clock()

    def line(
        execution_id: str, trace_id: str, method: str, route: str, status: int, seconds: float, **more: Any
    ) -> None:
        event = {
            "event": "request",
            "execution_id": execution_id,
            "trace_id": trace_id,
            "method": method,
            "route": route,
            "status": status,
            "milliseconds": round(seconds * 1000, 3),
            **more,
            **bound,
            "level": "info",
            "timestamp": now(),
        }
        add(f"{_json(event)}\n")

    return line


def _json(value: Any) -> str:
    """Return JSON in which nothing ends a line, or tells a terminal what to do: a client can have sent such characters.

    U+2028 and the C1 controls are no control characters to JSON.
    """
    try:
        text = orjson.dumps(value).decode()
    except TypeError:  # a text that is no Unicode, such as half of a surrogate pair that a client has sent
        return json.dumps(value, default=repr)
    return text if text.isascii() or text.isprintable() else json.dumps(value)


def json_dropped(count: int, **bound: int) -> str:
    event = {"event": DROPPED, "count": count, **bound, "level": "warning", "timestamp": _Clock()()}
    return f"{_json(event)}\n"


def text_dropped(count: int, **bound: int) -> str:
    return f"{_Clock()()} [warning  ] {DROPPED} count={count}{_told(bound)}\n"


def _told(bound: Mapping[str, int]) -> str:
    return "".join(f" {name}={value}" for name, value in bound.items())


def text_line(add: Callable[[str], None], *, colors: bool, **bound: int) -> RequestLine:
    """Return what adds a request's line as people read it. What is ``bound`` is in each of them."""
    now, always = _Clock(), _told(bound)
    bold, plain = ("\x1b[1m", "\x1b[0m") if colors else ("", "")

    def line(
        execution_id: str, trace_id: str, method: str, route: str, status: int, seconds: float, **more: Any
    ) -> None:
        told = f" trace_id={trace_id}" if trace_id else ""
        for name, value in more.items():
            if value:
                told += f" {name}={_json(value)}"
        add(
            f"{now()} [info     ] {bold}request{plain} {method} {route} {status} in {seconds * 1000:.3f} ms"
            f" execution_id={execution_id}{told}{always}\n"
        )

    return line
