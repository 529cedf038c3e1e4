"""What is kept of the values that go through an execution: enough to run it again, and nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from orchestrator_core.errors import EntityNotFound, SourceError
from orchestrator_core.plugin_api import Degraded
from orchestrator_core.testing import check_problems
from orchestrator_core.testing.pytest_plugin import Served
from tests.engine.lab import Lab
from tests.tracking.scripted_store import ScriptedStore

Serve = Callable[..., Served]


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


DOMAIN = """
    endpoints:
      score:
        input_schema: {type: object, properties: {income: {type: number}}}
        data_sources:
          - name: customer
            type: lab
            operation: customer
            params: {id: $request.path_params.id, key: $request.body.pin}
          - {name: bureau, type: lab, operation: bureau, params: {id: $customer.id}, default: {score: 0}}
          - name: items
            type: lab
            operation: item
            for_each: [1, 2]
            params: {number: $item}
            transform: [{select: [number]}]
        response_mapping: {name: $customer.name, score: $bureau.score, items: $items}
        path: /{id}
      quiet:
        capture: none
        data_sources: [{name: one, type: lab, operation: one, params: {a: 1}}]
"""


async def customer(params: Any) -> Any:
    if params["id"] == "9":
        raise EntityNotFound("no customer 9")
    return {"id": params["id"], "name": "Ada", "ssn": "123-45"}


async def bureau(_: Any) -> Any:
    raise SourceError("the bureau is down: token sesame-open", transient=False)


@pytest.fixture
def shop(serve: Serve) -> Callable[..., Served]:
    def start(store: ScriptedStore | None = None, **tracking: Any) -> Served:
        settings = "".join(f"  {name}: {value}\n" for name, value in tracking.items())
        lab = Lab({"customer": customer, "bureau": bureau})
        plugins = {"lab": lab, **({"scripted": store} if store else {})}
        return serve({"config.yaml": f"tracking:\n{settings}", "domains/d.yaml": DOMAIN}, plugins=plugins)

    return start


def ask(served: Served, id_: str = "7", **body: Any) -> dict[str, Any]:
    """Send a request; return what is kept of its execution."""
    headers = {"Authorization": "Bearer canary-1", "X-Shop": "north"}
    answer = served.post(f"/orchestrator/d/score/{id_}?page=2", {"pin": "4711", **body}, headers=headers)
    execution: dict[str, Any] = served.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}").json
    return execution


def test_without_capture_nothing_is_kept(shop: Callable[..., Served]) -> None:
    assert "captured" not in ask(shop())


def test_all_that_it_takes_to_run_it_again(shop: Callable[..., Served]) -> None:
    captured = ask(shop(capture="full"), income=5)["captured"]
    headers = captured["request"].pop("headers")
    assert (headers["x-shop"], headers["authorization"]) == ("north", "***")
    assert captured == {
        "request": {
            "method": "POST",
            "path_params": {"id": "7"},
            "query_params": {"page": "2"},
            "body": {"pin": "4711", "income": 5},
        },
        "steps": {
            "customer": {
                "calls": [
                    {
                        "params": {"id": "7", "key": "4711"},
                        "result": {"id": "7", "name": "Ada", "ssn": "123-45"},
                    }
                ]
            },
            "bureau": {
                "calls": [
                    {
                        "params": {"id": "7"},
                        "error": {
                            "type": "SourceError",
                            "message": "the bureau is down: token sesame-open",
                            "transient": False,
                        },
                    }
                ]
            },
            "items": {
                "calls": [
                    {"params": {"number": 1}, "result": {"number": 1}},
                    {"params": {"number": 2}, "result": {"number": 2}},
                ]
            },
        },
        "answer": {"name": "Ada", "score": 0, "items": [{"number": 1}, {"number": 2}]},
    }


def test_params_alone(shop: Callable[..., Served]) -> None:
    captured = ask(shop(capture="params"))["captured"]
    assert captured["steps"]["customer"] == {"calls": [{"params": {"id": "7", "key": "4711"}}]}
    assert "answer" not in captured
    assert captured["request"]["body"] == {"pin": "4711"}


def test_an_endpoint_can_say_otherwise(shop: Callable[..., Served]) -> None:
    served = shop(capture="full")
    served.get("/orchestrator/d/quiet")
    (execution,) = served.executions()
    assert "captured" not in served.admin("GET", f"/executions/{execution['id']}").json


def test_a_list_of_executions_is_without_captured_values(shop: Callable[..., Served]) -> None:
    served = shop(capture="full")
    ask(served)
    assert [execution.get("captured") for execution in served.executions()] == [None]


def test_a_request_that_fails_is_captured_with_its_problem(shop: Callable[..., Served]) -> None:
    served = shop(capture="full")
    captured = ask(served, "9")["captured"]
    assert captured["steps"]["customer"] == {
        "calls": [
            {
                "params": {"id": "9", "key": "4711"},
                "error": {"type": "EntityNotFound", "message": "no customer 9"},
            }
        ]
    }
    assert captured["answer"]["status"] == 404
    unfit = ask(served, income="much")["captured"]
    assert unfit["steps"] == {}
    assert unfit["request"]["query_params"] == {"page": ["2"]}  # as it was sent: it was not let in
    assert unfit["answer"]["status"] == 422


@pytest.mark.parametrize(
    ("path", "gone"),
    [
        ("request.body.pin", [("request", "body", "pin")]),
        ("request.headers.X-Shop", [("request", "headers", "x-shop")]),
        ("request.body", [("request", "body")]),
        ("request", [("request", part) for part in ("path_params", "query_params", "headers", "body")]),
        ("steps.*.params.id", [("steps", name, "calls", 0, "params", "id") for name in ("customer", "bureau")]),
        ("steps.customer.result.ssn", [("steps", "customer", "calls", 0, "result", "ssn")]),
        ("steps.bureau.error", [("steps", "bureau", "calls", 0, "error")]),
        ("answer.items.number", [("answer", "items", 0, "number"), ("answer", "items", 1, "number")]),
        ("answer.items.1", [("answer", "items", 1)]),
        ("answer", [("answer",)]),
    ],
)  # fmt: skip
def test_what_is_redacted_is_not_kept(shop: Callable[..., Served], path: str, gone: list[tuple[Any, ...]]) -> None:
    whole, kept = ask(shop(capture="full"))["captured"], ask(shop(capture="full", redact=f"[{path}]"))["captured"]
    for place in gone:
        at = whole
        for part in place[:-1]:
            at = at[part]
        at[place[-1]] = "***"
    for captured in (whole, kept):
        if isinstance(captured["request"]["headers"], dict):
            captured["request"]["headers"].pop("host")
    assert kept == whole


def test_what_is_redacted_of_a_request_is_not_kept_where_it_was_passed_on(serve: Serve) -> None:
    domain = """
        endpoints:
          passed:
            methods: [POST]
            data_sources:
              - name: step
                type: lab
                operation: echo
                params:
                  auth: $request.headers.authorization
                  person: $request.body.person
                  items: "$request.body.numbers"
                  pin: $request.body.pin
            response_mapping: {echo: $step, text: "{{ $request.body.pin }} of 123-45-6789"}
    """
    config = "tracking: {capture: full, redact: [request.body.person.ssn, request.body.numbers, request.body.pin]}"
    served = serve({"config.yaml": config, "domains/d.yaml": domain}, plugins={"lab": Lab()})
    body = {"person": {"ssn": '123-"45"-6789', "name": "Ada"}, "numbers": [4711471147, "x" * 70_000, True], "pin": 4711}
    answer = served.post("/orchestrator/d/passed", body, headers={"Authorization": "Bearer canary"})
    captured = served.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}").json["captured"]
    passed = {"auth": "***", "person": {"ssn": "***", "name": "Ada"}, "items": ["***", "***", True], "pin": 4711}
    assert captured["steps"]["step"]["calls"] == [{"params": passed, "result": passed}]
    assert captured["answer"] == {"echo": passed, "text": "4711 of 123-45-6789"}


def test_very_many_redacted_values_are_not_kept_where_they_were_passed_on(shop: Callable[..., Served]) -> None:
    values = [f"canary-{number}" for number in range(2000)]
    captured = ask(shop(capture="full", redact="[request.body.more]"), more=values, income=5, pin=values[1999])
    assert captured["captured"]["steps"]["customer"]["calls"][0]["params"] == {"id": "7", "key": "***"}


def test_a_value_that_is_too_large_is_marked(shop: Callable[..., Served]) -> None:
    execution = ask(shop(capture="full", max_payload_size="100B"), text="x" * 200)
    captured = execution["captured"]
    truncated = captured["request"]["body"]["$truncated"]
    assert truncated["bytes"] == len('{"pin":"4711","text":""}') + 200
    assert truncated["start"] == '{"pin":"4711","text":"' + "x" * 78
    assert captured["steps"]["customer"]["calls"][0]["params"] == {"id": "7", "key": "4711"}
    assert execution["truncated"] == ["request.headers", "request.body"]


def test_the_values_that_are_not_whole_are_named(serve: Serve) -> None:
    domain = """
        endpoints:
          cut:
            data_sources:
              - {name: step, type: lab, operation: echo, params: {small: 1, large: $request.body.large}}
              - {name: own, type: lab, operation: own, params: {}}
              - {name: each, type: lab, operation: each, for_each: $request.body.many, params: {item: $item}}
              - {name: lesser, type: lab, operation: lesser, params: {}, default: null}
              - {name: fails, type: lab, operation: fails, params: {}, default: null}
              - {name: hidden, type: lab, operation: echo, params: {large: $request.body.large}}
            response_mapping: {large: $step.large, own: $own}
    """

    async def own(_: Any) -> Any:
        return {"$truncated": {"bytes": 1, "start": ""}}

    async def lesser(_: Any) -> Any:
        return Degraded("z" * 200)

    async def fails(_: Any) -> Any:
        raise SourceError("w" * 200, transient=False)

    lab = Lab({"own": own, "lesser": lesser, "fails": fails})
    config = "tracking: {capture: full, max_payload_size: 150B, redact: [steps.hidden]}"
    served = serve({"config.yaml": config, "domains/d.yaml": domain}, plugins={"lab": lab})
    answer = served.post("/orchestrator/d/cut", {"large": "x" * 200, "many": [1, "y" * 200]})
    execution = served.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}").json
    cut = [
        "request.headers",
        "request.body",
        "steps.step.calls[0].params.large",
        "steps.step.calls[0].result",
        "steps.each.calls[1].params.item",
        "steps.each.calls[1].result",
        "steps.lesser.calls[0].result",
        "steps.fails.calls[0].error",
        "answer",
    ]
    assert sorted(execution["truncated"]) == sorted(cut)
    assert "truncated" not in served.executions(endpoint="cut")[0]


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (float("nan"), {"$number": "nan"}),
        ([1.5, float("-inf"), None], [1.5, {"$number": "-inf"}, None]),
        ({"text": "\ud800!", "more": (1, 2)}, {"text": "?!", "more": [1, 2]}),
        ({1, 2}, {"$unfit": "{1, 2}"}),
        ([2**64 - 1, 2**64, -(10**30)], [2**64 - 1, {"$number": str(2**64)}, {"$number": str(-(10**30))}]),
        pytest.param(10**5000, {"$unfit": "<int>"}, id="of too many digits"),
        ("a\0b", "a\0b"),
        ([{"$number": "7"}, {"a": "$number"}], [{"$literal": {"$number": "7"}}, {"a": "$number"}]),
        ({"$literal": {"$degraded": 1}, "b": 2}, {"$literal": {"$literal": {"$literal": {"$degraded": 1}}, "b": 2}}),
        (nested(200), nested(200)),
    ],
)
def test_what_is_no_json_is_marked(serve: Serve, result: Any, kept: Any) -> None:
    async def odd(_: Any) -> Any:
        return result

    domain = """
        endpoints:
          odd:
            data_sources: [{name: step, type: lab, operation: odd}]
            response_mapping: done
    """
    served = serve(
        {"config.yaml": "tracking: {capture: full}", "domains/d.yaml": domain}, plugins={"lab": Lab({"odd": odd})}
    )
    id_ = served.get("/orchestrator/d/odd").headers["X-Execution-Id"]
    captured = served.admin("GET", f"/executions/{id_}").json["captured"]
    assert captured["steps"] == {"step": {"calls": [{"params": {}, "result": kept}]}}


@pytest.mark.parametrize("depth", [201, 250, 300, 900])
@pytest.mark.parametrize("end", [None, float("inf")])
def test_what_lies_too_deep_is_marked_and_costs_no_request(serve: Serve, depth: int, end: float | None) -> None:
    async def deep(_: Any) -> Any:
        result: Any = end
        for _ in range(depth):
            result = [result]
        return {"name": "Ada", "deep": result}

    domain = """
        endpoints:
          deep:
            data_sources: [{name: step, type: lab, operation: deep}]
            response_mapping: $step.name
    """
    served = serve(
        {"config.yaml": "tracking: {capture: full}", "domains/d.yaml": domain}, plugins={"lab": Lab({"deep": deep})}
    )
    answer = served.get("/orchestrator/d/deep")
    assert (answer.status, answer.json) == (200, "Ada")
    execution = served.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}").json
    result = execution["captured"]["steps"]["step"]["calls"][0]["result"]
    kept = result["deep"]
    for _ in range(199):
        (kept,) = kept
    assert (result["name"], kept) == ("Ada", {"$unfit": "nested more than 200 deep"})


def test_items_are_captured_in_their_order_whichever_ends_first(serve: Serve) -> None:
    """Else nobody could tell which result was whose, where they ask for the same."""
    ends = [asyncio.Event() for _ in range(3)]
    asked = iter(range(3))

    async def item(_: Any) -> Any:
        number = next(asked)
        if number < 2:
            await ends[number].wait()
        if number:
            ends[number - 1].set()  # the one before may end now
        return number

    domain = """
        endpoints:
          items:
            data_sources: [{name: step, type: lab, operation: item, for_each: [1, 1, 1], params: {n: $item}}]
    """
    config = "tracking: {capture: full}"
    served = serve({"config.yaml": config, "domains/d.yaml": domain}, plugins={"lab": Lab({"item": item})})
    answer = served.get("/orchestrator/d/items")
    assert answer.json == [0, 1, 2]
    captured = served.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}").json["captured"]
    assert captured["steps"]["step"]["calls"] == [{"params": {"n": 1}, "result": number} for number in range(3)]


def test_items_of_calls_that_never_wait_are_captured_in_their_order_too(serve: Serve) -> None:
    async def item(params: Any) -> Any:
        return params["n"]

    domain = """
        endpoints:
          items:
            data_sources:
              - name: step
                type: lab
                operation: item
                for_each: $request.body
                max_concurrency: 4
                params: {n: $item}
    """
    config = "tracking: {capture: full}"
    served = serve({"config.yaml": config, "domains/d.yaml": domain}, plugins={"lab": Lab({"item": item})})
    answer = served.post("/orchestrator/d/items", list(range(40)))
    captured = served.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}").json["captured"]
    assert [call["result"] for call in captured["steps"]["step"]["calls"]] == list(range(40))


def test_of_a_header_that_is_sent_twice_the_one_is_kept_that_expressions_see(serve: Serve) -> None:
    domain = """
        endpoints:
          tenant: {data_sources: [{name: step, type: lab, operation: echo, params: {tenant: $request.headers.tenant}}]}
    """
    served = serve({"config.yaml": "tracking: {capture: full}", "domains/d.yaml": domain}, plugins={"lab": Lab()})

    async def send() -> None:
        address = urlsplit(served.service.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        head = "GET /orchestrator/d/tenant HTTP/1.1\r\nHost: x\r\nTenant: north\r\ntenant: south\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        await reader.read()
        writer.close()

    served.run(send())
    (execution,) = served.executions()
    captured = served.admin("GET", f"/executions/{execution['id']}").json["captured"]
    assert captured["steps"]["step"]["calls"][0]["params"] == {"tenant": "north"}
    assert captured["request"]["headers"]["tenant"] == "north"


def test_what_is_redacted_of_a_result_is_so_too_where_a_fallback_gave_it(serve: Serve) -> None:
    async def fallback(_: Any) -> Any:
        return Degraded({"score": 1, "ssn": "123-45"})

    domain = """
        endpoints:
          score:
            data_sources: [{name: step, type: lab, operation: fallback}]
            response_mapping: $step.score
    """
    config = "tracking: {capture: full, redact: [steps.step.result.ssn]}"
    served = serve({"config.yaml": config, "domains/d.yaml": domain}, plugins={"lab": Lab({"fallback": fallback})})
    id_ = served.get("/orchestrator/d/score").headers["X-Execution-Id"]
    captured = served.admin("GET", f"/executions/{id_}").json["captured"]
    (call,) = captured["steps"]["step"]["calls"]
    assert call["result"] == {"$degraded": {"score": 1, "ssn": "***"}}


def test_secrets_of_the_configuration_reach_no_store(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a message, a parameter, a key, a result, a header, nor where a value is cut off."""
    monkeypatch.setenv("CANARY", 'sesame-"open')
    secret = 'sesame-"open'
    store = ScriptedStore()

    async def leaks(params: Any) -> Any:
        return {"token": secret, secret: [f"Bearer {secret}"], "long": "x" * 70 + secret}

    async def fails(_: Any) -> Any:
        raise SourceError(f"refused: {secret}")

    domain = """
        endpoints:
          leak:
            data_sources:
              - {name: a, type: lab, operation: leaks, params: {given: "$request.body.x"}}
              - {name: b, type: lab, operation: fails, default: null}
            response_mapping: $a
    """
    files = {
        "config.yaml": "tracking: {capture: full, max_payload_size: 100B, store: {type: scripted}}",
        "integrations/lab.yaml": 'lab: {operations: {unused: {token: "${env:CANARY}"}}}',
        "domains/d.yaml": domain,
    }
    served = serve(files, plugins={"lab": Lab({"leaks": leaks, "fails": fails}), "scripted": store})
    answer = served.post("/orchestrator/d/leak", {"x": secret}, headers={"X-Other": secret})
    served.executions()
    execution = store.kept[answer.headers["X-Execution-Id"]]
    assert execution.captured is not None
    whole = execution.captured.text.decode() + repr(execution)
    assert "sesame" not in whole
    assert execution.captured["steps"]["a"]["calls"][0]["params"] == {"given": "***"}
    assert execution.steps[1].error == "refused: ***"


