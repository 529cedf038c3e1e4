"""What comes of an answer: the result, or an error that names the operation."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from api_kit import Answer, Partner, Seen, ok, opened, partner

from orchestrator_core.plugin_api import EntityNotFound, OrchestratorError, SourceError, SourceUnavailable
from orchestrator_core.testing import leaves_nothing
from orchestrator_core.testing import run as run_now

Run = Callable[..., Any]


def result(answer: Answer | bytes, **operation: Any) -> Any:
    """Return what the step gets for an answer."""

    async def main() -> Any:
        operations = {"get": {"path": "/things/{id}", **operation}}
        async with partner(answer) as api, opened(api.url, operations) as source:
            return await source.fetch("get", {"id": "7"})

    return run_now(main())


def failure(answer: Answer | bytes, *, options: dict[str, Any] | None = None, **operation: Any) -> OrchestratorError:
    """Return the error that an answer becomes, with the server's address as ``URL``; nothing may be left open."""

    async def main() -> OrchestratorError:
        operations = {"get": {"path": "/things/{id}", **operation}}
        async with partner(answer) as api:
            async with leaves_nothing("a call that fails"):
                async with opened(api.url, operations, **(options or {})) as source:
                    with pytest.raises(OrchestratorError) as caught:
                        await source.fetch("get", {"id": "7"})
                async with asyncio.timeout(5):
                    while api.open:  # noqa: ASYNC110  # what is waited for is the peer's doing, which sets no event
                        await asyncio.sleep(0.01)
            caught.value.args = (str(caught.value).replace(api.url, "URL"),)
            return caught.value

    error: OrchestratorError = run_now(main())
    return error


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"score": 720}, [1, 2.5], "text", 7, True, None, {}])
def test_the_result_is_the_body_of_the_answer(value: Any) -> None:
    assert result(ok(value)) == value


def test_the_result_is_where_the_expression_says() -> None:
    answer = ok({"data": {"score": 720}, "odd key": [1, 2]})
    assert result(answer, result="$response.body.data") == {"score": 720}
    assert result(answer, result="$response.body['odd key'][-1]") == 2
    assert result(answer, result="$response.body.grade ?? 'none'") == "none"


def test_status_and_headers_can_be_part_of_the_result() -> None:
    answer = ok({"score": 720}, "X-Total: 12", "Link: a", "Link: b", status=203)
    shape = {
        "score": "$response.body.score",
        "status": "$response.status",
        "total": "$response.headers['x-total']",
        "link": "$response.headers.link",
        "kind": "new",
    }
    assert result(answer, result=shape) == {"score": 720, "status": 203, "total": "12", "link": "a, b", "kind": "new"}


def test_a_body_that_no_part_of_the_result_needs_is_not_read() -> None:
    assert result(ok(b"<html>"), result={"status": "$response.status"}) == {"status": 200}


def test_the_whole_response_can_be_the_result() -> None:
    whole = result(ok({"a": 1}), result="$response")
    assert whole == {
        "status": 200,
        "headers": {"content-type": "application/json", "content-length": "7"},
        "body": {"a": 1},
    }


@pytest.mark.parametrize("status", [200, 204])
def test_an_empty_answer_is_null(status: int) -> None:
    length = "" if status == 204 else "Content-Length: 0\r\n"
    assert result(f"HTTP/1.1 {status} X\r\n{length}\r\n".encode()) is None


def test_a_head_request_has_headers_and_no_body() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Total: 3\r\nContent-Length: 100\r\n\r\n"
    assert result(answer, method="HEAD", result="$response.headers['x-total']") == "3"


def test_a_compressed_answer_is_read() -> None:
    assert result(ok(gzip.compress(b'{"a":1}'), "Content-Encoding: gzip")) == {"a": 1}


def test_a_byte_order_mark_before_the_json_is_ignored() -> None:
    assert result(ok(b'\xef\xbb\xbf{"a":1}')) == {"a": 1}
    assert result(ok(b"\xef\xbb\xbf")) is None


