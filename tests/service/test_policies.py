"""Policies from YAML to the answer: what a partner's server sees of them, and what executions and /sources tell."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from textwrap import dedent, indent
from time import perf_counter
from typing import Any

import pytest
from aiohttp.test_utils import unused_port

from orchestrator_core.config.load import load_configuration
from orchestrator_core.policies.notes import Guarded
from orchestrator_core.reload import make_registry
from orchestrator_core.snapshot import draft
from orchestrator_core.testing import Answer, RunningService, check_problems, service

from .partner import Partner, execution_of, partner

RunFixture = Callable[..., Any]

QUICK = "retry: {backoff: 1ms, max_backoff: 1ms}"
NO_RETRY = "retry: false"


def files(told: Partner, policies: str = "", *, step: str = "", endpoint: str = "") -> dict[str, str]:
    """One API with a read and a write, and an endpoint for each."""
    call = f"type: api, source_id: partner, params: {{id: $request.query_params.id ?? 1}}{step}"
    source = {
        "integrations/api.yaml": f"""
            api:
              sources:
                partner:
                  base_url: {told.url}
                  operations:
                    read: {{method: GET, path: "/read/{{id}}"}}
                    write: {{method: POST, path: "/write/{{id}}"}}
        """,
    }
    source["integrations/api.yaml"] = dedent(source["integrations/api.yaml"]) + indent(dedent(policies), " " * 6)
    return source | {
        "domains/d.yaml": f"""
            endpoints:
              read: {{data_sources: [{{name: s, operation: read, {call}}}]{endpoint}}}
              write: {{data_sources: [{{name: s, operation: write, {call}}}]{endpoint}}}
              other: {{response_mapping: 1}}
        """
    }


@asynccontextmanager
async def serving(policies: str = "", **more: str) -> AsyncIterator[tuple[RunningService, Partner]]:
    async with partner() as told, service(files(told, policies, **more)) as served:
        yield served, told


async def step_of(served: RunningService, answer: Answer) -> dict[str, Any]:
    """Return what the execution tells of its one step, without what time it took; of failed attempts what happened."""
    execution: Any = await execution_of(served, answer)
    (step,) = execution["steps"]
    for attempt in step.get("failed_attempts", ()):
        assert step["start_ms"] <= attempt["start_ms"]
        assert attempt["start_ms"] + attempt["duration_ms"] <= step["start_ms"] + step["duration_ms"] + 0.002  # rounded
    told = {"failed_attempts": [attempt["error"].rpartition(": ")[2] for attempt in step.get("failed_attempts", ())]}
    known = {key: value for key, value in step.items() if key not in ("start_ms", "duration_ms", "error")}
    return known | (told if "failed_attempts" in known else {})


async def policies_of(served: RunningService) -> dict[str, Any]:
    (source,) = [found for found in (await served.admin("GET", "/sources")).json["sources"] if found["type"] == "api"]
    policies: dict[str, Any] = source["policies"]
    return policies


# --- retry -----------------------------------------------------------------------------------------------------------


def test_a_read_is_tried_again_and_a_write_is_not(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(QUICK) as (served, told):
            for _ in range(10):  # two further attempts for as many calls are within the budget
                await served.get("/orchestrator/d/read")
            told.statuses = [503, 502]
            answer = await served.get("/orchestrator/d/read")
            assert (answer.status, answer.json, len(told.calls)) == (200, {"call": 13}, 13)
            failed = ["answered 503", "answered 502"]
            step = {"name": "s", "status": "ok", "attempts": 3, "failed_attempts": failed}
            assert await step_of(served, answer) == step
            told.statuses = [503]
            answer = await served.get("/orchestrator/d/write")
            assert (answer.status, told.calls[13:]) == (502, ["/write/1"])
            assert await step_of(served, answer) == {"name": "s", "status": "failed", "attempts": 1}

    run(main())


def test_a_write_is_tried_again_when_the_configuration_says_so(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("retry: {backoff: 1ms, non_idempotent: true}") as (served, told):
            told.statuses = [503]
            assert (await served.get("/orchestrator/d/write")).json == {"call": 2}

    run(main())


def test_what_is_no_passing_failure_is_not_tried_again(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(QUICK) as (served, told):
            told.statuses = [400, 404]
            assert [(await served.get("/orchestrator/d/read")).status for _ in range(2)] == [502, 404]
            assert len(told.calls) == 2

    run(main())


def test_a_partner_that_says_when_to_come_again_is_asked_again_then_and_not_before(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("") as (served, told):
            told.retry_after = "1"
            told.statuses = [429]
            began = perf_counter()
            answer = await served.get("/orchestrator/d/read")
            assert (answer.json, perf_counter() - began >= 1) == ({"call": 2}, True)
            assert (await step_of(served, answer))["attempts"] == 2
            for headers, status in (("2", 503), ("1", 429)):  # longer than max_backoff; a call that is not idempotent
                told.retry_after, told.statuses = headers, [status]
                answer = await served.get(f"/orchestrator/d/{'read' if status == 503 else 'write'}")
                assert (answer.status, answer.headers["Retry-After"]) == (503, headers)
            assert len(told.calls) == 4

    run(main())


def test_a_source_that_is_down_sees_at_most_a_fifth_more_calls(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(f"{QUICK}\ncircuit_breaker: false") as (served, told):
            told.statuses = [503] * 1000
            for _ in range(60):
                assert (await served.get("/orchestrator/d/read")).status == 502
            assert 61 <= len(told.calls) <= 60 + 12
            retry = (await policies_of(served))["retry"]
            assert (retry["calls"], retry["retries"]) == (60, len(told.calls) - 60)
            assert retry["refused_by_budget"] >= 60 - 12

    run(main())


def test_a_step_s_own_retry_wins_over_the_source_s(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("retry: {attempts: 1}", step=", retry: {attempts: 2, backoff: 1ms}") as (served, told):
            told.statuses = [503, 503]
            answer = await served.get("/orchestrator/d/read")
            assert (answer.status, len(told.calls)) == (502, 2)
            assert (await step_of(served, answer))["attempts"] == 2

    run(main())


def test_every_source_has_what_config_yaml_says(run: RunFixture) -> None:
    async def main() -> None:
        async with partner() as told:
            given = files(told) | {"config.yaml": "policies: {retry: {attempts: 2, backoff: 1ms}}"}
            async with service(given) as served:
                told.statuses = [503] * 3
                assert (await served.get("/orchestrator/d/read")).status == 502
                assert len(told.calls) == 2
                assert (await policies_of(served))["retry"]["at"] == ["config.yaml:1"]

    run(main())


# --- timeout ---------------------------------------------------------------------------------------------------------


class Late:
    """A source whose first call of each operation never ends."""

    kind = """
        import asyncio
        from contextlib import asynccontextmanager
        from attrs import frozen
        from orchestrator_core.plugin_api import SourceKind, hookimpl

        @frozen
        class Options:
            "Nothing."

        class Late:
            calls = 0
            async def fetch(self, operation, params):
                self.calls += 1
                if self.calls == 1 or operation == "never":
                    await asyncio.Event().wait()
                return self.calls

        @asynccontextmanager
        async def opened(options, context):
            yield Late()

        @hookimpl
        def orchestrator_source_kinds():
            return [SourceKind("late", "Is late.", Options, opened, idempotent=True)]
    """


def test_a_source_s_timeout_is_for_each_attempt_and_a_step_s_for_all(run: RunFixture) -> None:
    async def main() -> None:
        given = {
            "config.yaml": f"late: {{sources: {{default: {{timeout: 50ms, {QUICK}}}}}}}",
            "domains/d.yaml": """
                endpoints:
                  again: {data_sources: [{name: s, type: late, operation: first}]}
                  never: {data_sources: [{name: s, type: late, operation: never, retry: {attempts: 2}}]}
                  step: {data_sources: [{name: s, type: late, operation: never, timeout: 20ms}]}
            """,
        }
        async with service(given, plugins={"late": Late.kind}) as served:
            answer = await served.get("/orchestrator/d/again")
            assert (answer.status, answer.json) == (200, 2)
            assert (await step_of(served, answer))["attempts"] == 2
            answer = await served.get("/orchestrator/d/never")
            detail = "step 's': late.default did not answer within 0.05 s"
            assert (answer.status, answer.json["detail"], answer.json["title"]) == (504, detail, "deadline passed")
            answer = await served.get("/orchestrator/d/step")
            assert (answer.status, answer.json["detail"]) == (504, "step 's' took longer than its timeout")
            assert (await step_of(served, answer))["attempts"] == 1

    run(main())


def test_the_timeout_in_force_is_the_one_that_is_said_nearest_to_the_call(run: RunFixture) -> None:
    """Of what nobody has said there and a policy that is said farther away, it is the shorter one."""

    async def main() -> None:
        async with partner() as told:
            given = {
                "config.yaml": "policies: {timeout: 4s}",
                "integrations/x.yaml": f"""
                    api:
                      sources:
                        own: {{base_url: "{told.url}", timeout: 7s}}
                        none: {{base_url: "{told.url}"}}
                      operations:
                        get: {{method: GET, path: /}}
                        slow: {{method: GET, path: /, timeout: 9s}}
                    ml:
                      sources:
                        m:
                          base_url: "{told.url}"
                          timeout: 3s
                          models: {{default: {{timeout: 8s}}, other: {{}}}}
                    """,
                "domains/d.yaml": """
                    endpoints:
                      e:
                        data_sources:
                          - {name: a, type: api, source_id: own, operation: get}
                          - {name: b, type: api, source_id: own, operation: slow}
                          - {name: c, type: api, source_id: none, operation: get}
                          - {name: d, type: ml, source_id: m, operation: predict, params: {features: {x: 1}}}
                          - {name: e, type: ml, source_id: m, operation: other, params: {features: {x: 1}}}
                    """,
            }
            async with service(given) as served:
                (ready,) = served.running.live.snapshot.plans.values()
                timeouts = [step.policies.timeout for step in ready.plan.steps]
                assert [(found.options, found.why, [at.line for at in found.places]) for found in timeouts] == [
                    (None, "7 s, kept by the source itself", [4]),
                    (None, "9 s, kept by the source itself", [8]),
                    (4.0, "configured", [1]),
                    (None, "8 s, kept by the model itself", [14]),
                    (None, "2 s, kept by the model itself", []),
                ]

    run(main())


def test_a_server_that_is_started_has_the_timeout_of_a_model_behind_http(tmp_path: Path) -> None:
    """It is spoken to as such. A model in this process has none of its own."""
    (tmp_path / "integrations").mkdir()
    (tmp_path / "domains").mkdir()
    (tmp_path / "config.yaml").write_text("policies: {timeout: 4s}")
    (tmp_path / "integrations/ml.yaml").write_text(
        dedent("""
            ml:
              sources:
                container: {source: {type: docker, image: "a:1"}}
                slow: {source: {type: docker, image: "a:1", timeout: 9s}}
                process: {source: {type: artifact, startup_command: "serve {port}"}}
                file: {source: {type: artifact, path: a.onnx}}
        """)
    )
    call = "type: ml, operation: predict, params: {features: {x: 1}}"
    steps = [f"{{name: {name}, source_id: {name}, {call}}}" for name in ("container", "slow", "process", "file")]
    (tmp_path / "domains/d.yaml").write_text(f"endpoints: {{e: {{data_sources: [{', '.join(steps)}]}}}}")
    (plan,) = draft(load_configuration(tmp_path), make_registry(tmp_path, None)).plans.values()
    timeouts = [step.policies.timeout for step in plan.steps]
    assert [(found.options, found.why) for found in timeouts] == [
        (None, "2 s, kept by the model itself"),
        (None, "9 s, kept by the model itself"),
        (None, "2 s, kept by the model itself"),
        (4.0, "configured"),
    ]


# --- circuit breaker -------------------------------------------------------------------------------------------------


def breaker(failures: int = 3, reset: str = "1h") -> str:
    return f"{NO_RETRY}\ncircuit_breaker: {{failures: {failures}, window: 1h, reset: {reset}}}"


async def break_open(served: RunningService, told: Partner, failures: int = 3) -> None:
    told.statuses = [500] * failures
    for _ in range(failures):
        assert (await served.get("/orchestrator/d/read")).status == 502


def test_an_open_breaker_refuses_without_a_call_and_says_when_to_come_again(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(breaker()) as (served, told):
            await break_open(served, told)
            answer = await served.get("/orchestrator/d/read")
            assert (answer.status, answer.json["step"], len(told.calls)) == (503, "s", 3)
            assert answer.json["detail"] == (
                "step 's': api.partner has failed repeatedly and is left alone: its circuit breaker is open"
            )
            assert 3590 <= int(answer.headers["Retry-After"]) <= 3600
            step = {"name": "s", "status": "failed", "attempts": 0, "breaker": "open"}
            assert await step_of(served, answer) == step
            state = (await policies_of(served))["circuit_breaker"]
            assert state["options"] == {"failures": 3, "window": 3600.0, "reset": 3600.0}
            assert (state["state"], state["opened"], state["at"]) == ("open", 1, ["integrations/api.yaml:10"])
            assert (await served.get("/orchestrator/d/other")).status == 200

    run(main())


def test_exactly_one_probe_is_let_through_and_closes_the_breaker(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(breaker(reset="50ms")) as (served, told):
            await break_open(served, told)
            await asyncio.sleep(0.1)
            told.hold = asyncio.Event()
            probe = asyncio.create_task(served.get("/orchestrator/d/read"))
            await told.asked(4)
            others = await asyncio.gather(*(served.get("/orchestrator/d/read") for _ in range(10)))
            assert [answer.status for answer in others] == [503] * 10
            told.hold.set()
            answer = await probe
            assert (answer.status, len(told.calls)) == (200, 4)
            step = {"name": "s", "status": "ok", "attempts": 1, "breaker": "half_open"}
            assert await step_of(served, answer) == step
            assert (await served.get("/orchestrator/d/read")).status == 200
            assert (await policies_of(served))["circuit_breaker"]["state"] == "closed"

    run(main())


@asynccontextmanager
async def with_parallel_steps(*steps: str) -> AsyncIterator[tuple[RunningService, dict[str, Partner]]]:
    """Serve an endpoint ``both`` with a step on each of these partners at once, and one on ``x`` alone."""
    async with partner() as x, partner() as y:
        partners = {"x": x, "y": y}
        sources = "".join(
            f"""
                {name}:
                  base_url: {told.url}
                  retry: false
                  circuit_breaker: {{failures: 1, reset: 300ms}}
                  operations: {{read: {{method: GET, path: "/read/{{id}}"}}}}"""
            for name, told in partners.items()
        )
        both = ", ".join(
            f"{{name: s{place}, type: api, source_id: {of}, operation: read, params: {{id: {place}}}}}"
            for place, of in enumerate(steps)
        )
        one = "{name: s, type: api, source_id: x, operation: read, params: {id: 1}}"
        given = {
            "integrations/api.yaml": f"""
            api:
              sources:{sources}
            """,
            "domains/d.yaml": f"""
            endpoints:
              both: {{data_sources: [{both}], response_mapping: 1}}
              x: {{data_sources: [{one}]}}
            """,
        }
        async with service(given) as served:
            yield served, partners


def test_two_steps_on_one_source_that_is_well_again_succeed_at_once(run: RunFixture) -> None:
    async def main() -> None:
        async with with_parallel_steps("x", "x") as (served, partners):
            partners["x"].statuses = [500]
            assert (await served.get("/orchestrator/d/x")).status == 502
            await asyncio.sleep(0.35)
            assert (await served.get("/orchestrator/d/both")).status == 200
            assert len(partners["x"].calls) == 3

    run(main())


def test_an_endpoint_that_fails_by_another_step_does_not_keep_a_breaker_open(
    run: RunFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_core.policies.attempts.PROBE_OUTLASTS_SECONDS", 9.0)  # on a busy machine

    async def main() -> None:
        async with with_parallel_steps("x", "y") as (served, partners):
            partners["x"].statuses = [500]
            assert (await served.get("/orchestrator/d/x")).status == 502
            await asyncio.sleep(0.35)
            partners["y"].statuses = [404]
            partners["x"].hold = asyncio.Event()
            failing = asyncio.create_task(served.get("/orchestrator/d/both"))
            await asyncio.gather(partners["x"].asked(2), partners["y"].asked(1))
            assert (await served.get("/orchestrator/d/x")).status == 503
            partners["x"].hold.set()
            assert (await failing).status == 404
            assert (await served.get("/orchestrator/d/x")).status == 200

    run(main())


def test_an_open_breaker_degrades_a_step_that_the_answer_can_do_without(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(breaker(), step=", default: {call: 0}") as (served, told):
            told.statuses = [500] * 3
            for _ in range(4):
                answer = await served.get("/orchestrator/d/read")
                assert (answer.status, answer.json) == (200, {"call": 0})
                assert answer.headers["X-Orchestrator-Degraded"] == "s"
            assert len(told.calls) == 3

    run(main())


def test_what_the_caller_did_wrong_and_what_does_not_exist_do_not_open_it(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(breaker(2)) as (served, told):
            told.statuses = [404] * 5
            for _ in range(5):
                assert (await served.get("/orchestrator/d/read")).status == 404
            assert (await policies_of(served))["circuit_breaker"]["failures"] == 0

    run(main())


def test_the_request_s_deadline_is_a_failure_of_the_source_and_a_client_that_leaves_is_none(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(breaker(2), endpoint=", timeout: 300ms") as (served, told):
            told.hold = asyncio.Event()
            gone = [asyncio.create_task(served.get("/orchestrator/d/read")) for _ in range(5)]
            await told.asked(5)
            for task in gone:
                task.cancel()
            await asyncio.wait(gone)
            async with asyncio.timeout(10):
                while len(await served.executions(status="cancelled")) < 5:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert (await policies_of(served))["circuit_breaker"]["failures"] == 0
            answers = [await served.get("/orchestrator/d/read") for _ in range(3)]
            assert [answer.status for answer in answers] == [504, 504, 503]
            assert answers[0].json["detail"] == "the request took longer than its 0.3 s in step 's'"

    run(main())


def test_a_step_with_a_breaker_of_its_own_leaves_the_source_s_alone(run: RunFixture) -> None:
    async def main() -> None:
        async with partner() as told:
            given = files(told, breaker(2))
            given["domains/d.yaml"] = given["domains/d.yaml"].replace(
                "name: s, operation: write", "name: s, circuit_breaker: {failures: 1}, operation: write"
            )
            async with service(given) as served:
                told.statuses = [500]
                assert [(await served.get("/orchestrator/d/write")).status for _ in range(2)] == [502, 503]
                assert (await served.get("/orchestrator/d/read")).status == 200

    run(main())


# --- concurrency -----------------------------------------------------------------------------------------------------


def test_calls_beyond_the_limit_wait_and_those_beyond_the_queue_are_refused(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("concurrency: {max: 2, queue: 1}") as (served, told):
            told.hold = asyncio.Event()
            calls = [asyncio.create_task(served.get("/orchestrator/d/read")) for _ in range(2)]
            await told.asked(2)
            waiting = asyncio.create_task(served.get("/orchestrator/d/read"))
            async with asyncio.timeout(10):
                while (await policies_of(served))["concurrency"]["waiting"] < 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            refused = await served.get("/orchestrator/d/read")
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
            assert refused.json["detail"] == (
                "step 's': api.partner has 2 calls under way and 1 waiting, and takes no more"
            )
            assert (await step_of(served, refused))["attempts"] == 0
            told.hold.set()
            assert [answer.status for answer in await asyncio.gather(*calls, waiting)] == [200] * 3
            assert told.most_at_once == 2
            assert (await step_of(served, await waiting))["waited_ms"] > 0
            state = (await policies_of(served))["concurrency"]
            assert (state["running"], state["waiting"], state["refused"]) == (0, 0, 1)

    run(main())


# --- cache -----------------------------------------------------------------------------------------------------------


def test_a_result_is_fetched_once_for_the_same_parameters(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("cache: {ttl: 1h}") as (served, told):
            targets = ("?id=1", "?id=1", "?id=2", "?id=1")
            answers = [await served.get(f"/orchestrator/d/read{target}") for target in targets]
            assert [answer.json["call"] for answer in answers] == [1, 1, 2, 1]
            assert told.calls == ["/read/1", "/read/2"]
            assert await step_of(served, answers[0]) == {"name": "s", "status": "ok", "attempts": 1}
            hit = {"name": "s", "status": "cached", "attempts": 0, "cache": "hit"}
            assert await step_of(served, answers[1]) == hit
            assert ";desc=cached" in answers[1].headers["Server-Timing"]
            cache = (await policies_of(served))["cache"]
            assert (cache["entries"], cache["hits"], cache["misses"]) == (2, 2, 2)

    run(main())


def test_a_source_s_cache_is_for_its_reads(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("cache: {ttl: 1h}") as (served, told):
            assert [(await served.get("/orchestrator/d/write")).json["call"] for _ in range(2)] == [1, 2]
            assert told.calls == ["/write/1", "/write/1"]

    run(main())


def test_requests_for_the_same_share_one_call(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("cache: {ttl: 1h}") as (served, told):
            told.hold = asyncio.Event()
            calls = [asyncio.create_task(served.get("/orchestrator/d/read")) for _ in range(8)]
            await told.asked(1)
            while served.running.live.snapshot.running < 8:  # noqa: ASYNC110  # the turns are what is waited for
                await asyncio.sleep(0)
            told.hold.set()
            answers = await asyncio.gather(*calls)
            assert ({answer.json["call"] for answer in answers}, len(told.calls)) == ({1}, 1)
            caches = [(await step_of(served, answer)).get("cache", "") for answer in answers]
            assert sorted(caches) == ["", *["shared"] * 7]

    run(main())


def test_a_stale_result_is_given_while_a_new_one_is_fetched(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("cache: {ttl: 1ms, stale_while_revalidate: 1h}") as (served, told):
            assert (await served.get("/orchestrator/d/read")).json == {"call": 1}
            await asyncio.sleep(0.01)
            answer = await served.get("/orchestrator/d/read")
            assert answer.json == {"call": 1}
            assert (await step_of(served, answer))["cache"] == "stale"
            await told.asked(2)

    run(main())


def test_a_stale_result_is_given_when_the_source_fails(run: RunFixture) -> None:
    async def main() -> None:
        policies = f"cache: {{ttl: 1ms, stale_if_error: 1h}}\n{breaker(2)}"
        async with serving(policies) as (served, told):
            assert (await served.get("/orchestrator/d/read")).status == 200
            told.statuses = [500] * 2
            for _ in range(4):  # the breaker is open for the last two
                await asyncio.sleep(0.005)
                answer = await served.get("/orchestrator/d/read")
                assert (answer.status, answer.json) == (200, {"call": 1})
                assert "X-Orchestrator-Degraded" not in answer.headers
            assert (len(told.calls), (await step_of(served, answer))["cache"]) == (3, "stale")

    run(main())


def test_a_stale_result_is_given_before_the_request_s_deadline_passes(run: RunFixture) -> None:
    async def main() -> None:
        policies = f"cache: {{ttl: 1ms, stale_if_error: 1h}}\n{breaker(2)}"
        async with serving(policies, endpoint=", timeout: 3s, response_mapping: {x: $s.call + 1}") as (served, told):
            assert (await served.get("/orchestrator/d/read")).json == {"x": 2}
            told.hold = asyncio.Event()
            await asyncio.sleep(0.005)
            answer = await served.get("/orchestrator/d/read")
            assert (answer.status, answer.json) == (200, {"x": 2})
            told_of_it = await step_of(served, answer)
            assert told_of_it.pop("failed_attempts") == ["cancelled before it ended"]
            assert told_of_it == {"name": "s", "status": "cached", "attempts": 1, "cache": "stale"}
            assert (await policies_of(served))["circuit_breaker"]["failures"] == 1

    run(main())


@pytest.mark.parametrize(
    ("operation", "step", "told"),
    [
        ("write", "retry: {attempts: 3}", ["retry does nothing here: write is not known to be idempotent"]),
        ("write", "retry: {attempts: 3, non_idempotent: true}", []),
        ("write", "retry: false, circuit_breaker: {failures: 2}", []),
        ("write", "timeout: 1s", []),
        ("read", "retry: {attempts: 3}", []),
    ],
)
def test_a_step_that_asks_for_what_does_not_apply_is_warned_of(operation: str, step: str, told: list[str]) -> None:
    given = {
        "integrations/api.yaml": """
            api:
              sources:
                partner:
                  base_url: "http://127.0.0.1:1"
                  retry: {attempts: 2}
                  operations:
                    read: {method: GET, path: "/read"}
                    write: {method: POST, path: "/write"}
        """,
        "domains/d.yaml": f"""
            endpoints:
              e: {{data_sources: [{{name: s, type: api, source_id: partner, operation: {operation}, {step}}}]}}
        """,
    }
    problems = check_problems(given, offline=True)
    assert [(problem.severity, problem.message) for problem in problems] == [("warning", text) for text in told]


@pytest.mark.parametrize(
    ("source", "step"),
    [
        ("cache: {ttl: 1h, key: id}", ""),
        ("cache: {ttl: 1h, key: [id]}", ""),
        ("cache: {ttl: 1h, key: $params.id % 10}", ""),
        ("", ", cache: {ttl: 1h, key: id}"),
        ("", ', cache: {ttl: 1h, key: "$request.query_params.other ?? 1"}'),
        ("cache: {ttl: 1ms}", ", cache: {ttl: 1h}"),
    ],
)
def test_a_key_says_what_tells_results_apart(run: RunFixture, source: str, step: str) -> None:
    async def main() -> None:
        async with partner() as told:
            given = files(told, source, step=step)
            schema = "input_schema: {type: object, properties: {id: {type: integer}}}"
            given["domains/d.yaml"] = given["domains/d.yaml"].replace("read: {data", f"read: {{{schema}, data")
            async with service(given) as served:
                assert [(await served.get("/orchestrator/d/read?id=1")).json["call"] for _ in range(2)] == [1, 1]
                other = await served.get("/orchestrator/d/read?id=2&other=2")
                assert other.json["call"] == 2

    run(main())


def test_two_parameters_with_one_key_share_a_result(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("", step=', cache: {ttl: 1h, key: "$request.query_params.of"}') as (served, told):
            answers = [await served.get(f"/orchestrator/d/read?id={number}&of=x") for number in range(3)]
            assert ([answer.json["call"] for answer in answers], told.calls) == ([1, 1, 1], ["/read/0"])
            missing = await served.get("/orchestrator/d/read?id=1")
            assert (missing.status, missing.json["errors"][0]["pointer"]) == (422, "/query_params/of")

    run(main())


KEYS = ("id", "[id]", '"$request.query_params.id"')


@pytest.mark.parametrize("key", KEYS)
def test_steps_whose_own_key_leaves_a_parameter_out_share_nothing(run: RunFixture, key: str) -> None:
    async def main() -> None:
        async with partner() as told, service(left_out(told, key)) as served:
            answers = [await served.get(f"/orchestrator/d/{name}?id=1") for name in ("euro", "dollar", "euro")]
            assert [answer.json["call"] for answer in answers] == [1, 2, 1]

    run(main())


@pytest.mark.parametrize("key", KEYS)
def test_what_a_step_asked_for_before_a_reload_is_not_given_after_it(run: RunFixture, key: str) -> None:
    async def main() -> None:
        async with partner() as told:
            given = left_out(told, key)
            async with service(given) as served:
                assert (await served.get("/orchestrator/d/euro?id=1")).json["call"] == 1
                served.write("domains/d.yaml", given["domains/d.yaml"].replace("EUR", "CHF"))
                assert (await served.reload()).status == 200
                assert (await served.get("/orchestrator/d/euro?id=1")).json["call"] == 2

    run(main())


def left_out(told: Partner, key: str) -> dict[str, str]:
    """Two endpoints that ask for other things, of which their steps' keys say nothing."""
    given = files(told)
    call = "name: s, type: api, source_id: partner, operation: read, params: {id: $request.id, currency: "
    given["domains/d.yaml"] = f"""
        endpoints:
          euro: {{data_sources: [{{{call}EUR}}, cache: {{ttl: 1h, key: {key}}}}}]}}
          dollar: {{data_sources: [{{{call}USD}}, cache: {{ttl: 1h, key: {key}}}}}]}}
    """
    given["integrations/api.yaml"] = given["integrations/api.yaml"].replace(
        '"/read/{id}"', '"/read/{id}", query: {currency: $params.currency}'
    )
    return given


