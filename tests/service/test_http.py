"""The public listener: what each kind of request is answered with, whole."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import pytest

from orchestrator_core.errors import EntityNotFound, InvalidParam, SourceError, SourceUnavailable
from orchestrator_core.testing.pytest_plugin import Served, serving
from orchestrator_core.testing.service import Answer, service
from tests.engine.lab import Lab

DOMAIN = """
description: Everything that can happen.
endpoints:
  echo:
    description: Answers with what it was asked.
    methods: [GET, POST, PUT]
    data_sources:
      - name: asked
        type: direct
        params:
          path: "$request.path_params.id ?? null"
          query: "$request.query_params.q ?? null"
          body: "$request.body ?? null"
          header: "$request.headers['x-test'] ?? null"
    primary_source: asked
  two:
    path: /of/{owner}/{item}
    response_mapping: {owner: "$request.owner", item: "$request.path_params.item"}
  words:
    path: "/größe & preis/{item}"
    response_mapping: {item: "$request.path_params.item"}
  typed:
    input_schema:
      type: object
      properties:
        id: {type: integer, minimum: 1}
        limit: {type: integer, default: 10, maximum: 100}
        ratio: {type: number}
        flag: {type: boolean}
        tags: {type: array, items: {type: integer}}
        name: {type: [string, "null"]}
        nested: {$ref: "#/$defs/nested"}
      required: [id]
      additionalProperties: false
      $defs: {nested: {type: object, required: [a], properties: {a: {type: string, maxLength: 2}}}}
    response_mapping:
      id: "$request.path_params.id ?? $request.id"
      limit: "$request.limit"
      ratio: "$request.ratio ?? 'none'"
      flag: "$request.flag ?? 'none'"
      tags: "$request.tags ?? 'none'"
      name: "$request.name ?? 'none'"
      nested: "$request.nested ?? 'none'"
  asks:
    data_sources:
      - {name: broken, type: lab, operation: "$$x", params: {}}
    response_mapping: {x: "$request.body.wanted"}
  error:
    data_sources:
      - {name: lookup, type: lab, operation: raises, params: {what: "$request.what"}}
  slow:
    timeout: 30ms
    data_sources:
      - {name: waits, type: lab, operation: forever}
  hangs:
    data_sources:
      - {name: waits, type: lab, operation: forever}
  degraded:
    data_sources:
      - {name: first, type: lab, operation: raises, params: {what: source}, default: 1}
      - {name: second, type: lab, operation: raises, params: {what: source}, required: false}
      - {name: skipped, type: direct, condition: false}
      - {name: fine, type: direct, params: {x: 1}}
    response_mapping: {first: "$first", second: "$second ?? null", fine: "$fine.x", degraded: "$execution.degraded"}
  posts:
    methods: [POST]
    response_mapping: {posted: true}
  number:
    data_sources:
      - {name: value, type: lab, operation: number, params: {which: "$request.which"}}
  promised:
    output_schema: {type: object, properties: {x: {type: integer}}, required: [x]}
    response_mapping: {x: "$request.x"}
  a-b.c~d:
    response_mapping: {odd: true}
"""


class Unwritable:
    """What no JSON can hold."""


ERRORS: Mapping[str, Exception] = {
    "source": SourceError("the partner answered 500"),
    "no text": SourceError("the partner said \ud800 ünï \udcff"),
    "absent": EntityNotFound("there is no customer 42"),
    "unavailable": SourceUnavailable("the model is loading", retry_after_seconds=2.2),
    "param": InvalidParam("what", "what must not be 'param'"),
    "defect": ZeroDivisionError("secret detail of the defect"),
    "timeout": TimeoutError(),
}
NUMBERS: Mapping[str, Any] = {
    "nan": {"score": [0.5, float("nan")]},
    "inf": float("inf"),
    "null": {"a": None},
    "huge": 2**64,
    "large": 2**64 - 1,
    "object": {"a": Unwritable()},
    "surrogate": "\ud800",
    "text": "NaN null \u2028 \x00",
}


async def raises(params: Mapping[str, Any]) -> Any:
    raise ERRORS[params["what"]]


async def forever(_: Mapping[str, Any]) -> Any:
    await asyncio.Event().wait()


async def number(params: Mapping[str, Any]) -> Any:
    return NUMBERS[params["which"]]


@pytest.fixture(scope="module")
def all_of_it() -> Iterator[Served]:
    lab = Lab({"raises": raises, "forever": forever, "number": number})
    with serving() as start:
        files = {
            "config.yaml": "server: {max_body_size: 64KiB}\npolicies: {circuit_breaker: false}",
            "domains/d.yaml": DOMAIN,
        }
        yield start(files, plugins={"lab": lab})


def problem(answer: Any) -> dict[str, Any]:
    """Return a problem document without its execution id, which is checked."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    document = dict(answer.json)
    assert document.pop("execution_id") == answer.headers["X-Execution-Id"]
    assert document.pop("type") == "about:blank"
    assert document["status"] == answer.status
    return document


