"""`orchestrator run`: the answer, the failure and the timeline of one request."""

from __future__ import annotations

import json
import logging
import re
from io import StringIO

import pytest
from rich.console import Console

from orchestrator_core.cli.timeline import draw
from orchestrator_core.documents import execution_json, execution_of
from orchestrator_core.plugin_api import Execution, FailedAttempt, Identity, StepRecord

from .conftest import Invoke, Write

ECHO = {
    "config/config.yaml": "plugins_dir: ../plugins\n",
    "config/database.yaml": """
        store:
          sources:
            default: {url: "store://a"}
            broken: {url: "store://down"}
            absent: {url: "store://nowhere"}
          operations: {get: {query: q}}
        """,
    "config/domains/shop.yaml": """
        endpoints:
          echo:
            input_schema:
              type: object
              properties: {count: {type: integer}, tags: {type: array, items: {type: integer}}}
            response_mapping:
              id: "$request.path_params.id ?? null"
              count: "$request.query_params.count ?? null"
              tags: "$request.query_params.tags ?? null"
              agent: "$request.headers['User-Agent'] ?? null"
              body: "$request.body ?? null"
          fails:
            data_sources: [{name: product, type: store, source_id: broken, operation: get}]
          degraded:
            data_sources: [{name: product, type: store, source_id: broken, operation: get, default: {price: 1}}]
          two:
            path: "/{shop}/{product}"
            response_mapping: "$request.path_params"
          nan:
            response_mapping: {a: "$request.body.x * 1e308"}
          absent:
            data_sources: [{name: product, type: store, source_id: absent, operation: get}]
        """,
}


@pytest.fixture(autouse=True)
def echo(write: Write) -> None:
    write(ECHO)


def test_every_part_of_a_request_can_be_given(orchestrator: Invoke) -> None:
    result = orchestrator(
        *("run", "shop.echo", "--path-param", "id=a=b", "--query", "count=3", "--query", "tags=1", "--query", "tags=2"),
        *("--header", "user-agent=me", "--body", '{"x": [1, "é"]}'),
    )

    assert result.exit_code == 0
    assert result.stderr == ""
    assert json.loads(result.stdout) == {
        "id": "a=b",
        "count": 3,
        "tags": [1, 2],
        "agent": "me",
        "body": {"x": [1, "é"]},
    }
    assert result.stdout.startswith('{\n  "id": "a=b",\n')


def test_the_body_comes_from_a_file_or_standard_input(orchestrator: Invoke, write: Write) -> None:
    write({"request.json": '{"x": 1}'})

    from_file = orchestrator("run", "shop.echo", "--body", "@request.json")
    from_stdin = orchestrator("run", "shop.echo", "--body", "-", stdin='{"x": 2}')

    assert json.loads(from_file.stdout)["body"] == {"x": 1}
    assert json.loads(from_stdin.stdout)["body"] == {"x": 2}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--body", "{x}"), "--body is not JSON: "),
        (("--body", "@none.json"), "cannot read the body from none.json: No such file or directory"),
        (("--query", "count"), "--query takes NAME=VALUE, got 'count'"),
        (("--path-param", "id=\udcff\udcfe"), r"--path-param takes UTF-8 text, got b'id=\xff\xfe'"),
        (("--header", "x-\udcff=1"), r"--header takes UTF-8 text, got b'x-\xff=1'"),
        (("--path-param", "idd=1"), "shop.echo has no path parameter 'idd': did you mean 'id'?"),
    ],
)
def test_what_cannot_be_a_request_is_refused(args: tuple[str, ...], message: str, orchestrator: Invoke) -> None:
    result = orchestrator("run", "shop.echo", *args)

    assert result.exit_code == 2
    assert f"\nError: {message}" in result.output


def test_a_path_that_cannot_be_left_out_is_asked_for(orchestrator: Invoke) -> None:
    result = orchestrator("run", "shop.two", "--path-param", "shop=a")

    assert result.exit_code == 2
    assert result.output.endswith("\nError: the path of shop.two needs --path-param product=…\n")


def test_a_request_that_fails_prints_the_problem_and_exits_with_1(orchestrator: Invoke) -> None:
    result = orchestrator("run", "shop.fails")

    assert result.exit_code == 1
    problem = json.loads(result.stdout)
    assert re.fullmatch("[0-9a-f]{32}", problem.pop("execution_id"))
    assert problem == {
        "type": "about:blank",
        "title": "source failed",
        "status": 502,
        "detail": "step 'product': the store is down",
        "step": "product",
    }


