"""What is sent: paths, queries, headers and bodies, as a server sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from api_kit import opened, partner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator_core.plugin_api import InvalidParam, SourceError
from orchestrator_core.testing import run as run_now

Run = Callable[..., Any]

HOSTILE = ["../x", "a/b", "?x", "#", "%2f", "%2e%2e", "..\\x", "a;b=c", "//evil.example/", "@evil", "http://evil/"]


def sent(operation: dict[str, Any], params: dict[str, Any], **options: Any) -> Any:
    """Call the operation once and return what the server saw of it."""

    async def main() -> Any:
        async with partner() as api, opened(f"{api.url}/v1", {"call": operation}, **options) as source:
            await source.fetch("call", params)
            return api.last

    return run_now(main())


def refused(operation: dict[str, Any], params: dict[str, Any]) -> InvalidParam:
    async def main() -> InvalidParam:
        async with partner() as api, opened(api.url, {"call": operation}) as source:
            with pytest.raises(InvalidParam) as caught:
                await source.fetch("call", params)
            assert api.seen == []
            return caught.value

    error: InvalidParam = run_now(main())
    return error


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "segment"),
    [("7", "7"), (7, "7"), (1.5, "1.5"), (True, "true"), ("é ü", "%C3%A9%20%C3%BC"), ("a.b~c-d_e", "a.b~c-d_e")],
)
def test_a_placeholder_is_filled_with_the_percent_encoded_value(value: Any, segment: str) -> None:
    assert sent({"path": "/things/{id}/parts"}, {"id": value}).target == f"/v1/things/{segment}/parts"


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_value_stays_one_segment(value: str) -> None:
    target = sent({"path": "/things/{id}/parts"}, {"id": value}).target
    assert [unquote(part) for part in target.split("/")] == ["", "v1", "things", value, "parts"]
    assert "?" not in target
    assert "#" not in target


def test_no_text_changes_scheme_host_path_structure_or_query() -> None:
    texts = st.one_of(st.text(max_size=30), st.text("./\\%2efF?#@:;&=\r\n\0 ", max_size=12))
    seen = []

    async def main() -> None:
        async with partner() as api, opened(f"{api.url}/v1", {"get": {"path": "/a/{x}/b.{y}/{x}{y}"}}) as source:

            @settings(max_examples=300, deadline=None, database=None)
            @given(x=texts, y=texts)
            @example(x="..", y="")
            @example(x=".", y=".")
            @example(x="../x", y="%2f")
            def look(x: str, y: str) -> None:
                seen.append((x, y))

            await asyncio.to_thread(look)
            for x, y in seen:
                before = len(api.seen)
                try:
                    await source.fetch("get", {"x": x, "y": y})
                except InvalidParam:
                    assert {x, x + y} & {"", ".", ".."} or not _is_unicode(x + y)
                    assert len(api.seen) == before
                    continue
                segments = api.last.target.split("/")
                assert [unquote(part) for part in segments] == ["", "v1", "a", x, f"b.{y}", x + y]
                assert not {".", "..", ""} & set(segments[1:])
                assert not set(api.last.target) & set("?#\\@ ;&")
                assert urlsplit(api.url).netloc == api.last.headers["host"]

    run_now(main())


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("path", "params", "message"),
    [
        ("/a/{id}", {"id": ".."}, "call: parameter 'id' makes a path's segment '..', which leads elsewhere"),
        ("/a/{id}/b", {"id": "."}, "call: parameter 'id' makes a path's segment '.', which leads elsewhere"),
        ("/a/.{id}", {"id": "."}, "call: parameter 'id' makes a path's segment '..', which leads elsewhere"),
        ("/a/%2E{id}", {"id": "."}, "call: parameter 'id' makes a path's segment '..', which leads elsewhere"),
        ("/{x}/{x}{y}", {"x": ".", "y": "."}, "call: parameter 'x' makes a path's segment '.', which leads elsewhere"),
        ("/a/{x}{y}", {"x": ".", "y": "."}, "call: parameter 'x' makes a path's segment '..', which leads elsewhere"),
        ("/a/{id}", {"id": ""}, "call: parameter 'id' is empty, which leads elsewhere"),
        ("/a/{id}", {"id": None}, "call: parameter 'id' is null, which cannot stand in a path"),
        (
            "/a/{id}",
            {"id": float("nan")},
            "call: parameter 'id' is a number that is not finite, which cannot stand in a path",
        ),
        ("/a/{id}", {"id": ["x"]}, "call: parameter 'id' is a list, which cannot stand in a path"),
        ("/a/{id}", {"id": {"x": 1}}, "call: parameter 'id' is an object, which cannot stand in a path"),
        (
            "/a/{id}",
            {"id": "\ud800"},
            "call: parameter 'id' is not Unicode text: it has half of a surrogate pair",
        ),
    ],
)
def test_a_value_that_no_encoding_keeps_in_its_segment_is_refused(path: str, params: Any, message: str) -> None:
    error = refused({"path": path}, params)
    assert (str(error), error.param) == (message, next(iter(params)))


def test_the_text_of_a_path_is_percent_encoded_where_it_must_be() -> None:
    assert sent({"path": "/straße/a b/100%25/{id}:verify"}, {"id": "a:b"}).target == (
        "/v1/stra%C3%9Fe/a%20b/100%25/a%3Ab:verify"
    )


# --- queries ---------------------------------------------------------------------------------------------------------


def test_query_values_are_expressions_on_the_parameters() -> None:
    query = {"region": "$params.region ?? 'eu'", "verbose": True, "label": "n-{{ $params.n }}", "absent": None}
    operation = {"path": "/things", "query": query}
    assert sent(operation, {"n": 3}).target == "/v1/things?verbose=true&region=eu&label=n-3"
    assert sent(operation, {"n": 3, "region": "a&b=c #é"}).target == (
        "/v1/things?verbose=true&region=a%26b%3Dc%20%23%C3%A9&label=n-3"
    )


def test_a_null_in_the_query_is_left_out_and_a_list_is_repeated() -> None:
    operation = {"path": "/things", "query": {"id": "$params.ids", "page": "$params.page"}}
    assert sent(operation, {"ids": ["a", 2, None], "page": None}).target == "/v1/things?id=a&id=2"
    assert sent(operation, {"ids": [], "page": None}).target == "/v1/things"


def test_parameters_that_are_named_nowhere_go_to_the_query_of_a_get() -> None:
    operation = {"path": "/things/{id}", "headers": {"X-Tenant": "$params.tenant"}}
    seen = sent(operation, {"id": 7, "tenant": "t", "limit": 5, "tag": ["a", "b"]})
    assert (seen.target, seen.headers["x-tenant"], seen.body) == ("/v1/things/7?limit=5&tag=a&tag=b", "t", b"")
    assert sent({"path": "/things", "method": "DELETE"}, {"id": 7}).target == "/v1/things?id=7"


def test_the_query_of_the_source_is_in_every_request_unless_the_operation_has_its_own() -> None:
    query = {"version": 3, "key": "k"}
    assert sent({"path": "/a"}, {}, query=query).target == "/v1/a?version=3&key=k"
    assert sent({"path": "/a", "query": {"version": 4}}, {}, query=query).target == "/v1/a?key=k&version=4"
    assert sent({"path": "/a"}, {"version": 5}, query=query).target == "/v1/a?key=k&version=5"


@pytest.mark.parametrize("where", ["query", "form", "headers"])
def test_a_number_that_is_not_finite_cannot_stand_in_a_query_a_form_or_a_header(where: str) -> None:
    error = refused({"path": "/a", "method": "POST", where: {"X": "$params.n"}}, {"n": float("inf")})
    place = "a header" if where == "headers" else "a query or form"
    assert str(error) == f"call: parameter 'n' is a number that is not finite, which cannot stand in {place}"
    assert error.param == "n"


def test_an_object_cannot_stand_in_a_query() -> None:
    error = refused({"path": "/a", "query": {"q": "$params.filter"}}, {"filter": {"x": 1}})
    assert str(error) == "call: parameter 'filter' is an object, which cannot stand in a query or form"
    assert error.param == "filter"


# --- headers ---------------------------------------------------------------------------------------------------------


def test_headers_come_from_the_source_and_the_operation() -> None:
    operation = {
        "path": "/a",
        "query": {},
        "headers": {"X-Tenant": "$params.tenant", "X-Kind": "b", "X-No": "$params.no"},
    }
    headers = sent(operation, {"tenant": "t 1", "no": None}, headers={"X-Key": "k", "X-Kind": "a"}).headers
    assert (headers["x-key"], headers["x-kind"], headers["x-tenant"]) == ("k", "b", "t 1")
    assert (headers["accept"], headers["user-agent"]) == ("application/json", "orchestrator-api")
    assert "x-no" not in headers


def test_headers_that_change_from_call_to_call_are_each_calls_own(run: Run) -> None:
    async def main() -> None:
        operation = {"path": "/a/{n}", "headers": {"X-Tenant": "$params.tenant"}}
        async with partner() as api, opened(api.url, {"call": operation}) as source:
            calls = [source.fetch("call", {"n": n, "tenant": f"t{n % 3}"}) for n in range(30)]
            for n, result in enumerate(await asyncio.gather(*calls)):
                assert (result["target"], result["headers"]["x-tenant"]) == (f"/a/{n}", f"t{n % 3}")

    run(main())


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b", "日本"])
def test_a_parameter_cannot_add_a_header(value: str) -> None:
    error = refused({"path": "/a", "headers": {"X-Tenant": "$params.tenant"}}, {"tenant": value})
    assert str(error) == (
        "call: parameter 'tenant' has a line break, a control character or one outside Latin-1, "
        "which cannot stand in a header"
    )


# --- bodies ----------------------------------------------------------------------------------------------------------


def test_a_json_body_has_expressions_at_any_depth() -> None:
    body = {"applicant": {"id": "$params.id", "tags": ["new", "$params.tag"]}, "n": 1, "price": "$$5", "none": None}
    seen = sent({"path": "/a", "method": "POST", "body": body}, {"id": 7, "tag": "x"})
    assert seen.json == {"applicant": {"id": 7, "tags": ["new", "x"]}, "n": 1, "price": "$5", "none": None}
    assert (seen.method, seen.headers["content-type"], seen.target) == ("POST", "application/json", "/v1/a")


def test_the_whole_of_the_parameters_can_be_the_body() -> None:
    seen = sent({"path": "/a/{id}", "method": "PUT", "body": "$params"}, {"id": 7, "x": [1]})
    assert (seen.method, seen.json) == ("PUT", {"id": 7, "x": [1]})


def test_a_get_can_have_a_body_and_a_header_can_name_its_type() -> None:
    operation = {"path": "/a", "body": {"q": 1}, "headers": {"Content-Type": "application/vnd.api+json"}}
    seen = sent(operation, {})
    assert (seen.method, seen.json, seen.headers["content-type"]) == ("GET", {"q": 1}, "application/vnd.api+json")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_parameters_that_are_named_nowhere_are_the_json_body(method: str) -> None:
    seen = sent({"path": "/a/{id}", "method": method}, {"id": 7, "x": [1], "y": None})
    assert (seen.method, seen.target, seen.json) == (method, "/v1/a/7", {"x": [1], "y": None})
    without = sent({"path": "/a/{id}", "method": method}, {"id": 7})
    assert (without.body, "content-type" in without.headers, without.headers["content-length"]) == (b"", False, "0")


def test_a_form_is_url_encoded() -> None:
    form = {"grant": "a b&c", "id": "$params.ids", "no": "$params.no"}
    seen = sent({"path": "/a", "method": "POST", "form": form}, {"ids": [1, "é"], "no": None})
    assert (seen.body, seen.headers["content-type"]) == (
        b"grant=a+b%26c&id=1&id=%C3%A9",
        "application/x-www-form-urlencoded",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**70])
def test_a_number_that_json_cannot_hold_is_refused_and_not_sent_as_null(value: float) -> None:
    error = refused({"path": "/a", "method": "POST", "body": {"x": [{"y": "$params.n"}]}}, {"n": value})
    assert error.param == "n"
    assert str(error).startswith("call: the body ")


def test_an_expression_that_fails_names_the_parameter() -> None:
    operation = {"path": "/a", "query": {"n": "$params.n * 2", "x": "$params.deep.x"}}
    error = refused(operation, {"n": "a", "deep": {"x": 1}})
    assert (str(error), error.param) == ("call: '*' takes two numbers, got a string and a number", "n")
    error = refused(operation, {"n": 1, "deep": {}})
    assert (str(error), error.param) == (
        "call: $params.deep.x is missing: $params.deep has no field 'x' (it has: nothing)",
        "deep",
    )


# --- binding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"id": 1, "regoin": "x"}, "call: there is no parameter 'regoin'; did you mean 'region'?"),
        ({"region": "x"}, "call: parameter 'id' is missing"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_by_name(params: Any, message: str) -> None:
    error = refused({"path": "/a/{id}", "query": {"region": "$params.region ?? ''"}}, params)
    assert str(error) == message


def test_an_operation_that_is_not_there_is_refused_by_name(run: Run) -> None:
    async def main() -> None:
        async with opened("http://127.0.0.1:1", {"get_score": {"path": "/"}}) as source:
            with pytest.raises(SourceError, match=r"^there is no operation 'get_scor'; did you mean 'get_score'\?$"):
                source.prepare("get_scor", [])

    run(main())


def test_a_header_that_cannot_be_sent_is_found_when_the_source_opens(run: Run) -> None:
    async def main() -> None:
        for headers in ({"Content-Length": "$params.n"}, {"Transfer-Encoding": "chunked"}, {"a b": "x"}):
            with pytest.raises(ValueError, match=r"is set by the client itself|is not a header name"):
                async with opened("http://127.0.0.1:1", {"get": {"path": "/", "headers": headers}}):
                    pass

    run(main())
