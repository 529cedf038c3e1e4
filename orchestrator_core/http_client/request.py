"""What is sent: URLs, and request heads whose bytes are built once.

Nothing that could end a line or a word of the head gets in (CWE-93, RFC 9112 section 11.1).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from urllib.parse import unquote, urljoin, urlsplit

from attrs import field, frozen

_VISIBLE = re.compile(r"[!-~]*")
_TARGET = re.compile(r"(?:[/?][!-\"$-~]*)?")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")
_FRAMING = frozenset({"connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_LONGEST_SHOWN = 300
_PROOFS = re.compile(r"(?im)^[^:\r\n]*(?:auth|cookie|key|password|secret|token)[^:\r\n]*: ([^\r\n]+)")
_PROOFS_IN_QUERY = re.compile(r"(?i)[?&][^=&]*(?:auth|key|password|secret|token|signature)[^=&]*=([^&]+)")
_SHORTEST_PROOF = 6
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})


@frozen
class Url:
    """The parts of a base or proxy URL; ``credentials`` is the value of a Basic authorization.

    The path is not shown: some have a token in it.
    """

    secure: bool
    host: str
    port: int
    path: str = field(repr=False)
    credentials: str | None = field(repr=False)

    @property
    def authority(self) -> str:
        """``host:port`` as in a CONNECT, with brackets around an IPv6 address."""
        return f"{self._bracketed}:{self.port}"

    @property
    def origin(self) -> str:
        """``scheme://host:port``, without the scheme's default port."""
        default = 443 if self.secure else 80
        scheme = "https" if self.secure else "http"
        return f"{scheme}://{self._bracketed}" if self.port == default else f"{scheme}://{self.authority}"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_url(url: str, what: str = "base_url") -> Url:
    """Take an absolute http or https URL apart.

    Raises ``ValueError`` that names ``what`` and does not repeat the URL, which may hold a password.
    """
    if not _VISIBLE.fullmatch(url):
        raise ValueError(f"{what} has a space, a control character or a character outside ASCII: percent-encode it")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text can hold a part of a password, taken for a port
        raise ValueError(
            f"{what} is not a URL: its host or port cannot be read; percent-encode what is special in a password"
        ) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{what} must start with http://host or https://host")
    if "?" in url or "#" in url:
        raise ValueError(f"{what} must not have a query or a fragment")
    secure = parts.scheme == "https"
    credentials = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        credentials = "Basic " + base64.b64encode(pair.encode()).decode()
    default = 443 if secure else 80
    return Url(secure, parts.hostname, default if port is None else port, parts.path.rstrip("/"), credentials)


@frozen
class RequestForm:
    """What requests that differ only in target and body share: method, headers, and what follows from the method.

    ``end_without_body`` ends the head of a request that has no body. ``has_no_answer_body`` is true for HEAD.
    ``may_resend`` says that sending the request twice does no harm. ``names_trace`` says that its own fields name a
    trace, which then wins over the one that the call is part of.
    """

    url: Url
    method: str
    request_target: str
    fields: bytes = field(repr=False)
    end_without_body: bytes
    has_no_answer_body: bool
    may_resend: bool
    names_trace: bool = False

    def head(self, target: str) -> RequestHead:
        """The head for the base URL's path and ``target``; ``ValueError`` for what cannot be sent safely."""
        if not _TARGET.fullmatch(target):
            raise ValueError(
                f"target {target!r} must be empty or start with '/' or '?', without spaces, control characters, '#' or "
                "characters outside ASCII: percent-encode them"
            )
        return self._head_for(self.url.path + target)

    def redirected(self, path: str, location: str) -> RequestHead | None:
        """The head that follows a redirect, or ``None`` when it leads away from the origin or cannot be sent safely."""
        try:
            base, _, query = urljoin(self.url.origin + path, location).partition("#")[0].partition("?")
            url = parse_url(base, "location")
        except ValueError:
            return None
        if (url.secure, url.host, url.port) != (self.url.secure, self.url.host, self.url.port):
            return None
        if not _VISIBLE.fullmatch(query):
            return None
        return self._head_for(urlsplit(base).path + ("?" + query if query else ""))

    def _head_for(self, path: str) -> RequestHead:
        if not path.startswith("/"):
            path = "/" + path
        request_line = f"{self.method} {self.request_target}{path} HTTP/1.1\r\n"
        return RequestHead(self, path, request_line.encode() + self.fields)