def test_the_request_as_a_whole_can_be_redacted(shop: Callable[..., Served]) -> None:
    captured = ask(shop(capture="full", redact="[request, steps]"))["captured"]
    steps = {name: {"calls": ["***"] * calls} for name, calls in (("customer", 1), ("bureau", 1), ("items", 2))}
    request = {"method": "POST"} | dict.fromkeys(("path_params", "query_params", "headers", "body"), "***")
    assert (captured["request"], captured["steps"], captured["answer"]["name"]) == (request, steps, "Ada")


NOWHERE = {
    "body.ssn": ("ORC204", "'body.ssn' is no path of captured values"),
    "answer..iban": ("ORC204", "'answer..iban' is no path of captured values"),
    "request.bdy.ssn": ("ORC503", "there is no part 'bdy' of a request"),
    "request.Headers.X-Shop": ("ORC503", "there is no part 'Headers' of a request"),
    "steps.custmer.result.ssn": ("ORC502", "there is no step 'custmer'"),
    "steps.customer.calls.params.key": ("ORC204", "there is no part 'calls' of a call"),
    "steps.*.parms.key": ("ORC204", "there is no part 'parms' of a call"),
    "steps.customer.params.kye": ("ORC407", "the step 'customer' has no parameter 'kye'"),
}
SOMEWHERE = [
    "request.*.ssn",
    "steps.one.params.a.b",
    "steps.*.params.of_a_step_to_come",
    "steps.customer.*.x",
    "answer.x",
]


