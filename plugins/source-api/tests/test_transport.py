"""TLS, proxy, redirects and the rules on addresses."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from api_kit import Seen, echo, ok, opened, partner
from attrs import frozen
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from orchestrator_source_api.plugin import API

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_core.testing import open_source

Run = Callable[..., Any]


# --- TLS -------------------------------------------------------------------------------------------------------------


@frozen
class Certificates:
    server: ssl.SSLContext
    mutual: ssl.SSLContext
    folder: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    contexts = [ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2)]
    for context in contexts:
        authority.issue_cert("127.0.0.1", "partner.test").configure_cert(context)
    authority.configure_trust(contexts[1])
    contexts[1].verify_mode = ssl.CERT_REQUIRED
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("us@example.test").private_key_and_cert_chain_pem.write_to_path(str(folder / "us.pem"))
    return Certificates(contexts[0], contexts[1], folder)


def test_a_certificate_is_verified_with_a_file_beside_the_configuration(certificates: Certificates, run: Run) -> None:
    async def main() -> None:
        async with partner(tls=certificates.server) as api:
            for tls in ({"ca_file": "ca.pem"}, {"ca_file": "ca.pem", "server_name": "partner.test"}, {"verify": False}):
                async with opened(api.url, tls=tls, folder=certificates.folder) as source:
                    assert (await source.fetch("get", {"id": 1}))["target"] == "/things/1"

    run(main())


def test_a_certificate_that_does_not_verify_fails_the_call(certificates: Certificates, run: Run) -> None:
    async def main() -> None:
        async with partner(tls=certificates.server) as api:
            for tls in ({}, {"ca_file": "ca.pem", "server_name": "other.test"}):
                async with opened(api.url, tls=tls, folder=certificates.folder) as source:
                    with pytest.raises(SourceError, match="certificate verify failed") as caught:
                        await source.fetch("get", {"id": 1})
                    assert not caught.value.transient
            assert api.seen == []

    run(main())


def test_a_client_certificate_is_shown(certificates: Certificates, run: Run) -> None:
    async def main() -> None:
        async with partner(tls=certificates.mutual) as api:
            tls = {"ca_file": "ca.pem", "cert_file": "us.pem"}
            async with opened(api.url, tls=tls, folder=certificates.folder) as source:
                await source.fetch("get", {"id": 1})

    run(main())


def test_a_key_that_is_encrypted_needs_its_password_and_asks_nobody(certificates: Certificates, run: Run) -> None:
    folder = certificates.folder
    key = load_pem_private_key((folder / "us.pem").read_bytes(), None)
    sealed = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"s&cret"))
    (folder / "us.key").write_bytes(sealed)
    tls = {"ca_file": "ca.pem", "cert_file": "us.pem", "key_file": "us.key"}

    async def main() -> None:
        async with partner(tls=certificates.mutual) as api:
            async with opened(api.url, tls={**tls, "key_password": "s&cret"}, folder=folder) as source:
                await source.fetch("get", {"id": 1})
            with pytest.raises(
                ValueError, match=r"us\.key cannot be used: the key is encrypted; give tls\.key_password$"
            ):
                async with opened(api.url, tls=tls, folder=folder):
                    pass
            with pytest.raises(ValueError, match=r"tls\.cert_file .*us\.pem .* cannot be used: ") as caught:
                async with opened(api.url, tls={**tls, "key_password": "wr&ng"}, folder=folder):
                    pass
            assert "wr&ng" not in str(caught.value)

    run(main())


def test_a_token_server_has_the_certificates_of_the_source_or_its_own(certificates: Certificates, run: Run) -> None:
    async def main() -> None:
        token = ok({"access_token": "t"})
        async with partner(token, tls=certificates.mutual) as tokens, partner() as plain:
            oauth2 = {"token_url": tokens.url, "client_id": "c", "client_secret": "s"}
            tls = {"ca_file": "ca.pem", "cert_file": "us.pem"}
            inherited = {"auth": {"oauth2": oauth2}, "tls": {**tls, "server_name": "not.theirs"}}
            own = {"auth": {"oauth2": {**oauth2, "tls": tls}}}
            for options in (inherited, own):
                async with opened(plain.url, folder=certificates.folder, **options) as source:
                    seen = await source.fetch("get", {"id": 1})
                    assert seen["headers"]["authorization"] == "Bearer t"

    run(main())


def test_a_certificate_file_that_is_not_there_is_found_when_the_source_opens(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=r"tls\.ca_file .*/no\.pem cannot be used"):
            async with opened("https://127.0.0.1:1", tls={"ca_file": "no.pem"}, folder=tmp_path):
                pass

    run(main())


# --- proxy -----------------------------------------------------------------------------------------------------------


def test_a_proxy_is_told_the_whole_url(run: Run) -> None:
    async def main() -> None:
        async with partner() as proxy:
            with_user = proxy.url.replace("http://", "http://ada:pw@")
            async with opened("http://api.example.test/v1", proxy=with_user) as source:
                await source.fetch("get", {"id": "a/b"})
            assert proxy.last.target == "http://api.example.test/v1/things/a%2Fb"
            assert proxy.last.headers["proxy-authorization"] == "Basic YWRhOnB3"

    run(main())


# --- redirects -------------------------------------------------------------------------------------------------------


def redirecting(location: str, status: int = 302) -> Callable[[Seen], bytes]:
    def answer(seen: Seen) -> bytes:
        return ok({}, f"Location: {location}", status=status) if seen.target.startswith("/things") else echo(seen)

    return answer


def test_redirects_are_off_unless_allowed(run: Run) -> None:
    async def main() -> None:
        async with partner(redirecting("/moved")) as api:
            async with opened(api.url) as source:
                with pytest.raises(SourceError) as caught:
                    await source.fetch("get", {"id": 1})
            assert str(caught.value) == (f"get: GET {api.url}/things/1: answered 302, a redirect that is not followed")
            async with opened(api.url, follow_redirects=1) as source:
                assert (await source.fetch("get", {"id": 1}))["target"] == "/moved"

    run(main())


def test_a_redirect_to_another_origin_is_never_followed_and_gets_no_credentials(run: Run) -> None:
    async def main() -> None:
        async with partner() as other:
            port = other.url.rpartition(":")[2]
            same_host = (f"//127.0.0.1:{port}/x", f"http://localhost:{port}/x")
            options: dict[str, Any] = {"follow_redirects": 5, "auth": {"bearer": "secret"}}
            for location in (f"{other.url}/x", *same_host, "file:///etc/passwd"):
                async with partner(redirecting(location)) as api, opened(api.url, **options) as source:
                    with pytest.raises(SourceError, match="answered 302, a redirect that is not followed"):
                        await source.fetch("get", {"id": 1})
            assert other.seen == []

    run(main())


def test_redirects_end(run: Run) -> None:
    async def main() -> None:
        async with partner(lambda _: ok({}, "Location: /again", status=302)) as api:
            async with opened(api.url, follow_redirects=3) as source:
                with pytest.raises(SourceError, match="answered 302"):
                    await source.fetch("get", {"id": 1})
            assert len(api.seen) == 4

    run(main())


# --- egress ----------------------------------------------------------------------------------------------------------


def test_private_addresses_can_be_forbidden_by_name_or_number(run: Run) -> None:
    async def main() -> None:
        async with partner() as api:
            port = api.url.rpartition(":")[2]
            for host in ("127.0.0.1", "localhost", "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
                async with opened(f"http://{host}:{port}", egress={"allow_private": False}) as source:
                    with pytest.raises(SourceError) as caught:
                        await source.fetch("get", {"id": 1})
                    assert "a private address, and egress.allow_private is false" in str(caught.value)
                    assert not caught.value.transient
            assert api.connections == 0

    run(main())


def test_a_network_can_stay_allowed(run: Run) -> None:
    async def main() -> None:
        async with partner() as api:
            egress = {"allow_private": False, "allow": ["127.0.0.0/8"]}
            async with opened(api.url, egress=egress) as source:
                assert (await source.fetch("get", {"id": 1}))["target"] == "/things/1"

    run(main())


def test_the_rules_hold_for_the_token_server_too(run: Run) -> None:
    async def main() -> None:
        async with partner() as tokens:
            oauth2 = {"token_url": tokens.url, "client_id": "c", "client_secret": "s"}
            options = {"auth": {"oauth2": oauth2}, "egress": {"allow_private": False}}
            async with opened("http://api.example.test", **options) as source:
                with pytest.raises(SourceError, match=rf"^get: POST {tokens.url}/: cannot connect: .* private address"):
                    await source.fetch("get", {"id": 1})
            assert tokens.connections == 0

    run(main())


# --- a pool of its own -----------------------------------------------------------------------------------------------


async def _hang(_: Seen) -> bytes:
    await asyncio.sleep(60)
    return b""


def test_a_check_of_a_source_with_all_connections_in_use_says_so_at_once(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        async with partner(_hang) as api:
            options = {"base_url": api.url, "max_connections": 1, "health": "/up"}
            async with open_source(API, options, {"get": {"path": "/a"}}, folder=tmp_path) as source:
                calls = [asyncio.create_task(source.fetch("get", {})) for _ in range(2)]
                while not source._origin.stats.waiting:  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(0.01)
                with pytest.raises(SourceUnavailable, match=r"^all connections are in use$") as caught:
                    await source.check_ready()
                assert caught.value.busy
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)

    run(main())


def test_each_source_has_connections_of_its_own(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        async with partner() as api:
            operations = {"get": {"path": "/a"}}
            options = {"base_url": api.url, "max_connections": 1}
            async with (
                open_source(API, options, operations, folder=tmp_path) as one,
                open_source(API, options, operations, folder=tmp_path) as other,
            ):
                await one.fetch("get", {})
                await other.fetch("get", {})
                assert api.connections == 2

    run(main())
