"""The kind ``http`` against a real server on a free port."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import enumerate as threads
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from orchestrator_model_http.model import HttpModel
from orchestrator_model_http.options import HttpModelOptions
from orchestrator_model_http.plugin import HTTP, orchestrator_model_kinds

from orchestrator_core.errors import InvalidParam, SourceError
from orchestrator_core.http_client import HttpClient
from orchestrator_core.plugin_api import Duration, Identified, Identity, OpenContext, ReadyCheck, Size
from orchestrator_core.testing import check_problems

ROW = {"tenure": 12, "monthly_charges": 70.5}


class ModelServer:
    """A stub model server. ``answer`` is replaced by the tests; ``requests`` are the bodies that came."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[Any], Awaitable[web.StreamResponse]] = self.score
        self.base_url = ""

    async def score(self, body: Any) -> web.Response:
        if isinstance(body, list):
            return web.json_response([{"probability": row["tenure"] / 100} for row in body])
        return web.json_response({"probability": body["tenure"] / 100})

    async def predict(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        self.headers.append(dict(request.headers))
        return await self.answer(self.requests[-1])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ModelServer]:
        app = web.Application()
        app.router.add_post("/v1/predict", self.predict)
        app.router.add_get("/v1/health", _ok)
        app.router.add_get("/v1/broken", _broken)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()


async def _ok(_: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _broken(_: web.Request) -> web.Response:
    return web.Response(status=503, text="loading weights")


def always(**response: Any) -> Callable[[Any], Awaitable[web.StreamResponse]]:
    async def answer(_: Any) -> web.StreamResponse:
        return web.Response(**response)

    return answer


@asynccontextmanager
async def opened(server: ModelServer, **options: Any) -> AsyncIterator[HttpModel]:
    options.setdefault("base_url", server.base_url)
    async with HttpClient() as http:
        context = OpenContext(name="churn_model", config_dir=Path(__file__).parent, http=http)
        async with HTTP.open(HttpModelOptions(**options), context) as model:
            assert isinstance(model, HttpModel)
            yield model


def run(test: Callable[[ModelServer], Awaitable[None]]) -> None:
    async def main() -> None:
        async with ModelServer().running() as server:
            await test(server)

    with asyncio.Runner() as runner:
        runner.run(main())


async def failure(server: ModelServer, *features: dict[str, Any], **options: Any) -> SourceError:
    async with opened(server, **options) as model:
        with pytest.raises(SourceError) as caught:
            await model.predict(features or [ROW])
    return caught.value


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd")), {thread.name for thread in threads()}
    yield
    assert (len(os.listdir("/proc/self/fd")), {thread.name for thread in threads()}) == before


def test_the_plugin_provides_the_kind_http() -> None:
    assert [kind.name for kind in orchestrator_model_kinds()] == ["http"]


@pytest.mark.usefixtures("nothing_left_behind")
def test_one_row_is_posted_as_it_is_and_the_answer_is_the_result() -> None:
    async def test(server: ModelServer) -> None:
        async with opened(server, headers={"Authorization": "Bearer t"}) as model:
            assert await model.predict([ROW]) == [{"probability": 0.12}]
        assert server.requests == [ROW]
        assert server.headers[0]["Content-Type"] == "application/json"
        assert server.headers[0]["Authorization"] == "Bearer t"

    run(test)


def test_several_rows_are_posted_at_the_same_time_and_answered_in_order() -> None:
    async def test(server: ModelServer) -> None:
        together = asyncio.Barrier(5)

        async def answer(body: Any) -> web.StreamResponse:
            await together.wait()
            await asyncio.sleep(0.01 * (5 - body["tenure"]))
            return await server.score(body)

        server.answer = answer
        async with opened(server) as model:
            rows = [{"tenure": tenure} for tenure in range(5)]
            assert await model.predict(rows) == [{"probability": tenure / 100} for tenure in range(5)]
        assert len(server.requests) == 5

    run(test)


def test_rows_list_posts_one_list_and_expects_as_many_results() -> None:
    async def test(server: ModelServer) -> None:
        async with opened(server, rows="list") as model:
            assert await model.predict([{"tenure": 1}, {"tenure": 2}]) == [{"probability": 0.01}, {"probability": 0.02}]
            assert await model.predict([{"tenure": 3}]) == [{"probability": 0.03}]
        assert server.requests == [[{"tenure": 1}, {"tenure": 2}], [{"tenure": 3}]]

    run(test)


@pytest.mark.parametrize("rows", ["one", "list"])
def test_no_rows_are_no_request(rows: str) -> None:
    async def test(server: ModelServer) -> None:
        async with opened(server, rows=rows) as model:
            assert await model.predict([]) == []
        assert server.requests == []

    run(test)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.sampled_from(["one", "list"]))