def test_the_content_type_of_json_does_not_matter() -> None:
    assert result(ok({"a": 1}, content_type="text/plain")) == {"a": 1}


# --- statuses --------------------------------------------------------------------------------------------------------


def test_an_expected_status_is_a_result_and_any_other_is_not() -> None:
    shape = "$response.status == 404 ? null : $response.body"
    assert result(ok({"a": 1}, status=404), expected_status=[200, 404], result=shape) is None
    assert result(ok({"a": 1}, status=409), expected_status=[409]) == {"a": 1}
    error = failure(ok({"a": 1}, status=201), expected_status=[200])
    assert (type(error), str(error)) == (SourceError, "get: GET URL/things/7: answered 201")


def test_a_404_is_a_missing_entity_unless_the_operation_says_otherwise() -> None:
    missing = ok({"detail": "no such thing"}, status=404)
    error = failure(missing)
    assert (type(error), str(error)) == (EntityNotFound, "get: nothing found for id='7'")
    assert result(missing, on_missing="allow") is None
    error = failure(missing, on_missing="fail")
    assert (type(error), str(error)) == (SourceError, "get: GET URL/things/7: answered 404: no such thing")


def test_a_missing_entity_without_a_path_parameter_names_the_others(run: Run) -> None:
    async def main() -> None:
        search = {"path": "/find", "method": "POST"}
        async with partner(ok({}, status=404)) as api, opened(api.url, {"find": search}) as source:
            with pytest.raises(EntityNotFound, match=r"^find: nothing found for n=2, name='Ada'$"):
                await source.fetch("find", {"name": "Ada", "n": 2, "filter": {"x": 1}})
            with pytest.raises(EntityNotFound, match=r"^find: nothing found$"):
                await source.fetch("find", {})

    run(main())


@pytest.mark.parametrize(
    ("answer", "message", "transient"),
    [
        (ok({"detail": "secret host"}, status=500), "answered 500", True),
        (ok(b"oops", status=502, content_type="text/html"), "answered 502", True),
        (ok({}, status=503), "answered 503", True),
        (ok({}, status=429), "answered 429", True),
        (ok({}, "Retry-After: soon", status=429), "answered 429", True),
        (ok({"detail": "id is not a number"}, status=400), "answered 400: id is not a number", False),
        (ok({"error": {"message": "too old"}}, status=422), "answered 422: too old", False),
        (ok({"errors": []}, status=422), "answered 422", False),
        (ok(b"no\r\nway", status=409, content_type="text/plain"), "answered 409: no", False),
        (ok(b"<html>", status=400, content_type="text/html"), "answered 400", False),
        (ok({"error": "key sk-123 is not valid"}, status=401), "answered 401", False),
        (ok({"error": "key sk-123 is not valid"}, status=403), "answered 403", False),
        (ok({"detail": "x" * 300}, status=400), f"answered 400: {'x' * 200}", False),
        (ok({}, "Location: http://evil.example/", status=302), "answered 302, a redirect that is not followed", False),
    ],
)
def test_another_status_is_a_source_error_that_names_operation_and_call(
    answer: bytes, message: str, transient: bool
) -> None:
    error = failure(answer)
    assert isinstance(error, SourceError)
    assert (str(error), error.status, error.transient) == (f"get: GET URL/things/7: {message}", 502, transient)


@pytest.mark.parametrize("status", [429, 503])
def test_an_api_that_asks_to_wait_is_unavailable_for_as_long(status: int) -> None:
    error = failure(ok({}, "Retry-After: 7", status=status))
    assert isinstance(error, SourceUnavailable)
    assert (str(error), error.status) == (f"get: GET URL/things/7: answered {status} and asks to wait 7 s", 503)
    assert (error.retry_after_seconds, error.transient, error.busy) == (7, True, True)