# --- routes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("/orchestrator/d/echo", {"path": None, "query": None}),
        ("/orchestrator/d/echo/42", {"path": "42", "query": None}),
        ("/orchestrator/d/echo/a%20b%2Fc%25", {"path": "a b/c%", "query": None}),
        ("/orchestrator/d/echo/%C3%A9", {"path": "é", "query": None}),
        ("/orchestrator/d/echo/+;=@", {"path": "+;=@", "query": None}),
        ("/orchestrator/d/echo/..", {"path": "..", "query": None}),
        ("/orchestrator/d/echo?q=a+b%26c&q=last", {"path": None, "query": "last"}),
        ("/orchestrator/d/echo?q=", {"path": None, "query": ""}),
        ("/orchestrator/d/echo?q=%C3%A9&other=1", {"path": None, "query": "é"}),
        ("/orchestrator/d/echo?Q=1", {"path": None, "query": None}),
    ],
)
def test_path_and_query_reach_the_endpoint_decoded(all_of_it: Served, target: str, asked: Any) -> None:
    answer = all_of_it.get(target)
    assert (answer.status, answer.json) == (200, {**asked, "body": None, "header": None})


def test_header_names_do_not_mind_case(all_of_it: Served) -> None:
    assert all_of_it.get("/orchestrator/d/echo", headers={"X-TEST": "yes"}).json["header"] == "yes"


@pytest.mark.parametrize(
    ("reference", "pointer"),
    [
        ("$request.body['a/b']['c.d~e']", "/body/a~1b/c.d~0e"),
        ("$request.body['it\\'s \"x\"'][0]", '/body/it\'s "x"/0'),
        ("$request.body.list[$request.body.at].name", "/body/list"),
        ("$request.headers['x-none']", "/headers/x-none"),
        ("$request['odd.name']", "/odd.name"),
    ],
)
def test_the_pointer_to_what_is_missing_is_a_json_pointer(
    serve: Callable[..., Served], reference: str, pointer: str
) -> None:
    mapping = json.dumps({"x": reference})
    served = serve({"domains/d.yaml": f"endpoints: {{e: {{methods: [POST], response_mapping: {mapping}}}}}"})
    given = {"a/b": {}, 'it\'s "x"': [], "list": [], "at": 3}
    answer = served.post("/orchestrator/d/e", given)
    assert (answer.status, answer.json["errors"]) == (422, [{"pointer": pointer, "message": "is required"}])


def test_of_a_header_that_came_twice_all_headers_have_the_one_that_its_name_gives(run: Callable[..., Any]) -> None:
    mapping = '{one: "$request.headers[\'x-a\']", all: "$request.headers", whole: "$request"}'

    async def main() -> None:
        async with service({"domains/d.yaml": f"endpoints: {{h: {{response_mapping: {mapping}}}}}"}) as served:
            reader, writer = await asyncio.open_connection(*served.running.public)
            head = b"GET /orchestrator/d/h HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-A: 1\r\nx-a: 2\r\n\r\n"
            writer.write(head)
            answer = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
            writer.close()
        assert (answer["one"], answer["all"]["x-a"], answer["whole"]["headers"]["x-a"]) == ("1", "1", "1")

    run(main())


def test_a_route_can_have_several_parameters(all_of_it: Served) -> None:
    assert all_of_it.get("/orchestrator/d/two/of/ada/7").json == {"owner": "ada", "item": "7"}
    for target in ("two", "two/of", "two/of/ada", "two/of/ada/", "two/of//7", "two/by/ada/7", "two/of/ada/7/8"):
        assert all_of_it.get(f"/orchestrator/d/{target}").status == 404, target


@pytest.mark.parametrize("written", ["gr%C3%B6%C3%9Fe%20&%20preis", "gr%c3%b6%c3%9fe%20%26%20%70reis"])
def test_the_words_of_a_path_are_found_as_clients_write_them(all_of_it: Served, written: str) -> None:
    assert all_of_it.get(f"/orchestrator/d/words/{written}/7").json == {"item": "7"}
    assert all_of_it.get(f"/orchestrator/d/words/{written}s/7").status == 404
    assert all_of_it.get(f"/orchestrator/d/words/{written}%FF/7").status == 400


def test_an_endpoint_s_name_can_have_dots_and_dashes(all_of_it: Served) -> None:
    assert all_of_it.get("/orchestrator/d/a-b.c~d").json == {"odd": True}


@pytest.mark.parametrize(
    ("target", "detail"),
    [
        ("/orchestrator/d/eco", "no such route: did you mean 'echo'?"),
        ("/orchestrator/e/echo", "no such route: expected one of: d"),
        ("/orchestrator/d/echo/1/2", "no such route: GET /orchestrator lists the endpoints"),
        ("/orchestrator/d/echo/", "no such route: GET /orchestrator lists the endpoints"),
        ("/orchestrator/x", "no such route: GET /orchestrator lists the endpoints"),
        ("/", "no such route: GET /orchestrator lists the endpoints"),
        ("/executions", "no such route: GET /orchestrator lists the endpoints"),
        ("/config", "no such route: GET /orchestrator lists the endpoints"),
        ("/sources", "no such route: GET /orchestrator lists the endpoints"),
        ("/models", "no such route: GET /orchestrator lists the endpoints"),
        ("/metrics", "no such route: GET /orchestrator lists the endpoints"),
        ("/reload", "no such route: GET /orchestrator lists the endpoints"),
        ("/ORCHESTRATOR/d/echo", "no such route: GET /orchestrator lists the endpoints"),
        ("/x/d/echo", "no such route: GET /orchestrator lists the endpoints"),
        ("/docs/../../../etc/passwd", "no such route: GET /orchestrator lists the endpoints"),
        ("/docs/%2e%2e/docs.py", "no such route: GET /orchestrator lists the endpoints"),
    ],
)
def test_what_is_not_served_is_404_and_says_what_is(all_of_it: Served, target: str, detail: str) -> None:
    answer = all_of_it.get(target)
    told = problem(answer)
    assert told.pop("instance").startswith("/")
    assert told == {"title": "not found", "status": 404, "detail": detail}