@settings(max_examples=20, deadline=None)
def test_concurrent_callers_each_get_their_own_answers(tenures: list[int], rows: str) -> None:
    async def test(server: ModelServer) -> None:
        async with opened(server, rows=rows) as model:
            answers = await asyncio.gather(*(model.predict([{"tenure": tenure}]) for tenure in tenures))
        assert answers == [[{"probability": tenure / 100}] for tenure in tenures]

    run(test)


@pytest.mark.parametrize(("status", "seconds"), [(429, 7), (503, 7), (500, None)])
def test_a_server_that_says_when_to_come_again_is_heard(status: int, seconds: float | None) -> None:
    async def test(server: ModelServer) -> None:
        server.answer = always(status=status, headers={"Retry-After": "7"})
        assert (await failure(server)).retry_after_seconds == seconds

    run(test)


@pytest.mark.parametrize(
    ("response", "reason", "transient"),
    [
        ({"status": 500}, "500", False),
        ({"status": 500, "text": "boom\ntraceback"}, "500: boom", False),
        ({"status": 422, "body": b'{"detail": "tenure is negative"}'}, "422: tenure is negative", False),
        ({"status": 400, "body": b'{"error": {"code": 7}}'}, '400: {"code":7}', False),
        ({"status": 400, "body": b"[1]"}, "400", False),
        ({"status": 503, "text": "x" * 300}, f"503: {'x' * 200}", True),
        ({"status": 404, "body": b"<html>", "content_type": "text/html"}, "404", False),
        ({"status": 301, "headers": {"Location": "/elsewhere"}}, "301", False),
    ],
)
def test_another_status_than_2xx_says_the_status_and_the_servers_reason(
    response: dict[str, Any], reason: str, transient: bool
) -> None:
    async def test(server: ModelServer) -> None:
        server.answer = always(**response)
        error = await failure(server)
        assert str(error) == f"POST {server.base_url}/predict: the model server answered {reason}"
        assert error.transient is transient

    run(test)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("probability: 1", "unexpected character, expected a JSON value: line 1 column 1 (char 0)"),
        ("[" * 201 + "]" * 201, "it is nested more than 200 deep"),
        ('{"id": 18446744073709551616}', "an integer in it does not fit in 64 bits"),
    ],
)
def test_an_answer_that_is_not_json_is_an_error(text: str, reason: str) -> None:
    async def test(server: ModelServer) -> None:
        server.answer = always(text=text)
        error = await failure(server)
        assert str(error) == f"POST {server.base_url}/predict: the answer (200) is not JSON: {reason}"

    run(test)


@pytest.mark.parametrize(
    ("body", "got"),
    [(b"[1]", "a list of 1"), (b"{}", "an object"), (b"7", "a number"), (b'"x"', "a string"), (b"null", "null")],
)
def test_a_list_of_the_wrong_length_or_none_at_all_is_an_error(body: bytes, got: str) -> None:
    async def test(server: ModelServer) -> None:
        server.answer = always(body=body)
        error = await failure(server, ROW, ROW, rows="list")
        assert str(error) == f"POST {server.base_url}/predict: expected a list of 2 results, got {got}"

    run(test)


def test_a_server_that_is_too_slow_fails_within_the_timeout_and_the_model_can_be_called_again() -> None:
    async def test(server: ModelServer) -> None:
        async def never(_: Any) -> web.StreamResponse:
            await asyncio.sleep(60)
            return web.Response()

        async with opened(server, timeout=Duration(0.05)) as model:
            server.answer = never
            with pytest.raises(SourceError) as caught:
                await model.predict([ROW])
            server.answer = server.score
            assert await model.predict([ROW]) == [{"probability": 0.12}]
        assert str(caught.value) == f"POST {server.base_url}/predict: no complete answer came within 0.05 s"
        assert caught.value.transient

    run(test)


def test_an_answer_that_is_too_large_is_refused() -> None:
    async def test(server: ModelServer) -> None:
        server.answer = always(text="[" + "1," * 2000 + "1]")
        error = await failure(server, max_response_bytes=Size(1024))
        assert str(error) == f"POST {server.base_url}/predict: the answer is larger than max_response_bytes, 1024"

    run(test)