def test_a_number_that_json_cannot_hold_is_a_failure_as_it_is_over_http(orchestrator: Invoke) -> None:
    result = orchestrator("run", "shop.nan", "--body", '{"x": 1e308}')

    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == 422  # the number is the caller's


def test_a_degraded_answer_says_so(orchestrator: Invoke) -> None:
    result = orchestrator("run", "shop.degraded")

    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"price": 1}
    assert result.stderr == "degraded: product\n"


def test_only_the_sources_of_the_endpoint_are_opened(orchestrator: Invoke) -> None:
    result = orchestrator("run", "shop.absent")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "config/database.yaml:5:5: ORC601 store.absent cannot be opened: no store at store://nowhere\n"
        '    5 |     absent: {url: "store://nowhere"}\n'
        "      |     ^^^^^^\n"
        "1 problem in 1 file\n"
    )
    assert orchestrator("run", "shop.echo").exit_code == 0


def test_the_trace_goes_to_stderr(orchestrator: Invoke) -> None:
    result = orchestrator("run", "shop.degraded", "--trace")

    assert json.loads(result.stdout) == {"price": 1}
    assert re.search(r"\n[0-9a-f]{32}  shop\.degraded  degraded  200  [\d.]+ ms  \(engine [\d.]+ ms\)\n", result.stderr)
    assert "\nproduct: the store is down\n" in result.stderr


def test_the_timeline_has_a_bar_for_each_step_to_scale() -> None:
    execution = Execution(
        id="0193b8c1f4a2",
        domain="credit",
        endpoint="risk",
        generation="4e6f",
        status="failed",
        http_status=502,
        started_at=1_700_000_000.0,
        duration_seconds=0.4,
        engine_seconds=0.0005,
        trace_id="",
        degraded=("report",),
        models=(Identity("credit_risk", "3", "sha256:ab"),),
        steps=(
            StepRecord("customer", "ok", 0.0, 0.2, 1),
            StepRecord(
                "report",
                "default",
                0.0,
                0.1,
                3,
                "the store is down",
                failed_attempts=(
                    FailedAttempt(0.0, 0.02, "the store hangs"),
                    FailedAttempt(0.03, 0.05, "the store is down"),
                ),
                failed_attempts_left_out=1,
            ),
            StepRecord("limits", "skipped", 0.2, 0.0, 0),
            StepRecord("risk", "failed", 0.2, 0.2, 1, "the model is down"),
            StepRecord("tiny", "ok", 0.4, 0.0, 1),
        ),
        error="the model is down",
    )
    text = StringIO()

    draw(execution, Console(file=text, width=120, highlight=False))

    assert "\n".join(line.rstrip() for line in text.getvalue().splitlines()) == (
        "0193b8c1f4a2  credit.risk  failed  502  400.00 ms  (engine 0.50 ms)\n"
        "customer  ok                    200.00 ms  ████████████████████\n"
        "report    default (3 attempts)  100.00 ms  ██████████\n"
        "limits    skipped\n"
        "risk      failed                200.00 ms                      ████████████████████\n"
        "tiny      ok                      0.00 ms                                         ▕\n"
        "report: the store is down\n"
        "report: attempt at 0.00 ms failed after 20.00 ms: the store hangs\n"
        "report: attempt at 30.00 ms failed after 50.00 ms: the store is down\n"
        "report: 1 more attempt failed\n"
        "risk: the model is down\n"
        "model credit_risk 3 sha256:ab"
    )


def test_the_timeline_counts_the_items_of_a_step_for_each() -> None:
    execution = Execution(
        id="0193",
        domain="d",
        endpoint="e",
        generation="4e6f",
        status="degraded",
        http_status=200,
        started_at=1_700_000_000.0,
        duration_seconds=0.4,
        engine_seconds=0.0,
        trace_id="",
        degraded=("some",),
        models=(),
        steps=(
            StepRecord("all", "ok", 0.0, 0.25, 1, items=12),
            StepRecord("one", "ok", 0.0, 0.25, 1, items=1),
            StepRecord("some", "default", 0.25, 0.125, 1, "step 'some', item 3: it is down", 12, 2),
        ),
    )
    text = StringIO()

    draw(execution, Console(file=text, width=120, highlight=False))

    lines = [line.partition("  ▕")[0].partition("  █")[0].rstrip() for line in text.getvalue().splitlines()]
    assert lines == [
        "0193  d.e  degraded  200  400.00 ms  (engine 0.00 ms)",
        "all   ok (12 items)            250.00 ms",
        "one   ok (1 item)              250.00 ms",
        "some  default (2 of 12 items)  125.00 ms",
        "some: step 'some', item 3: it is down",
    ]
    assert [step.get("items") for step in execution_json(execution)["steps"]] == [12, 1, 12]
    assert execution_of(execution_json(execution)).steps == execution.steps