def test_the_admin_pages_are_not_on_the_public_port(all_of_it: Served) -> None:
    assert all_of_it.request("POST", "/reload").status == 404


@pytest.mark.parametrize(
    ("method", "target", "allow", "detail"),
    [
        ("DELETE", "/orchestrator/d/echo", "GET, HEAD, POST, PUT", "DELETE is not among the endpoint's methods"),
        ("GET", "/orchestrator/d/posts", "POST", "GET is not among the endpoint's methods"),
        ("HEAD", "/orchestrator/d/posts", "POST", None),
        ("POST", "/orchestrator", "GET, HEAD", "POST is not a method of /orchestrator"),
        ("PUT", "/health/live", "GET, HEAD", "PUT is not a method of /health/live"),
    ],
)
def test_a_method_that_is_not_taken_is_405_with_those_that_are(
    all_of_it: Served, method: str, target: str, allow: str, detail: str | None
) -> None:
    answer = all_of_it.request(method, target)
    assert (answer.status, answer.headers["Allow"]) == (405, allow)
    if detail is None:
        assert answer.json is None
    else:
        assert problem(answer)["detail"] == detail


def test_head_answers_as_get_does_without_a_body(all_of_it: Served) -> None:
    for target in ("/orchestrator/d/echo/1", "/orchestrator", "/health/live", "/openapi.json", "/nothing"):
        got, head = all_of_it.get(target), all_of_it.request("HEAD", target)
        assert (head.status, head.json) == (got.status, None)
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
        assert int(head.headers["Content-Length"]) > 0


def test_lists_say_what_there_is(all_of_it: Served) -> None:
    everything = all_of_it.get("/orchestrator").json
    domain = all_of_it.get("/orchestrator/d").json
    assert everything == {"generation": everything["generation"], "domains": [domain]}
    assert (domain["domain"], domain["description"]) == ("d", "Everything that can happen.")
    assert domain["endpoints"][:2] == [
        {
            "endpoint": "echo",
            "description": "Answers with what it was asked.",
            "paths": ["/orchestrator/d/echo/{id}", "/orchestrator/d/echo"],
            "methods": ["GET", "POST", "PUT"],
        },
        {
            "endpoint": "two",
            "description": "",
            "paths": ["/orchestrator/d/two/of/{owner}/{item}"],
            "methods": ["GET", "POST"],
        },
    ]


def test_of_many_names_none_is_looked_for_that_is_like_a_wrong_one(serve: Callable[..., Served]) -> None:
    names = [f"score_of_customers_v{number}" for number in range(51)]

    def served(endpoints: list[str]) -> Served:
        return serve(
            {"domains/d.yaml": "endpoints:\n" + "".join(f"  {one}: {{response_mapping: 1}}\n" for one in endpoints)}
        )

    few, many = served(names[:50]), served(names)
    assert (
        few.get("/orchestrator/d/score_of_customers_v").json["detail"].startswith("no such route: did you mean 'score")
    )
    assert many.get("/orchestrator/d/score_of_customers_v").json["detail"] == (
        "no such route: GET /orchestrator lists the endpoints"
    )


def test_the_document_is_served_whatever_integers_a_schema_has(serve: Callable[..., Served]) -> None:
    schema = f"{{properties: {{größe: {{maximum: {2**70}}}}}}}"
    served = serve({"domains/d.yaml": f"endpoints: {{e: {{input_schema: {schema}, response_mapping: 1}}}}"})
    get = served.get("/openapi.json").json["paths"]["/orchestrator/d/e"]["get"]
    assert get["parameters"] == [{"name": "größe", "in": "query", "schema": {"maximum": 2**70}}]


def test_health_says_live_and_ready(all_of_it: Served) -> None:
    assert all_of_it.get("/health/live").json == {"status": "live"}
    ready = all_of_it.get("/health/ready")
    assert (ready.status, ready.json["status"]) == (200, "ready")


# --- headers ------------------------------------------------------------------------------------------------------

DUR = r"[0-9]+\.[0-9]{3}"


@pytest.mark.parametrize(
    ("target", "timing"),
    [
        ("/orchestrator/d/echo", rf"asked;dur={DUR}, engine;dur={DUR}"),
        ("/orchestrator/d/error?what=source", rf"lookup;dur={DUR};desc=failed, engine;dur={DUR}"),
        (
            "/orchestrator/d/degraded",
            (
                rf"first;dur={DUR};desc=default, second;dur={DUR};desc=default, skipped;dur={DUR};desc=skipped, "
                rf"fine;dur={DUR}, engine;dur={DUR}"
            ),
        ),
        ("/orchestrator/d/slow", rf"waits;dur={DUR};desc=cancelled, engine;dur={DUR}"),
        ("/orchestrator", rf"engine;dur={DUR}"),
        ("/health/live", rf"engine;dur={DUR}"),
        ("/docs", rf"engine;dur={DUR}"),
        ("/nothing", rf"engine;dur={DUR}"),
    ],
)
def test_every_answer_has_its_id_and_its_timings(all_of_it: Served, target: str, timing: str) -> None:
    headers = all_of_it.get(target).headers
    assert re.fullmatch(r"[0-9a-f]{32}", headers["X-Execution-Id"])
    assert re.fullmatch(timing, headers["Server-Timing"]), headers["Server-Timing"]


def test_ids_differ_and_sort_by_time(all_of_it: Served) -> None:
    ids = [all_of_it.get("/health/live").headers["X-Execution-Id"] for _ in range(5)]
    assert len(set(ids)) == 5
    assert [id_[:12] for id_ in ids] == sorted(id_[:12] for id_ in ids)