@frozen
class RequestHead:
    """The head of one request, all but its Content-Length."""

    form: RequestForm
    path: str = field(repr=False)
    open_head: bytes = field(repr=False)

    def carrying(self, lines: bytes) -> RequestHead:
        """The same head with further header lines, each with its line end."""
        return RequestHead(self.form, self.path, self.open_head + lines)

    @property
    def call(self) -> str:
        """The request as errors name it: without credentials and without the query, which may hold a key."""
        bare, query, _ = self.path.partition("?")
        if len(bare) > _LONGEST_SHOWN:  # a caller chooses how long what stands in a path is
            bare = f"{bare[:_LONGEST_SHOWN]}…"
        return f"{self.form.method} {self.form.url.origin}{bare}{'?…' if query else ''}"

    def masked(self, words: str) -> str:
        """Return a peer's words without what this request proved itself with: some peers repeat it."""
        in_query = _PROOFS_IN_QUERY.findall(self.path)
        for value in (*_PROOFS.findall(self.open_head.decode("latin-1")), *in_query, *map(unquote, in_query)):
            for proof in (value, *value.split()):
                if len(proof) >= _SHORTEST_PROOF:
                    words = words.replace(proof, "***")
        return words


@frozen
class FormBuilder:
    """Builds the request forms of one origin; the fields that every request carries are checked and joined once."""

    url: Url
    absolute_form: bool
    default_fields: Mapping[str, tuple[str, str]] = field(repr=False)
    default_bytes: bytes = field(repr=False)

    @classmethod
    def for_origin(cls, url: Url, headers: Mapping[str, str], proxy: Url | None) -> FormBuilder:
        """A proxy is told the absolute form of a plain HTTP target, and the proxy's credentials, in every head."""
        through_proxy = proxy is not None and not url.secure
        default = {"Host": url.origin.partition("://")[2], "Accept-Encoding": "gzip, deflate"}
        if url.credentials:
            default["Authorization"] = url.credentials
        if proxy is not None and through_proxy and proxy.credentials:
            default["Proxy-Authorization"] = proxy.credentials
        fields = {name.lower(): (name, value) for name, value in default.items()} | _checked(headers)
        return cls(url, through_proxy, fields, _lines(fields))

    def build(self, method: str, headers: Mapping[str, str] | None, idempotent: bool | None) -> RequestForm:
        """Build the form of a request; ``ValueError`` for a method or header that cannot be sent safely."""
        if not _TOKEN.fullmatch(method) or method == "CONNECT":
            raise ValueError(f"{method!r} is not a method this client can send")
        fields = {**self.default_fields, **_checked(headers)} if headers else self.default_fields
        return RequestForm(
            url=self.url,
            method=method,
            request_target=self.url.origin if self.absolute_form else "",
            fields=_lines(fields) if headers else self.default_bytes,
            end_without_body=b"\r\n" if method in _WITHOUT_BODY else b"Content-Length: 0\r\n\r\n",
            has_no_answer_body=method == "HEAD",
            may_resend=method in _IDEMPOTENT if idempotent is None else idempotent,
            names_trace="traceparent" in fields,
        )


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise ``ValueError`` for a header that cannot be sent. The message names it and leaves its value out."""
    _checked(headers)


def _checked(headers: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The headers by lower-case name. Messages leave the value out: it may be a secret."""
    fields = {}
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not a header name")
        if name.lower() in _FRAMING:
            raise ValueError(f"header {name} is set by the client itself")
        if not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"the value of header {name} has a line break, a control character or one outside Latin-1")
        fields[name.lower()] = (name, value.strip())
    return fields


def _lines(fields: Mapping[str, tuple[str, str]]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in fields.values()).encode("latin-1")
