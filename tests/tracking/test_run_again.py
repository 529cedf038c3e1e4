"""What is captured of an execution is all that it takes to run it again, without the backends that it called."""

from __future__ import annotations

import asyncio
import builtins
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import pytest

from orchestrator_core import errors
from orchestrator_core.config.secrets import Redactor
from orchestrator_core.engine import execute, failure_of, finish, new_execution_id
from orchestrator_core.errors import EntityNotFound, InvalidParam, OrchestratorError, SourceError, SourceUnavailable
from orchestrator_core.expressions import MISSING
from orchestrator_core.http.answers import encode
from orchestrator_core.plugin_api import Degraded
from orchestrator_core.run import Request, Run
from orchestrator_core.snapshot import ReadyPlan
from orchestrator_core.testing import RunningService, service
from tests.engine.lab import Lab

RunFixture = Callable[..., Any]


class TooLate(SourceError):
    """A plugin's own kind of error, with an answer of its own."""

    status = 504
    title = "deadline passed"


class Shop(Lab):
    """Fails and answers by what it is asked for; ``many`` takes all items in one call."""

    turn = 0

    async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any:
        of = params.get("of")
        if operation == "hangs":
            await asyncio.sleep(3600)
        if of == "nobody":
            raise EntityNotFound("no customer nobody")
        if of == "down":
            raise SourceError("it is down", transient=True)
        if of == "late":
            raise SourceUnavailable("not yet", retry_after_seconds=7)
        if of == "too late":
            raise TooLate("nothing came")
        if of == "unfit":
            raise InvalidParam("of", "is unfit")
        if of == "lesser":
            return Degraded({"of": of, "turn": 0})
        if of == "odd":
            return {"of": of, "turn": math.inf, "large": 2**70, "none": None, "marked": [{"$number": "7"}]}
        self.turn += 1
        return {"of": of, "turn": self.turn, "list": [1, {"deep": (2, 3)}]}

    def prepare(self, operation: str, names: Sequence[str]) -> Callable[..., Awaitable[Any]]:
        def call(*values: Any) -> Awaitable[Any]:
            return self.fetch(operation, dict(zip(names, values, strict=True)))

        return call

    def prepare_many(self, operation: str, names: Sequence[str]) -> Any:
        call = self.prepare(operation, names)

        async def one(row: Sequence[Any]) -> Any:
            try:
                return await call(*row)
            except OrchestratorError as error:
                return error

        async def many(rows: Sequence[Sequence[Any]]) -> list[Any]:
            return [await one(row) for row in rows]

        return many if operation == "many" else None


def endpoint(steps: str, more: str = "") -> str:
    return f"""
endpoints:
  e:
    methods: [POST]
    path: /{{of}}
    timeout: 200ms
    {more}
    data_sources:
{steps}
"""


OF = "type: lab, operation: get, params: {of: $request.path_params.of"
A = f"      - {{name: a, {OF}}}}}\n"
OR_DEFAULT = f"      - {{name: a, {OF}}}, default: {{turn: -1}}}}\n"
B = "      - {name: b, type: lab, operation: get, params: {of: $a.turn}}\n"
EACH = """
      - name: a
        type: lab
        operation: OPERATION
        for_each: $request.body.items
        max_concurrency: 2
        params: {of: $item.of, place: $index}
        MORE
"""


def each(operation: str, more: str = "") -> str:
    return EACH.replace("OPERATION", operation).replace("MORE", more)


ITEMS = {"items": [{"of": "x"}, {"of": "down"}, {}, {"of": "lesser"}, {"of": "x"}, {"of": "odd"}]}

