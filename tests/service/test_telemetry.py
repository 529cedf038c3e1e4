"""What the core does for telemetry: its section, its hook, and what a plugin of the tests' own is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from attrs import define, field, frozen

from orchestrator_core import __version__, plugins
from orchestrator_core.errors import ConfigError
from orchestrator_core.http_client import parse_traceparent
from orchestrator_core.plugin_api import (
    EndpointInfo,
    Exposition,
    Finished,
    FinishedRun,
    StepInfo,
    Telemetry,
    TelemetryContext,
    TelemetryKind,
    Trace,
    hookimpl,
    option,
)
from orchestrator_core.testing import check_problems, service

SHOP = {
    "domains/shop.yaml": """
        endpoints:
          hello:
            path: "/{name}"
            data_sources:
              - {name: greeting, type: direct, params: {text: "hello {{ $request.name }}"}}
              - {name: never, type: direct, condition: false, params: {}}
            response_mapping: {text: "$greeting.text"}
        """
}


@pytest.fixture(autouse=True)
def nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda **_: ())


@frozen
class Options:
    color: str = option("red", help="Its color.")


@define(eq=False)
class Recorder:
    """A telemetry plugin that keeps what it is told."""

    opened: list[tuple[Options, TelemetryContext]] = field(factory=list)
    endpoints: list[EndpointInfo] = field(factory=list)
    runs: list[tuple[str, FinishedRun, Trace | None]] = field(factory=list)
    pages: list[tuple[str, str, int]] = field(factory=list)
    failing: bool = False
    error: type[BaseException] = RuntimeError

    def fail(self) -> None:
        if self.failing:
            raise self.error("out of order")

    @hookimpl
    def orchestrator_telemetry(self) -> list[TelemetryKind[Options]]:
        return [TelemetryKind("recorder", "Keeps all.", Options, self.open)]

    @asynccontextmanager
    async def open(self, options: Options, context: TelemetryContext) -> AsyncIterator[Telemetry]:
        self.opened.append((options, context))

        async def metrics() -> Exposition:
            return Exposition("text/x-test", f"{len(self.runs)} runs")

        def answered(page: str, method: str, status: int, seconds: float) -> None:
            self.fail()
            self.pages.append((page, method, status))

        def begin(headers: Any) -> Trace | None:
            self.fail()
            return parse_traceparent(headers)

        yield Telemetry(observe=self.observe, answered=answered, begin=begin, metrics=metrics)

    def observe(self, endpoint: EndpointInfo) -> Finished:
        self.fail()
        self.endpoints.append(endpoint)

        def finished(run: FinishedRun, method: str, trace: Trace | None) -> None:
            self.fail()
            self.runs.append((method, run, trace))

        return finished


def test_a_plugin_is_told_every_endpoint_once_and_every_run(serve: Any) -> None:
    recorder = Recorder()
    shop = serve(SHOP, plugins={"recorder": recorder})
    answer = shop.post("/orchestrator/shop/hello/Ada", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    shop.get("/orchestrator/shop/nothing")
    shop.get("/health/live")
    generation = shop.executions()[0]["generation"]
    steps = (
        StepInfo("greeting", "direct.default", "", remote=False),
        StepInfo("never", "direct.default", "", remote=False),
    )
    assert recorder.endpoints == [EndpointInfo("shop", "hello", "/orchestrator/shop/hello/{name}", generation, steps)]
    ((method, run, trace),) = recorder.runs
    assert (method, run.id, run.http_status, run.error) == ("POST", answer.headers["X-Execution-Id"], 200, "")
    outcomes = [outcome[0] for outcome in run.steps if isinstance(outcome, tuple)]
    assert outcomes == ["ok", "skipped"]
    assert [run.step_record(index).name for index in (0, 1)] == ["greeting", "never"]
    assert trace is not None
    assert trace.lines == f"traceparent: 00-{'ab' * 16}-{'cd' * 8}-01\r\n".encode()
    assert recorder.pages == [("", "GET", 404), ("/health/live", "GET", 200)]
    metrics = shop.admin("GET", "/metrics")
    assert (metrics.status, metrics.headers["Content-Type"], metrics.json) == (200, "text/x-test", "1 runs")


def test_the_next_request_of_a_connection_is_not_in_the_trace_of_the_one_before(serve: Any) -> None:
    recorder = Recorder()
    shop = serve(SHOP, plugins={"recorder": recorder})
    shop.get("/orchestrator/shop/hello/Ada", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    shop.get("/orchestrator/shop/hello/Bob")
    assert [trace is None for _, _, trace in recorder.runs] == [False, True]
    assert [execution["trace_id"] for execution in shop.executions()] == ["", "ab" * 16]


def test_the_state_is_plain_data(serve: Any) -> None:
    recorder = Recorder()
    shop = serve(SHOP, plugins={"recorder": recorder})
    shop.write("domains/shop.yaml", "endpoints: {hello: {methds: [GET]}}")
    shop.reload()
    ((_, context),) = recorder.opened
    state = context.state()
    assert state["reloads"] == {"swapped": 0, "failed": 1}
    assert state["generation"] == shop.admin("GET", "/config").json["generation"]
    assert (state["endpoints"], state["requests"]["in_flight"], state["models"]) == (1, 0, [])
    assert [(source["source"], source["unreachable"]) for source in state["sources"]] == [("direct.default", False)]
    assert context.version == __version__


def test_its_options_are_those_of_the_section(serve: Any) -> None:
    recorder = Recorder()
    serve({**SHOP, "config.yaml": "telemetry: {color: blue}"}, plugins={"recorder": recorder})
    serve({**SHOP, "config.yaml": "telemetry: true"}, plugins={"recorder": recorder})
    assert [options for options, _ in recorder.opened] == [Options("blue"), Options("red")]


def test_switched_off_it_is_not_opened(serve: Any) -> None:
    recorder = Recorder()
    shop = serve({**SHOP, "config.yaml": "telemetry: false"}, plugins={"recorder": recorder})
    assert shop.get("/orchestrator/shop/hello/Ada").status == 200
    assert (recorder.opened, recorder.runs) == ([], [])
    assert shop.service.running.live.snapshot.telemetry is None


def test_a_word_that_is_no_section_is_told_what_to_write() -> None:
    (problem,) = check_problems({**SHOP, "config.yaml": "telemetry: no"}, plugins={"recorder": Recorder()})
    assert problem.message == "expected a mapping, or true or false, got a string"
    assert problem.hint == "write false"


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_one_that_fails_is_logged_and_harms_neither_request_nor_page_nor_reload(
    serve: Any, error: type[BaseException]
) -> None:
    recorder = Recorder(error=error)
    shop = serve(SHOP, plugins={"recorder": recorder})
    recorder.failing = True

    def logged(path: str) -> list[tuple[str, ...]]:
        with structlog.testing.capture_logs() as logs:
            answer = shop.get(path)
        assert answer.status == (404 if path.endswith("nothing") else 200)
        assert all(entry.get("execution_id", "") in ("", answer.headers["X-Execution-Id"]) for entry in logs)
        return [(entry["event"], *(["execution_id"] if "execution_id" in entry else [])) for entry in logs]

    assert logged("/orchestrator/shop/hello/Ada") == [("telemetry failed",), ("telemetry failed", "execution_id")]
    assert logged("/health/ready") == [("telemetry failed",)]
    assert logged("/orchestrator/shop/nothing") == [("telemetry failed",)]
    with structlog.testing.capture_logs() as logs:
        assert shop.reload().status == 200
    assert ("telemetry failed", "shop.hello") in [(entry["event"], entry.get("endpoint")) for entry in logs]
    assert logged("/orchestrator/shop/hello/Ada") == [("telemetry failed",)]


class Broken(Recorder):
    """Cannot be opened, or opens something else."""

    @asynccontextmanager
    async def open(self, options: Options, context: TelemetryContext) -> AsyncIterator[Any]:
        if options.color == "red":
            raise RuntimeError("out of order")
        yield None


@pytest.mark.parametrize(
    ("config", "message", "line"),
    [
        ({}, "RuntimeError: out of order", 0),
        (
            {"config.yaml": "server: {}\ntelemetry: {color: blue}"},
            "TypeError: what was opened is a NoneType, expected Telemetry",
            2,
        ),
    ],
)
def test_one_that_cannot_be_opened_is_a_problem_that_names_its_plugin(
    run: Any, config: dict[str, str], message: str, line: int
) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError) as raised:
            async with service({**SHOP, **config}, plugins={"broken": Broken()}):
                pass
        (problem,) = raised.value.problems
        assert (problem.code, problem.message) == ("ORC601", f"telemetry cannot be opened: {message}")
        assert (problem.line, problem.hint) == (line, "a defect of the given plugin broken")

    run(main())


def test_a_reload_that_changes_the_section_says_that_telemetry_stays_as_it_is(serve: Any) -> None:
    recorder = Recorder()
    shop = serve({**SHOP, "config.yaml": "telemetry: {color: blue}"}, plugins={"recorder": recorder})
    shop.write("config.yaml", "telemetry: {color: green}")
    with structlog.testing.capture_logs() as logs:
        assert shop.reload().status == 200
    assert "telemetry has changed: it does so when the service is started again" in [log["event"] for log in logs]
    assert len(recorder.opened) == 1


def test_without_a_plugin_the_page_and_the_section_say_what_to_install(serve: Any) -> None:
    answer = serve(SHOP).admin("GET", "/metrics")
    assert (answer.status, answer.json["detail"]) == (
        404,
        "no installed plugin provides metrics: pip install orchestrator-api-telemetry",
    )
    (problem,) = check_problems({**SHOP, "config.yaml": "server: {port: 1}\ntelemetry: {metrics: {}}"}, offline=True)
    assert (problem.line, problem.code, problem.message, problem.hint) == (
        2,
        "ORC401",
        "no installed plugin provides the section 'telemetry'",
        "install it: pip install orchestrator-api-telemetry",
    )
    assert check_problems({**SHOP, "config.yaml": "telemetry: false"}, offline=True) == []


def test_an_unknown_option_is_found_at_its_line() -> None:
    (problem,) = check_problems(
        {**SHOP, "config.yaml": "telemetry:\n  colour: blue\n"}, plugins={"recorder": Recorder()}, offline=True
    )
    assert (problem.file, problem.line, problem.code, problem.hint) == (
        "config.yaml",
        2,
        "ORC201",
        "did you mean 'color'?",
    )


def test_two_plugins_with_telemetry_are_a_problem_that_names_both() -> None:
    given = {"one": Recorder(), "two": Recorder()}
    (problem,) = check_problems(SHOP, plugins=given, offline=True)
    assert (problem.code, problem.message) == (
        "ORC402",
        "two plugins provide the section 'telemetry': the given plugin one and the given plugin two",
    )
