"""What is redacted of a request is not in what its execution says of an error either."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from orchestrator_core.errors import SourceError
from orchestrator_core.redaction import MOST_VALUES, Elsewhere, Hiding, redacted, tree_of
from orchestrator_core.testing.pytest_plugin import Served
from tests.engine.lab import Lab
from tests.tracking.scripted_store import StoreOfRuns

Serve = Callable[..., Served]

DOMAIN = """
    endpoints:
      score:
        path: /{id}
        methods: [POST]
        input_schema: {type: object, properties: {ssn: {type: string, maxLength: 11}, pin: {type: integer}}}
        data_sources:
          - {name: customer, type: lab, operation: fails, params: {ssn: $request.body.ssn}, default: {}}
          - name: items
            type: lab
            operation: fails
            for_each: [1, 2]
            params: {ssn: $request.body.ssn}
            default: 0
          - name: bureau
            type: lab
            operation: fails
            params: {ssn: $request.body.ssn}
            depends_on: [customer, items]
"""


async def fails(params: Any) -> Any:
    raise SourceError(f"no entry for {params['ssn']!r} at /people/{params['ssn']}", transient=True)


def serving(serve: Serve, **tracking: Any) -> Served:
    settings = {"redact": "[request.body.ssn, request.body.pin, request.path_params.id]", **tracking}
    config = "tracking:\n" + "".join(f"  {name}: {value}\n" for name, value in settings.items())
    config += "policies: {retry: {attempts: 2, backoff: 1ms}}\n"
    return serve({"config.yaml": config, "domains/d.yaml": DOMAIN}, plugins={"lab": Lab({"fails": fails})})


@pytest.mark.parametrize("capture", ["none", "params", "full"])
def test_no_error_of_an_execution_names_it(serve: Serve, capture: str) -> None:
    shop = serving(serve, capture=capture)
    with structlog.testing.capture_logs() as logged:
        answer = shop.post("/orchestrator/d/score/4711", {"ssn": "123-45-6789"})
    assert answer.status == 502
    assert "no entry for '123-45-6789' at /people/123-45-6789" in answer.json["detail"]  # who sent it knows it
    execution = shop.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}").json
    assert execution["error"] == "no entry for '***' at /people/***"
    assert {step["error"] for step in execution["steps"]} == {
        "no entry for '***' at /people/***",
        "step 'items', item 0: no entry for '***' at /people/***",
    }
    if capture != "none":
        calls = [call for step in execution["captured"]["steps"].values() for call in step["calls"]]
        assert {call["error"]["message"] for call in calls} == {"no entry for '***' at /people/***"}
        assert {call["params"]["ssn"] for call in calls} == {"***"}
    assert "123-45-6789" not in json.dumps(execution)
    assert "123-45-6789" not in str([entry for entry in logged if "execution_id" in entry])


@pytest.mark.parametrize(
    ("body", "said", "kept", "secrets"),
    [
        ({"ssn": "123-45-6789-0"}, '"123-45-6789-0" is longer', '"***" is longer', ["123-45"]),
        ({"ssn": 123456789}, '123456789 is not of type "string"', '*** is not of type "string"', ["123456"]),
        ({"ssn": 12.5}, '12.5 is not of type "string"', '*** is not of type "string"', ["12.5"]),
        ({"ssn": ["12", {"a": "Zoë"}]}, '["12",{"a":"Zoë"}] is not', '["***",{"a":"***"}] is not', ["Zoë", '"12"']),
        ({"pin": "47"}, '"47" is not of type "integer"', '"***" is not of type "integer"', ['"47"']),
        ({"pin": "x" * 300}, "xxx...", '"***', ["xxx"]),
    ],
)
def test_what_does_not_fit_the_schema_is_not_quoted(
    serve: Serve, body: Any, said: str, kept: str, secrets: list[str]
) -> None:
    shop = serving(serve, capture="full")
    answer = shop.post("/orchestrator/d/score/1", body)
    assert answer.status == 422
    assert said in answer.json["detail"]
    execution = shop.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}").json
    assert kept in execution["error"]
    assert kept in execution["captured"]["answer"]["detail"]
    told = execution["error"] + str(execution["captured"]["answer"])
    assert not [secret for secret in secrets if secret in told.replace(answer.json["execution_id"], "")]


def test_an_execution_without_captured_values_is_stored_as_any_other(serve: Serve) -> None:
    """To redact costs a request that does well nothing in the store."""
    store = StoreOfRuns()
    config = "tracking: {store: {type: scripted}, redact: [request.body.ssn]}"
    domain = "endpoints: {hello: {response_mapping: hello, methods: [POST]}}"
    shop = serve({"config.yaml": config, "domains/d.yaml": domain}, plugins={"scripted": store})
    usual = []
    store.seen = lambda runs: usual.extend(run.usual for run in runs)
    shop.post("/orchestrator/d/hello", {"ssn": "123"})
    (execution,) = shop.executions()
    assert ("captured" in execution, usual) == (False, [True])
    assert [generation.texts for generation in store.generations] == [{}]


@pytest.mark.parametrize(
    ("value", "text", "left"),
    [
        ("Ann", "Ann, Annie and (Ann): user_Ann", "***, Annie and (***): user_***"),
        ("secret", "mysecrets", "my***s"),
        ('a "b"\n', r'{"x":"a \"b\"\n"}', '{"x":"***"}'),
        ("a b/c", "GET /people/a%20b%2Fc: 404", "GET /people/***: 404"),
        ("x" * 30 + "y" * 30, f"'{'x' * 30}{'y' * 30}' is too long", "'***' is too long"),
        ("x" * 30 + "y" * 30, f"'{'x' * 30}yyy... is too long", "'***"),
        ("z" * 5000, f"no {'z' * 5000}!", "no ***"),
        (7, "7 of 77 rows, 7.5", "*** of 77 rows, ***.5"),
        ("+7", "row 7, as '+7'", "row ***, as '***'"),
        ("1e3", "1000.0 is too large", "*** is too large"),
        (1.23456e-05, '0.0000123456 is not of type "string"', '*** is not of type "string"'),
        ("12.3e-6", "0.0000123 is too small", "*** is too small"),
        (True, "true is not a string", "true is not a string"),
        ("", "nothing", "nothing"),
        (None, "None", "None"),
        ("\ud800!", "?!", "***"),
        ({"a": ["one", {"b": "two"}]}, "one two three", "*** *** three"),
    ],
)
def test_how_a_value_is_found_in_a_message(value: Any, text: str, left: str) -> None:
    assert Hiding(lambda: {"body": {"x": value}}, tree_of(["body.x"]))(text) == left


def test_a_small_number_is_found_in_other_values_as_json_writes_it() -> None:
    elsewhere = Elsewhere([1.23456e-05])
    assert elsewhere.may_be_in('{"v":0.0000123456}')
    assert elsewhere.data({"v": 1.23456e-05}) == {"v": "***"}


def test_only_what_the_paths_lead_to_is_hidden() -> None:
    value = {"body": {"people": [{"name": "Ada", "age": 36}, {"name": "Grace", "age": 45}]}, "headers": {"x-k": "key"}}

    def hidden(*paths: str) -> str:
        return Hiding(lambda: value, tree_of(paths))("Ada Grace 36 45 key")

    assert hidden("body.people.name") == "*** *** 36 45 key"
    assert hidden("body.people.1.name", "headers.*") == "Ada *** 36 45 ***"
    assert hidden("body.*.*.age") == "Ada Grace *** *** key"
    assert hidden("body") == "*** *** *** *** key"
    assert hidden("nothing.here") == "Ada Grace 36 45 key"


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("answer.*.iban", [{"account": {"iban": "***"}, "iban": "***"}, [{"iban": "***", "name": "Ada"}]]),
        ("answer.*.*.iban", [{"account": {"iban": "***"}, "iban": 2}, [{"iban": "***", "name": "Ada"}]]),
        ("answer.account.*", [{"account": {"iban": "***"}, "iban": 2}, [{"iban": 3, "name": "Ada"}]]),
        ("answer.*", ["***", "***"]),
    ],
)
def test_any_name_is_one_of_a_lists_items_too(path: str, kept: Any) -> None:
    answer = [{"account": {"iban": 1}, "iban": 2}, [{"iban": 3, "name": "Ada"}]]
    assert redacted(answer, tree_of([path])["answer"]) == kept


def test_of_very_many_values_no_message_is_kept() -> None:
    value = {"body": [f"value {number}" for number in range(MOST_VALUES + 1)]}
    assert Hiding(lambda: value, tree_of(["body"]))("it is down") == "***"


@pytest.mark.parametrize("capture", ["none", "full"])
def test_a_secret_of_which_a_part_is_redacted_stays_masked_as_a_whole(
    serve: Serve, capture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "sesame-open-7")
    domain = """
        endpoints:
          e:
            methods: [POST]
            data_sources: [{name: s, type: lab, operation: fails, params: {ssn: $request.body.ssn}, default: 1}]
    """
    config = f"tracking: {{capture: {capture}, redact: [request.body.ssn]}}"
    api = "api: {sources: {default: {base_url: 'http://127.0.0.1:9', headers: {Authorization: '${env:SHOP_TOKEN}'}}}}"

    async def tells(_: Any) -> Any:
        raise SourceError("sesame-open-7 is refused")

    shop = serve(
        {"config.yaml": config, "domains/d.yaml": domain, "integrations/api.yaml": api},
        plugins={"lab": Lab({"fails": tells})},
    )
    answer = shop.post("/orchestrator/d/e", {"ssn": "open-7"})
    execution = shop.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}").json
    assert execution["steps"][0]["error"] == "*** is refused"
    if capture == "full":
        (call,) = execution["captured"]["steps"]["s"]["calls"]
        assert call["error"]["message"] == "*** is refused"