# --- for_each --------------------------------------------------------------------------------------------------------


def each(told: Partner, policies: str) -> dict[str, str]:
    given = files(told, policies)
    given["domains/d.yaml"] = """
        endpoints:
          all:
            data_sources:
              - {name: s, type: api, source_id: partner, operation: read, for_each: $request.body, params: {id: $item}}
    """
    return given


def test_items_that_hang_until_the_step_s_time_is_up_are_a_failure_of_the_source(run: RunFixture) -> None:
    async def main() -> None:
        async with partner() as told:
            given = each(told, breaker(2))
            given["domains/d.yaml"] = given["domains/d.yaml"].replace(
                "name: s,", "name: s, timeout: 100ms, default: 0,"
            )
            async with service(given) as served:
                told.hold = asyncio.Event()
                for state in ("closed", "open"):
                    answer = await served.post("/orchestrator/d/all", [1, 2])
                    assert (answer.status, answer.json) == (200, [0, 0])
                    assert (await policies_of(served))["circuit_breaker"]["state"] == state
                refused = await step_of(served, await served.post("/orchestrator/d/all", [1, 2, 3]))
                assert (refused["items_failed"], refused["breaker"], refused["attempts"]) == (3, "open", 0)
                told.hold.set()

    run(main())


def test_the_items_of_a_request_wait_for_the_probe_among_them(run: RunFixture) -> None:
    async def main() -> None:
        async with partner() as told, service(each(told, breaker(1, reset="100ms"))) as served:
            told.statuses = [500]
            assert (await served.post("/orchestrator/d/all", [1])).status == 502
            await asyncio.sleep(0.15)
            told.hold = asyncio.Event()
            answer = asyncio.create_task(served.post("/orchestrator/d/all", [1, 2, 3]))
            await told.asked(2)
            assert (await served.post("/orchestrator/d/all", [4])).status == 503
            assert len(told.calls) == 2
            told.hold.set()
            assert ((await answer).status, len(told.calls)) == (200, 4)
            step = await step_of(served, await answer)
            assert (step["breaker"], step["attempts"], step["waited_ms"] > 0) == ("half_open", 1, True)
            assert (await policies_of(served))["circuit_breaker"]["refused"] == 1

    run(main())


