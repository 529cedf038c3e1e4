"""How to speak to one origin. Users write these fields in YAML."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from attrs.validators import ge, gt


@frozen
class TlsOptions:
    """How the server proves who it is, and this client too where it must.

    ``ca_file`` (PEM) replaces the system's certificate authorities. ``cert_file`` and ``key_file`` (PEM) are the client
    certificate; the key may be in ``cert_file``. ``server_name`` is asked for and verified instead of the URL's host.
    ``verify: false`` accepts any certificate: whoever is in the way can read and change everything.
    """

    verify: bool = True
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None


@frozen
class HttpOptions:
    """How to speak to one origin.

    ``timeout_seconds`` bounds the whole call: waiting for a connection of the pool, connecting, sending, and the answer
    to its last byte. ``connect_timeout_seconds`` bounds name resolution, TCP, proxy and TLS together.
    ``max_connections`` counts connections to the origin; callers beyond it wait in line. ``keepalive_seconds`` is how
    long an unused connection is kept. ``max_response_bytes`` bounds the body both as sent and decompressed.
    ``proxy`` is ``http://user:password@host:port``; the environment's proxy variables are not read.
    ``headers`` are sent with every request. ``follow_redirects`` is how many redirects of one call are followed, to the
    same origin only; any other 3xx is returned as it is.
    """

    timeout_seconds: float = field(default=10.0, validator=gt(0))
    connect_timeout_seconds: float = field(default=2.0, validator=gt(0))
    max_connections: int = field(default=100, validator=ge(1))
    keepalive_seconds: float = field(default=15.0, validator=ge(0))
    max_response_bytes: int = field(default=10 * 2**20, validator=ge(0))
    tls: TlsOptions = TlsOptions()
    proxy: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    follow_redirects: int = field(default=0, validator=ge(0))
