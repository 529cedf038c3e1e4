"""What ``check`` says of an ``api:`` section, and the source behind a served endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from textwrap import dedent, indent
from typing import Any

import pytest
from api_kit import Answer, Seen, echo, ok, partner

from orchestrator_core.testing import check_problems, service

Run = Callable[..., Any]

DOMAIN = """
endpoints:
  predict:
    data_sources:
      - name: credit
        type: api
        source_id: credit_api
        operation: get_credit_score
        params: {applicant_id: "$request.path_params.entity_id"}
    response_mapping: {score: "$credit.score"}
"""


def files(source: str, domain: str = DOMAIN) -> dict[str, str]:
    section = "api:\n  sources:\n    credit_api:\n" + indent(dedent(source).strip("\n"), "      ") + "\n"
    return {"integrations/credit.yaml": section, "domains/loans.yaml": domain}


def problems(source: str, domain: str = DOMAIN) -> list[str]:
    return [f"{each.line}: {said(each)}" for each in check_problems(files(source, domain))]


def said(problem: Any) -> str:
    return f"{problem.message}{f'; {problem.hint}' if problem.hint else ''}"


def problem_of(operation: str) -> str:
    (found,) = problems(
        f"""
        base_url: http://127.0.0.1:1
        operations:
          get_credit_score: {operation}
        """
    )
    return found.removeprefix("6: ")


# --- options ---------------------------------------------------------------------------------------------------------


def test_a_correct_section_has_no_problems() -> None:
    source = """
        base_url: "http://127.0.0.1:9001"
        timeout: 2s
        headers: {Authorization: "Bearer ${env:CREDIT_TOKEN:-none}"}
        operations:
          get_credit_score: {method: GET, path: "/scores/{applicant_id}", query: {verbose: true}}
    """
    assert problems(source) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("base_url: 127.0.0.1:9001", "base_url must start with http://host or https://host"),
        ("base_url: http://", "base_url must start with http://host or https://host"),
        (
            "base_url: 'http://ada:sec/ret@x'",
            "base_url is not a URL: its host or port cannot be read; percent-encode what is special in a password",
        ),
        (
            "base_url: http://x/?key=secret",
            "base_url must not have a query or a fragment; write query: {name: value} beside it",
        ),
        (
            "{base_url: http://x, headers: {X-Id: $params.id}}",
            "X-Id: expressions cannot stand in a source's headers; write it in an operation's headers",
        ),
        (
            "{base_url: http://x, query: {id: 'n-{{ $params.id }}'}}",
            "id: expressions cannot stand in a source's query; write it in an operation's query",
        ),
        (
            "{base_url: http://x, auth: {bearer: t, basic: {username: a, password: b}}}",
            "auth has basic and bearer; give one of them",
        ),
        (
            "{base_url: http://x, auth: {bearer: t}, headers: {authorization: t}}",
            "auth.bearer and the header Authorization are both given; remove one",
        ),
        (
            "{base_url: 'http://user:secret@x', auth: {bearer: t}}",
            "auth.bearer and credentials in base_url are both given; remove one",
        ),
        (
            "{base_url: http://x, auth: {basic: {username: 'a:b', password: c}}}",
            "auth.basic.username has a ':', which would end it",
        ),
        (
            "{base_url: http://x, auth: {oauth2: {token_url: login, client_id: a, client_secret: b}}}",
            "token_url must start with http://host or https://host",
        ),
        (
            "{base_url: http://x, proxy: http://p, egress: {allow_private: false}}",
            "allow_private: false cannot be held behind a proxy, which resolves names itself",
        ),
        ("{base_url: http://x, egress: {allow: [10.0.0.1/8]}}", "egress.allow: 10.0.0.1/8 has host bits set"),
        ("{base_url: http://x, health: '/up/{id}'}", "a health path has no {placeholders}"),
        ("{base_url: http://x, timeout: 0}", "timeout must be more than 0"),
        ("{base_url: http://x, follow_redirects: -1}", "follow_redirects must be 0 or more"),
        ("{base_url: http://x, time_out: 2s}", "unknown key 'time_out'; did you mean 'timeout'?"),
    ],
)
def test_an_option_that_cannot_be_used_is_a_problem(options: str, message: str) -> None:
    section = options if options.startswith("{") else f"{{{options}}}"
    text = {"integrations/a.yaml": f"api: {{sources: {{credit_api: {section}}}}}"}
    assert [said(each) for each in check_problems(text)] == [message]


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("{method: GET}", "'path' is missing"),
        ("{path: scores}", "expected a path that starts with /, got 'scores'"),
        ("{path: '/scores?id={applicant_id}'}", "a path has no '?'; write query: {name: value}"),
        ("{path: '/scores#x'}", "a path has no '#'; the fragment of a URL is never sent"),
        ("{path: '/a/../{applicant_id}'}", "a path has no '..' segment"),
        ("{path: '/a/%2e%2E/{applicant_id}'}", "a path has no '%2e%2E' segment"),
        (
            "{path: '/100%/{applicant_id}'}",
            "a '%' in a path begins a percent-encoding; write %25 for the character itself",
        ),
        (
            "{path: '/scores/{applicant-id}'}",
            "'{applicant-id}' is not a placeholder; write {name}, with letters, digits and _",
        ),
        ("{path: '/scores/{applicant_id'}", "'{' is not a placeholder; write {name}, with letters, digits and _"),
        (
            "{path: '/{applicant_id}', method: get}",
            "expected one of GET, HEAD, POST, PUT, PATCH, DELETE, got 'get': did you mean 'GET'?",
        ),
        ("{path: '/{applicant_id}', query: {q: {x: 1}}}", "q: expected a value or a list of values, not a mapping"),
        (
            "{path: '/{applicant_id}', query: {q: $params.x +}}",
            "q: expected an operand after '+', at character 12 of '$params.x +'",
        ),
        (
            "{path: '/{applicant_id}', headers: {host: $params.x}}",
            "Host: which host is asked cannot depend on a parameter",
        ),
        ("{path: '/{applicant_id}', query: {q: $param.x}}", "q: there is no $param here, only $params"),
        (
            "{path: '/{applicant_id}', method: POST, body: {a: [$request.body]}}",
            "a[0]: there is no $request here, only $params",
        ),
        (
            "{path: '/{applicant_id}', method: POST, body: {a: 1}, form: {a: 1}}",
            "body and form are both given; an operation sends one of them",
        ),
        ("{path: '/{applicant_id}', result: $response.bdy.x}", "$response has no 'bdy'; did you mean 'body'?"),
        (
            "{path: '/{applicant_id}', result: \"$response.headers['X-Total']\"}",
            "header names are in lower case here: write $response.headers['x-total']",
        ),
        ("{path: '/{applicant_id}', result: $params.x}", "there is no $params here, only $response"),
        ("{path: '/{applicant_id}', expected_status: []}", "expected_status is empty; leave it out for any 2xx"),
        ("{path: '/{applicant_id}', expected_status: [99]}", "99 is not the status of an answer; expected 200 to 599"),
        ("{path: '/{applicant_id}', timeout: 0}", "timeout must be more than 0"),
    ],
)
def test_an_operation_that_cannot_be_sent_is_a_problem_at_its_line(operation: str, message: str) -> None:
    assert problem_of(operation) == message


# --- steps against operations ----------------------------------------------------------------------------------------


def test_parameters_and_fields_of_a_step_are_checked_against_the_operation() -> None:
    source = """
        base_url: http://127.0.0.1:1
        operations:
          get_credit_score:
            path: "/scores/{applicant_id}"
            query: {region: "$params.region ?? 'eu'"}
            result: {score: "$response.body.data.score"}
    """
    domain = DOMAIN.replace("applicant_id:", "aplicant_id:").replace("$credit.score", "$credit.scor")
    assert problems(source, domain) == [
        "9: api.credit_api get_credit_score takes no parameter 'aplicant_id'; did you mean 'applicant_id'?",
        "10: the step 'credit' returns no field 'scor'; did you mean 'score'?",
    ]
    assert problems(source, DOMAIN.replace("get_credit_score", "get_score")) == [
        "8: the source api.credit_api has no operation 'get_score'; did you mean 'get_credit_score'?"
    ]
    without = DOMAIN.replace('        params: {applicant_id: "$request.path_params.entity_id"}\n', "")
    assert problems(source, without) == ["5: api.credit_api get_credit_score needs the parameter 'applicant_id'"]


# --- served ----------------------------------------------------------------------------------------------------------


def serve_once(answer: Answer | bytes, source: str, run: Run, entity: str = "7") -> tuple[int, Any, list[Seen]]:
    async def main() -> tuple[int, Any, list[Seen]]:
        async with partner(answer) as api, service(files(source.replace("BASE", api.url))) as served:
            said = await served.get(f"/orchestrator/loans/predict/{entity}")
            return said.status, said.json, api.seen

    result: tuple[int, Any, list[Seen]] = run(main())
    return result


SOURCE = """
    base_url: "BASE/v1"
    timeout: 300ms
    headers: {X-Key: "${env:PARTNER_KEY}"}
    operations:
      get_credit_score: {path: "/scores/{applicant_id}", result: "$response.body.data"}
