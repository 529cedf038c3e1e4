"""How to speak to one origin. Users write these fields in YAML."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from attrs import field, frozen
from attrs.validators import ge, gt


def _field(default: Any, *, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _are_networks(_: object, __: object, networks: tuple[str, ...]) -> None:
    for text in networks:
        try:
            ip_network(text)
        except ValueError as error:
            raise ValueError(f"egress.allow: {error}") from None


@frozen
class TlsOptions:
    """How the server proves who it is, and this client too where it must.

    ``ca_file`` (PEM) replaces the system's certificate authorities. ``cert_file`` and ``key_file`` (PEM) are the client
    certificate; the key may be in ``cert_file``, and ``key_password`` opens one that is encrypted. ``server_name`` is
    asked for and verified instead of the URL's host. ``verify: false`` accepts any certificate: whoever is in the way
    can read and change everything.
    """

    verify: bool = _field(
        True, help="`false` accepts any certificate: whoever is in the way can read and change everything."
    )
    ca_file: str | None = _field(
        None, help="PEM file of certificate authorities, which replaces the system's authorities."
    )
    cert_file: str | None = _field(None, help="PEM file with the client certificate that is shown to the server.")
    key_file: str | None = _field(None, help="PEM file with the client certificate's key, if not in `cert_file`.")
    key_password: str | None = field(
        default=None, repr=False, metadata={"help": "What opens the key, where it is encrypted."}
    )
    server_name: str | None = _field(
        None, help="The name that is asked for and must be in the certificate. Default: the URL's host."
    )


@frozen
class EgressOptions:
    """Which addresses may be connected to.

    ``allow_private: false`` forbids every address that is not one of the internet: private, shared, loopback,
    link-local, multicast and reserved ones. ``allow`` are networks that are permitted although they are private.
    The address that a name resolved to is checked, and that very address is connected to.
    """

    allow_private: bool = _field(
        True,
        help="`false` forbids addresses that are not on the internet: private, loopback, link-local and the like. "
        "The resolved address is checked, and that one is connected to.",
    )
    allow: tuple[str, ...] = field(
        default=(),
        validator=_are_networks,
        metadata={"help": "Networks that stay allowed under `allow_private: false`, such as `10.8.0.0/16`."},
    )


@frozen
class HttpOptions:
    """How to speak to one origin.

    ``timeout_seconds`` bounds the whole call: waiting for a connection of the pool, connecting, sending, and the answer
    to its last byte. ``connect_timeout_seconds`` bounds name resolution, TCP, proxy and TLS together.
    ``max_connections`` counts connections to the origin; callers beyond it wait in line. ``keepalive_seconds`` is how
    long an unused connection is kept. ``max_response_bytes`` bounds the body both as sent and decompressed.
    ``proxy`` is ``http://user:password@host:port``; the environment's proxy variables are not read.
    ``headers`` are sent with every request. ``follow_redirects`` is how many redirects of one call are followed, to the
    same origin only; any other 3xx is returned as it is. ``egress`` says which addresses may be connected to; behind a
    proxy, which resolves names itself, nothing can be forbidden.
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
    egress: EgressOptions = EgressOptions()
