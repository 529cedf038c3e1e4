"""Which addresses may be connected to: the rule itself, and that the address checked is the one dialled."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from orchestrator_core.http_client import EgressOptions, HttpClient, HttpConnectError, HttpOptions
from orchestrator_core.http_client.egress import EgressRefused, EgressRule
from tests.hostile_server import always, hostile, ok

Run = Callable[[Coroutine[Any, Any, None]], None]

PRIVATE = [
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "127.0.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%2",
    "fc00::1",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:10.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
]
PUBLIC = ["93.184.215.14", "2606:4700::1111", "::ffff:93.184.215.14", "64:ff9b::5db8:d70e", "2002:5db8:d70e::1"]
NO_PRIVATE = EgressOptions(allow_private=False)


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_on_the_internet_is_refused(address: str) -> None:
    with pytest.raises(EgressRefused) as caught:
        EgressRule(NO_PRIVATE).permitted("a.test", [address])
    assert str(caught.value) == f"a.test is at {address}, a private address, and egress.allow_private is false"
    assert EgressRule(EgressOptions()).permitted("a.test", [address]) == [address]


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_on_the_internet_is_permitted(address: str) -> None:
    assert EgressRule(NO_PRIVATE).permitted("a.test", [address]) == [address]


def test_of_several_addresses_those_that_are_permitted_are_left() -> None:
    rule = EgressRule(EgressOptions(allow_private=False, allow=("10.8.0.0/16", "fd00::/8")))
    addresses = ["10.9.0.1", "10.8.0.1", "93.184.215.14", "fd00::1", "::ffff:10.8.0.2", "169.254.169.254"]
    assert rule.permitted("a.test", addresses) == ["10.8.0.1", "93.184.215.14", "fd00::1", "::ffff:10.8.0.2"]


def test_a_network_that_is_none_is_refused_when_the_options_are_made() -> None:
    with pytest.raises(ValueError, match=r"^egress\.allow: '10\.8' does not appear to be an IPv4 or IPv6 network$"):
        EgressOptions(allow=("10.8",))


def test_rules_behind_a_proxy_are_refused_when_the_origin_opens(run: Run) -> None:
    async def scenario() -> None:
        options = HttpOptions(proxy="http://127.0.0.1:1", egress=NO_PRIVATE)
        async with HttpClient() as client:
            with pytest.raises(ValueError, match="cannot be held behind a proxy"):
                async with client.origin("http://a.test", options):
                    pass

    run(scenario())


def info(address: str, port: int) -> Any:
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))


def test_a_name_that_moves_inside_between_check_and_use_is_not_followed(run: Run) -> None:
    """DNS rebinding: each connection asks once, and dials no address but those it was told."""
    asked: list[str] = []

    async def scenario() -> None:
        async with hostile(always(ok())) as server:

            async def resolve(host: str, port: int) -> list[Any]:
                asked.append(host)
                return [info("127.0.0.1" if len(asked) > 1 else "192.0.2.1", server.port)]

            options = HttpOptions(egress=NO_PRIVATE, connect_timeout_seconds=0.05)
            async with HttpClient(resolve=resolve) as client, client.origin("http://a.test", options) as origin:
                for _ in range(3):
                    with pytest.raises(HttpConnectError) as caught:
                        await origin.request("GET", "/")
                    assert not caught.value.transient
            assert (asked, server.connections) == (["a.test"] * 3, 0)

    run(scenario())


def test_only_the_permitted_addresses_of_a_name_are_dialled(run: Run) -> None:
    async def scenario() -> None:
        forbidden: list[asyncio.StreamWriter] = []
        inside = await asyncio.start_server(lambda _, writer: forbidden.append(writer), "127.0.0.2", 0)
        async with inside, hostile(always(ok())) as server:

            async def resolve(_host: str, _port: int) -> list[Any]:
                return [info("127.0.0.2", inside.sockets[0].getsockname()[1]), info("127.0.0.1", server.port)]

            options = HttpOptions(egress=EgressOptions(allow_private=False, allow=("127.0.0.1/32",)))
            async with HttpClient(resolve=resolve) as client, client.origin("http://a.test", options) as origin:
                assert (await origin.request("GET", "/")).body == b"ok"
            assert (forbidden, server.connections) == ([], 1)

    run(scenario())
