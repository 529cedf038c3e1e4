"""The life of a model, through HTTP and the admin listener: loading, failing, ending, falling ill, coming back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from attrs import evolve

from orchestrator_core.errors import ConfigError, InvalidParam, SourceError, SourceUnavailable
from orchestrator_core.models.options import CommonOptions, ModelSpec
from orchestrator_core.plugin_api import Duration, EndedByOthers, ModelKind
from orchestrator_core.testing import RunningService, check_problems, leaves_nothing, service
from tests.service.scripted_models import Plugin, ScriptedOptions, eventually, model, state

RunFixture = Callable[..., Any]
T = TypeVar("T")

QUICK = "health_check: {interval: 20ms, timeout: 500ms}, restart: {backoff: 10ms, max_backoff: 20ms}"
DOMAIN = """
    endpoints:
      other: {response_mapping: 1}
      score:
        data_sources:
          - {name: s, type: ml, source_id: m, operation: predict, params: {features: {x: "$request.body.x"}}}
        response_mapping: {y: "$s.y", degraded: "$execution.degraded"}
      list:
        data_sources:
          - {name: s, type: ml, source_id: m, operation: predict, params: {features: "$request.body"}}
      traced:
        data_sources:
          - {name: s, type: ml, source_id: m, operation: predict, params: {features: {x: "$request.body.x"}}}
        response_mapping: {version: "$execution.models.s.version", all: "$execution.models"}
