"""Whole answers that an endpoint keeps: what tells them apart, what is never kept, and what a client sees of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import time
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import orjson
import pytest

from orchestrator_core.answer_cache import Answers
from orchestrator_core.errors import DeadlineExceeded
from orchestrator_core.plan import AnswerCache
from orchestrator_core.plugin_api import Duration
from orchestrator_core.policies.options import CacheOptions
from orchestrator_core.policies.state import SourceState
from orchestrator_core.run import Request, Run
from orchestrator_core.testing import RunningService, check_problems, service
from orchestrator_core.time_limits import TimeLimit
from tests.faults.kit import skip_without
from tests.policies.lab import Clock, turns

from .partner import Partner, execution_of, partner

RunFixture = Callable[..., Any]


def files(told: Partner, cache: str, *, step: str = "", more: str = "") -> dict[str, str]:
    return {
        "integrations/api.yaml": f"""
            api:
              sources:
                partner:
                  base_url: {told.url}
                  retry: false
                  circuit_breaker: false
                  operations: {{read: {{method: GET, path: "/read"}}}}
        """,
        "domains/d.yaml": f"""
            endpoints:
              e:
                cache: {cache}
                data_sources: [{{name: s, type: api, source_id: partner, operation: read{step}}}]
                {more}
        """,
    }


@asynccontextmanager
async def serving(cache: str, **given: str) -> AsyncIterator[tuple[RunningService, Partner]]:
    async with partner() as told, service(files(told, cache, **given)) as served:
        yield served, told


URL = "/orchestrator/d/e"


def test_an_answer_is_given_again_with_an_execution_of_its_own(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("{ttl: 1h}") as (served, told):
            first, again = [await served.get(URL) for _ in range(2)]
            assert (first.json, again.json, len(told.calls)) == ({"call": 1}, {"call": 1}, 1)
            assert "X-Orchestrator-Cache" not in first.headers
            assert "Age" not in first.headers
            assert (again.headers["X-Orchestrator-Cache"], again.headers["Age"]) == ("hit", "0")
            assert again.headers["X-Execution-Id"] != first.headers["X-Execution-Id"]
            assert again.headers["Server-Timing"].startswith("engine;dur=")
            execution: Any = await execution_of(served, again)
            assert (execution["status"], execution["http_status"]) == ("ok", 200)
            assert (execution["cache"], execution["cached_from"]) == ("hit", first.headers["X-Execution-Id"])
            (step,) = execution["steps"]
            assert (step["status"], step["attempts"], step["cache"]) == ("cached", 0, "hit")
            assert "cache" not in await execution_of(served, first)

    run(main())


def test_all_that_an_answer_can_depend_on_tells_it_apart(run: RunFixture) -> None:
    async def main() -> None:
        mapping = "response_mapping: {call: $s.call, lang: \"$request.headers['accept-language'] ?? null\"}"
        async with serving("{ttl: 1h}", more=mapping) as (served, _):
            asked = [
                served.get(URL),
                served.get(f"{URL}?a=1&b=2"),
                served.get(f"{URL}?a=1&b=3"),
                served.post(URL, {"a": 1}),
                served.post(URL, {"a": 1.0}),
                served.post(URL, {"a": None}),
                served.get(URL, headers={"Accept-Language": "de"}),
            ]
            assert [(await call).json["call"] for call in asked] == [1, 2, 3, 4, 5, 6, 7]
            alike = [
                served.get(URL, headers={"X-Other": "1"}),
                served.get(f"{URL}?b=2&a=1"),
                served.post(URL, {"a": 1}),
                served.get(URL, headers={"accept-language": "de"}),
            ]
            answers = [await call for call in alike]
            assert [answer.json["call"] for answer in answers] == [1, 2, 4, 7]
            assert answers[3].json["lang"] == "de"

    run(main())


def test_a_key_on_the_request_tells_answers_apart(run: RunFixture) -> None:
    async def main() -> None:
        async with serving('{ttl: 1h, key: "$request.query_params.a ?? 0"}') as (served, _):
            targets = ("?a=1&b=1", "?a=1&b=2", "?a=2", "", "?b=1")
            assert [(await served.get(URL + target)).json["call"] for target in targets] == [1, 1, 2, 3, 3]
        async with serving("{ttl: 1h, key: [a, c]}") as (served, _):
            assert [(await served.get(URL + target)).json["call"] for target in targets] == [1, 1, 2, 3, 3]

    run(main())


@pytest.mark.parametrize(
    ("key", "used", "problem"),
    [
        ("entity_idd", "$request.path_params.entity_id", "the request has no 'entity_idd'"),
        ("[entity_id, curency]", "$request.entity_id + $request.currency", "the request has no 'curency'"),
        ("[tenant]", "$request.headers.tenant ?? $request.body.x", "the request has no 'tenant'"),
        ("[entity_id, currency]", "$request.path_params.entity_id ?? $request.query_params.currency", ""),
        ("[sku]", "$request.body", ""),
    ],
)
def test_a_key_names_what_the_endpoint_uses_of_a_request(key: str, used: str, problem: str) -> None:
    """A name that no request has would give everybody the answer of whoever came first."""
    domain = f"""
        endpoints:
          e:
            cache: {{ttl: 1m, key: {key}}}
            response_mapping: {{a: "{used}"}}
    """
    found = check_problems({"domains/d.yaml": domain})
    assert [(each.code, each.message) for each in found] == ([("ORC503", problem)] if problem else [])


def test_a_request_that_does_not_fit_is_refused_before_the_cache_is_asked(run: RunFixture) -> None:
    async def main() -> None:
        schema = "input_schema: {type: object, required: [a], properties: {a: {type: integer}}}"
        async with serving("{ttl: 1h, key: a}", more=schema) as (served, told):
            assert (await served.get(f"{URL}?a=1")).status == 200
            assert (await served.get(f"{URL}?a=x")).status == 422
            assert (await served.get(f"{URL}?a=1")).headers["X-Orchestrator-Cache"] == "hit"
            assert len(told.calls) == 1

    run(main())


def test_a_value_that_the_key_cannot_work_on_is_the_caller_s_to_mend(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("{ttl: 1h, key: $request.body.x / 2}") as (served, told):
            assert (await served.post(URL, {"x": 4})).status == 200
            refused = await served.post(URL, {"x": "4"})
            message = "cache.key: '/' takes two numbers, got a string and a number, in $request.body.x / 2"
            assert (refused.status, refused.json["detail"]) == (422, message)
            assert (refused.json["title"], len(told.calls)) == ("invalid request", 1)

    run(main())


def test_neither_an_error_nor_a_degraded_answer_is_kept(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("{ttl: 1h}") as (served, told):
            told.statuses = [500, 404]
            assert [(await served.get(URL)).status for _ in range(4)] == [502, 404, 200, 200]
            assert len(told.calls) == 3
        async with serving("{ttl: 1h}", step=", default: {call: 0}") as (served, told):
            told.statuses = [500, 500]
            answers = [await served.get(URL) for _ in range(4)]
            assert [answer.json["call"] for answer in answers] == [0, 0, 3, 3]
            assert [answer.headers.get("X-Orchestrator-Degraded") for answer in answers] == ["s", "s", None, None]

    run(main())


def test_requests_that_are_alike_share_one_execution(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("{ttl: 1h}", step=", default: {call: 0}") as (served, told):
            told.hold, told.statuses = asyncio.Event(), [500]
            calls = [asyncio.create_task(served.get(URL)) for _ in range(6)]
            await told.asked(1)
            while served.running.live.snapshot.running < 6:  # noqa: ASYNC110  # the turns are what is waited for
                await asyncio.sleep(0)
            told.hold.set()
            answers = await asyncio.gather(*calls)
            assert [answer.json for answer in answers] == [{"call": 0}] * 6
            assert [answer.headers["X-Orchestrator-Degraded"] for answer in answers] == ["s"] * 6
            assert len(told.calls) == 1
            caches = [answer.headers.get("X-Orchestrator-Cache", "") for answer in answers]
            assert sorted(caches) == ["", *["shared"] * 5]

    run(main())


def test_a_failure_that_is_shared_names_the_step_for_each(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("{ttl: 1h}") as (served, told):
            told.hold, told.statuses = asyncio.Event(), [500]
            calls = [asyncio.create_task(served.get(URL)) for _ in range(3)]
            await told.asked(1)
            while served.running.live.snapshot.running < 3:  # noqa: ASYNC110  # the turns are what is waited for
                await asyncio.sleep(0)
            told.hold.set()
            answers = await asyncio.gather(*calls)
            assert [(answer.status, answer.json["step"]) for answer in answers] == [(502, "s")] * 3
            assert len({answer.json["execution_id"] for answer in answers}) == 3

    run(main())


def test_a_stale_answer_is_given_while_an_execution_of_nobody_s_makes_a_new_one(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("{ttl: 1ms, stale_while_revalidate: 1h}", more="capture: full") as (served, told):
            first = await served.get(URL)
            first_id = first.headers["X-Execution-Id"]
            assert first.json == {"call": 1}
            await asyncio.sleep(0.01)
            answer = await served.get(URL)
            assert (answer.json, answer.headers["X-Orchestrator-Cache"]) == ({"call": 1}, "stale")
            await told.asked(2)
            async with asyncio.timeout(10):
                while len(await served.executions()) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            (renewal,) = [one for one in await served.executions() if not one.get("cache") and one["id"] > first_id]
            captured = (await served.admin("GET", f"/executions/{renewal['id']}")).json["captured"]
            assert captured["request"]["method"] == "GET"  # what it takes to run it again
            assert captured["answer"] == {"call": 2}
            assert (await served.get(URL)).json == {"call": 2}

    run(main())


def test_a_stale_answer_is_given_when_its_source_fails(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("{ttl: 1ms, stale_if_error: 1h}") as (served, told):
            assert (await served.get(URL)).json == {"call": 1}
            told.statuses = [500]
            await asyncio.sleep(0.01)
            answer = await served.get(URL)
            assert (answer.status, answer.json, answer.headers["X-Orchestrator-Cache"]) == (200, {"call": 1}, "stale")
            execution: Any = await execution_of(served, answer)
            assert (execution["status"], execution["steps"][0]["status"]) == ("ok", "failed")

    run(main())


@pytest.mark.parametrize(
    "limit", [{"more": "timeout: 100ms"}, {"step": ", timeout: 100ms"}], ids=["of the request", "of the step"]
)
def test_a_stale_answer_is_given_when_the_time_is_up(run: RunFixture, limit: dict[str, str]) -> None:
    async def main() -> None:
        async with serving("{ttl: 1ms, stale_if_error: 1h}", **limit) as (served, told):
            assert (await served.get(URL)).json == {"call": 1}
            await asyncio.sleep(0.01)
            told.hold = asyncio.Event()
            answer = await served.get(URL)
            assert (answer.status, answer.json) == (200, {"call": 1})
            assert answer.headers["X-Orchestrator-Cache"] == "stale"

    run(main())


def test_who_waits_for_an_answer_has_a_deadline_of_its_own(run: RunFixture) -> None:
    async def main() -> None:
        options = CacheOptions(ttl=Duration(3600))
        answers = Answers(AnswerCache(options, None, ()), SourceState("d.e"), [])
        time_is_up, makers = asyncio.Event(), []

        async def make(request: Request, made_by: Run) -> bytes:
            makers.append(made_by.id)
            if made_by.id == "first":
                await time_is_up.wait()
                raise DeadlineExceeded("the request took longer than its 10 s", of_request=True)
            return b"2"

        async def renew(request: Request) -> tuple[bytes, Run]:
            raise AssertionError("nothing is kept yet")

        async def answer(name: str) -> bytes:
            plan: Any = SimpleNamespace(step_names=())
            return await answers.answer(
                answers.key(Request({}, {}, {})), Request({}, {}, {}), Run(plan, name), TimeLimit(10), make, renew
            )

        asked = [asyncio.create_task(answer(name)) for name in ("first", "second", "third")]
        await turns()
        assert makers == ["first"]
        time_is_up.set()
        first, *others = await asyncio.gather(*asked, return_exceptions=True)
        assert str(first) == "the request took longer than its 10 s"
        assert (others, makers) == ([b"2", b"2"], ["first", "third"])

    run(main())


def test_who_waits_for_an_answer_waits_no_longer_than_its_own_time(run: RunFixture) -> None:
    """Of which a part may be gone already, as for a body that came slowly."""

    async def main() -> None:
        answers = Answers(AnswerCache(CacheOptions(ttl=Duration(3600)), None, ()), SourceState("d.e"), [])
        plan: Any = SimpleNamespace(step_names=())

        async def make(request: Request, made_by: Run) -> bytes:
            await asyncio.Event().wait()
            return b"1"

        async def renew(request: Request) -> tuple[bytes, Run]:
            raise AssertionError("nothing is kept yet")

        async def answer(name: str, spent_seconds: float = 0.0) -> bytes:
            made_for = Run(plan, name)
            made_for.started -= spent_seconds
            return await answers.answer(
                answers.key(Request({}, {}, {})), Request({}, {}, {}), made_for, TimeLimit(10), make, renew
            )

        maker = asyncio.create_task(answer("first"))
        await turns()
        with pytest.raises(DeadlineExceeded, match="the request took longer than its 10 s"):
            await answer("late", spent_seconds=9.95)
        assert not maker.done()
        maker.cancel()
        await asyncio.wait([maker])

    run(main())


def test_who_waits_for_a_refresh_does_not_fail_with_its_deadline(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        options = CacheOptions(ttl=Duration(10), stale_while_revalidate=Duration(10))
        state = SourceState("d.e", clock=clock)
        answers, time_is_up = Answers(AnswerCache(options, None, ()), state, []), asyncio.Event()
        plan: Any = SimpleNamespace(step_names=())

        async def make(request: Request, made_by: Run) -> bytes:
            return made_by.id.encode()

        async def renew(request: Request) -> tuple[bytes, Run]:
            await time_is_up.wait()
            raise DeadlineExceeded("the request took longer than its 10 s", of_request=True)

        async def answer(name: str) -> bytes:
            return await answers.answer(
                answers.key(Request({}, {}, {})), Request({}, {}, {}), Run(plan, name), TimeLimit(10), make, renew
            )

        assert await answer("first") == b"first"
        clock.now += 15
        assert await answer("stale") == b"first"
        await turns()
        clock.now += 10  # it may not be given any more
        waiting = asyncio.create_task(answer("second"))
        await turns()
        time_is_up.set()
        assert await waiting == b"second"

    run(main())


def test_answers_outlive_a_reload_that_changes_nothing_they_depend_on(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("{ttl: 1h}") as (served, _):
            assert (await served.get(URL)).json == {"call": 1}
            served.write("domains/more.yaml", "endpoints: {x: {response_mapping: 1}}")
            assert (await served.reload()).status == 200
            assert (await served.get(URL)).json == {"call": 1}
            api = (served.folder / "integrations/api.yaml").read_text()
            served.write("integrations/api.yaml", api.replace('"/read"', '"/other"'))
            assert (await served.reload()).status == 200
            assert (await served.get(URL)).json == {"call": 2}
            domain = (served.folder / "domains/d.yaml").read_text()
            served.write("domains/d.yaml", domain.rstrip() + "\n    response_mapping: {also: $s.call}\n")
            assert (await served.reload()).status == 200
            assert (await served.get(URL)).json == {"also": 3}

    run(main())


def test_services_with_a_redis_share_results_and_answers(run: RunFixture) -> None:
    skip_without("127.0.0.1", 6379, "Redis")

    async def main() -> None:
        prefix = f"test-{uuid4().hex}"
        shared = f'cache: {{url: "redis://127.0.0.1:6379/0", prefix: {prefix}, secret: "not for others", timeout: 5s}}'
        try:
            async with partner() as told:
                given = files(told, "{ttl: 1h}", step=", cache: {ttl: 1h}") | {"config.yaml": shared}
                async with service(given) as one, service(given) as other:
                    first = await one.get(URL)
                    assert first.json == {"call": 1}
                    async with asyncio.timeout(10):  # it is kept beside the answer, not before it
                        while not await kept(prefix, 2):  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                    answer = await other.get(URL)
                    assert (answer.json, answer.headers["X-Orchestrator-Cache"]) == ({"call": 1}, "hit")
                    execution: Any = await execution_of(other, answer)
                    assert execution["cached_from"] == first.headers["X-Execution-Id"]
                    assert len(told.calls) == 1
        finally:
            await forget(prefix)

    run(main())


@pytest.mark.parametrize(
    ("place", "policy", "calls"),
    [("/elsewhere", "", ["/predict", "/elsewhere/predict"]), ("", ", retry: {non_idempotent: true}", ["/predict"])],
    ids=["another place", "another policy"],
)
def test_services_share_what_a_model_has_said_when_it_is_configured_alike(
    run: RunFixture, place: str, policy: str, calls: list[str]
) -> None:
    """That it has the same version elsewhere does not make it the same model, and a policy none of another."""
    skip_without("127.0.0.1", 6379, "Redis")

    async def main() -> None:
        prefix = f"test-{uuid4().hex}"
        try:
            async with partner() as told:
                for files in (files_of_model(prefix, told.url), files_of_model(prefix, told.url + place, policy)):
                    async with service(files) as served:
                        assert (await served.get(URL)).status == 200
                        (remembered,) = served.running.live.snapshot.memory.states.values()
                        if remembered.state._tasks:
                            await asyncio.wait(remembered.state._tasks)
                assert [call for call in told.calls if call.endswith("/predict")] == calls
        finally:
            await forget(prefix)

    run(main())


def files_of_model(prefix: str, url: str, policy: str = "") -> dict[str, str]:
    call = "type: ml, source_id: m, operation: predict, params: {features: {x: 1}}"
    return {
        "config.yaml": f'cache: {{url: "redis://127.0.0.1:6379/0", prefix: {prefix}, timeout: 5s}}',
        "integrations/ml.yaml": f"""
