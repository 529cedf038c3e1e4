"""Whether what arrived is one plain request and nothing else, told without reading it.

Who refuses thousands of requests a second spends most of the time on parsing heads of which nothing is used.
"""

from __future__ import annotations

import re

LONGEST = 16 * 1024

_HEADER = (
    rb"(?:(?i:connection): ?(?i:keep-alive)"
    rb"|(?!(?i:(?:proxy-)?connection|content-length|expect|trailer|transfer-encoding|upgrade):)[A-Za-z0-9-]+: ?[ -~]*)"
    rb"\r\n"
)
_HEAD = re.compile(
    rb"(?:GET|POST) /orchestrator/[!-.0-~]*/[!-~]* HTTP/1\.1\r\n(?=(?:[^\r]+\r\n)*?(?i:host):)"
    rb"(?:%b)*(?:(?i:content-length): ?([0-9]{1,5})\r\n(?:%b)*)?\r\n" % (_HEADER, _HEADER)
)


def is_whole_request(data: bytes) -> bool:
    """Return whether this is a request for an endpoint with all of its body, and the connection stays open after it.

    False is no statement: what has chunks, an upgrade or bytes beyond ASCII in its head is for the parser to tell.
    """
    if len(data) > LONGEST or (head := _HEAD.match(data)) is None:
        return False
    return head.end() + int(head[1] or 0) == len(data)


__all__ = ["is_whole_request"]