@pytest.mark.parametrize("date", ["Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 +99999999999999"])
def test_a_date_that_no_calendar_has_is_no_time_to_wait(date: str) -> None:
    error = failure(ok({}, f"Retry-After: {date}", status=503))
    assert (type(error), str(error)) == (SourceError, "get: GET URL/things/7: answered 503")


@pytest.mark.parametrize(("said", "least", "most"), [("0", 1, 1), ("99999999999", 3600, 3600), ("7 \t", 7, 7)])
def test_the_time_to_wait_is_bounded(said: str, least: float, most: float) -> None:
    error = failure(ok({}, f"Retry-After: {said}", status=503))
    assert least <= (error.retry_after_seconds or 0) <= most


def test_the_time_to_wait_can_be_a_date() -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    error = failure(ok({}, f"Retry-After: {in_a_minute}", status=503))
    assert 50 <= (error.retry_after_seconds or 0) <= 60


# --- answers that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            ok(b"<html><body>Welcome</body></html>", content_type="text/html; charset=utf-8"),
            "the answer (200, text/html) is not JSON: unexpected",
        ),
        (
            ok(b'{"score": 72'),
            "the answer (200, application/json) is not JSON: unexpected end",
        ),
        (
            ok(b'{"score": NaN}'),
            "the answer (200, application/json) is not JSON: unexpected",
        ),
        (
            ok(b'{"id": 123456789012345678901234567890}'),
            "the answer (200, application/json) is not JSON: an integer in it does not fit in 64 bits",
        ),
        (
            ok(b'{"score": ' + b"[" * 200 + b"]" * 200 + b"}"),
            "the answer (200, application/json) is not JSON: it is nested more than 200 deep",
        ),
        (ok(b"not gzip", "Content-Encoding: gzip"), None),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{", None),
        (b'HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a', None),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", None),
        (b"SSH-2.0-OpenSSH_9.7\r\nConnection: close\r\n\r\n", None),
        (b"", "the peer closed the connection without an answer"),
    ],
)
def test_an_answer_that_cannot_be_read_is_a_source_error(answer: bytes, message: str | None) -> None:
    error = failure(answer)
    assert (type(error), error.status) == (SourceError, 502)
    assert str(error).startswith("get: GET URL/things/7: ")
    if message is not None:
        assert str(error).startswith(f"get: GET URL/things/7: {message}")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"dta": 1}, "$response.body.data.score is missing: $response.body has no field 'data' (it has: dta)"),
        ({"data": []}, "$response.body.data.score is missing: $response.body.data is a list"),
        ([1], "$response.body.data.score is missing: $response.body is a list"),
        (None, "$response.body.data.score is missing: $response.body is null"),
        ({"data": {"score": "high"}}, "'*' takes two numbers, got a string and a number"),
    ],
)
def test_an_answer_without_the_result_is_a_source_error(body: Any, message: str) -> None:
    error = failure(ok(body), result="$response.body.data.score * 2")
    assert (type(error), str(error)) == (SourceError, f"get: GET URL/things/7: {message}")


def test_a_body_beyond_the_limit_is_not_read_to_its_end() -> None:
    async def flood(_: Seen) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n" + b" " * 52428800

    error = failure(flood, options={"max_response_bytes": "1MiB"})
    assert str(error) == "get: GET URL/things/7: the answer is larger than max_response_bytes, 1048576"
    bomb = ok(gzip.compress(b" " * 50_000_000), "Content-Encoding: gzip")
    error = failure(bomb, options={"max_response_bytes": "1MiB"})
    assert str(error) == "get: GET URL/things/7: the answer is larger than max_response_bytes, 1048576"


# --- no answer -------------------------------------------------------------------------------------------------------


def test_an_api_that_is_down_is_a_transient_source_error(run: Run) -> None:
    async def main() -> None:
        async with partner() as api:
            url = api.url
        async with leaves_nothing("a call of an API that is down"), opened(url) as source:
            with pytest.raises(SourceError) as caught:
                await source.fetch("get", {"id": "7"})
        assert str(caught.value).startswith(f"get: GET {url}/things/7: cannot connect: ")
        assert (caught.value.status, caught.value.transient) == (502, True)

    run(main())