"""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTNER_KEY", "$k-1 {{ x }}")


def test_an_endpoint_answers_with_what_the_api_said(run: Run) -> None:
    status, json, seen = serve_once(ok({"data": {"score": 720}}), SOURCE, run)
    assert (status, json) == (200, {"score": 720})
    assert (seen[0].target, seen[0].headers["x-key"]) == ("/v1/scores/7", "$k-1 {{ x }}")


def test_a_client_cannot_leave_the_segment(run: Run) -> None:
    status, _, seen = serve_once(ok({"data": {"score": 1}}), SOURCE, run, entity="..%2F..%2Fadmin%3Fx%23y")
    assert (status, [each.target for each in seen]) == (200, ["/v1/scores/..%2F..%2Fadmin%3Fx%23y"])
    status, _, seen = serve_once(ok({"data": {"score": 1}}), SOURCE, run, entity="%2E%2E")
    assert (status in (404, 422), seen) == (True, [])


async def _hang(_: Seen) -> bytes:
    await asyncio.sleep(60)
    return b""


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        (ok({}, status=404), 404, "get_credit_score: nothing found for applicant_id='7'"),
        (ok({}, status=500), 502, "get_credit_score: GET BASE/v1/scores/7: answered 500"),
        (ok({}, "Retry-After: 3", status=503), 503, "answered 503 and asks to wait 3 s"),
        (ok(b"<html>", content_type="text/html"), 502, "the answer (200, text/html) is not JSON"),
        (ok({}, "Location: http://127.0.0.1:1/", status=302), 502, "answered 302, a redirect that is not followed"),
        (ok({"dta": {}}), 502, "$response.body.data is missing: $response.body has no field 'data' (it has: dta)"),
        (ok({"data": {}}), 502, "$credit.score is missing"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{", 502, "in the middle of the answer"),
        (_hang, 504, "no complete answer came within 0.3 s"),
    ],
)
def test_a_fault_of_the_api_has_its_status_and_names_the_step(
    answer: Answer | bytes, status: int, says: str, run: Run
) -> None:
    got, problem, seen = serve_once(answer, SOURCE, run)
    base = f"http://{seen[0].headers['host']}"
    assert (got, problem["status"]) == (status, status)
    if not says.startswith("$credit"):  # that one is the mapping's
        assert problem["step"] == "credit"
    assert says.replace("BASE", base) in problem["detail"]
    assert "k-1" not in str(problem)


def test_secrets_in_query_and_body_are_sent_as_they_are_and_shown_nowhere(run: Run) -> None:
    source = """
        base_url: "BASE"
        operations:
          get_credit_score:
            method: POST
            path: "/scores"
            query: {key: "${env:PARTNER_KEY}"}
            headers: {X-Key: "${env:PARTNER_KEY}", X-Id: "$params.applicant_id"}
            body: {key: "${env:PARTNER_KEY}", id: "$params.applicant_id", deep: [{key: "${env:PARTNER_KEY}"}]}
            result: {score: "$response.body.body"}
    """
    status, _, seen = serve_once(echo, source, run)
    assert status == 200
    assert seen[0].json == {"key": "$k-1 {{ x }}", "id": "7", "deep": [{"key": "$k-1 {{ x }}"}]}
    assert seen[0].target == "/scores?key=%24k-1%20%7B%7B%20x%20%7D%7D"
    assert (seen[0].headers["x-key"], seen[0].headers["x-id"]) == ("$k-1 {{ x }}", "7")
    status, problem, _ = serve_once(ok([]), source.replace("body.body", "body.x"), run)
    assert status == 502
    assert "k-1" not in str(problem)
