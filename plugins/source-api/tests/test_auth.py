"""Basic, bearer and OAuth 2.0 client credentials, with a token server of the tests' own."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, parse_qsl

import pytest
from api_kit import Partner, Seen, ok, opened, partner
from attrs import define, field
from orchestrator_source_api.options import ApiOptions, AuthOptions, BasicOptions
from orchestrator_source_api.source import ApiSource

from orchestrator_core.plugin_api import SourceError
from orchestrator_core.testing import leaves_nothing

Run = Callable[..., Any]
OPERATIONS = {
    "get": {"path": "/things/{id}"},
    "post": {"path": "/things", "method": "POST", "headers": {"X-Tenant": "$params.tenant ?? 'none'"}},
}


@define
class Issuer:
    """A token server and the API that knows its tokens. ``valid`` are the tokens that the API takes."""

    expires_in: Any = 3600
    delay: float = 0.0
    refusal: bytes | None = None
    issued: int = 0
    valid: set[str] = field(factory=set)
    tokens: Partner = field(default=None)
    api: Partner = field(default=None)

    async def issue(self, _: Seen) -> bytes:
        await asyncio.sleep(self.delay)
        if self.refusal is not None:
            return self.refusal
        self.issued += 1
        token = f"token-{self.issued}"
        self.valid.add(token)
        said = {"access_token": token, "token_type": "Bearer"}
        return ok(said if self.expires_in is None else {**said, "expires_in": self.expires_in})

    def serve(self, seen: Seen) -> bytes:
        token = seen.headers.get("authorization", "").removeprefix("Bearer ")
        return ok({"token": token, "n": len(self.api.seen)}) if token in self.valid else ok({}, status=401)

    def used(self) -> list[str]:
        return [seen.headers["authorization"] for seen in self.api.seen]


@asynccontextmanager
async def issuing(auth: dict[str, Any] | None = None, **how: Any) -> AsyncIterator[tuple[Issuer, ApiSource]]:
    issuer = Issuer(**how)
    async with partner(issuer.issue) as tokens, partner(issuer.serve) as api:
        issuer.tokens, issuer.api = tokens, api
        oauth2 = {
            "token_url": f"{tokens.url}/oauth/token?tenant=t",
            "client_id": "the client",
            "client_secret": "s&cret",
            **(auth or {}),
        }
        async with opened(api.url, OPERATIONS, auth={"oauth2": oauth2}) as source:
            yield issuer, source


# --- fixed credentials -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "sent"),
    [
        ({"bearer": "t-1"}, "Bearer t-1"),
        (
            {"basic": {"username": "ada", "password": "pä:ss"}},
            "Basic " + base64.b64encode("ada:pä:ss".encode()).decode(),
        ),
    ],
)
def test_fixed_credentials_are_sent_with_every_request(auth: Any, sent: str, run: Run) -> None:
    async def main() -> None:
        async with partner() as api, opened(api.url, OPERATIONS, auth=auth, health="/health") as source:
            await source.fetch("get", {"id": 1})
            await source.fetch("post", {})
            await source.check_ready()
            assert [seen.headers["authorization"] for seen in api.seen] == [sent] * 3

    run(main())


# --- the token request -----------------------------------------------------------------------------------------------


def test_the_token_is_asked_for_as_the_rfc_says_and_used_for_all_calls(run: Run) -> None:
    async def main() -> None:
        async with issuing({"scope": "read write", "params": {"audience": "https://api"}}) as (issuer, source):
            for n in range(3):
                assert await source.fetch("get", {"id": n}) == {"token": "token-1", "n": n + 1}
            assert (await source.fetch("post", {"tenant": "t"}))["token"] == "token-1"
            assert issuer.api.last.headers["x-tenant"] == "t"
            (asked,) = issuer.tokens.seen
            assert (asked.method, asked.target) == ("POST", "/oauth/token?tenant=t")
            assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
            # RFC 6749, section 2.3.1: form-encoded, then Basic
            assert base64.b64decode(asked.headers["authorization"].removeprefix("Basic ")) == b"the+client:s%26cret"
            assert parse_qs(asked.body.decode()) == {
                "grant_type": ["client_credentials"],
                "scope": ["read write"],
                "audience": ["https://api"],
            }

    run(main())


def test_the_client_can_prove_itself_in_the_body(run: Run) -> None:
    async def main() -> None:
        async with issuing({"client_auth": "body"}) as (issuer, source):
            await source.fetch("get", {"id": 1})
            (asked,) = issuer.tokens.seen
            assert "authorization" not in asked.headers
            assert parse_qs(asked.body.decode()) == {
                "grant_type": ["client_credentials"],
                "client_id": ["the client"],
                "client_secret": ["s&cret"],
            }

    run(main())


# --- one token for all -----------------------------------------------------------------------------------------------


def test_a_hundred_calls_at_once_ask_for_one_token(run: Run) -> None:
    async def main() -> None:
        async with issuing(delay=0.02) as (issuer, source):
            await asyncio.gather(*(source.fetch("get", {"id": n}) for n in range(100)))
            assert (issuer.issued, set(issuer.used())) == (1, {"Bearer token-1"})

    run(main())


def test_who_gives_up_waiting_does_not_take_the_token_from_the_others(run: Run) -> None:
    async def main() -> None:
        async with issuing(delay=0.05) as (issuer, source):
            calls = [asyncio.ensure_future(source.fetch("get", {"id": n})) for n in range(3)]
            await asyncio.sleep(0.01)
            calls[0].cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError)
            assert [result["token"] for result in results[1:] if isinstance(result, dict)] == ["token-1"] * 2
            assert issuer.issued == 1

    run(main())


def test_a_token_that_no_call_waits_for_any_more_is_given_up(run: Run) -> None:
    """Half a second after the last call, so that one that comes meanwhile waits for the same."""

    async def main() -> None:
        async with issuing({"timeout": "30s"}, delay=60) as (issuer, source):
            for _ in range(2):
                tasks = asyncio.all_tasks()
                for _ in range(2):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.1):
                            await source.fetch("get", {"id": 1})
                assert issuer.tokens.open == 1
                async with asyncio.timeout(1):
                    while issuer.tokens.open or asyncio.all_tasks() - tasks:  # noqa: ASYNC110  # nobody tells of it
                        await asyncio.sleep(0.01)
            assert len(issuer.tokens.seen) == 2

    run(main())


def test_a_token_that_has_expired_is_not_used(run: Run) -> None:
    async def main() -> None:
        async with issuing(expires_in=0.05) as (issuer, source):
            await source.fetch("get", {"id": 1})
            await asyncio.sleep(0.06)
            await source.fetch("get", {"id": 2})
            assert issuer.used() == ["Bearer token-1", "Bearer token-2"]

    run(main())


def test_a_token_is_renewed_before_it_expires_and_nobody_waits_for_it(run: Run) -> None:
    async def main() -> None:
        async with issuing(expires_in=0.5) as (issuer, source):
            await source.fetch("get", {"id": 1})
            await asyncio.sleep(0.42)
            issuer.delay = 0.03
            assert (await source.fetch("get", {"id": 2}))["token"] == "token-1"
            async with asyncio.timeout(5):
                while (await source.fetch("get", {"id": 3}))["token"] == "token-1":
                    pass
            assert issuer.issued == 2
            assert set(issuer.used()) == {"Bearer token-1", "Bearer token-2"}

    run(main())


def test_a_renewal_that_fails_leaves_the_token_in_use_until_it_expires(run: Run) -> None:
    async def main() -> None:
        async with issuing(expires_in=0.5) as (issuer, source):
            await source.fetch("get", {"id": 1})
            issuer.refusal = ok({}, status=500)
            await asyncio.sleep(0.42)
            for n in range(5):
                assert (await source.fetch("get", {"id": n}))["token"] == "token-1"
                await asyncio.sleep(0.005)
            assert len(issuer.tokens.seen) == 2
            await asyncio.sleep(0.1)
            with pytest.raises(SourceError, match="no token: answered 500"):
                await source.fetch("get", {"id": 1})

    run(main())


@pytest.mark.parametrize("expires_in", [None, "3600", "soon"])
def test_a_server_that_does_not_say_how_long_is_believed(expires_in: Any, run: Run) -> None:
    async def main() -> None:
        async with issuing(expires_in=expires_in) as (issuer, source):
            await source.fetch("get", {"id": 1})
            await source.fetch("get", {"id": 2})
            assert issuer.issued == 1

    run(main())


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_token_that_the_api_refuses_is_renewed_once_and_the_call_sent_again(run: Run) -> None:
    async def main() -> None:
        async with issuing() as (issuer, source):
            await source.fetch("get", {"id": 1})
            issuer.valid.clear()
            results = await asyncio.gather(*(source.fetch("get", {"id": n}) for n in range(20)))
            assert ({result["token"] for result in results}, issuer.issued) == ({"token-2"}, 2)

    run(main())


def test_an_api_that_refuses_the_new_token_too_fails_the_call(run: Run) -> None:
    async def main() -> None:
        async with issuing() as (issuer, source):
            issuer.api.answer = lambda _: ok({}, status=401)
            with pytest.raises(SourceError) as caught:
                await source.fetch("get", {"id": 1})
            assert str(caught.value) == f"get: GET {issuer.api.url}/things/1: answered 401"
            assert (caught.value.transient, len(issuer.api.seen), issuer.issued) == (False, 2, 2)

    run(main())


def test_an_api_that_refuses_every_token_does_not_cost_a_token_for_each_call(run: Run) -> None:
    async def main() -> None:
        async with issuing() as (issuer, source):
            issuer.api.answer = lambda _: ok({}, status=401)
            for number in range(30):
                with pytest.raises(SourceError, match=r"answered 401$"):
                    await source.fetch("get", {"id": number})
            assert issuer.issued <= 3
            assert len(issuer.api.seen) == 30 + issuer.issued - 1
            issuer.api.answer = issuer.serve
            issuer.valid.clear()
            await asyncio.sleep(1.05)
            assert (await source.fetch("get", {"id": 1}))["token"] == f"token-{issuer.issued}"

    run(main())


@pytest.mark.parametrize(
    ("answer", "message", "transient"),
    [
        (
            ok({"error": "invalid_client", "error_description": "s&cret"}, status=401),
            "answered 401: invalid_client",
            False,
        ),
        (ok({"error": "<script>"}, status=400), "answered 400", False),
        (ok(b"busy", status=503), "answered 503", True),
        (ok({}, "Location: http://evil.example/", status=307), "answered 307", False),
        (ok(b"<html>"), "the answer has no access_token", False),
        (ok({"access_token": 1}), "the answer has no access_token", False),
        (ok({"access_token": "a\r\nb: c"}), "the answer has no access_token", False),
        (ok({"access_token": "t", "token_type": "mac"}), "its token_type is not Bearer", False),
    ],
)
def test_without_a_token_the_call_fails_and_is_not_sent(answer: bytes, message: str, transient: bool, run: Run) -> None:
    async def main() -> None:
        async with issuing(refusal=answer) as (issuer, source):
            calls = await asyncio.gather(*(source.fetch("get", {"id": 1}) for _ in range(3)), return_exceptions=True)
            for error in calls:
                assert isinstance(error, SourceError)
                assert str(error) == f"get: POST {issuer.tokens.url}/oauth/token: no token: {message}"
                assert error.transient == transient
            assert (issuer.api.seen, len(issuer.tokens.seen)) == ([], 1)

    run(main())


def test_a_token_server_that_hangs_or_is_down_fails_the_call(run: Run) -> None:
    async def main() -> None:
        async with issuing({"timeout": "50ms"}, delay=60) as (issuer, source):
            with pytest.raises(SourceError) as caught:
                await source.fetch("get", {"id": 1})
            url = issuer.tokens.url
            assert str(caught.value) == f"get: POST {url}/oauth/token?…: no complete answer came within 0.05 s"
            assert caught.value.status == 504
        async with issuing({"token_url": f"{url}/token"}) as (issuer, source):
            with pytest.raises(SourceError, match=rf"^get: POST {url}/token: cannot connect: "):
                await source.fetch("get", {"id": 1})

    run(main())


def test_closing_while_a_token_is_fetched_leaves_nothing(run: Run) -> None:
    async def hang(_: Seen) -> bytes:
        await asyncio.sleep(60)
        return b""

    async def main() -> None:
        async with partner(hang) as tokens:
            oauth2 = {"token_url": tokens.url, "client_id": "c", "client_secret": "s"}
            async with leaves_nothing("closing while a token is fetched"):
                async with opened("http://127.0.0.1:1", OPERATIONS, auth={"oauth2": oauth2}) as source:
                    calls = [asyncio.ensure_future(source.fetch("get", {"id": n})) for n in range(3)]
                    async with asyncio.timeout(5):
                        while not tokens.seen:  # noqa: ASYNC110  # the server sets no event
                            await asyncio.sleep(0.01)
                for result in await asyncio.gather(*calls, return_exceptions=True):
                    assert isinstance(result, SourceError)
                    assert str(result) == f"get: POST {tokens.url}/: the source is closed"

    run(main())


def test_the_health_check_needs_the_token_too(run: Run) -> None:
    async def main() -> None:
        async with partner(ok({"access_token": "t", "token_type": "bearer"})) as tokens, partner(ok(b"")) as api:
            oauth2 = {"token_url": tokens.url, "client_id": "c", "client_secret": "s"}
            async with opened(api.url, {}, auth={"oauth2": oauth2}, health="/up") as source:
                await source.check_ready()
                assert api.last.headers["authorization"] == "Bearer t"

    run(main())


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"X-Api-Key": "k-0123456789"}},
        {"auth": {"bearer": "k-0123456789"}},
        {"auth": {"basic": {"username": "ada", "password": "k-0123456789"}}},
        {"headers": {"Cookie": "session=k-0123456789"}},
        {"query": {"api_key": "k-0123456789"}},
        {"query": {"access_token": "k 012/3456"}},
    ],
)
def test_a_reason_that_repeats_what_the_request_proved_itself_with_is_masked(options: dict[str, Any], run: Run) -> None:
    def repeat(seen: Seen) -> bytes:
        sent = [seen.headers.get(name, "") for name in ("x-api-key", "authorization", "cookie")]
        sent += [value for name, value in parse_qsl(seen.target.partition("?")[2]) if name != "id"]
        return ok({"detail": f"no access with {' '.join(filter(None, sent))}!"}, status=400)

    async def main() -> None:
        async with partner(repeat) as api, opened(api.url, **options) as source:
            with pytest.raises(SourceError, match=r"answered 400: no access with (Bearer |Basic )?\*\*\*!$"):
                await source.fetch("get", {"id": 1})

    run(main())


def test_credentials_that_are_written_out_are_not_shown() -> None:
    basic = BasicOptions(username="ada", password="written-out")
    assert repr(basic) == "BasicOptions(username='ada', password='***')"
    assert "written-out" not in repr(ApiOptions(base_url="http://a.test", auth=AuthOptions(bearer="written-out")))
