"""Which addresses may be connected to, held against what a name resolved to: the address checked is the one dialled.

So neither a name that points inside nor one that changes between check and use (DNS rebinding) gets past it.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from orchestrator_core.http_client.options import EgressOptions

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address that is reached


class EgressRefused(OSError):
    """None of the addresses may be connected to."""


class EgressRule:
    """The rule of one origin."""

    def __init__(self, options: EgressOptions) -> None:
        self._allow_private = options.allow_private
        self._allowed = [ip_network(text) for text in options.allow]

    def permitted(self, host: str, addresses: Sequence[str]) -> list[str]:
        """Return the addresses that may be connected to; :class:`EgressRefused` when that leaves none."""
        if self._allow_private:
            return list(addresses)
        permitted = [address for address in addresses if self._permits(address)]
        if addresses and not permitted:
            raise EgressRefused(f"{host} is at {addresses[0]}, a private address, and egress.allow_private is false")
        return permitted

    def _permits(self, text: str) -> bool:
        address = _reached(ip_address(text))
        return is_public(address) or any(address in network for network in self._allowed)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether the address is one of the internet: not private, shared, loopback, link-local, multicast or reserved."""
    site_local = isinstance(address, IPv6Address) and address.is_site_local
    return address.is_global and not (address.is_multicast or address.is_reserved or site_local)


def _reached(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address stands for, if it stands for one."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
