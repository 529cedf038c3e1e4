"""``base_url`` beside a source: another answers over HTTP while the model is not ready, and the answer is degraded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from attrs import define, field

from orchestrator_core.errors import ConfigError, SourceError, SourceUnavailable
from orchestrator_core.testing import RunningService, check_problems, service
from tests.service.partner import execution_of
from tests.service.scripted_models import Plugin, eventually, model, state
from tests.service.test_model_life import QUICK, files, refusal, score

RunFixture = Callable[..., Any]


EACH = """
    endpoints:
      each:
        data_sources:
          - name: s
            type: ml
            source_id: m
            operation: predict
            for_each: "$request.body"
            params: {features: "$item"}
"""


@define
class Peer:
    """A model server that answers with y = -x."""

    url: str = ""
    status: int = 200
    asked: list[tuple[str, Any]] = field(factory=list)
    hold: asyncio.Event | None = None

    async def handle(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.Response(status=self.status)
        body = await request.json()
        self.asked.append((request.path, body))
        if self.hold is not None:
            await self.hold.wait()
        if self.status != 200:
            return web.Response(status=self.status)
        return web.json_response({"y": -body["x"]})


@asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    found = Peer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}"
    try:
        yield found
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(plugin: Plugin, more: str = QUICK, beside: str = "") -> AsyncIterator[tuple[RunningService, Peer]]:
    async with peer() as server:
        config = files(more, beside=f', base_url: "{server.url}"{beside}')
        async with service(config, plugins={"scripted": plugin}) as shop:
            yield shop, server
    assert plugin["m"].open_now == 0


def shown(answer: Any) -> tuple[int, Any, str | None]:
    return answer.status, answer.json, answer.headers.get("X-Orchestrator-Degraded")


DEGRADED = (200, {"y": -1, "degraded": True}, "s")
FINE = (200, {"y": 10, "degraded": False}, None)


def test_a_ready_model_is_not_degraded_and_the_fallback_is_left_alone(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(Plugin()) as (shop, server):
            assert shown(await score(shop)) == FINE
            assert (await model(shop))["fallback"] == "ready"
            assert server.asked == []

    run(main())


@pytest.mark.parametrize("error", [SourceError("no such image"), ValueError("no such file"), SourceUnavailable("down")])
def test_a_model_that_cannot_be_loaded_is_answered_for_and_the_answer_is_degraded(
    run: RunFixture, error: Exception
) -> None:
    plugin = Plugin()
    plugin["m"].failures = [error] * 50

    async def main() -> None:
        async with serving(plugin, "restart: {max_starts: 3, backoff: 1ms}") as (shop, server):
            assert [problem.severity for problem in shop.running.live.snapshot.problems] == ["warning"]
            assert shown(await score(shop)) == DEGRADED
            assert server.asked == [("/predict", {"x": 1})]
            page = await state(shop, "failed")
            assert page["fallback"] == "in use"
            assert str(error) in page["last_error"]
            assert (await shop.get("/health/ready")).status == 200
            traced = await shop.post("/orchestrator/d/traced", {"x": 1})
            version = f"{server.url}/predict"
            assert traced.json["version"] == version
            record, first = await shop.executions()
            for execution in (record, first):
                assert (execution["status"], execution["degraded"]) == ("degraded", ["s"])
                (identity,) = execution["models"]
                assert identity["version"] == version

    run(main())


def test_calls_go_back_to_the_model_when_it_is_ready_and_away_when_it_is_not(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        script = plugin["m"]
        script.may_open = asyncio.Event()
        config_wait = "restart: {backoff: 10ms}, health_check: {interval: 20ms}"
        async with peer() as server:
            config = files(config_wait, wait="20ms", beside=f', base_url: "{server.url}"')
            async with service(config, plugins={"scripted": plugin}) as shop:
                assert shown(await score(shop)) == DEGRADED
                script.may_open.set()
                await state(shop, "ready")
                assert shown(await score(shop)) == FINE
                script.sick = SourceError("ill")
                await state(shop, "unhealthy")
                assert shown(await score(shop)) == DEGRADED
                script.sick = None
                await state(shop, "ready")
                script.may_open.clear()
                script.model.end("killed")
                await eventually(lambda: script.opens == 2, "started again")
                assert shown(await score(shop)) == DEGRADED
                script.may_open.set()
                await state(shop, "ready")
                assert shown(await score(shop)) == FINE

    run(main())


def test_a_call_that_the_end_of_the_model_broke_off_is_answered_by_the_fallback(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, "restart: {backoff: 1s}") as (shop, _):
            plugin["m"].hangs = asyncio.Event()
            call = asyncio.create_task(score(shop))
            await eventually(lambda: shop.running.live.snapshot.running == 1, "under way")
            plugin["m"].model.end("killed")
            plugin["m"].hangs.set()
            assert shown(await call) == DEGRADED

    run(main())


def test_a_first_use_waits_for_the_load_and_falls_back_only_if_it_fails(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        script = plugin["m"]
        async with serving(plugin, f"preload: false, {QUICK}") as (shop, _):
            script.may_open = asyncio.Event()
            call = asyncio.create_task(score(shop))
            await state(shop, "loading")
            script.may_open.set()
            assert shown(await call) == FINE
            await shop.admin("POST", "/models/m/unload")
            await state(shop, "stopped")
            script.failures = [SourceError("it is gone")] * 50
            assert shown(await score(shop)) == DEGRADED

    run(main())


def test_a_list_of_rows_is_answered_by_the_fallback_too(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["m"].failures = [SourceError("no such image")]

    async def main() -> None:
        async with serving(plugin) as (shop, _):
            answer = await shop.post("/orchestrator/d/list", [{"x": 1}, {"x": 2}])
            assert shown(answer) == (200, [{"y": -1}, {"y": -2}], "s")

    run(main())


def test_a_fallback_that_fails_too_says_both(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["m"].failures = [SourceError("no such image")]

    async def main() -> None:
        async with serving(plugin) as (shop, server):
            server.status = 500
            status, detail, step = refusal(await score(shop))
            assert (status, step) == (502, "s")
            assert detail == (
                "step 's': the model ml.m is failed: no such image, and its fallback failed: "
                f"POST {server.url}/predict: the model server answered 500"
            )

    run(main())


def test_a_fallback_that_is_down_too_is_a_warning_and_503(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["m"].failures = [SourceError("no such image")]

    async def main() -> None:
        config = files(QUICK, beside=', base_url: "http://127.0.0.1:1"')
        async with service(config, plugins={"scripted": plugin}) as shop:
            warnings = [(problem.severity, problem.code) for problem in shop.running.live.snapshot.problems]
            assert sorted(warnings) == [("warning", "ORC601"), ("warning", "ORC604")]
            answer = await score(shop)
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            start = "step 's': the model ml.m is failed: no such image, and the model ml.m fallback is unhealthy: "
            assert answer.json["detail"].startswith(start)

    run(main())


def test_the_default_model_beside_a_source_says_how_the_fallback_is_called(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["m"].failures = [SourceError("no such image")]

    async def main() -> None:
        beside = ", models: {default: {endpoint: /v1/score, version: '7'}}"
        async with serving(plugin, QUICK, beside) as (shop, server):
            assert (await shop.post("/orchestrator/d/traced", {"x": 1})).json["version"] == "7"
            assert server.asked == [("/v1/score", {"x": 1})]

    run(main())


def test_a_reload_does_not_put_a_broken_model_with_a_fallback_in_the_place_of_one_that_works(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as (shop, server):
            plugin["m"].failures = [SourceError("no such image")]
            new = files(f"factor: 20, {QUICK}", beside=f', base_url: "{server.url}"')
            shop.write("integrations/ml.yaml", new["integrations/ml.yaml"])
            assert (await shop.reload()).status == 422
            assert shown(await score(shop)) == FINE

    run(main())


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (
            ", models: {default: {type: scripted, script: x}}",
            "beside a source, models.default is the fallback at base_url, which is of type http",
        ),
        (", models: {default: {preload: false}}", "the fallback has no 'preload': it is called as it is"),
        (", models: {default: {endpont: /x}}", "unknown key 'endpont'"),
    ],
)
def test_a_fallback_that_cannot_be_is_a_problem(beside: str, message: str) -> None:
    config = files(beside=f', base_url: "http://127.0.0.1:1"{beside}')
    problems = check_problems(config, plugins={"scripted": Plugin()}, offline=True)
    assert [problem.message for problem in problems if problem.code != "ORC405"] == [message]


def test_a_fallback_that_cannot_be_opened_stops_the_start(run: RunFixture) -> None:
    config: Mapping[str, str] = files(beside=', base_url: "http://127.0.0.1:1", models: {default: {proxy: "x://y"}}')

    async def main() -> None:
        with pytest.raises(ConfigError) as caught:
            async with service(config, plugins={"scripted": Plugin()}):
                pass
        (problem,) = caught.value.problems
        assert problem.severity == "error"
        assert problem.message.startswith("the fallback of ml.m: ")

    run(main())


def test_each_item_of_a_step_is_answered_by_the_fallback_and_the_step_is_degraded_once(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["m"].failures = [SourceError("no such image")]

    async def main() -> None:
        async with peer() as server:
            config = files(beside=f', base_url: "{server.url}"')
            config["domains/d.yaml"] = EACH
            async with service(config, plugins={"scripted": plugin}) as shop:
                rows = [{"x": 1}, [{"x": 2}, {"x": 3}], {"x": 4}]
                answer = await shop.post("/orchestrator/d/each", rows)
                assert shown(answer) == (200, [{"y": -1}, [{"y": -2}, {"y": -3}], {"y": -4}], "s")
                (execution,) = await shop.executions()
                assert execution["degraded"] == ["s"]
                assert (await model(shop))["requests"] == 1

    run(main())


def breaks(row: Mapping[str, Any]) -> Exception:
    return SourceError("the connection was reset", transient=True)


def test_the_fallback_answers_while_the_breaker_of_a_ready_model_is_open(run: RunFixture) -> None:
    async def main() -> None:
        plugin = Plugin()
        plugin["m"].unfit = breaks
        async with serving(plugin) as (shop, server):
            assert [(await score(shop)).status for _ in range(5)] == [502] * 5
            assert server.asked == []
            answer = await score(shop)
            assert shown(answer) == DEGRADED
            assert len(server.asked) == 1
            (execution, *_) = await shop.executions()
            assert [found["name"] for found in execution["models"]] == ["ml.m.default.fallback"]
            (step,) = execution["steps"]
            assert (step["status"], step["attempts"], step["breaker"]) == ("ok", 0, "open")
            server.status = 500
            answer = await score(shop)
            assert (answer.status, answer.json["detail"].split(": ", 2)[:2]) == (
                502,
                ["step 's'", "ml.m has failed repeatedly and is left alone"],
            )
            assert ", and its fallback failed: " in answer.json["detail"]

    run(main())


async def with_an_open_breaker(shop: RunningService, call: Callable[[], Any]) -> Any:
    """Return the answer to a call that comes when the breaker of the model has opened."""
    for _ in range(5):
        assert (await score(shop)).status == 502
    return await call()


def test_the_step_s_timeout_is_the_fallback_s_too(run: RunFixture) -> None:
    async def main() -> None:
        plugin = Plugin()
        plugin["m"].unfit = breaks
        async with peer() as server:
            config = files(QUICK, beside=f', base_url: "{server.url}", models: {{default: {{timeout: 1h}}}}')
            config["domains/d.yaml"] = config["domains/d.yaml"].replace("name: s,", "name: s, timeout: 200ms,")
            async with service(config, plugins={"scripted": plugin}) as shop:
                server.hold = asyncio.Event()
                answer = await with_an_open_breaker(shop, lambda: score(shop))
                server.hold.set()
                assert refusal(answer) == (504, "step 's' took longer than its timeout", "s")

    run(main())


def test_a_fallback_that_takes_too_long_is_504(run: RunFixture) -> None:
    async def main() -> None:
        plugin = Plugin()
        plugin["m"].unfit = breaks
        async with serving(plugin, beside=", models: {default: {timeout: 50ms}}") as (shop, server):
            server.hold = asyncio.Event()
            answer = await with_an_open_breaker(shop, lambda: score(shop))
            server.hold.set()
            status, detail, step = refusal(answer)
            assert (status, step) == (504, "s")
            failed = f"POST {server.url}/predict: no complete answer came within 0.05 s"
            assert detail.endswith(f", and its fallback failed: {failed}")

    run(main())


def test_what_the_fallback_answered_is_captured(run: RunFixture) -> None:
    async def main() -> None:
        plugin = Plugin()
        plugin["m"].unfit = breaks
        async with peer() as server:
            config = files(QUICK, beside=f', base_url: "{server.url}"')
            config["config.yaml"] += "tracking: {capture: full}\n"
            async with service(config, plugins={"scripted": plugin}) as shop:
                answer = await with_an_open_breaker(shop, lambda: score(shop))
                assert shown(answer) == DEGRADED
                execution: Any = await execution_of(shop, answer)
                (call,) = execution["captured"]["steps"]["s"]["calls"]
                assert call == {"params": {"features": {"x": 1}}, "result": {"$degraded": {"y": -1}}}
                assert execution["captured"]["models"] == {"s": execution["models"][0]}

    run(main())


def test_items_that_the_cache_does_not_have_are_the_fallback_s_while_the_breaker_is_open(run: RunFixture) -> None:
    async def main() -> None:
        plugin = Plugin()
        plugin["m"].unfit = lambda row: breaks(row) if row["x"] == 9 else None
        async with peer() as server:
            config = files(QUICK, beside=f', base_url: "{server.url}", cache: {{ttl: 1h}}')
            config["domains/d.yaml"] = EACH
            async with service(config, plugins={"scripted": plugin}) as shop:
                each = "/orchestrator/d/each"
                kept = (await shop.post(each, [{"x": 1}])).json
                assert [(await shop.post(each, [{"x": 9}])).status for _ in range(5)] == [502] * 5
                answer = await shop.post(each, [{"x": 1}, {"x": 2}])
                assert shown(answer) == (200, [*kept, {"y": -2}], "s")

    run(main())


def test_the_fallback_answers_several_items_at_once_while_the_breaker_is_open(run: RunFixture) -> None:
    """And fails those alone that it cannot answer."""

    async def main() -> None:
        plugin = Plugin()
        plugin["m"].unfit = breaks
        async with peer() as server:
            config = files(QUICK, beside=f', base_url: "{server.url}"')
            config["domains/d.yaml"] = f"{EACH.rstrip()}\n            max_concurrency: 3\n            default: none\n"
            async with service(config, plugins={"scripted": plugin}) as shop:
                each = "/orchestrator/d/each"
                for _ in range(5):
                    assert (await shop.post(each, [{"x": 9}])).json == ["none"]
                server.hold = asyncio.Event()
                rows = [{"x": number} for number in (1, 2, 3)] + [{"y": 4}, {"x": 5}]
                asked = asyncio.ensure_future(shop.post(each, rows))
                async with asyncio.timeout(10):
                    while len(server.asked) < 3:  # noqa: ASYNC110  # nobody tells
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)
                assert len(server.asked) == 3
                server.hold.set()
                answer = await asked
                assert shown(answer) == (200, [{"y": -1}, {"y": -2}, {"y": -3}, "none", {"y": -5}], "s")

    run(main())


def test_a_model_that_is_ready_again_is_asked_at_once(run: RunFixture) -> None:
    async def main() -> None:
        plugin = Plugin()
        plugin["m"].unfit = breaks
        async with serving(plugin) as (shop, _):
            for _ in range(5):
                await score(shop)
            assert shown(await score(shop)) == DEGRADED
            plugin["m"].sick = SourceUnavailable("it is ill")
            await state(shop, "unhealthy")
            assert shown(await score(shop)) == DEGRADED
            plugin["m"].sick, plugin["m"].unfit = None, lambda row: None
            await state(shop, "ready")
            assert shown(await score(shop)) == FINE

    run(main())