CASES: dict[str, tuple[str, str, Any]] = {
    "a chain": (endpoint(A + B), "x", None),
    "computed": (endpoint(A + "      - {name: b, type: direct, params: {twice: '$a.turn * 2'}}\n"), "x", None),
    "transformed": (endpoint(A.replace("}}\n", "}, transform: [{select: [turn]}]}\n")), "x", None),
    "the time": (
        endpoint(
            A + "      - {name: b, type: lab, operation: get, params: {of: '{{ $a.turn }} {{ now() }}'}}\n",
            "response_mapping: ['{{ now() }}', '{{ date(now()) }}', $b.of]",
        ),
        "x",
        None,
    ),
    "a default": (endpoint(OR_DEFAULT + B, "response_mapping: [$b.of, $execution.degraded]"), "down", None),
    "not found": (endpoint(A + B), "nobody", None),
    "unavailable": (endpoint(A), "late", None),
    "a plugin's own error": (endpoint(A), "too%20late", None),
    "the caller's mistake": (endpoint(A), "unfit", None),
    "a step's mistake": (endpoint("      - {name: a, type: lab, operation: get, params: {of: unfit}}\n"), "x", None),
    "a lesser result": (endpoint(A + B), "lesser", None),
    "odd numbers": (endpoint(A + B.replace("$a.turn", "$a.none"), "response_mapping: $b.turn"), "odd", None),
    "what looks like a mark": (
        endpoint(A + B.replace("$a.turn", "$request.body"), "response_mapping: [$b, $a.marked, $request.body]"),
        "odd",
        {"$degraded": [{"$literal": {"$unfit": 1}}]},
    ),
    "a condition that holds": (endpoint(A + B.replace("}}\n", "}, condition: '$a.turn > 0'}\n")), "x", None),
    "a condition that does not": (
        endpoint(A + B.replace("}}\n", "}, condition: '$a.turn < 0'}\n"), "response_mapping: [$a.of, $b ?? 'none']"),
        "x",
        None,
    ),
    "a reference that finds nothing": (endpoint(A, "response_mapping: $a.nothing"), "x", None),
    "an expression that fails": (endpoint(A, "response_mapping: $a.of - 1"), "x", None),
    "an answer of another shape": (endpoint(A, "output_schema: {type: array}"), "x", None),
    "a step's time": (
        endpoint(
            "      - {name: a, type: lab, operation: hangs, timeout: 10ms, default: 3}\n" + B.replace(".turn", "")
        ),
        "x",
        None,
    ),
    "the request's time": (endpoint(A + "      - {name: b, type: lab, operation: hangs}\n"), "x", None),
    "steps at once of which one fails": (
        endpoint("      - {name: b, type: lab, operation: hangs}\n" + A),
        "down",
        None,
    ),
    "items": (endpoint(each("get")), "x", {"items": [{"of": "x"}, {"of": "lesser"}, {"of": "y"}]}),
    "items with defaults": (endpoint(each("get", "default: {}")), "x", ITEMS),
    "items of which one fails": (endpoint(each("get")), "x", {"items": [{"of": "x"}, {"of": "down"}, {"of": "y"}]}),
    "items in one call": (endpoint(each("many")), "x", {"items": [{"of": "x"}, {"of": "lesser"}]}),
    "items in one call with defaults": (endpoint(each("many", "default: 0")), "x", ITEMS),
    "no items": (endpoint(each("get")), "x", {"items": []}),
    "what a schema makes of a request": (
        endpoint(
            "      - {name: a, type: lab, operation: get, params: {of: $request.body.n, d: $request.body.d}}\n",
            "input_schema: {type: object, properties: {n: {type: integer}, of: {type: integer}, d: {default: [1]}}}",
        ),
        "0012",
        {"n": 7},
    ),
}


async def again(ready: ReadyPlan, execution: Mapping[str, Any]) -> tuple[Run, Any]:
    """Run an execution from what is kept of it alone."""
    captured = execution["captured"]
    asked = captured["request"]
    body = restored(asked["body"]) if "body" in asked else MISSING
    request = Request(asked["path_params"], asked["query_params"], asked["headers"], body)
    calls = {step.name: call_of(step, captured["steps"]) for step in ready.plan.steps}
    bound = ReadyPlan(ready.plan, ready.generation, calls)
    run = Run(bound, new_execution_id())
    run.started_at = datetime.fromisoformat(execution["started_at"]).timestamp()
    try:
        answer = await execute(bound, request, run)
        encode(answer, ready.plan)
    except Exception as error:
        redactor = Redactor()
        failure = failure_of(error, run, redactor)
        finish(run, failure.status, error, redactor)
        return run, failure.problem("")
    finally:
        bound.generated.forget()
    finish(run, 200, None, Redactor())
    return run, answer