ml:
  sources:
    m:
      base_url: {url}
      models: {{default: {{endpoint: /predict, version: "7", cache: {{ttl: 1h}}{policy}}}}}
""",
        "domains/d.yaml": f"endpoints: {{e: {{data_sources: [{{name: s, {call}}}]}}}}",
    }


def test_what_is_no_answer_in_a_redis_counts_as_missing(run: RunFixture) -> None:
    skip_without("127.0.0.1", 6379, "Redis")

    async def main() -> None:
        prefix = f"test-{uuid4().hex}"
        shared = f'cache: {{url: "redis://127.0.0.1:6379/0", prefix: {prefix}, timeout: 5s}}'
        foreign = [7, "text", None, {}, [], ["{}", "id", "now", []], ["{}", "id", 1.5, [7]], ["{}", "id", 1.5, [], 1]]
        try:
            async with partner() as told:
                given = files(told, "{ttl: 1h}") | {"config.yaml": shared}
                for number, value in enumerate(foreign, start=1):
                    async with service(given) as served:
                        answer = await served.get(URL)
                        assert (answer.status, answer.json) == (200, {"call": number})
                        await asyncio.wait(served.running.live.snapshot.memory.answers["d", "e"].state._tasks)
                    async with redis() as client:
                        (place,) = await client.keys(f"{prefix}:*")
                        await client.set(place, b"bytes:" + orjson.dumps([time(), value]))
        finally:
            await forget(prefix)

    run(main())


async def kept(prefix: str, count: int) -> bool:
    async with redis() as client:
        return len(await client.keys(f"{prefix}:*")) >= count


async def forget(prefix: str) -> None:
    async with redis() as client:
        for key in await client.keys(f"{prefix}:*"):
            await client.delete(key)


@asynccontextmanager
async def redis() -> AsyncIterator[Any]:
    from redis.asyncio import Redis

    async with Redis.from_url("redis://127.0.0.1:6379/0") as client:
        yield client