def test_the_items_of_a_step_do_not_fill_the_queue_of_their_source(run: RunFixture) -> None:
    async def main() -> None:
        async with partner() as told, service(each(told, "concurrency: {max: 2, queue: 0}")) as served:
            told.hold = asyncio.Event()
            answer = asyncio.create_task(served.post("/orchestrator/d/all", list(range(20))))
            await told.asked(2)
            told.hold.set()
            assert ((await answer).status, told.most_at_once, len(told.calls)) == (200, 2, 20)

    run(main())


def test_each_item_has_the_policies_of_its_call(run: RunFixture) -> None:
    async def main() -> None:
        async with partner() as told, service(each(told, f"{QUICK}\ncache: {{ttl: 1h}}")) as served:
            told.statuses = [503]
            answer = await served.post("/orchestrator/d/all", [1, 2])
            assert sorted(told.calls) in (["/read/1", "/read/1", "/read/2"], ["/read/1", "/read/2", "/read/2"])
            step = {"name": "s", "status": "ok", "attempts": 2, "items": 2, "items_failed": 0}
            step["failed_attempts"] = ["answered 503"]
            assert (answer.status, await step_of(served, answer)) == (200, step)
            again = await served.post("/orchestrator/d/all", [1, 2])
            assert (again.json, len(told.calls)) == (answer.json, 3)
            step = await step_of(served, again)
            assert (step["status"], step["cache"], step["attempts"]) == ("cached", "hit", 0)
            nothing = await step_of(served, await served.post("/orchestrator/d/all", []))
            assert (nothing["status"], nothing["items"], nothing["attempts"]) == ("ok", 0, 0)
            more = await served.post("/orchestrator/d/all", [2, 3])
            step = await step_of(served, more)
            assert (more.json[0], told.calls[3:], step["status"]) == (answer.json[1], ["/read/3"], "ok")

    run(main())