SLOW_MODEL = """
    import asyncio
    from contextlib import asynccontextmanager

    from attrs import frozen

    from orchestrator_core.plugin_api import ModelKind, SourceError, SourceUnavailable, hookimpl, option

    @frozen
    class Options:
        seconds: float = option(0.0, help="How long it takes to open.")
        error: str = option("", help="How it fails.")

    class Model:
        async def predict(self, rows):
            return [{"y": row["x"] * 2} for row in rows]

    @asynccontextmanager
    async def open_slow(options, context):
        await asyncio.sleep(options.seconds)
        if options.error:
            raise (SourceUnavailable if options.error == "engine" else SourceError)(options.error)
        yield Model()

    @hookimpl
    def orchestrator_model_kinds():
        return [ModelKind("slow", "Takes its time.", Options, open_slow)]
"""
MODELS = {
    "plugins/slow.py": SLOW_MODEL,
    "config/integrations/ml.yaml": """
        ml:
          sources:
            m:
              models:
                default: {type: slow, seconds: 1.5, preload: false}
                unused: {type: slow, error: it would break}
                absent: {type: slow, error: engine}
                broken: {type: slow, error: no such image}
        """,
    "config/domains/ml.yaml": """
        endpoints:
          score:
            data_sources: [{name: s, type: ml, source_id: m, operation: predict, params: {features: {x: 2}}}]
          absent:
            data_sources: [{name: s, type: ml, source_id: m, operation: absent, params: {features: {x: 2}}}]
          broken:
            data_sources: [{name: s, type: ml, source_id: m, operation: broken, params: {features: {x: 2}}}]
        """,
}


def test_the_model_that_the_endpoint_uses_is_waited_for_and_no_other(write: Write, orchestrator: Invoke) -> None:
    write(MODELS)
    result = orchestrator("run", "ml.score")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"y": 4})
    assert result.stderr == "waiting for the model ml.m: loading (1 s)\n"


def test_a_model_that_is_not_available_answers_503(write: Write, orchestrator: Invoke) -> None:
    write(MODELS)
    result = orchestrator("run", "ml.absent")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["detail"] == "step 's': the model ml.m absent is restarting: engine"


def test_a_model_that_cannot_be_loaded_is_a_problem(write: Write, orchestrator: Invoke) -> None:
    write(MODELS)
    result = orchestrator("run", "ml.broken")
    assert result.exit_code == 1
    assert result.stderr.startswith("config/integrations/ml.yaml:8:9: ORC601 ml.m cannot be opened: no such image\n")


LEAKS = """
    import logging
    import os
    from contextlib import asynccontextmanager
    from attrs import frozen
    from orchestrator_core.plugin_api import SourceKind, hookimpl, option

    @frozen
    class Options:
        key: str = option(help="A key.")

    class Source:
        def __init__(self, key):
            self.key = key

        async def fetch(self, operation, params):
            logging.getLogger("lib").warning("a library has %s", self.key)
            raise RuntimeError(f"a defect with {self.key}")

    @asynccontextmanager
    async def opened(options, context):
        yield Source(options.key)

    @hookimpl
    def orchestrator_source_kinds():
        return [SourceKind("leaks", "Tells all.", Options, opened)]
    """


def test_what_is_logged_holds_no_secret(
    write: Write, orchestrator: Invoke, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CANARY", "canary-4711")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    write(
        {
            "config/config.yaml": "plugins_dir: ../plugins\n",
            "config/database.yaml": 'leaks: {sources: {default: {key: "${env:CANARY}"}}}',
            "config/domains/shop.yaml": "endpoints: {e: {data_sources: [{name: s, type: leaks, operation: any}]}}",
            "plugins/leaks.py": LEAKS,
        }
    )
    output = orchestrator("run", "shop.e").output + capsys.readouterr().err

    assert "a library has ***\n" in output
    assert "RuntimeError: a defect with ***" in output
    assert "canary" not in output