def test_a_degraded_answer_says_so(all_of_it: Served) -> None:
    answer = all_of_it.get("/orchestrator/d/degraded")
    assert answer.json == {"first": 1, "second": None, "fine": 1, "degraded": True}
    assert answer.headers["X-Orchestrator-Degraded"] == "first, second"
    assert "X-Orchestrator-Degraded" not in all_of_it.get("/orchestrator/d/echo").headers


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-what-the-future-brings", TRACE),
        (f"ff-{TRACE}-b7ad6b7169203331-01", ""),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", ""),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", ""),
        ("00-xyz-b7ad6b7169203331-01", ""),
        ("nonsense", ""),
    ],
)
def test_the_trace_of_the_caller_is_kept(all_of_it: Served, header: str, kept: str) -> None:
    answer = all_of_it.get("/orchestrator/d/echo", headers={"traceparent": header})
    assert answer.status == 200
    (execution,) = all_of_it.executions(limit="1")
    assert (execution["id"], execution["trace_id"]) == (answer.headers["X-Execution-Id"], kept)


# --- bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [{}, {"a": [1, 2.5, None, True, "ü"]}, [], 0, False, None, "text", -(2**63), 2**64 - 1, 1e308, 5e-324]
)
def test_a_body_can_be_any_json(all_of_it: Served, body: Any) -> None:
    answer = all_of_it.request("POST", "/orchestrator/d/echo", body=json.dumps(body).encode())
    assert (answer.status, answer.json["body"]) == (200, body)


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"{", 400, r"the body is not JSON: .*line 1 column 2.*"),
        (b'{"a": 1,}', 400, r"the body is not JSON: .*"),
        (b"{'a': 1}", 400, r"the body is not JSON: .*"),
        (b"NaN", 400, r"the body is not JSON: .*"),
        (b"[Infinity]", 400, r"the body is not JSON: .*"),
        (b"1e400", 400, r"the body is not JSON: .*"),
        (b'"\xff"', 400, r"the body is not JSON: .*"),
        (b'"\\ud800"', 400, r"the body is not JSON: .*"),
        (b'"\x00"', 400, r"the body is not JSON: .*"),
        (b'"a\nb"', 400, r"the body is not JSON: .*"),
        (b"[" * 30_000 + b"]" * 30_000, 400, r"the body is not JSON: .*"),
        (b"\xef\xbb\xbf{}", 400, r"the body is not JSON: .*"),
        (b"18446744073709551616", 400, r"the body is not JSON: an integer in it does not fit in 64 bits"),
        (b'{"a": [-9223372036854775809]}', 400, r"the body is not JSON: an integer in it does not fit in 64 bits"),
        (b"1" * 300, 400, r"the body is not JSON: an integer in it does not fit in 64 bits"),
        (b'"' + b"x" * 70_000 + b'"', 413, r"the body is larger than 65536 bytes"),
    ],
)
def test_a_body_that_is_no_json_or_too_large_is_refused(
    all_of_it: Served, body: bytes, status: int, detail: str
) -> None:
    answer = all_of_it.request("POST", "/orchestrator/d/echo", body=body)
    told = problem(answer)
    assert re.fullmatch(detail, told.pop("detail"))
    assert told == {"title": "bad request", "status": status, "instance": "/orchestrator/d/echo"}


@pytest.mark.parametrize(
    ("target", "body", "part"),
    [
        ("/orchestrator/d/echo/a%00", None, "path"),
        ("/orchestrator/d/echo?q=a%00", None, "query"),
        ("/orchestrator/d/echo", b'{"a": ["\\u0000"]}', "body"),
        ("/orchestrator/d/echo", b'{"a\\u0000": 1}', "body"),
    ],
)
def test_a_nul_which_no_source_takes_is_refused(all_of_it: Served, target: str, body: bytes | None, part: str) -> None:
    told = problem(all_of_it.request("POST", target, body=body))
    assert (told["status"], told["detail"]) == (400, f"the {part} holds a NUL character")


def test_what_only_looks_like_a_nul_is_text(all_of_it: Served) -> None:
    answer = all_of_it.request("POST", "/orchestrator/d/echo", body=b'{"a": "\\\\u0000"}')
    assert answer.json["body"] == {"a": "\\u0000"}


@pytest.mark.parametrize(("levels", "status"), [(100, 200), (101, 400)])
def test_a_body_is_nested_a_hundred_deep_at_most(all_of_it: Served, levels: int, status: int) -> None:
    answer = all_of_it.request("POST", "/orchestrator/d/echo", body=b"[" * levels + b"]" * levels)
    assert answer.status == status
    assert status == 200 or problem(answer)["detail"] == "the body is nested more than 100 deep"


def test_an_empty_body_is_no_body(all_of_it: Served) -> None:
    answer = all_of_it.request("POST", "/orchestrator/d/echo", body=b"", headers={"Content-Type": "text/plain"})
    assert (answer.status, answer.json["body"]) == (200, None)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("APPLICATION/JSON", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonp", 415),
    ],
)
def test_a_body_must_say_that_it_is_json(all_of_it: Served, content_type: str, status: int) -> None:
    answer = all_of_it.request("POST", "/orchestrator/d/echo", body=b"{}", headers={"Content-Type": content_type})
    assert answer.status == status
    if status == 415:
        told = {"title": "bad request", "status": 415, "instance": "/orchestrator/d/echo"}
        assert problem(answer) == {**told, "detail": f"the body must be application/json, not {content_type}"}