"""


def files(more: str = QUICK, *, wait: str = "5s", script: str = "m", beside: str = "") -> dict[str, str]:
    return {
        "config.yaml": f"server: {{preload_wait: {wait}}}\n",
        "integrations/ml.yaml": f"""
            ml:
              sources:
                m: {{source: {{type: scripted, script: {script}, {more}}}{beside}}}
        """,
        "domains/d.yaml": DOMAIN,
    }


@asynccontextmanager
async def serving(plugin: Plugin, config: Mapping[str, str] | None = None) -> AsyncIterator[RunningService]:
    async with service(config or files(), plugins={"scripted": plugin}) as shop:
        yield shop
    assert {name: script.open_now for name, script in plugin.scripts.items() if script.open_now} == {}


async def score(shop: RunningService, x: int = 1) -> Any:
    return await shop.post("/orchestrator/d/score", {"x": x})


def refusal(answer: Any) -> tuple[int, str, str]:
    return answer.status, answer.json["detail"], answer.json.get("step")


def test_what_a_model_says_is_kept_where_its_source_or_the_model_has_a_cache(run: RunFixture) -> None:
    async def main() -> None:
        for given in (files(beside=", cache: {ttl: 1h}"), files(f"{QUICK}, cache: {{ttl: 1h}}")):
            plugin = Plugin()
            async with serving(plugin, given) as shop:
                assert [(await score(shop, x)).json["y"] for x in (1, 1, 2, 1)] == [10, 10, 20, 10]
                assert plugin["m"].rows == [{"x": 1}, {"x": 2}]

    run(main())


def test_a_call_that_its_policies_refuse_is_no_failure_of_the_model(run: RunFixture) -> None:
    """It would have more failures than requests."""
    plugin = Plugin()
    plugin["m"].unfit = lambda row: SourceError("it broke", transient=True)

    async def main() -> None:
        policies = ", retry: false, circuit_breaker: {failures: 1, window: 1h, reset: 1h}"
        async with serving(plugin, files(beside=policies)) as shop:
            assert [(await score(shop)).status for _ in range(4)] == [502, 503, 503, 503]
            shown = await model(shop)
            assert (shown["state"], shown["requests"], shown["failures"]) == ("ready", 1, 1)

    run(main())


# --- the start ----------------------------------------------------------------------------------------------------


def test_the_page_of_a_model_tells_all_of_it(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(Plugin()) as shop:
            await score(shop)
            await shop.post("/orchestrator/d/list", [{"x": 1}, {"x": 2}])
            shown = await model(shop)
            assert (await shop.admin("GET", "/models")).json == {"models": [shown]}
            since = datetime.fromisoformat(shown.pop("since"))
            assert abs(datetime.now(UTC) - since) < timedelta(seconds=60)
            latency = shown.pop("latency")
            assert latency.pop("calls") == 2
            assert all(0 < milliseconds < 1000 for milliseconds in latency.values())
            assert sorted(latency) == ["mean_ms", "p50_ms", "p99_ms"]
            assert shown == {
                "id": "m",
                "source": "ml.m",
                "model": "default",
                "type": "scripted",
                "state": "ready",
                "identity": {"name": "scripted", "version": "1", "digest": "sha256:1"},
                "preload": True,
                "starts": 1,
                "restarts": 0,
                "next_try": None,
                "last_error": None,
                "last_error_at": None,
                "fallback": "none",
                "requests": 2,
                "failures": 0,
                "inputs": {"features": ["x"]},
                "outputs": ["y"],
            }

    run(main())


def test_a_model_that_is_not_available_yet_is_waited_for_while_everything_else_serves(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["m"].failures = [SourceUnavailable("the engine is down", started=False) for _ in range(12)]

    async def main() -> None:
        async with serving(plugin, files("restart: {max_starts: 3, backoff: 30ms, max_backoff: 60ms}")) as shop:
            (problem,) = shop.running.live.snapshot.problems
            assert (problem.severity, problem.code) == ("warning", "ORC604")
            assert problem.message == "ml.m cannot be reached: the engine is down"
            assert (await shop.get("/orchestrator/d/other")).json == 1
            refused = await score(shop)
            assert refusal(refused) == (503, "step 's': the model ml.m is restarting: the engine is down", "s")
            assert int(refused.headers["Retry-After"]) >= 1
            health = await shop.get("/health/ready")
            assert (health.status, health.json["models"]) == (503, {"ml.m": "restarting"})
            assert health.headers["Retry-After"] == "1"
            shown = await state(shop, "ready")
            assert (shown["starts"], shown["restarts"], shown["last_error"]) == (13, 12, "the engine is down")
            assert (await score(shop)).json == {"y": 10, "degraded": False}
            assert (await shop.get("/health/ready")).status == 200

    run(main())


def test_models_that_never_can_be_opened_stop_the_start_all_at_once(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["a"].failures = [ValueError("no such image")]
    plugin["b"].failures = [SourceError("the digest is another")]
    plugin["c"].failures = [SystemExit(7)]  # which is not to end the process
    config = {
        "integrations/ml.yaml": """
            ml:
              sources:
                m:
                  models:
                    default: {type: scripted, script: fine}
                    first: {type: scripted, script: a}
                    second: {type: scripted, script: b}
                    third: {type: scripted, script: c}
        """,
    }

    async def main() -> None:
        async with leaves_nothing("a service that did not start"):
            with pytest.raises(ConfigError) as caught:
                async with service(config, plugins={"scripted": plugin}):
                    pass
        assert [(problem.code, problem.line, problem.message) for problem in caught.value.problems] == [
            ("ORC601", 7, "ml.m cannot be opened: no such image"),
            ("ORC601", 8, "ml.m cannot be opened: the digest is another"),
            ("ORC601", 9, "ml.m cannot be opened: it calls sys.exit(7), which would end the service"),
        ]
        assert plugin["fine"].open_now == 0

    run(main())


def test_a_load_that_hangs_ends_and_the_old_configuration_serves_on(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            plugin["new"].may_open = asyncio.Event()
            shop.write("integrations/ml.yaml", files("load_timeout: 10ms", script="new")["integrations/ml.yaml"])
            refused = await shop.reload()
            (problem,) = refused.json["problems"]
            assert (refused.status, problem["code"], problem["line"]) == (422, "ORC604", 4)
            assert problem["message"] == "ml.m cannot be reached: it was not loaded within 0.01 s (load_timeout)"
            assert (await score(shop)).json["y"] == 10
            assert plugin["new"].open_now == 0
            plugin["m"].hangs = asyncio.Event()
            warm = "load_timeout: 10ms, warm_up: [{x: 1}]"
            shop.write("integrations/ml.yaml", files(warm)["integrations/ml.yaml"])
            (problem,) = (await shop.reload()).json["problems"]
            said = "its rows of warm_up were not scored within 0.01 s (load_timeout)"
            assert problem["message"] == f"ml.m cannot be reached: {said}"
            plugin["m"].hangs = None
            assert (await score(shop)).json["y"] == 10

    run(main())


def test_a_load_that_hangs_at_the_start_counts_as_a_failed_start(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["m"].may_open = asyncio.Event()

    async def main() -> None:
        restart = "restart: {max_starts: 2, backoff: 10ms, max_backoff: 20ms}"
        async with serving(plugin, files(f"load_timeout: 10ms, {restart}")) as shop:
            assert (await state(shop, "failed"))["starts"] == 2
            said = "the model ml.m is failed: it was not loaded within 0.01 s (load_timeout)"
            assert refusal(await score(shop)) == (503, f"step 's': {said}", "s")

    run(main())


def test_a_load_has_a_limit_unless_its_type_has_one_of_its_own() -> None:
    plain = ModelKind("plain", "Loads.", ScriptedOptions, Plugin().open)
    pulls = evolve(plain, limits_load=lambda options: options.factor > 10)
    for kind, factor, given, expected in [
        (plain, 1, None, 600.0),
        (pulls, 1, None, 600.0),
        (pulls, 11, None, None),
        (pulls, 11, 5.0, 5.0),
    ]:
        common = CommonOptions(load_timeout=None if given is None else Duration(given))
        assert ModelSpec("m", kind, ScriptedOptions("m", factor), common).load_seconds == expected


@pytest.mark.parametrize(
    ("raised", "message"), [(GeneratorExit("gone"), "GeneratorExit: gone (in open, line"), (None, "its load broke")]
)
def test_a_load_that_ends_by_what_is_no_exception_is_not_tried_at_once_and_for_ever(
    run: RunFixture, raised: BaseException | None, message: str
) -> None:
    """Such as the panic of a library that is written in Rust, or a cancellation of the load's own."""
    plugin = Plugin()
    plugin["m"].failures = [raised or asyncio.CancelledError() for _ in range(1000)]

    async def main() -> None:
        plugin["m"].may_open = asyncio.Event()
        restart = "restart: {max_starts: 2, backoff: 10ms, max_backoff: 20ms}"
        async with serving(plugin, files(restart, wait="10ms")) as shop:
            plugin["m"].may_open.set()
            shown = await state(shop, "failed")
            assert shown["starts"] <= 2
            assert shown["last_error"].startswith(message)

    run(main())


