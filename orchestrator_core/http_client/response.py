"""What comes back: status, headers and the decompressed body."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeAlias

import orjson
from attrs import field, frozen

from orchestrator_core.depth import check_depth, check_integers
from orchestrator_core.errors import SourceError
from orchestrator_core.http_client.errors import HttpProtocolError, ResponseTooLarge
from orchestrator_core.http_client.request import RequestHead

INFLATE_SLICE = 64 * 2**10
MAX_STREAMS = 1000
"""Each costs some microseconds however little is in it, and an empty one is 20 bytes."""

BACK_OFF = frozenset({429, 503})
LONGEST_WAIT_SECONDS = 3600.0

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


class Headers(Mapping[str, str]):
    """The answer's headers by name, whatever its case; built from the raw pairs when first asked.

    A name that came several times has its values joined by ``", "``; :meth:`get_all` has them one by one.
    What is blank at the end of a line is no part of a value: RFC 9110, section 5.5.
    """

    __slots__ = ("_index", "_raw")

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self._index: dict[str, str] | None = None

    def get_all(self, name: str) -> list[str]:
        wanted = name.lower().encode("latin-1")
        return [value.decode("latin-1").rstrip(" \t") for key, value in self._raw if key.lower() == wanted]

    def __getitem__(self, name: str) -> str:
        return self._by_name()[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name())

    def __len__(self) -> int:
        return len(self._by_name())

    def __repr__(self) -> str:
        return f"Headers({list(self)})"

    def _by_name(self) -> dict[str, str]:
        if self._index is None:
            index: dict[str, str] = {}
            for raw_name, raw_value in self._raw:
                name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").rstrip(" \t")
                index[name] = f"{index[name]}, {value}" if name in index else value
            self._index = index
        return self._index


@frozen(eq=False)
class HttpResponse:
    """One answer. Any status is an answer: what a 404 or a 500 means is for the caller to say."""

    status: int
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    request: RequestHead = field(repr=False)

    @property
    def retry_after_seconds(self) -> float | None:
        """How long a 429 or 503 asks to wait, from a second to an hour; None for any other answer.

        See RFC 9110, section 10.2.3.
        """
        if self.status not in BACK_OFF:
            return None
        text = self.headers.get("retry-after", "")
        if text.isascii() and text.isdigit():
            seconds = float(text[:9])
        else:
            try:
                when = parsedate_to_datetime(text)
            except (ValueError, OverflowError):  # no date, or one that no calendar has
                return None
            aware = when if when.tzinfo else when.replace(tzinfo=UTC)
            seconds = round((aware - datetime.now(UTC)).total_seconds())
        return min(max(1.0, seconds), LONGEST_WAIT_SECONDS)

    def json(self) -> JSON:
        """Parse the body as JSON. Raises :class:`SourceError` that names the call when it is not JSON.

        It is none either when it is nested too deep for an answer, or has an integer of more than 64 bits.
        """
        try:
            value: JSON = orjson.loads(self.body)
            check_integers(self.body)
            check_depth(value, self.body)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{self.request.call}: the answer (status {self.status}) is not JSON: {error}") from error
        return value


def decompress(body: bytes, encoding: bytes, limit: int, call: str) -> bytes:
    """Undo the Content-Encoding; stop with :class:`ResponseTooLarge` once more than ``limit`` bytes came out."""
    name = encoding.strip().lower()
    if name in (b"identity", b"") or not body:
        return body
    if name not in (b"gzip", b"x-gzip", b"deflate"):
        raise HttpProtocolError(call, f"the answer has the content encoding {name.decode('latin-1')!r}, not asked for")
    try:
        return _inflate(body, _window_bits(name, body), limit, call)
    except zlib.error as error:
        raise HttpProtocolError(call, f"the answer's {name.decode()} body is damaged: {error}") from error


def _window_bits(name: bytes, body: bytes) -> int:
    if name != b"deflate":
        return 16 + zlib.MAX_WBITS
    # "deflate" means the zlib format (RFC 9110 section 8.4.1.2), but some servers send the bare stream inside it.
    is_zlib = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS


def _inflate(body: bytes, window_bits: int, limit: int, call: str) -> bytes:
    """Decompress one stream after another (RFC 1952 section 2.2), in slices: what is left of one is copied."""
    parts: list[bytes] = []
    size = streams = 0
    inflater = None
    for start in range(0, len(body), INFLATE_SLICE):
        rest = body[start : start + INFLATE_SLICE]
        while rest:
            if inflater is None:
                inflater = zlib.decompressobj(window_bits)
                streams += 1
                if streams > MAX_STREAMS:
                    raise HttpProtocolError(call, f"the answer's body is more than {MAX_STREAMS} compressed streams")
            part = inflater.decompress(rest, limit - size + 1)
            size += len(part)
            if size > limit:
                raise ResponseTooLarge(call, limit)
            parts.append(part)
            rest = inflater.unused_data
            if inflater.eof:
                inflater = None
    if inflater is not None:
        raise HttpProtocolError(call, "the answer's compressed body ended too soon", transient=True, answered=True)
    return b"".join(parts)
