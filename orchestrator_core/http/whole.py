"""Whether what arrived is one plain request and nothing else, told without reading it.

Who refuses thousands of requests a second spends most of the time on parsing heads of which nothing is used.
"""

from __future__ import annotations

import re

LONGEST = 16 * 1024

_PLAIN = (
    rb"(?!(?i:(?:proxy-)?connection|content-length|expect|trailer|transfer-encoding|upgrade):)[A-Za-z0-9-]+: ?[ -~]*"
)
_TARGET = rb"(?:GET|POST) /orchestrator/[!-.0-~]*/[!-~]* "
_HAS_HOST = rb"(?=(?:[^\r]+\r\n)*?(?i:host):)"
_HAS_CLOSE = rb"(?=(?:[^\r]+\r\n)*?(?i:connection): ?(?i:close)\r\n)"


def _head(start: bytes, connection: bytes) -> re.Pattern[bytes]:
    """Return what matches a head, with the length of its body, and but one value of ``Connection``."""
    header = rb"(?:(?i:connection): ?(?i:%b)|%b)\r\n" % (connection, _PLAIN)
    return re.compile(rb"%b(?:%b)*(?:(?i:content-length): ?([0-9]{1,5})\r\n(?:%b)*)?\r\n" % (start, header, header))


_STAYS = _head(rb"%bHTTP/1\.1\r\n%b" % (_TARGET, _HAS_HOST), rb"keep-alive")
_ENDS = _head(rb"%bHTTP/1\.(?:1\r\n%b%b|0\r\n)" % (_TARGET, _HAS_HOST, _HAS_CLOSE), rb"close")


def is_whole_request(data: bytes) -> bool:
    """Return whether this is a request for an endpoint with all of its body, and the connection stays open after it.

    False is no statement: what has chunks, an upgrade or bytes beyond ASCII in its head is for the parser to tell.
    """
    return _is_whole(_STAYS, data)


def is_last_request(data: bytes) -> bool:
    """Return whether this is such a request, but the connection is to be closed after it."""
    return _is_whole(_ENDS, data)


def _is_whole(pattern: re.Pattern[bytes], data: bytes) -> bool:
    if len(data) > LONGEST or (head := pattern.match(data)) is None:
        return False
    return head.end() + int(head[1] or 0) == len(data)


__all__ = ["LONGEST", "is_last_request", "is_whole_request"]