def test_a_server_that_is_not_there_is_a_transient_error() -> None:
    async def test(server: ModelServer) -> None:
        async with ModelServer().running() as other:
            base_url = other.base_url
        error = await failure(server, base_url=base_url)
        assert str(error).startswith(f"POST {base_url}/predict: ")
        assert error.transient

    run(test)


def test_one_failed_row_of_several_fails_the_call_with_its_own_error_and_cancels_the_rest() -> None:
    async def test(server: ModelServer) -> None:
        async def answer(body: Any) -> web.StreamResponse:
            if body["tenure"] == 2:
                return web.Response(status=500, text="boom")
            await asyncio.sleep(60)
            return web.Response()

        server.answer = answer
        async with asyncio.timeout(5):
            error = await failure(server, *({"tenure": tenure} for tenure in range(4)), timeout=Duration(60))
        assert str(error) == f"POST {server.base_url}/predict: the model server answered 500: boom"

    run(test)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tenure": float("nan")}, "feature 'tenure' is nan, which JSON cannot hold"),
        ({"a": {"b": [1, float("inf")]}}, "feature 'a.b[1]' is inf, which JSON cannot hold"),
        ({"tenure": {1, 2}}, "the features cannot be written as JSON: Type is not JSON serializable: set"),
    ],
)
@pytest.mark.parametrize("rows", ["one", "list"])
def test_a_feature_that_json_cannot_hold_is_refused_before_anything_is_sent(
    row: dict[str, Any], message: str, rows: str
) -> None:
    async def test(server: ModelServer) -> None:
        async with opened(server, rows=rows) as model:
            with pytest.raises(InvalidParam) as caught:
                await model.predict([row])
        prefix = "[0]." if rows == "list" and "'" in message else ""
        assert str(caught.value) == message.replace("feature '", f"feature '{prefix}", 1)
        assert caught.value.param == "features"
        assert server.requests == []

    run(test)


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_cancelled_prediction_leaves_the_model_usable() -> None:
    async def test(server: ModelServer) -> None:
        arrived = asyncio.Event()

        async def never(_: Any) -> web.StreamResponse:
            arrived.set()
            await asyncio.sleep(60)
            return web.Response()

        async with opened(server, max_connections=1) as model:
            server.answer = never
            waiting = asyncio.create_task(model.predict([ROW]))
            await arrived.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            server.answer = server.score
            assert await model.predict([ROW]) == [{"probability": 0.12}]

    run(test)


def test_ready_when_the_health_path_answers_2xx() -> None:
    async def test(server: ModelServer) -> None:
        async with opened(server, health="/health") as model:
            assert isinstance(model, ReadyCheck)
            await model.check_ready()
        async with opened(server, health="/broken") as model:
            with pytest.raises(SourceError) as caught:
                await model.check_ready()
        assert str(caught.value) == f"GET {server.base_url}/broken: the model server answered 503: loading weights"

    run(test)


def test_without_a_health_path_any_answer_means_ready() -> None:
    async def test(server: ModelServer) -> None:
        async with opened(server) as model:
            await model.check_ready()

    run(test)


def test_the_identity_is_the_version_or_the_url_without_credentials() -> None:
    async def test(server: ModelServer) -> None:
        async with opened(server, version="2024-05") as model:
            assert isinstance(model, Identified)
            assert model.identity() == Identity("churn_model", "2024-05")
        async with opened(server, base_url=server.base_url.replace("//", "//user:secret@")) as model:
            assert model.identity() == Identity("churn_model", f"{server.base_url}/predict")

    run(test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "127.0.0.1:9002"}, "expected a URL that starts with http:// or https://"),
        ({"base_url": "http://h", "endpoint": "predict"}, "expected a path that starts with /, got 'predict'"),
        ({"base_url": "http://h", "timeout": Duration(0)}, "expected more than 0, got 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        HttpModelOptions(**options)
    assert str(caught.value) == message


def test_a_base_url_of_the_source_that_is_none_is_told_once_where_the_source_gives_it() -> None:
    integration = """
        ml:
          sources:
            churn_model:
              base_url: "127.0.0.1:9002"
              models: {default: {endpoint: /churn}, recommender: {endpoint: /recommend}}
        """
    (problem,) = check_problems({"integrations/models.yaml": integration}, offline=True)
    assert (problem.line, problem.column, problem.path) == (5, 17, "ml.sources.churn_model.base_url")
    assert problem.message == "expected a URL that starts with http:// or https://"