def test_the_start_goes_on_without_a_model_that_takes_long(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        plugin["m"].may_open = asyncio.Event()
        async with serving(plugin, files(wait="50ms")) as shop:
            refused = await score(shop)
            assert refusal(refused) == (503, "step 's': the model ml.m is loading", "s")
            assert refused.headers["Retry-After"] == "1"
            assert (await shop.get("/health/ready")).json["models"] == {"ml.m": "loading"}
            plugin["m"].may_open.set()
            await state(shop, "ready")
            assert (await score(shop)).status == 200
            assert plugin["m"].opens == 1

    run(main())


def test_a_slow_model_does_not_hold_up_another_of_its_source(run: RunFixture) -> None:
    plugin = Plugin()
    config = {
        **files(),
        "integrations/ml.yaml": """
            ml:
              sources:
                m: {models: {slow: {type: scripted, script: slow}, default: {type: scripted, script: m}}}
        """,
        "config.yaml": "server: {preload_wait: 50ms}\n",
    }

    async def main() -> None:
        plugin["slow"].may_open = asyncio.Event()
        async with serving(plugin, config) as shop:
            assert (await score(shop)).json["y"] == 10
            assert (await model(shop, "m.slow"))["state"] == "loading"

    run(main())


def test_a_model_that_is_being_loaded_when_the_service_stops_is_given_up(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin):
            pass
        plugin["m"].may_open = asyncio.Event()
        async with leaves_nothing("a service with a model that never opened"), serving(plugin, files(wait="10ms")):
            pass

    run(main())


# --- on first use -------------------------------------------------------------------------------------------------


def test_a_hundred_first_requests_load_a_model_once_and_all_get_answers(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files(f"preload: false, {QUICK}")) as shop:
            assert (await model(shop))["state"] == "stopped"
            assert (await shop.get("/health/ready")).status == 200
            for round_ in (1, 2):
                plugin["m"].may_open = asyncio.Event()
                asks = [asyncio.create_task(score(shop, n)) for n in range(100)]
                await state(shop, "loading")
                plugin["m"].may_open.set()
                answers = await asyncio.gather(*asks)
                assert [(answer.status, answer.json["y"]) for answer in answers] == [(200, n * 10) for n in range(100)]
                assert (plugin["m"].opens, plugin["m"].most_open) == (round_, 1)
                assert (await shop.admin("POST", "/models/m/unload")).status == 202
                await state(shop, "stopped")
                await eventually(lambda: plugin["m"].open_now == 0, "closed")

    run(main())


def test_those_who_give_up_waiting_do_not_end_the_load(run: RunFixture) -> None:
    plugin = Plugin()
    config = files(f"preload: false, {QUICK}")
    config["domains/d.yaml"] = DOMAIN.replace("      score:\n", "      score:\n        timeout: 100ms\n")

    async def main() -> None:
        plugin["m"].may_open = asyncio.Event()
        async with serving(plugin, config) as shop:
            answers = await asyncio.gather(*(score(shop) for _ in range(5)))
            assert {answer.status for answer in answers} == {504}
            assert (await model(shop))["state"] == "loading"
            plugin["m"].may_open.set()
            await state(shop, "ready")
            assert (await score(shop)).status == 200
            assert plugin["m"].opens == 1
            assert (await model(shop))["failures"] == 5

    run(main())


@pytest.mark.parametrize("enabled", ["false", '"${env:HAS_ENGINE:-false}"'])
def test_a_model_that_is_switched_off_is_left_alone(
    enabled: str, run: RunFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HAS_ENGINE", raising=False)
    plugin = Plugin()
    off = "the model ml.m is stopped: it is switched off (enabled: false)"

    async def main() -> None:
        async with serving(plugin, files(f"enabled: {enabled}, {QUICK}")) as shop:
            assert (await shop.get("/health/ready")).status == 200
            for action in ("load", "restart", "unload"):
                assert (await shop.admin("POST", f"/models/m/{action}")).status == 202
            answer = await score(shop)
            assert refusal(answer) == (503, f"step 's': {off}", "s")
            assert answer.headers["Retry-After"] == "60"
            shown = await model(shop)
            assert (shown["state"], shown["starts"]) == ("stopped", 0)
            assert shown["last_error"] == "it is switched off (enabled: false)"

    run(main())
    assert check_problems(files(f"enabled: {enabled}"), plugins={"scripted": plugin}) == []
    assert (plugin["m"].opens, plugin["m"].looks) == (0, 0)


def test_a_variable_switches_a_model_on(run: RunFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAS_ENGINE", "true")
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files(f'enabled: "${{env:HAS_ENGINE:-false}}", {QUICK}')) as shop:
            assert (await score(shop)).json["y"] == 10

    run(main())


def test_a_switch_is_true_or_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAS_ENGINE", "perhaps")
    (problem,) = check_problems(files('enabled: "${env:HAS_ENGINE:-false}"'), plugins={"scripted": Plugin()})
    assert (problem.code, problem.message) == (
        "ORC204",
        "expected true or false, or a variable with one of these words",
    )


def test_a_load_that_fails_answers_all_who_wait_for_it(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["m"].failures = [SourceError("the digest is another")]

    async def main() -> None:
        async with serving(plugin, files(f"preload: false, {QUICK}")) as shop:
            answers = await asyncio.gather(*(score(shop) for _ in range(10)))
            expected = (503, "step 's': the model ml.m is failed: the digest is another", "s")
            assert {refusal(answer) for answer in answers} == {expected}
            assert {answer.headers["Retry-After"] for answer in answers} == {"60"}
            assert (await score(shop)).status == 503
            assert plugin["m"].opens == 1

    run(main())


def test_an_idle_model_is_unloaded_and_loaded_again_when_it_is_used(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files(f"unload_after: 100ms, {QUICK}")) as shop:
            assert (await score(shop)).status == 200
            await state(shop, "stopped")
            await eventually(lambda: plugin["m"].open_now == 0, "closed")
            assert (await shop.get("/health/ready")).status == 200
            plugin["m"].hangs = asyncio.Event()
            slow = asyncio.create_task(score(shop))
            await state(shop, "ready")
            await asyncio.sleep(0.3)  # longer than it may be idle: a call under way is use
            assert (await model(shop))["state"] == "ready"
            plugin["m"].hangs.set()
            assert (await slow).status == 200
            assert plugin["m"].opens == 2

    run(main())


def test_a_model_that_is_used_while_it_is_unloaded_is_loaded_and_has_not_failed(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files("unload_after: 50ms, restart: {max_starts: 1}")) as shop:
            script = plugin["m"]
            script.closes_seconds = 0.1
            for opens in (1, 2, 3):
                assert (await score(shop)).status == 200
                assert (script.opens, (await model(shop))["last_error"]) == (opens, None)
                await state(shop, "stopped")
                assert script.open_now == 1

    run(main())


def test_a_call_that_outlives_its_model_does_not_keep_the_next_one_from_being_unloaded(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files(f"unload_after: 300ms, {QUICK}")) as shop:
            script = plugin["m"]
            script.hangs = asyncio.Event()
            slow = asyncio.create_task(score(shop))
            await eventually(lambda: script.models and shop.running.live.snapshot.running, "a call under way")
            script.model.end("killed")
            await eventually(lambda: script.opens == 2, "started again")
            await state(shop, "ready")
            slow.cancel()
            await state(shop, "stopped")

    run(main())


# --- ending and coming back ---------------------------------------------------------------------------------------


def test_a_model_that_ends_is_refused_at_once_and_started_again(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            assert (await score(shop)).status == 200
            plugin["m"].may_open = asyncio.Event()
            plugin["m"].digest = "sha256:2"
            plugin["m"].model.end("exit status 137\nkilled")
            refused = await score(shop)
            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) >= 1
            await eventually(lambda: plugin["m"].opens == 2, "started again")
            refused = await score(shop)
            expected = "step 's': the model ml.m is restarting: it ended: exit status 137"
            assert refusal(refused) == (503, expected, "s")
            assert (await shop.get("/health/ready")).status == 200
            plugin["m"].may_open.set()
            shown = await state(shop, "ready")
            assert (shown["starts"], shown["restarts"]) == (2, 1)
            assert shown["last_error"] == "it ended: exit status 137\nkilled"
            assert shown["identity"]["digest"] == "sha256:2"
            assert (await score(shop)).json == {"y": 10, "degraded": False}

    run(main())


def test_a_call_that_a_killed_model_broke_off_is_503_and_not_502(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files("restart: {backoff: 1s}")) as shop:
            plugin["m"].hangs = asyncio.Event()
            calls = [asyncio.create_task(score(shop)) for _ in range(20)]
            await eventually(lambda: shop.running.live.snapshot.running == 20, "under way")
            plugin["m"].model.end("killed")
            plugin["m"].hangs.set()
            answers = await asyncio.gather(*calls)
            assert {answer.status for answer in answers} == {503}
            assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)

    run(main())


def test_a_server_that_fails_calls_but_is_well_answers_502(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["m"].unfit = lambda row: SourceError("it does not like 7") if row["x"] == 7 else None

    async def main() -> None:
        async with serving(plugin) as shop:
            assert refusal(await score(shop, 7)) == (502, "step 's': it does not like 7", "s")
            shown = await model(shop)
            assert (shown["state"], shown["requests"], shown["failures"]) == ("ready", 1, 1)

    run(main())


def test_what_a_request_got_wrong_is_no_failure_of_the_model(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["m"].unfit = lambda row: InvalidParam("features", "7 is no number") if row["x"] == 7 else None

    async def main() -> None:
        async with serving(plugin) as shop:
            assert refusal(await score(shop, 7)) == (422, "step 's': 7 is no number", "s")
            assert (await shop.post("/orchestrator/d/score", {})).status == 422
            shown = await model(shop)
            assert (shown["requests"], shown["failures"]) == (1, 0)

    run(main())


def test_records_name_the_model_that_answered_then_and_not_the_present_one(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            first = await shop.post("/orchestrator/d/traced", {"x": 1})
            plugin["m"].digest = "sha256:2"
            plugin["m"].model.end("killed")
            await eventually(lambda: len(plugin["m"].models) == 2, "started again")
            await state(shop, "ready")
            second = await shop.post("/orchestrator/d/traced", {"x": 1})
            for answer, version in ((first, "1"), (second, "2")):
                identity = {"name": "scripted", "version": version, "digest": f"sha256:{version}"}
                assert answer.json == {"version": version, "all": {"s": identity}}
            shown = [execution["models"] for execution in await shop.executions(status="ok")]
            assert shown == [
                [{"name": "scripted", "version": "2", "digest": "sha256:2"}],
                [{"name": "scripted", "version": "1", "digest": "sha256:1"}],
            ]

    run(main())


@pytest.mark.parametrize("how", ["ends", "fails to start"])
def test_a_model_that_never_lasts_is_started_five_times_and_then_left_alone(run: RunFixture, how: str) -> None:
    plugin = Plugin()

    async def main() -> None:
        script = plugin["m"]
        script.ends_at_once = how == "ends"
        crash = "it ended with status 3\nTraceback: no such file: model.bin"
        script.failures = [SourceUnavailable(crash, started=True) for _ in range(0 if how == "ends" else 99)]
        async with serving(plugin) as shop:
            shown = await state(shop, "failed")
            assert (script.opens, shown["starts"], shown["restarts"], shown["next_try"]) == (5, 5, 4, None)
            assert shown["last_error"].endswith("\nTraceback: no such file: model.bin")
            logs = await shop.admin("GET", "/models/m/logs?lines=1")
            assert (logs.status, logs.json) == (200, "Traceback: no such file: model.bin\n")
            refused = await score(shop)
            assert refused.status == 503
            assert "failed" in refused.json["detail"]
            assert "Traceback" not in refused.json["detail"]
            await asyncio.sleep(0.1)
            assert script.opens == 5
            script.ends_at_once, script.failures = False, []
            assert (await shop.admin("POST", "/models/m/restart")).status == 202
            assert (await state(shop, "ready"))["starts"] == 6
            assert (await score(shop)).status == 200

    run(main())


def test_a_model_that_lasted_has_its_earlier_failures_forgotten(run: RunFixture) -> None:
    plugin = Plugin()
    restart = "restart: {max_starts: 2, backoff: 1ms, reset_after: 20ms}"

    async def main() -> None:
        async with serving(plugin, files(restart)) as shop:
            for number in range(2, 6):
                await asyncio.sleep(0.05)  # it has to last
                plugin["m"].model.end("killed")
                await eventually(lambda number=number: len(plugin["m"].models) == number, "started again")
                await state(shop, "ready")

    run(main())


def test_a_model_that_others_end_comes_back_soon_however_often(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files("restart: {max_starts: 2, backoff: 1ms}")) as shop:
            for number in range(2, 8):
                plugin["m"].model.end(EndedByOthers("killed by hand"))
                await eventually(lambda number=number: len(plugin["m"].models) == number, "started again")
                shown = await state(shop, "ready")
                assert shown["last_error"] == "it ended: killed by hand"

    run(main())


def test_a_model_that_ends_by_itself_soon_after_it_was_ready_is_given_up(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files("restart: {max_starts: 3, backoff: 1ms}")) as shop:
            for number in range(1, 4):
                await eventually(lambda number=number: len(plugin["m"].models) == number, "started")
                await state(shop, "ready")
                plugin["m"].model.end("exit status 1")
            shown = await state(shop, "failed")
            assert (shown["starts"], plugin["m"].opens) == (3, 3)

    run(main())


def test_what_was_ready_once_is_waited_for_however_long_its_engine_is_down(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files("restart: {max_starts: 3, backoff: 1ms, max_backoff: 5ms}")) as shop:
            plugin["m"].failures = [SourceUnavailable("no engine") for _ in range(20)]
            plugin["m"].model.end("the engine went down")
            await eventually(lambda: len(plugin["m"].models) == 2, "back")
            assert (await state(shop, "ready"))["starts"] == 22

    run(main())


# --- health -------------------------------------------------------------------------------------------------------


def test_a_model_that_falls_ill_is_refused_until_it_is_well_again(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            plugin["m"].sick = SourceError("GET /health answered 500")
            shown = await state(shop, "unhealthy")
            assert shown["last_error"] == "GET /health answered 500"
            refused = await score(shop)
            expected = "step 's': the model ml.m is unhealthy: GET /health answered 500"
            assert (refusal(refused), refused.headers["Retry-After"]) == ((503, expected, "s"), "1")
            assert (await shop.get("/health/ready")).status == 200
            plugin["m"].sick = None
            await state(shop, "ready")
            assert (await score(shop)).status == 200
            assert (plugin["m"].opens, (await model(shop))["restarts"]) == (1, 0)

    run(main())


def test_one_failed_check_is_not_enough(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        script = plugin["m"]
        async with serving(plugin, files("health_check: {interval: 20ms, failures: 50}")) as shop:
            script.sick = SourceError("a hiccup")
            seen = script.checks
            await eventually(lambda: script.checks > seen + 2, "checked again")
            assert (await model(shop))["state"] == "ready"
            script.sick = None

    run(main())


def test_a_backend_that_stops_answering_is_noticed_within_two_seconds_by_default(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files("preload: true")) as shop:

            class Hangs(Exception):
                pass

            async def hang() -> None:
                await asyncio.Event().wait()

            plugin["m"].model.check_ready = hang  # type: ignore[method-assign]
            shown = await state(shop, "unhealthy", within_seconds=2)
            assert shown["last_error"] == "the health check got no answer within 0.6 s"

    run(main())


HANGING = "health_check: {interval: 10ms, timeout: 20ms}, restart: {backoff: 10ms, max_backoff: 20ms, max_starts: 3"


def test_a_model_that_hangs_is_ended_and_started_again(run: RunFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator_core.models.life.HANGS_SECONDS", 0.5)

    async def main() -> None:
        plugin = Plugin()
        script = plugin["m"]
        async with serving(plugin, files(f"{HANGING}, reset_after: 0}}")) as shop:
            for hung in range(1, 6):
                script.silent = True
                await state(shop, "unhealthy")
                await eventually(lambda hung=hung: len(script.ended_for_all) == hung, "its end")
                shown = await state(shop, "ready")
                assert (shown["starts"], script.opens) == (hung + 1, hung + 1)
                how = "it hangs: its health checks got no answer for "
                assert shown["last_error"].startswith(how), shown
                assert shown["last_error"].endswith(" s; its last lines:\nlistening\n"), shown
            assert (await score(shop)).json["y"] == 10

    run(main())


def test_a_model_that_hangs_soon_after_each_start_is_left_alone_in_the_end(
    run: RunFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_core.models.life.HANGS_SECONDS", 0.5)

    async def main() -> None:
        plugin = Plugin()
        script = plugin["m"]
        async with serving(plugin, files(f"{HANGING}, reset_after: 400ms}}")) as shop:
            for _ in range(3):
                await state(shop, "ready")
                script.silent = True
                await state(shop, "unhealthy")
                await eventually(lambda: not script.silent, "its end")
            shown = await state(shop, "failed")
            assert (shown["starts"], len(script.ended_for_all)) == (3, 3)

    run(main())


def test_a_model_that_answers_that_it_is_ill_or_is_at_work_does_not_hang(
    run: RunFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_core.models.life.HANGS_SECONDS", 0.1)

    async def main() -> None:
        plugin = Plugin()
        script = plugin["m"]
        async with serving(plugin, files(f"{HANGING}}}")) as shop:
            script.sick = SourceError("no database")
            await state(shop, "unhealthy")
            await asyncio.sleep(0.5)
            script.sick = None
            await state(shop, "ready")
            script.hangs = asyncio.Event()
            long = asyncio.create_task(score(shop))
            await asyncio.sleep(0.1)
            script.silent = True
            await state(shop, "unhealthy")
            await asyncio.sleep(0.5)
            assert script.ended_for_all == []
            script.hangs.set()
            script.silent = False
            assert (await long).status == 200
            assert (await state(shop, "ready"))["starts"] == 1

    run(main())


def test_a_model_that_is_ill_from_the_start_becomes_ready_when_it_is_well(run: RunFixture) -> None:
    plugin = Plugin()
    plugin["m"].sick = SourceError("the connection was refused", transient=True)

    async def main() -> None:
        async with serving(plugin, files(f"warm_up: [{{x: 5}}], {QUICK}")) as shop:
            (problem,) = shop.running.live.snapshot.problems
            assert str(problem).startswith("integrations/ml.yaml:4:5: ORC604 warning: ml.m cannot be reached: ")
            assert (await score(shop)).status == 503
            assert (await shop.get("/health/ready")).json["models"] == {"ml.m": "unhealthy"}
            assert plugin["m"].rows == []
            plugin["m"].sick = None
            await state(shop, "ready")
            assert plugin["m"].rows == [{"x": 5}]
            assert plugin["m"].opens == 1

    run(main())


# --- warm-up ------------------------------------------------------------------------------------------------------


def test_warm_up_rows_are_scored_before_the_first_request(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files("warm_up: [{x: 1}, {x: 2}]")) as shop:
            assert plugin["m"].rows == [{"x": 1}, {"x": 2}]
            assert (await model(shop))["requests"] == 0

    run(main())


def test_a_warm_up_row_that_fails_is_a_problem_at_its_line() -> None:
    plugin = Plugin()
    plugin["m"].unfit = lambda row: InvalidParam("features", "x is too large") if row["x"] > 1 else None
    config = files()
    config["integrations/ml.yaml"] = """
        ml:
          sources:
            m:
              source:
                type: scripted
                script: m
                warm_up:
                  - {x: 1}
                  - {x: 2}
    """
    (problem,) = check_problems(config, plugins={"scripted": plugin})
    assert (problem.code, problem.line) == ("ORC601", 10)
    assert problem.message == "ml.m cannot be opened: row 2 of warm_up: x is too large"


# --- reload -------------------------------------------------------------------------------------------------------

TWO = """
    ml:
      sources:
        m:
          models:
            default: {{type: scripted, script: m, {more}}}
            other: {{type: scripted, script: other, factor: {factor}, {more}}}
"""


def two(factor: int) -> str:
    return TWO.format(more=QUICK, factor=factor)


def test_a_reload_leaves_the_models_alone_that_did_not_change(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, {**files(), "integrations/ml.yaml": two(3)}) as shop:
            shop.write("domains/d.yaml", DOMAIN.replace("response_mapping: 1", "response_mapping: 2"))
            assert (await shop.reload()).status == 200
            assert (await shop.get("/orchestrator/d/other")).json == 2
            shop.write("integrations/ml.yaml", two(4))
            assert (await shop.reload()).status == 200
            await eventually(lambda: plugin["other"].open_now == 1, "the old one closed")
            assert (plugin["m"].opens, plugin["other"].opens) == (1, 2)
            assert not plugin["m"].models[0].closed
            assert plugin["other"].model.factor == 4
            assert (await model(shop))["starts"] == 1

    run(main())


@pytest.mark.parametrize(
    ("error", "code"), [(SourceError("no such image"), "ORC601"), (SourceUnavailable("it ended: 1"), "ORC604")]
)
def test_a_new_model_that_does_not_get_ready_keeps_the_old_configuration(
    run: RunFixture, error: Exception, code: str
) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, {**files(), "integrations/ml.yaml": two(3)}) as shop:
            plugin["other"].failures = [error]
            shop.write("integrations/ml.yaml", two(4))
            refused = await shop.reload()
            assert (refused.status, [problem["code"] for problem in refused.json["problems"]]) == (422, [code])
            assert str(error) in refused.json["problems"][0]["message"]
            assert (plugin["m"].opens, plugin["other"].opens) == (1, 2)
            assert [model_.closed for model_ in (plugin["m"].model, plugin["other"].model)] == [False, False]
            assert (await score(shop)).status == 200

    run(main())


def test_a_reload_waits_for_the_new_model_while_the_old_one_answers(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files(wait="10ms")) as shop:
            await state(shop, "ready")
            plugin["m"].may_open = asyncio.Event()
            shop.write("integrations/ml.yaml", files(f"factor: 20, {QUICK}")["integrations/ml.yaml"])
            reload = asyncio.create_task(shop.reload())
            await eventually(lambda: plugin["m"].opens == 2, "the new one is being opened")
            assert (await score(shop)).json["y"] == 10
            await asyncio.sleep(0.05)  # longer than the start would have waited
            assert not reload.done()
            plugin["m"].may_open.set()
            assert (await reload).status == 200
            assert (await score(shop)).json["y"] == 20
            await eventually(lambda: plugin["m"].open_now == 1, "the old one closed")

    run(main())


async def waiting_reload(
    shop: RunningService, plugin: Plugin, reload: Callable[[], Coroutine[Any, Any, T]]
) -> asyncio.Task[T]:
    """Begin a reload whose new model does not open, and return it once it waits for that."""
    plugin["stuck"].may_open = asyncio.Event()
    shop.write("integrations/ml.yaml", files(script="stuck")["integrations/ml.yaml"])
    waiting = asyncio.create_task(reload())
    await eventually(lambda: plugin["stuck"].opens == 1, "it waits")
    return waiting


def test_a_reload_that_waits_for_a_model_starts_over_when_the_configuration_changes_again(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            first = await waiting_reload(shop, plugin, shop.reload)
            same = asyncio.create_task(shop.reload())
            shop.write("integrations/ml.yaml", files(f"factor: 20, {QUICK}")["integrations/ml.yaml"])
            mended = await shop.reload()
            answers = [mended, await first, await same]
            assert [answer.status for answer in answers] == [200, 200, 200]
            assert len({answer.json["generation"] for answer in answers}) == 1
            assert (await score(shop)).json["y"] == 20
            assert (plugin["stuck"].opens, plugin["stuck"].open_now) == (1, 0)

    run(main())


def test_several_reloads_that_give_up_the_same_opening_leave_nothing_of_it_open(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            plugin["stuck"].gives_up_seconds = 0.2
            first = await waiting_reload(shop, plugin, shop.reload)
            shop.write("integrations/ml.yaml", files(f"factor: 20, {QUICK}")["integrations/ml.yaml"])
            answers = await asyncio.gather(first, *(shop.reload() for _ in range(5)))
            assert [answer.status for answer in answers] == [200] * 6
            assert (await score(shop)).json["y"] == 20

    run(main())  # which finds a source that nobody closes


def test_a_reload_that_is_cancelled_leaves_nothing_open_however_often_it_is(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            plugin["stuck"].gives_up_seconds = 0.2
            reload = await waiting_reload(shop, plugin, shop.running.live.reload)
            for _ in range(3):
                reload.cancel()
                await asyncio.sleep(0.01)
            with pytest.raises(asyncio.CancelledError):
                await reload
            assert (await score(shop)).json["y"] == 10

    run(main())


def test_a_watched_folder_is_reloaded_though_an_earlier_change_waits_for_a_model(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with service(files(), plugins={"scripted": plugin}, watch=True) as shop:
            plugin["stuck"].may_open = asyncio.Event()

            async def is_noticed() -> bool:  # the watch starts in a thread of its own, and nobody tells when
                shop.write("integrations/ml.yaml", files(script="stuck")["integrations/ml.yaml"])
                await asyncio.sleep(0.4)
                return plugin["stuck"].opens == 1

            await eventually(is_noticed, "it waits")
            shop.write("integrations/ml.yaml", files(f"factor: 20, {QUICK}")["integrations/ml.yaml"])
            await eventually(lambda: len(plugin["m"].models) == 2, "the mended configuration is opened")

            async def answers() -> bool:
                return bool((await score(shop)).json["y"] == 20)

            await eventually(answers, "it serves")

    run(main())


@pytest.mark.parametrize("told", [True, None])
def test_a_model_whose_content_changed_under_the_same_options_is_loaded_anew(
    run: RunFixture, monkeypatch: pytest.MonkeyPatch, told: bool | None
) -> None:
    """Nor is one relied on that does not tell in time: the reload would wait for it for good."""
    plugin = Plugin()
    monkeypatch.setattr("orchestrator_core.models.supervision.CHANGED_SECONDS", 5 if told else 0.01)

    async def main() -> None:
        async with serving(plugin) as shop:
            plugin["m"].has_changed = told
            assert (await shop.reload()).status == 200
            assert (await model(shop))["identity"]["version"] == "2"
            await eventually(lambda: plugin["m"].open_now == 1, "the old one closed")
            assert (await score(shop)).status == 200

    run(main())


def test_a_reload_tries_a_failed_model_again_and_does_not_wait_for_it(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        script = plugin["m"]
        script.failures = [SourceUnavailable("it ended: 1", started=True) for _ in range(7)]
        async with serving(plugin) as shop:
            await state(shop, "failed")
            reloaded = await shop.reload()
            assert (reloaded.status, [problem["severity"] for problem in reloaded.json["problems"]]) == (
                200,
                ["warning"],
            )
            shown = await state(shop, "ready")
            assert (shown["starts"], script.failures) == (8, [])

    run(main())


# --- by hand ------------------------------------------------------------------------------------------------------


def test_a_restart_by_hand_opens_the_model_anew(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            answer = await shop.admin("POST", "/models/m/restart")
            assert (answer.status, answer.json["id"]) == (202, "m")
            await eventually(lambda: len(plugin["m"].models) == 2, "opened anew")
            shown = await state(shop, "ready")
            assert (shown["identity"]["version"], shown["last_error"]) == ("2", None)
            await eventually(lambda: plugin["m"].open_now == 1, "the old one closed")

    run(main())


def test_a_load_by_hand_needs_no_request(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, files("preload: false")) as shop:
            assert (await shop.admin("POST", "/models/m/load")).status == 202
            assert (await state(shop, "ready"))["requests"] == 0
            await shop.admin("POST", "/models/m/load")
            assert (await model(shop))["starts"] == 1

    run(main())


def test_a_stuck_load_can_be_restarted_by_hand(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        plugin["m"].may_open = asyncio.Event()
        async with serving(plugin, files(wait="10ms")) as shop:
            await state(shop, "loading")
            plugin["m"].may_open = None
            await shop.admin("POST", "/models/m/restart")
            await state(shop, "ready")

    run(main())


def test_the_output_of_a_model_can_be_read(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        plugin["m"].output = "".join(f"line {n}\n" for n in range(200))
        async with serving(plugin) as shop:
            logs = await shop.admin("GET", "/models/m/logs?lines=2")
            assert (logs.status, logs.json) == (200, "line 198\nline 199\n")
            assert logs.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert (await shop.admin("GET", "/models/m/logs")).json.count("\n") == 100

    run(main())


@pytest.mark.parametrize(
    ("method", "target", "status", "detail"),
    [
        ("GET", "/models/n", 404, "no such model 'n': expected one of: m, m.other"),
        ("GET", "/models/m.othre", 404, "no such model 'm.othre': did you mean 'm.other'?"),
        ("GET", "/models/m/restart", 405, "/models/m/restart takes POST, not GET"),
        ("POST", "/models/m", 405, "/models/m takes GET and HEAD, not POST"),
        ("GET", "/models/m/logs?lines=0", 422, "/lines expected a number from 1 to 10000"),
        ("GET", f"/models/m/logs?lines={'1' * 5000}", 422, "/lines expected a number from 1 to 10000"),
        ("GET", "/models/m/logs?tail=5", 422, "/tail unknown parameter"),
    ],
)
def test_what_there_is_not_among_the_models_is_told(
    run: RunFixture, method: str, target: str, status: int, detail: str
) -> None:
    async def main() -> None:
        async with serving(Plugin(), {**files(), "integrations/ml.yaml": two(3)}) as shop:
            answer = await shop.admin(method, target)
            assert (answer.status, answer.json["detail"]) == (status, detail)

    run(main())


def test_what_a_model_says_is_shown_without_secrets(run: RunFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_KEY", "sesame-open")
    plugin = Plugin()

    async def main() -> None:
        plugin["sesame-open"].output = "listening with sesame-open\n"
        async with serving(plugin, files(QUICK, script='"${env:MODEL_KEY}"')) as shop:
            assert (await shop.admin("GET", "/models/m/logs")).json == "listening with ***\n"
            plugin["sesame-open"].sick = SourceError("refused with sesame-open")
            shown = await state(shop, "unhealthy")
            assert shown["last_error"] == "refused with ***"
            assert (await score(shop)).json["detail"] == "step 's': the model ml.m is unhealthy: refused with ***"

    run(main())


def test_a_source_of_one_domain_has_the_domain_in_its_id(run: RunFixture) -> None:
    config = {
        "domains/shop/integrations/ml.yaml": """
            ml:
              sources:
                m: {models: {default: {type: scripted, script: a}, spare: {type: scripted, script: b}}}
        """,
        "domains/shop.yaml": DOMAIN,
    }

    async def main() -> None:
        async with serving(Plugin(), config) as shop:
            assert [found["id"] for found in (await shop.admin("GET", "/models")).json["models"]] == [
                "shop:m",
                "shop:m.spare",
            ]
            assert (await model(shop, "shop:m.spare"))["state"] == "ready"
            assert (await shop.admin("GET", "/models/shop:m/logs")).status == 200

    run(main())


# --- check ----------------------------------------------------------------------------------------------------------


def test_check_looks_at_models_that_can_be_looked_at_and_opens_the_others() -> None:
    plugin = Plugin()
    config = files("preload: false")
    assert check_problems(config, plugins={"scripted": plugin}) == []
    assert (plugin["m"].opens, plugin["m"].looks, plugin["m"].open_now) == (1, 0, 0)
    config["integrations/ml.yaml"] = config["integrations/ml.yaml"].replace("type: scripted", "type: looked_at")
    assert check_problems(config, plugins={"scripted": plugin}) == []
    assert (plugin["m"].opens, plugin["m"].looks) == (1, 1)
    config["domains/d.yaml"] = DOMAIN.replace("$s.y", "$s.z")
    (problem,) = check_problems(config, plugins={"scripted": plugin})
    assert problem.message == "the step 's' returns no field 'z'"
    plugin["m"].failures = [SourceError("no such image")]
    messages = [problem.message for problem in check_problems({**files(), **config}, plugins={"scripted": plugin})]
    assert messages == ["ml.m cannot be opened: no such image"]
    plugin["m"].failures = [SourceUnavailable("the engine is down")]
    (problem,) = check_problems(config, plugins={"scripted": plugin})
    assert (problem.code, problem.severity) == ("ORC604", "error")


# --- $execution.models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "code", "message"),
    [
        ("$execution.models.t.version", "ORC502", "there is no step 't'"),
        ("$execution.models.other.version", "ORC503", "the step 'other' calls no model"),
        (
            "$execution.models.maybe.version",
            "ORC504",
            "$execution.models.maybe.version may be missing: the step 'maybe' is not required, and may fail",
        ),
        ("$execution.models.s.size", "ORC501", "a model has no field 'size'"),
        ("$execution.models[0]", "ORC501", "$execution.models is not a list"),
    ],
)
def test_a_reference_to_a_model_that_cannot_be_is_found_at_load(expression: str, code: str, message: str) -> None:
    config = files()
    config["domains/d.yaml"] = f"""
        endpoints:
          e:
            data_sources:
              - {{name: s, type: ml, source_id: m, params: {{features: {{x: 1}}}}}}
              - {{name: maybe, type: ml, source_id: m, params: {{features: {{x: 1}}}}, default: 1}}
              - {{name: other, type: direct, params: {{a: 1}}}}
            response_mapping: {{a: "{expression}"}}
    """
    (problem,) = check_problems(config, plugins={"scripted": Plugin()}, offline=True)
    assert (problem.code, problem.message) == (code, message)


def test_a_step_that_asks_for_the_model_of_another_waits_for_it(run: RunFixture) -> None:
    config = files()
    config["domains/d.yaml"] = """
        endpoints:
          e:
            data_sources:
              - name: seen
                type: direct
                params: {v: "$execution.models.s.version", w: "$execution.models.skipped.name ?? 'none'"}
              - {name: s, type: ml, source_id: m, params: {features: {x: 1}}}
              - {name: skipped, type: ml, source_id: m, params: {features: {x: 1}}, condition: "1 == 2"}
            response_mapping: {seen: "$seen", all: "$execution.models"}
    """

    async def main() -> None:
        async with serving(Plugin(), config) as shop:
            identity = {"name": "scripted", "version": "1", "digest": "sha256:1"}
            answer = await shop.get("/orchestrator/d/e")
            assert answer.json == {"seen": {"v": "1", "w": "none"}, "all": {"s": identity}}

    run(main())