@pytest.mark.parametrize(
    ("where", "key"), [("step", "$item.id % 2"), ("source", "$params.id % 2"), ("step", "id")], ids=lambda key: key
)
def test_a_key_tells_the_items_of_one_call_apart(run: RunFixture, tmp_path: Path, where: str, key: str) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as database:
        database.execute("CREATE TABLE things (id INTEGER)")
        database.executemany("INSERT INTO things VALUES (?)", [(1,), (2,), (3,), (4,)])
        database.commit()
    of = {place: f', cache: {{ttl: 1h, key: "{key}"}}' if where == place else "" for place in ("source", "step")}
    step = f"type: database, operation: get, for_each: $request.body, params: {{id: $item.id}}{of['step']}"
    given = {
        "database.yaml": f"""
            database:
              sources: {{default: {{connection_string: "sqlite:///{tmp_path}/x.db"{of["source"]}}}}}
              operations: {{get: {{query: "SELECT id FROM things WHERE id = :id", params: {{id: integer}}}}}}
        """,
        "domains/d.yaml": f"""
            endpoints:
              all:
                data_sources:
                  - {{name: s, {step}}}
        """,
    }

    async def main() -> None:
        async with service(given) as served:
            first = await served.post("/orchestrator/d/all", [{"id": 1}, {"id": 2}, {"id": 3}])
            again = await served.post("/orchestrator/d/all", [{"id": 3}, {"id": 4}])
            ids = [[row["id"] for row in answer.json] for answer in (first, again)]
            assert ids == ([[1, 2, 3], [3, 4]] if key == "id" else [[1, 2, 1], [1, 2]])
            assert (await step_of(served, again))["status"] == ("ok" if key == "id" else "cached")

    run(main())


