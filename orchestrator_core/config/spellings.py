"""The ways in which a text can hold a secret: as it is, escaped, percent-encoded, in base64, or only its password."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from html import unescape
from urllib.parse import unquote, urlsplit

from attrs import frozen

MASK = "***"
SHORTEST_MASKED = 3
SHORTEST_BASE64 = 4
"""Less of base64 is not looked for: so few letters stand in many a text by chance."""

_NEVER_ESCAPED = re.compile(r"[A-Za-z0-9._-]+\Z")
_RUN = re.compile(r"[A-Za-z0-9]+")
_HOST = re.compile(r"[A-Za-z0-9.-]+\Z")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_USER_INFO = re.compile(r"://([^:/\s{}]*):?([^/\s]*)@")
_MORE = re.compile(r"((?:(?!://)[^\s\"'?&])*)@")
_NAMED = re.compile(r"(?i)(?:pass(?:word|wd|phrase)?|pwd|secret|token|key|sig(?:nature)?)=([^&;\s]+)")
_IN_QUERY = re.compile(
    r"(?i)[?&](?:key|sig|[\w.-]*(?:passw(?:or)?d|passphrase|pwd|secret|token|(?:api|access|private|account)[_-]?key"
    r"|signature))=(?!\$)([^&;\s\"'{}]+)"
)
_AUTHORIZATION = re.compile(r"(?i)\s*(basic|bearer|token|api-?key)\s+(\S+)\s*\Z")
_TOKEN_IN_PATH = re.compile(r"[^/]{16,}")
_NO_PASSWORDS = frozenset({"", "x", "x-oauth-basic"})
"""What stands for the password where the user is the token."""


@frozen(repr=False)
class Spellings:
    """What to look for. ``plain`` are texts as they are, the longest first. ``odd`` are those that can be escaped.

    Of the latter there is a part that nobody escapes, which is quickly looked for and empty where there is none, and
    the text with every way of escaping undone.
    """

    plain: tuple[str, ...] = ()
    odd: tuple[tuple[str, str], ...] = ()
    _hints: tuple[str, ...] = ()

    @classmethod
    def of(cls, secrets: Iterable[str]) -> Spellings:
        known = {text for secret in secrets for text in _known(secret) if len(text) >= SHORTEST_MASKED}
        coded = {text for secret in known for text in _base64(secret) if len(text) >= SHORTEST_BASE64}
        plain = sorted(known | coded, key=lambda text: (-len(text), text))
        odd = [(_hint(text), undone) for text in plain if not _NEVER_ESCAPED.match(text) and (undone := _undone(text))]
        worth_it = tuple(pair for pair in odd if len(pair[1].strip()) >= SHORTEST_MASKED)
        return cls(tuple(plain), worth_it, tuple(dict.fromkeys(map(_hint, plain))))

    def may_be_in(self, text: str) -> bool:
        """Return False where no secret is in a text or its JSON, without looking closely."""
        return any(map(text.__contains__, self._hints))

    def mask(self, text: str) -> str:
        wanted = [undone for hint, undone in self.odd if hint in text]
        if wanted and any(map(_undone(text).__contains__, wanted)):
            text = _masked(text, wanted)
        for secret in self.plain:
            if secret in text:
                text = text.replace(secret, MASK)
        return text


def _hint(text: str) -> str:
    return text if _NEVER_ESCAPED.match(text) else max(_RUN.findall(text), key=len, default="")


def passwords_in(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the passwords of the URLs in a text begin and end, those in their queries too, in their order.

    In an HTTP URL without one that is the user: tokens are given so. Elsewhere a user is no more than that. One with
    an ``@`` or a ``/`` in it that is not percent-encoded ends at the last ``@``.
    """
    since = 0
    for start, end in sorted([*_in_user_info(text), *(found.span(1) for found in _IN_QUERY.finditer(text))]):
        if start >= since:
            yield start, end
            since = end


def _in_user_info(text: str) -> Iterator[tuple[int, int]]:
    for found in _USER_INFO.finditer(text):
        if found[2] not in _NO_PASSWORDS:
            yield found.span(2)
            if more := _MORE.match(text, found.end()):
                yield more.span(1)
        elif text[max(0, found.start() - 5) : found.start()].lower().endswith(("http", "https")):
            yield found.span(1)


# --- what is a secret ------------------------------------------------------------------------------------------------


def _known(secret: str) -> Iterator[str]:
    """Yield the secret as it may be used, and what is secret in a URL, in another way to a database and in a header."""
    passwords = [secret[start:end] for start, end in passwords_in(secret)]
    for part in (secret, *_NAMED.findall(secret), *passwords):
        yield part
        yield part.strip()
        yield unquote(part)
    if found := _AUTHORIZATION.match(secret):
        yield from _of_authorization(found[1], found[2])
    if _HOST.match(secret):
        yield secret.lower()  # as clients show a host
    if _URL.match(secret):
        yield from _of_url(secret)