def test_each_path_that_redacts_nothing_is_a_problem_at_its_place() -> None:
    """What is misspelt would be kept, and nobody would notice."""
    listed = "".join(f"  - {path}\n" for path in [*NOWHERE, *SOMEWHERE])
    files = {"config.yaml": f"tracking:\n redact:\n{listed}", "domains/d.yaml": DOMAIN}
    problems = check_problems(files, offline=True, plugins={"lab": Lab()})
    assert [(problem.line, problem.code, problem.message) for problem in problems] == [
        (line, code, message) for line, (code, message) in enumerate(NOWHERE.values(), 3)
    ]
    parts = [problem.source_line[problem.column - 1 :][: problem.length] for problem in problems]
    assert parts == ["body.ssn", "answer..iban", "bdy", "Headers", "custmer", "calls", "parms", "kye"]
    assert problems[4].hint == "did you mean 'customer'?"


def test_the_configuration_that_answered_is_kept_with_what_it_takes_to_explain_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "sesame-open")
    integration = """
        lab:
          operations:
            unused: {token: "${env:CANARY}", url: "postgresql://ada:canary-2@db/crm", again: sesame-open}
    """
    files = {
        "config.yaml": "tracking: {capture: params, store: {type: scripted}}\n",
        "integrations/lab.yaml": integration,
        "domains/d.yaml": DOMAIN,
    }
    served = serve(files, plugins={"lab": Lab(), "scripted": ScriptedStore()})
    generation = served.get("/orchestrator").json["generation"]
    shown = served.admin("GET", f"/generations/{generation}")
    assert (shown.status, shown.json["generation"], sorted(shown.json["files"])) == (200, generation, sorted(files))
    texts = shown.json["texts"]
    assert texts["config.yaml"] == files["config.yaml"]
    assert '{token: "${env:CANARY}", url: "postgresql://ada:***@db/crm", again: ***}' in texts["integrations/lab.yaml"]
    missing = served.admin("GET", "/generations/none")
    assert (missing.status, missing.json["detail"]) == (404, "no generation none is kept")