# --- a reload --------------------------------------------------------------------------------------------------------


def test_what_is_remembered_outlives_a_reload_that_leaves_the_source_alone(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(f"cache: {{ttl: 1h}}\n{breaker(2)}") as (served, told):
            assert (await served.get("/orchestrator/d/read")).json == {"call": 1}
            await break_open_with_others(served, told)
            served.write("domains/more.yaml", "endpoints: {x: {response_mapping: 1}}")
            assert (await served.reload()).status == 200
            assert (await served.get("/orchestrator/d/read")).json == {"call": 1}
            assert (await served.get("/orchestrator/d/read?id=9")).status == 503
            assert len(told.calls) == 3

    async def break_open_with_others(served: RunningService, told: Partner) -> None:
        told.statuses = [500, 500]
        for number in (7, 8):
            assert (await served.get(f"/orchestrator/d/read?id={number}")).status == 502

    run(main())


def test_a_breaker_stays_open_when_another_cache_is_shared(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(breaker(2)) as (served, told):
            told.statuses = [500, 500]
            for _ in range(2):
                assert (await served.get("/orchestrator/d/read")).status == 502
            for cache in (f"cache: {{url: 'redis://127.0.0.1:{unused_port()}/0'}}", "{}"):
                served.write("config.yaml", cache)
                assert (await served.reload()).json["swapped"]
                assert (await served.get("/orchestrator/d/read")).status == 503
            policies = await policies_of(served)
            assert (policies["circuit_breaker"]["opened"], policies["circuit_breaker"]["refused"]) == (1, 2)
            assert len(told.calls) == 2

    run(main())


def test_a_changed_operation_and_a_changed_policy_begin_anew(run: RunFixture) -> None:
    async def main() -> None:
        async with serving("cache: {ttl: 1h}") as (served, told):
            assert (await served.get("/orchestrator/d/read")).json == {"call": 1}
            text = (served.folder / "integrations/api.yaml").read_text()
            served.write("integrations/api.yaml", text.replace("/read/", "/other/"))
            assert (await served.reload()).status == 200
            assert (await served.get("/orchestrator/d/read")).json == {"call": 2}
            served.write("integrations/api.yaml", text.replace("/read/", "/other/").replace("1h", "2h"))
            assert (await served.reload()).status == 200
            assert (await served.get("/orchestrator/d/read")).json == {"call": 3}
            (source,) = [found for found in served.running.live.snapshot.sources.values() if found.spec.key[1] == "api"]
            assert (source.users, told.calls) == (1, ["/read/1", "/other/1", "/other/1"])

    run(main())


# --- off -------------------------------------------------------------------------------------------------------------


def bound(served: RunningService, endpoint: str, step: str) -> tuple[Any, str]:
    """Return what the generated code of an endpoint awaits for a step, and the code."""
    ready = served.running.live.snapshot.plans["d", endpoint]
    return ready.run.__globals__[f"call_{step}"], ready.generated.source  # type: ignore[attr-defined]


def test_sources_show_what_is_in_force_after_a_reload_and_not_what_was(run: RunFixture) -> None:
    """Also of the configuration that was there at the start, which the garbage collector leaves alone."""

    async def main() -> None:
        async with serving(f"{breaker(1)}\nconcurrency: {{max: 1}}") as (served, told):
            told.statuses = [503]
            assert (await served.get("/orchestrator/d/read")).status == 502
            assert (await policies_of(served))["circuit_breaker"]["state"] == "open"
            for name, text in files(told, f"{breaker(7)}\nconcurrency: {{max: 2}}").items():
                served.write(name, text)
            assert (await served.reload()).status == 200
            async with asyncio.timeout(10):
                while (await policies_of(served))["concurrency"]["max"] != 2:  # noqa: ASYNC110  # it is asked, not told
                    await asyncio.sleep(0.01)
            assert (await policies_of(served))["circuit_breaker"]["state"] == "closed"

    run(main())


def test_a_call_without_policies_is_the_source_s_own(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(f"{NO_RETRY}\ncircuit_breaker: false") as (served, _):
            call, source = bound(served, "read", "s")
            (opened,) = [one for one in served.running.live.snapshot.sources.values() if one.spec.key[1] == "api"]
            prepared = opened.source.prepare("read", ["id"])  # type: ignore[attr-defined]
            assert call.__qualname__ == prepared.__qualname__
            assert "await call_s(s_id_0)" in source
            policies = await policies_of(served)
            assert {name: policy["options"] for name, policy in policies.items()} == dict.fromkeys(policies)

    run(main())


def test_a_direct_step_has_none(run: RunFixture) -> None:
    async def main() -> None:
        given = {"domains/d.yaml": "endpoints: {e: {data_sources: [{name: s, type: direct, params: {a: 1}}]}}"}
        async with service(given | {"config.yaml": "policies: {concurrency: {max: 1}, timeout: 1}"}) as served:
            call, source = bound(served, "e", "s")
            assert (call.__name__, isinstance(call, Guarded), "await call_s(1)" in source) == ("assemble", False, True)

    run(main())


def test_policies_on_a_direct_step_are_a_problem() -> None:
    domain = """\
endpoints:
  e:
    data_sources:
      - name: s
        type: direct
        params: {a: 1}
        retry: {attempts: 2}
        circuit_breaker: true
        concurrency: {max: 1}
        cache: {ttl: 1s}
  off:
    data_sources: [{name: s, type: direct, params: {a: 1}, timeout: 1s, retry: false, cache: false}]
"""
    problems = check_problems({"domains/d.yaml": domain})
    assert [(problem.line, problem.column, problem.code) for problem in problems] == [
        (line, 9, "ORC204") for line in (7, 8, 9, 10)
    ]
    assert problems[3].message == "cache stands around the call of a source, and a direct step calls none"
    assert problems[3].hint == "remove it; give cache to the step whose source is called"


def test_a_policy_in_an_operation_is_told_where_policies_stand() -> None:
    operation = "{path: /r, timeout: 1s, retry: {attempts: 2}, cache: {ttl: 1s}}"  # a timeout is the operation's own
    source = f"api: {{sources: {{default: {{base_url: 'http://127.0.0.1:9', operations: {{r: {operation}}}}}}}}}"
    domain = "endpoints: {e: {data_sources: [{name: s, type: api, operation: r}]}}"
    found = check_problems({"integrations/a.yaml": source, "domains/d.yaml": domain}, offline=True)
    hint = "policies stand beside the options of the source, or on a step"
    assert [(problem.code, problem.message, problem.hint) for problem in found] == [
        ("ORC201", "unknown key 'retry'", hint),
        ("ORC201", "unknown key 'cache'", hint),
    ]


def test_integers_of_any_size_are_read_and_those_that_no_page_can_show_are_problems() -> None:
    source = "api: {{sources: {{default: {{base_url: 'http://127.0.0.1:9', {}, operations: {{r: {{path: /r}}}}}}}}}}"
    domain = "endpoints: {e: {data_sources: [{name: s, type: api, operation: r}]}}"

    def told(options: str) -> list[str]:
        files = {"integrations/api.yaml": source.format(options), "domains/d.yaml": domain}
        return [f"{problem.code} {problem.message}" for problem in check_problems(files, offline=True)]

    most, more = 2**63 - 1, 2**64
    assert told(f"max_response_bytes: {more}, concurrency: {{max: {most}}}") == []
    assert told(f"concurrency: {{max: {more}}}") == [f"ORC204 expected at most {most}, got {more}"]