@pytest.mark.parametrize(
    ("target", "detail"),
    [
        ("/orchestrator/d/echo/%ff", "the path is not UTF-8"),
        ("/orchestrator/d/echo/%ED%A0%80", "the path is not UTF-8"),
        ("/orchestrator/d/echo?q=%ff", "the query is not UTF-8"),
        ("/orchestrator/d/echo?" + "&".join(["a=1"] * 1001), "the query cannot be read: Max number of fields exceeded"),
    ],
)
def test_a_target_that_cannot_be_read_is_400(all_of_it: Served, target: str, detail: str) -> None:
    assert problem(all_of_it.get(target))["detail"] == detail


def test_a_body_that_does_not_arrive_is_408(all_of_it: Served) -> None:
    async def main() -> bytes:
        host, port = all_of_it.service.running.public
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"POST /orchestrator/d/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        try:
            return await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)
        finally:
            writer.close()

    assert all_of_it.run(main()) == b"HTTP/1.1 408 Request Timeout\r\n"


ECHO = b"POST /orchestrator/d/echo HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 2 + b"nonsense\r\n\r\n", [b"200", b"200", b"400"]),
        (ECHO + b"Content-Length: 8\r\n\r\n[\r\n\r\n11]nonsense", [b"200", b"400"]),
        (ECHO + b"Transfer-Encoding: chunked\r\n\r\n2\r\n11\r\n0\r\n\r\nnonsense", [b"200", b"400"]),
        (ECHO + b"Transfer-Encoding: chunked\r\n\r\n2\r\n11nonsense\r\n\r\n", [b"400"]),
        (ECHO + b"Connection: close\r\nContent-Length: 2\r\n\r\n11" + ECHO, [b"200"]),
        (b"nonsense\r\n\r\n", [b"400"]),
        (b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 20 + b"nonsense\r\n\r\n", [b"200"] * 20 + [b"400"]),
    ],
)
@pytest.mark.parametrize("engaged", [True, False])
def test_what_came_before_what_is_no_http_is_answered(
    all_of_it: Served, engaged: bool, sent: bytes, told: list[bytes]
) -> None:
    async def main() -> bytes:
        running = all_of_it.service.running
        running.limit.engaged = engaged
        reader, writer = await asyncio.open_connection(*running.public)
        writer.write(sent)
        try:
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()

    assert re.findall(rb"HTTP/1\.1 (\d+) ", all_of_it.run(main())) == told
    assert all_of_it.service.running.limit.backlog == 0