def call_of(step: Any, steps: Mapping[str, Any]) -> Callable[..., Awaitable[Any]]:
    calls = iter(steps.get(step.name, {"calls": []})["calls"])
    names = [name for name, _ in step.params]

    async def call(*values: Any) -> Any:
        one = next(calls)
        assert restored(one["params"]) == dict(zip(names, values, strict=True))
        if "error" not in one:
            return restored(one["result"])
        if one["error"]["type"] == "CancelledError":
            await asyncio.sleep(3600)
        raise error_of(**one["error"])

    return call


def error_of(type: str, message: str, **attributes: Any) -> Exception:
    kind = getattr(errors, type, None) or getattr(builtins, type)
    error: Exception = kind.__new__(kind)
    error.args = (message,)
    vars(error).update(attributes)
    return error


def restored(value: Any) -> Any:
    if isinstance(value, list):
        return [restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$literal" in value:
        return {name: restored(item) for name, item in value["$literal"].items()}
    if "$number" in value:
        text = value["$number"]
        return int(text) if text.lstrip("-").isdigit() else float(text)
    return (
        Degraded(restored(value["$degraded"]))
        if "$degraded" in value
        else {name: restored(item) for name, item in value.items()}
    )


def known(problem: Any) -> Any:
    """Return an answer without what is never the same."""
    of_one = ("execution_id", "instance")
    return {k: v for k, v in problem.items() if k not in of_one} if isinstance(problem, dict) else problem


async def compare(served: RunningService, domain: str, of: str, body: Any) -> None:
    answer = await served.post(f"/orchestrator/{domain}/e/{of}?q=1", body)
    execution = (await served.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}")).json
    snapshot = served.running.live.snapshot
    assert execution["generation"] == snapshot.generation
    run, result = await again(snapshot.plans[domain, "e"], execution)
    assert orjson.loads(orjson.dumps(known(result))) == known(answer.json), execution
    assert known(restored(execution["captured"]["answer"])) == known(answer.json)
    record = run.record()
    assert (record.http_status, record.status) == (answer.status, execution["status"])
    assert list(record.degraded) == execution["degraded"]
    was = [(step["name"], step["status"].replace("cached", "ok"), step["error"]) for step in execution["steps"]]
    assert [(step.name, step.status, step.error) for step in record.steps] == was


@pytest.mark.parametrize(
    "policies", ["retry: {backoff: 1ms}", "retry: false\n  circuit_breaker: false\n  timeout: null"]
)
def test_it_ends_as_it_did(run: RunFixture, policies: str) -> None:
    domains = {f"domains/d{number}.yaml": text for number, (text, _, _) in enumerate(CASES.values())}
    config = f"tracking: {{capture: full}}\npolicies:\n  {policies}\n"

    async def main() -> None:
        async with service({"config.yaml": config, **domains}, plugins={"lab": Shop()}) as served:
            for number, (name, (_, of, body)) in enumerate(CASES.items()):
                try:
                    await compare(served, f"d{number}", of, body)
                except Exception as error:
                    error.add_note(name)
                    raise

    run(main())


def test_so_does_one_that_a_cache_answered(run: RunFixture) -> None:
    config = {
        "config.yaml": "tracking: {capture: full}",
        "integrations/lab.yaml": "lab: {sources: {default: {cache: {ttl: 1h}}}}",
    }
    domains = {"domains/one.yaml": endpoint(A + B), "domains/all.yaml": endpoint(each("many", "default: 0"))}

    async def main() -> None:
        shop = Shop()
        async with service({**config, **domains}, plugins={"lab": shop}) as served:
            for body in (None, {"items": [{"of": "x"}]}, ITEMS, ITEMS):
                await compare(served, "one", "x", None)
                await compare(served, "all", "x", body or {"items": []})
        assert shop.turn == 4  # what was asked for again came from the cache

    run(main())