def _of_authorization(scheme: str, credentials: str) -> Iterator[str]:
    """Yield what is secret in the value of an ``Authorization`` header; of Basic, the password too (RFC 7617)."""
    yield credentials
    if scheme.lower() == "basic":
        with suppress(ValueError):
            yield b64decode(credentials, validate=True).decode().partition(":")[2]


def _of_url(url: str) -> Iterator[str]:
    """Yield a URL as a client of it shows it, if it has a path, and what may be a token in the path of an HTTP URL."""
    try:
        parts = urlsplit(url.strip())
        host = parts.netloc.rpartition("@")[2].lower()
    except ValueError:
        return
    if path := parts.path.strip("/"):
        yield f"{parts.scheme}://{host}/{path}"
        if parts.scheme in ("http", "https"):
            yield from _TOKEN_IN_PATH.findall(path)


def _base64(secret: str) -> Iterator[str]:
    """Yield the letters of base64 that the secret alone decides, for each place in a group of three bytes.

    What stands before it and after it, such as ``user:``, changes the first letter or two, and the last one.
    """
    raw = secret.encode("utf-8", "surrogateescape")
    for before in range(3):
        code = b64encode(bytes(before) + raw).decode()
        end = (before + len(raw)) // 3 * 4 + (before + len(raw)) % 3
        core = code[(0, 2, 3)[before] : end]
        yield core
        yield core.replace("+", "-").replace("/", "_")


# --- how it is written -----------------------------------------------------------------------------------------------

_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "b": "\b"}
Undo = Callable[[re.Match[str]], str]


def _character(found: re.Match[str]) -> str:
    code = int(next(filter(None, found.groups()), ""), 16)
    return chr(code) if code < 0x110000 else found[0]


def _after_backslashes(found: re.Match[str]) -> str:
    if found[4]:
        return _CONTROLS[found[4]]
    return _character(found) if found.lastindex else ""


def _entity(found: re.Match[str]) -> str:
    return unescape(f"&{found[1]}")


def _joined(found: re.Match[str]) -> str:
    """Return what bytes are that were read as Latin-1, and what two surrogates or one from a name or value are."""
    text = found[0]
    try:
        if text[0] < "\u0100":
            return text.encode("latin-1").decode()
        return text.encode("utf-16", "surrogatepass").decode("utf-16") if len(text) == 2 else chr(ord(text) - 0xDC00)
    except UnicodeDecodeError:
        return text


_BYTES = re.compile(
    "[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
    "|[\ud800-\udbff][\udc00-\udfff]|[\udc80-\udcff]"
)
_STAGES: Sequence[tuple[re.Pattern[str], Undo]] = (
    (re.compile(r"%(?:25)*([0-9A-Fa-f]{2})"), _character),
    (re.compile(r"&(?:amp;)*(#[0-9]{1,7};|#[xX][0-9A-Fa-f]{1,6};|(?:quot|apos|amp|lt|gt);)"), _entity),
    (
        re.compile(r"\\+(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([nrtfvb]))?"),
        _after_backslashes,
    ),
    *[(_BYTES, _joined)] * 3,
    (re.compile(r"[ \t\n\v\f\r+]{2,}|[\t\n\v\f\r+]"), lambda found: " "),
    (re.compile(r"'{2,}|\"{2,}"), lambda found: found[0][0]),
)
"""One after the other: what is escaped is often escaped again. Each makes two ways to write one thing the same."""


def _undone(text: str) -> str:
    for pattern, undo in _STAGES:
        text = pattern.sub(undo, text)
    return text


def _masked(text: str, wanted: Iterable[str]) -> str:
    """Mask what is wanted of a text, and is found where every way of escaping is undone."""
    undone, ends = _undone_with_ends(text)
    found = sorted(
        (ends[match.start() - 1] if match.start() else 0, ends[match.end() - 1])
        for secret in wanted
        for match in re.finditer(re.escape(secret), undone)
    )
    parts, at = [], 0
    for start, end in found:
        if start >= at:
            parts += [text[at:start], MASK]
        at = max(at, end)
    return "".join([*parts, text[at:]])


def _undone_with_ends(text: str) -> tuple[str, Sequence[int]]:
    """Return what :func:`_undone` does, and where in the text the writing of each character of it ends.

    It begins where that of the one before ends.
    """
    ends = list(range(1, len(text) + 1))
    for pattern, undo in _STAGES:
        parts: list[str] = []
        moved: list[int] = []
        at = 0
        for match in pattern.finditer(text):
            start, end = match.span()
            written = undo(match)
            parts += [text[at:start], written]
            moved += ends[at:start]
            moved += [ends[end - 1]] * len(written)
            at = end
        text, ends = "".join([*parts, text[at:]]), moved + ends[at:]
    return text, ends


__all__ = ["MASK", "SHORTEST_MASKED", "Spellings", "passwords_in"]