async def answer_to_expectation(port: int, head: bytes) -> bytes:
    """Return what comes first where a client holds the body back, and sends it only when it is asked for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head + b"Host: x\r\nContent-Type: application/json\r\nExpect: 100-Continue\r\n\r\n")
        async with asyncio.timeout(5):
            first = await reader.readuntil(b"\r\n\r\n")
            if not first.startswith(b"HTTP/1.1 100 Continue\r\n"):
                assert b"\r\nConnection: close\r\n" in first, "what comes next would be taken for the body"
                return first.partition(b"\r\n")[0]
            writer.write(b'{"a": 1}')
            return first + (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0]
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("target", "length", "told"),
    [
        ("POST /orchestrator/d/echo", 8, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"),
        ("POST /orchestrator/d/echo", 2**21, b"HTTP/1.1 413 Request Entity Too Large"),
        ("DELETE /orchestrator/d/echo", 8, b"HTTP/1.1 405 Method Not Allowed"),
        ("POST /orchestrator/d/none", 8, b"HTTP/1.1 404 Not Found"),
    ],
)
def test_a_client_that_holds_its_body_back_is_asked_for_it_unless_it_is_refused(
    all_of_it: Served, target: str, length: int, told: bytes
) -> None:
    head = f"{target} HTTP/1.1\r\nContent-Length: {length}\r\n".encode()
    assert all_of_it.run(answer_to_expectation(all_of_it.service.running.public[1], head)) == told


def test_a_compressed_body_that_is_damaged_is_400(all_of_it: Served) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    answer = all_of_it.request("POST", "/orchestrator/d/echo", body=b"{}", headers=headers)
    assert (answer.status, problem(answer)["detail"]) == (
        400,
        "the body cannot be read: Can not decode content-encoding: gzip",
    )


def compressed(coding: str, text: bytes) -> bytes:
    alone = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return {
        "gzip": gzip.compress(text),
        "GZIP": gzip.compress(text),
        "deflate": zlib.compress(text),
        "alone": alone.compress(text) + alone.flush(),
    }[coding]


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "deflate", "alone"])
def test_a_compressed_body_is_read_and_never_made_larger_than_a_body_may_be(all_of_it: Served, coding: str) -> None:
    headers = {"Content-Encoding": "deflate" if coding == "alone" else coding, "Content-Type": "application/json"}

    def ask(body: bytes) -> Answer:
        return all_of_it.request("POST", "/orchestrator/d/echo", body=body, headers=headers)

    assert ask(compressed(coding, b'{"x": 1}')).json["body"] == {"x": 1}
    for size in (2**16 + 1, 2**26):
        bomb = ask(compressed(coding, b" " * size))
        assert (bomb.status, problem(bomb)["detail"]) == (413, "the body is larger than 65536 bytes")
    for damaged in (compressed(coding, b'{"x": 1}')[:-1], compressed(coding, b"{}") + b"x"):
        assert ask(damaged).status == 400


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "x" * 100])
def test_a_content_coding_that_is_not_known_is_415_and_tells_which_are(all_of_it: Served, coding: str) -> None:
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    for body in (b"\x1b\x00\xf8", b'{"x": 1}'):
        answer = all_of_it.request("POST", "/orchestrator/d/echo", body=body, headers=headers)
        detail = f"the body's Content-Encoding must be deflate or gzip, not {coding[:40]}"
        assert (answer.status, problem(answer)["detail"]) == (415, detail)
        assert answer.headers["Accept-Encoding"] == "deflate, gzip"
        assert answer.headers["Accept"] == "application/json"


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_a_body_without_a_content_coding_may_say_so(all_of_it: Served, coding: str) -> None:
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    assert all_of_it.request("POST", "/orchestrator/d/echo", body=b'{"x": 1}', headers=headers).json["body"] == {"x": 1}


# --- input_schema -------------------------------------------------------------------------------------------------

NONE = dict.fromkeys(("ratio", "flag", "tags", "name", "nested"), "none")


@pytest.mark.parametrize(
    ("method", "target", "body", "answer"),
    [
        ("GET", "/7", None, {"id": 7, "limit": 10}),
        ("GET", "?id=7&limit=3", None, {"id": 7, "limit": 3}),
        ("GET", "/7?ratio=1.5&flag=true", None, {"id": 7, "limit": 10, "ratio": 1.5, "flag": True}),
        ("GET", "/7?ratio=2&flag=false", None, {"id": 7, "limit": 10, "ratio": 2, "flag": False}),
        ("GET", "/7?ratio=1e3", None, {"id": 7, "limit": 10, "ratio": 1000.0}),
        ("GET", "/7?tags=1&tags=2", None, {"id": 7, "limit": 10, "tags": [1, 2]}),
        ("GET", "/7?tags=1", None, {"id": 7, "limit": 10, "tags": [1]}),
        ("GET", "/7?name=12", None, {"id": 7, "limit": 10, "name": "12"}),
        ("POST", "", {"id": 7, "nested": {"a": "x"}}, {"id": 7, "limit": 10, "nested": {"a": "x"}}),
        ("POST", "/7", {"limit": 5, "tags": []}, {"id": 7, "limit": 5, "tags": []}),
        ("POST", "/7", {"id": 8}, {"id": 7, "limit": 10}),
        ("GET", "/18446744073709551615", None, {"id": 2**64 - 1, "limit": 10}),
        ("GET", "/7?ratio=-9223372036854775809", None, {"id": 7, "limit": 10, "ratio": -(2.0**63)}),
    ],
)
def test_strings_of_path_and_query_become_the_declared_types(
    all_of_it: Served, method: str, target: str, body: Any, answer: dict[str, Any]
) -> None:
    got = all_of_it.request(method, f"/orchestrator/d/typed{target}", json=body)
    assert (got.status, got.json) == (200, {**NONE, **answer}), got.json


@pytest.mark.parametrize(
    ("method", "target", "body", "errors"),
    [
        ("GET", "", None, [{"pointer": "/id", "message": "is required"}]),
        ("GET", "/0", None, [{"pointer": "/id", "message": "0 is less than the minimum of 1"}]),
        ("GET", "/seven", None, [{"pointer": "/id", "message": '"seven" is not of type "integer"'}]),
        ("GET", "/7.0", None, [{"pointer": "/id", "message": '"7.0" is not of type "integer"'}]),
        ("GET", "/%207", None, [{"pointer": "/id", "message": '" 7" is not of type "integer"'}]),
        ("GET", "/7?flag=yes", None, [{"pointer": "/flag", "message": '"yes" is not of type "boolean"'}]),
        ("GET", "/7?ratio=nan", None, [{"pointer": "/ratio", "message": '"nan" is not of type "number"'}]),
        ("GET", "/7?tags=1&tags=x", None, [{"pointer": "/tags/1", "message": '"x" is not of type "integer"'}]),
        (
            "GET",
            "/-9223372036854775809",
            None,
            [{"pointer": "/id", "message": '"-9223372036854775809" is not of type "integer"'}],
        ),
        (
            "GET",
            "/18446744073709551616",
            None,
            [{"pointer": "/id", "message": '"18446744073709551616" is not of type "integer"'}],
        ),
        ("POST", "/7", {"nested": {}}, [{"pointer": "/nested/a", "message": "is required"}]),
        (
            "POST",
            "/7",
            {"nested": {"a": "xyz"}},
            [{"pointer": "/nested/a", "message": '"xyz" is longer than 2 characters'}],
        ),
        ("POST", "/7", {"limit": "5"}, [{"pointer": "/limit", "message": '"5" is not of type "integer"'}]),
        ("POST", "/7", [1], [{"pointer": "", "message": '[1] is not of type "object"'}]),
        ("POST", "/7", {"id": "x"}, [{"pointer": "/id", "message": '"x" is not of type "integer"'}]),
        (
            "POST",
            "/7?limit=5",
            {"limit": 101},
            [{"pointer": "/limit", "message": "101 is greater than the maximum of 100"}],
        ),
        ("POST", "/7?flag=true", {"flag": 1}, [{"pointer": "/flag", "message": '1 is not of type "boolean"'}]),
        ("GET", "/7?id=x", None, [{"pointer": "/id", "message": '"x" is not of type "integer"'}]),
        ("POST", "/7?id=8", {"id": 0}, [{"pointer": "/id", "message": "0 is less than the minimum of 1"}]),
    ],
)
def test_a_request_that_does_not_fit_is_422_with_a_pointer_per_error(
    all_of_it: Served, method: str, target: str, body: Any, errors: list[Any]
) -> None:
    got = all_of_it.request(method, f"/orchestrator/d/typed{target}", json=body)
    what = "; ".join(f"{error['pointer'] or 'the request'} {error['message']}" for error in errors)
    assert problem(got) == {
        "title": "invalid request",
        "status": 422,
        "detail": f"the request does not fit the endpoint's input_schema: {what}",
        "instance": got.json["instance"],
        "errors": errors,
    }


def test_parameters_beside_a_body_that_is_no_object_must_fit_too(serve: Callable[..., Served]) -> None:
    served = serve(
        {
            "domains/d.yaml": """
            endpoints:
              numbers:
                path: "/{id}"
                input_schema:
                  type: array
                  items: {type: integer}
                  properties: {id: {type: integer}, page: {type: integer, maximum: 9}}
                  required: [id, page]
                response_mapping: {id: "$request.id", page: "$request.query_params.page ?? 1", body: "$request.body"}
            """
        }
    )
    answer = served.post("/orchestrator/d/numbers/7?page=2&other=x", [1, 2])
    assert (answer.status, answer.json) == (200, {"id": 7, "page": 2, "body": [1, 2]})
    assert served.post("/orchestrator/d/numbers/7", [1, 2]).status == 200
    for target, name, message in (
        ("x", "id", '"x" is not of type "integer"'),
        ("7?page=10", "page", "10 is greater than the maximum of 9"),
        ("7?id=x", "id", '"x" is not of type "integer"'),
    ):
        answer = served.post(f"/orchestrator/d/numbers/{target}", [1, 2])
        assert (answer.status, answer.json["errors"]) == (422, [{"pointer": f"/{name}", "message": message}])


def test_what_must_not_be_there_is_told_so(serve: Callable[..., Served]) -> None:
    schema = "{properties: {old: false, none: {type: object, additionalProperties: false}}}"
    served = serve({"domains/d.yaml": f"endpoints: {{e: {{input_schema: {schema}, response_mapping: 1}}}}"})
    assert served.post("/orchestrator/d/e", {"old": 1, "none": {"a": 1}}).json["errors"] == [
        {"pointer": "/old", "message": "is not allowed"},
        {"pointer": "/none", "message": "must have no properties"},
    ]


def test_a_large_body_in_which_all_is_wrong_holds_up_nobody(serve: Callable[..., Served]) -> None:
    """All of its errors would take a minute to make, in which nobody is answered."""
    schema = "{type: array, items: {anyOf: [{type: string}, {type: object}, {const: null}, {enum: [1, 2]}]}}"
    served = serve({"domains/d.yaml": f"endpoints: {{e: {{input_schema: {schema}, response_mapping: 1}}}}"})
    started = time.monotonic()
    answer = served.post("/orchestrator/d/e", [5] * 500_000)
    assert time.monotonic() - started < 2
    message = "5 is not valid under any of the schemas listed in the 'anyOf' keyword"
    assert (answer.status, answer.json["errors"]) == (422, [{"pointer": "/0", "message": message}])
    few = served.post("/orchestrator/d/e", [5] * 50)
    assert [error["pointer"] for error in few.json["errors"]] == [f"/{index}" for index in range(50)]


def test_every_error_of_a_request_is_told(all_of_it: Served) -> None:
    got = all_of_it.get("/orchestrator/d/typed/x?limit=1000&flag=1&other=1")
    assert sorted(error["pointer"] for error in got.json["errors"]) == ["", "/flag", "/id", "/limit"]


def test_a_value_that_the_endpoint_asks_for_and_the_request_lacks_is_422(all_of_it: Served) -> None:
    answer = all_of_it.post("/orchestrator/d/asks", {"other": 1})
    detail = "$request.body.wanted is missing: $request.body has no field 'wanted' (it has: other)"
    assert problem(answer) == {
        "title": "invalid request",
        "status": 422,
        "detail": detail,
        "instance": "/orchestrator/d/asks",
        "errors": [{"pointer": "/body/wanted", "message": "is required"}],
    }


# --- what sources do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "document"),
    [
        (
            "source",
            {
                "title": "source failed",
                "status": 502,
                "detail": "step 'lookup': the partner answered 500",
                "step": "lookup",
            },
        ),
        (
            "no text",
            {
                "title": "source failed",
                "status": 502,
                "detail": "step 'lookup': the partner said ? ünï ?",
                "step": "lookup",
            },
        ),
        (
            "absent",
            {"title": "not found", "status": 404, "detail": "step 'lookup': there is no customer 42", "step": "lookup"},
        ),
        (
            "unavailable",
            {
                "title": "not available",
                "status": 503,
                "detail": "step 'lookup': the model is loading",
                "step": "lookup",
            },
        ),
        (
            "param",
            {
                "title": "invalid request",
                "status": 422,
                "detail": "step 'lookup': what must not be 'param'",
                "step": "lookup",
                "errors": [{"pointer": "/what", "message": "what must not be 'param'"}],
            },
        ),
        (
            "defect",
            {
                "title": "internal error",
                "status": 500,
                "detail": "an internal error; the log tells more under the execution id",
                "step": "lookup",
            },
        ),
        (
            "timeout",
            {
                "title": "deadline passed",
                "status": 504,
                "detail": "step 'lookup' took longer than its timeout",
                "step": "lookup",
            },
        ),
    ],
)
def test_what_a_source_raises_becomes_its_status(all_of_it: Served, what: str, document: dict[str, Any]) -> None:
    answer = all_of_it.get(f"/orchestrator/d/error?what={quote(what)}")
    assert problem(answer) == {**document, "instance": "/orchestrator/d/error"}
    assert answer.headers.get("Retry-After") == ("3" if what == "unavailable" else None)
    (execution,) = all_of_it.executions(limit="1")
    assert (execution["status"], execution["http_status"]) == ("failed", answer.status)
    assert all_of_it.admin("GET", f"/executions/{execution['id']}").json == execution


def test_a_deadline_that_passes_is_504_and_names_the_step(all_of_it: Served) -> None:
    assert problem(all_of_it.get("/orchestrator/d/slow")) == {
        "title": "deadline passed",
        "status": 504,
        "detail": "the request took longer than its 0.03 s in step 'waits'",
        "instance": "/orchestrator/d/slow",
        "step": "waits",
    }


@pytest.mark.parametrize(
    ("which", "detail"),
    [
        ("nan", "the answer holds a number that JSON cannot (NaN or infinite) at /score/1"),
        ("inf", "the answer holds a number that JSON cannot (NaN or infinite) at /"),
        ("huge", "the answer holds a value that JSON cannot (Integer exceeds 64-bit range) at /"),
        ("object", "the answer holds a value that JSON cannot (Type is not JSON serializable: Unwritable) at /a"),
        (
            "surrogate",
            "the answer holds a value that JSON cannot (str is not valid UTF-8: surrogates not allowed) at /",
        ),
    ],
)
def test_a_value_that_json_cannot_hold_is_502_names_who_gave_it_and_is_never_null(
    all_of_it: Served, which: str, detail: str
) -> None:
    told = problem(all_of_it.get(f"/orchestrator/d/number?which={which}"))
    assert (told["status"], told["step"], told["detail"]) == (502, "value", f"step 'value': lab.default: {detail}")
    (execution,) = all_of_it.executions(limit="1")
    assert execution["error"] == told["detail"]


@pytest.mark.parametrize("which", ["null", "large", "text"])
def test_a_value_that_json_can_hold_comes_out_exactly(all_of_it: Served, which: str) -> None:
    assert all_of_it.get(f"/orchestrator/d/number?which={which}").json == NUMBERS[which]


def test_an_answer_that_breaks_its_promise_is_502(all_of_it: Served) -> None:
    told = problem(all_of_it.post("/orchestrator/d/promised", {"x": "text"}))
    assert told["status"] == 502
    assert told["detail"] == 'the answer does not fit the endpoint\'s output_schema: /x "text" is not of type "integer"'
    assert all_of_it.post("/orchestrator/d/promised", {"x": 1}).json == {"x": 1}


def test_a_client_that_goes_away_cancels_its_request(all_of_it: Served) -> None:
    live = all_of_it.service.running.live

    async def until(running: int) -> None:
        async with asyncio.timeout(5):
            while live.snapshot.running != running:  # noqa: ASYNC110  # nobody tells of it
                await asyncio.sleep(0.005)

    async def main() -> None:
        _, writer = await asyncio.open_connection(*all_of_it.service.running.public)
        writer.write(b"GET /orchestrator/d/hangs HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(1)
        writer.close()
        await until(0)

    all_of_it.run(main())
    (execution,) = all_of_it.executions(limit="1")
    assert (execution["endpoint"], execution["status"], execution["http_status"]) == ("hangs", "cancelled", 499)
    assert execution["error"] == "cancelled before it ended"
    assert [step["status"] for step in execution["steps"]] == ["cancelled"]


@pytest.mark.parametrize("used", [True, False])
def test_a_connection_is_not_closed_over_a_request_that_has_arrived(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    """Another socket keeps the loop while the request comes and the connection's time runs out: that is seen first."""
    monkeypatch.setattr("orchestrator_core.http.listener.KEEPALIVE_SECONDS", 0.3)
    monkeypatch.setattr("orchestrator_core.http.listener.SWEEP_SECONDS", 0.3)
    config = f"server: {{header_timeout: {'8s' if used else '100ms'}}}"
    served = serve({"config.yaml": config, "domains/d.yaml": "endpoints: {plain: {response_mapping: 1}}"})
    head = b"GET /orchestrator/d/plain HTTP/1.1\r\nHost: here\r\n\r\n"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_connection(served.service.running.public) as client:
            client.settimeout(5)

            class Busy(asyncio.Protocol):
                def data_received(self, data: bytes) -> None:
                    client.sendall(head)
                    time.sleep(0.7)

            ours, theirs = socket.socketpair()
            transport, _ = await loop.create_unix_connection(Busy, sock=ours)
            try:
                if used:
                    client.sendall(head)
                    assert await asyncio.to_thread(client.recv, 65536)
                theirs.send(b"now")
                assert (await asyncio.to_thread(client.recv, 65536)).startswith(b"HTTP/1.1 200 OK")
            finally:
                transport.close()
                theirs.close()

    served.run(main())


def test_requests_on_one_connection_do_not_mix(all_of_it: Served) -> None:
    """Pipelined requests, good and bad, are answered in order."""

    async def main() -> bytes:
        host, port = all_of_it.service.running.public
        reader, writer = await asyncio.open_connection(host, port)
        for target in ("echo/1", "nothing", "echo/2", "echo/%ff", "echo/3"):
            writer.write(f"GET /orchestrator/d/{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        try:
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()

    raw = all_of_it.run(main())
    assert re.findall(rb"HTTP/1.1 (\d+)", raw) == [b"200", b"404", b"200", b"400", b"200", b"200"]
    assert re.findall(rb'"path":"(\d)"', raw) == [b"1", b"2", b"3"]