async def hang(_: Seen) -> bytes:
    await asyncio.sleep(60)
    return b""


def test_an_api_that_hangs_is_given_up_after_the_timeout_of_the_operation() -> None:
    error = failure(hang, options={"timeout": "60s"}, timeout="50ms")
    assert isinstance(error, SourceError)
    assert str(error) == "get: GET URL/things/7: no complete answer came within 0.05 s"
    assert (error.status, error.title, error.transient) == (504, "deadline passed", True)
    assert str(failure(hang, options={"timeout": "50ms"})) == str(error)


def test_an_answer_that_drips_is_given_up_after_the_timeout() -> None:
    async def drip(seen: Seen) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"

    assert failure(drip, timeout="50ms").status == 504


def test_a_cancelled_call_closes_its_connection(run: Run) -> None:
    async def main() -> None:
        async with partner(hang) as api, opened(api.url) as source:
            call = asyncio.ensure_future(source.fetch("get", {"id": 1}))
            await until(lambda: len(api.seen) == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(lambda: api.open == 0)

    run(main())


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  # what is waited for is the peer's doing, which sets no event
            await asyncio.sleep(0.01)


# --- sending again ---------------------------------------------------------------------------------------------------


def once_per_connection(server: list[Partner]) -> Answer:
    """Answer the first request of each connection, and close at the second without a word."""

    def answer(_: Seen) -> bytes:
        return ok({"n": 1}) if len(server[0].seen) % 2 else b""

    return answer


def test_a_get_on_a_connection_that_turns_out_closed_is_sent_again_and_a_post_is_not(run: Run) -> None:
    operations = {
        "get": {"path": "/things"},
        "post": {"path": "/things", "method": "POST", "body": {}},
        "patch": {"path": "/things", "method": "PATCH", "body": {}},
        "score": {"path": "/things", "method": "POST", "body": {}, "idempotent": True},
    }

    async def main() -> None:
        for operation, requests in (("get", 3), ("score", 3), ("post", 2), ("patch", 2)):
            servers: list[Partner] = []
            async with partner(once_per_connection(servers)) as api, opened(api.url, operations) as source:
                servers.append(api)
                await source.fetch(operation, {})
                if requests == 3:
                    assert await source.fetch(operation, {}) == {"n": 1}
                else:
                    with pytest.raises(SourceError, match="must not be sent twice"):
                        await source.fetch(operation, {})
                assert len(api.seen) == requests

    run(main())


# --- limits ----------------------------------------------------------------------------------------------------------


def test_no_more_connections_are_open_than_allowed_and_they_are_used_again(run: Run) -> None:
    async def slowly(_: Seen) -> bytes:
        await asyncio.sleep(0.01)
        return ok(1)

    async def main() -> None:
        async with partner(slowly) as api, opened(api.url, max_connections=2) as source:
            await asyncio.gather(*(source.fetch("get", {"id": n}) for n in range(10)))
            assert (len(api.seen), api.most_open, api.connections) == (10, 2, 2)

    run(main())


# --- health ----------------------------------------------------------------------------------------------------------


def test_the_source_is_ready_when_its_health_path_says_so(run: Run) -> None:
    status = 200

    async def main() -> None:
        nonlocal status
        async with partner(lambda _: ok(b"<fine>", status=status)) as api:
            async with opened(f"{api.url}/v1", health="/health", query={"k": 1}) as source:
                await source.check_ready()
                assert (api.last.method, api.last.target) == ("GET", "/v1/health?k=1")
                for status in (404, 503):
                    with pytest.raises(SourceError, match=rf"^health: GET {api.url}/v1/health\?…: answered {status}$"):
                        await source.check_ready()
            seen = len(api.seen)
            async with opened(api.url) as source:
                await source.check_ready()
            assert len(api.seen) == seen

    run(main())
