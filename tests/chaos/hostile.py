"""Requests that are made to break something: huge, deep, endless, and values that are no values."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import orjson
from attrs import frozen

from tests.memory import resident_bytes

GIGABYTE = 2**30
CHUNK = b"x" * 65536
PROBLEM = b"application/problem+json"
ANSWER_SECONDS = 20.0
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@frozen
class Answered:
    """What a hostile request was answered. ``sent`` is how many bytes the client got rid of."""

    status: int
    content_type: bytes
    body: bytes
    sent: int

    @property
    def is_json(self) -> bool:
        try:
            orjson.loads(self.body)
        except ValueError:
            return False
        return True


async def ask(port: int, head: bytes, body: AsyncIterator[bytes] | bytes = b"") -> Answered:
    """Send a head and a body, reading meanwhile; stop sending when the answer is there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = 0

    async def send() -> None:
        nonlocal sent
        try:
            writer.write(head)
            if isinstance(body, bytes):
                writer.write(body)
                sent += len(body)
            else:
                async for part in body:
                    writer.write(part)
                    await writer.drain()
                    sent += len(part)
        except ConnectionError:
            pass

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(answer)
            content = await reader.readexactly(int(length[1]) if length else 0)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
    content_type = re.search(rb"content-type: ([^\r]*)", answer, re.IGNORECASE)
    return Answered(int(answer[9:12]), content_type[1] if content_type else b"", content, sent)


def post(target: str, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in ("Content-Type: application/json", *headers))
    return f"POST {target} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()


async def gigabyte() -> AsyncIterator[bytes]:
    for _ in range(GIGABYTE // len(CHUNK)):
        yield CHUNK


async def gigabyte_in_chunks() -> AsyncIterator[bytes]:
    head = b"%x\r\n" % len(CHUNK)
    async for part in gigabyte():
        yield head + part + b"\r\n"
    yield b"0\r\n\r\n"


def with_json(target: str, body: bytes) -> tuple[bytes, bytes]:
    return post(target, f"Content-Length: {len(body)}"), body


def with_coding(target: str, coding: str, body: bytes) -> tuple[bytes, bytes]:
    return post(target, f"Content-Encoding: {coding}", f"Content-Length: {len(body)}"), body


def bomb(wbits: int) -> bytes:
    """Return 64 MiB of blanks, compressed."""
    packer = zlib.compressobj(wbits=wbits)
    return b"".join([*(packer.compress(b" " * 2**20) for _ in range(64)), packer.flush()])


def requests(target: str) -> Mapping[str, tuple[bytes, AsyncIterator[bytes] | bytes]]:
    """Return the hostile requests by name, for an endpoint that takes POST and a path parameter."""
    deep = b"[" * 100_000 + b"]" * 100_000
    many = "".join(f"X-{number}: {number}\r\n" for number in range(10_000)).encode()
    get = f"GET {target}".encode()
    end = b" HTTP/1.1\r\nHost: x\r\n\r\n"
    return {
        "1 GB": (post(target, f"Content-Length: {GIGABYTE}"), gigabyte()),
        "1 GB in chunks": (post(target, "Transfer-Encoding: chunked"), gigabyte_in_chunks()),
        "a gzip bomb": with_coding(target, "gzip", bomb(31)),
        "a deflate bomb": with_coding(target, "deflate", bomb(15)),
        "a gzip bomb that is cut off": with_coding(target, "gzip", bomb(31)[:5000]),
        "a coding that is not known": with_coding(target, "br", b"\x1b\xff\xff"),
        "100,000 deep": with_json(target, deep),
        "100,000 objects deep": with_json(target, b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "500 deep": with_json(target, b'{"x":' + b"[" * 500 + b"]" * 500 + b"}"),
        "10,000 headers": (get + b" HTTP/1.1\r\nHost: x\r\n" + many + b"\r\n", b""),
        "a long header": (get + b" HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", b""),
        "a long target": (get + b"?q=" + b"x" * 100_000 + end, b""),
        "NaN": with_json(target, b'{"x": NaN}'),
        "Infinity": with_json(target, b'{"x": -Infinity}'),
        "1e400": with_json(target, b'{"x": 1e400}'),
        "1e400 in the query": (get + b"?x=1e400" + end, b""),
        "NaN in the query": (get + b"?x=NaN" + end, b""),
        "an integer of 400 digits": with_json(target, b'{"x": ' + b"1" * 400 + b"}"),
        "2**64": with_json(target, b'{"x": 18446744073709551616}'),
        "a lone surrogate": with_json(target, b'{"x": "\\ud800"}'),
        "a lone surrogate as a key": with_json(target, b'{"\\udfff": 1}'),
        "a surrogate in UTF-8": with_json(target, b'{"x": "\xed\xa0\x80"}'),
        "a surrogate in the path": (get + b"%ED%A0%80" + end, b""),
        "a surrogate in the query": (get + b"?x=%ED%A0%80" + end, b""),
        "bytes in the path": (get + b"\xed\xa0\x80\xff" + end, b""),
        "bytes in the query": (get + b"?x=\xff" + end, b""),
        "bytes in a header": (get + b" HTTP/1.1\r\nHost: x\r\nX-Test: \xff\xed\xa0\x80\r\n\r\n", b""),
        "NUL in the path": (get + b"%00" + end, b""),
        "NUL in the query": (get + b"?x=a%00b" + end, b""),
        "NUL in a header": (get + b" HTTP/1.1\r\nHost: x\r\nX-Test: a\x00b\r\n\r\n", b""),
        "NUL in the body": with_json(target, b'{"x": "a\x00b"}'),
        "an escaped NUL": with_json(target, b'{"x": "a\\u0000b"}'),
        "an escaped NUL in a key": with_json(target, b'{"x\\u0000": 1}'),
        "a byte order mark": with_json(target, b'\xef\xbb\xbf{"x": 1}'),
        "no JSON at all": with_json(target, bytes(range(256))),
    }


def reset_peak(pid: int) -> int:
    """Let the peak count from here, and return what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return resident_bytes(pid)


@frozen
class Found:
    """Each request's answer, what is wrong with any of them, and how much the service's memory grew at its most."""

    answers: Mapping[str, Answered]
    wrong: tuple[str, ...]
    grown_bytes: int


async def measure(port: int, pid: int, target: str) -> Found:
    """Send them one after the other to a service that runs in a process."""
    before = reset_peak(pid)
    answers = {name: await ask(port, *request) for name, request in requests(target).items()}
    wrong = tuple(found for name, answer in answers.items() if (found := complaint(name, answer)))
    return Found(answers, wrong, resident_bytes(pid, peak=True) - before)


def complaint(name: str, answer: Answered) -> str:
    """Return what is wrong with an answer to a hostile request, or an empty string."""
    expected = (413,) if name.startswith("1 GB") or "bomb" in name else (415,) if "coding" in name else (400, 422)
    if answer.status not in expected:
        return f"{name}: {answer.status}, not {' or '.join(map(str, expected))}: {answer.body[:200]!r}"
    if not answer.content_type.startswith(PROBLEM) or not answer.is_json:
        return f"{name}: {answer.content_type!r}: {answer.body[:200]!r}"
    if name.startswith("1 GB") and answer.sent > GIGABYTE / 10:
        return f"{name}: {answer.sent} bytes were read"
    return ""
