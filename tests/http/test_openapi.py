"""The OpenAPI document that is made from a configuration."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import jsonschema_rs
import orjson
import pytest
from attrs import frozen
from openapi_spec_validator import OpenAPIV31SpecValidator

from orchestrator_core.config.load import load_configuration
from orchestrator_core.direct import DIRECT
from orchestrator_core.engine import Failure
from orchestrator_core.http.openapi import openapi
from orchestrator_core.plugin_api import OperationFacts, SourceKind
from orchestrator_core.plugins import Plugin, Provided, Registry
from orchestrator_core.schemas import pointer
from orchestrator_core.snapshot import draft


@frozen
class NoOptions:
    """Nothing to configure."""


def never(*_: Any) -> Any:
    raise AssertionError("a document opens nothing")


CUSTOMERS: SourceKind[Any] = SourceKind(
    name="customers",
    summary="Customers.",
    options=NoOptions,
    open=never,
    operation=NoOptions,
    facts=lambda _, operations: {
        name: OperationFacts(fields=("id", "score"), many=name == "all") for name in operations
    },
)
PLUGIN = Plugin("test", "test")
REGISTRY = Registry(sources={kind.name: Provided(kind, PLUGIN) for kind in (DIRECT, CUSTOMERS)})


@pytest.fixture
def document(tmp_path: Path) -> Any:
    """Return a function from domain files to the valid document of their endpoints."""

    def make(**domains: str) -> dict[str, Any]:
        (tmp_path / "domains").mkdir(exist_ok=True)
        (tmp_path / "database.yaml").write_text("customers: {sources: {default: {}}, operations: {one: {}, all: {}}}")
        for name, text in domains.items():
            (tmp_path / "domains" / f"{name}.yaml").write_text(dedent(text))
        drafted = draft(load_configuration(tmp_path), REGISTRY)
        assert [str(problem) for problem in drafted.problems] == []
        made = openapi(drafted.configuration, drafted.plans)
        assert [error.message for error in OpenAPIV31SpecValidator(made).iter_errors()] == []
        assert orjson.dumps(made) == orjson.dumps(openapi(drafted.configuration, drafted.plans))
        return made

    return make


def schema_of(operation: dict[str, Any]) -> Any:
    return operation["requestBody"]["content"]["application/json"]["schema"]


def answer_of(operation: dict[str, Any]) -> Any:
    return operation["responses"]["200"]["content"]["application/json"]["schema"]


def validator_at(document: dict[str, Any], *path: str) -> Any:
    """Return a validator for the schema at a path, whose references are followed inside the document."""
    return jsonschema_rs.Draft202012Validator({**document, "$ref": f"#{pointer(path)}"})


SCORE = """
    description: Credit risk of customers.
    endpoints:
      score:
        description: |-
          Score a customer.
          From what is known of them.
        input_schema:
          type: object
          properties:
            entity_id: {type: integer, minimum: 1, description: The customer.}
            amount: {type: number}
            currency: {type: string, default: EUR}
            note: {type: string}
          required: [entity_id, amount, currency]
        data_sources:
          - {name: customer, type: customers, operation: one, params: {id: $request.path_params.entity_id}}
          - {name: wish, type: direct, params: {amount: $request.amount, note: "$request.body.note ?? null"}}
        response_mapping: {id: $request.path_params.entity_id, score: $customer.score}
"""


def test_an_operation_says_all_that_is_known_of_the_endpoint(document: Any) -> None:
    paths = document(credit_risk=SCORE)["paths"]
    headers = ("X-Execution-Id", "Server-Timing", "X-Orchestrator-Degraded")
    assert paths["/orchestrator/credit_risk/score/{entity_id}"]["post"] == {
        "operationId": "credit_risk__score__post",
        "tags": ["credit_risk"],
        "summary": "Score a customer.",
        "description": "Score a customer.\nFrom what is known of them.",
        "parameters": [
            {
                "name": "entity_id",
                "in": "path",
                "description": "The customer.",
                "required": True,
                "schema": {"type": "integer", "minimum": 1, "description": "The customer."},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "amount": {"type": "number"},
                            "currency": {"type": "string", "default": "EUR"},
                            "note": {"type": "string"},
                        },
                        "required": ["amount"],
                    }
                }
            },
        },
        "responses": {
            "200": {
                "description": "The answer.",
                "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {
                                "id": {"type": "integer", "minimum": 1, "description": "The customer."},
                                "score": {},
                            },
                            "required": ["id", "score"],
                        }
                    }
                },
            },
            "400": {"$ref": "#/components/responses/MalformedRequest"},
            "404": {"$ref": "#/components/responses/NotFound"},
            "405": {"$ref": "#/components/responses/MethodNotAllowed"},
            "408": {"$ref": "#/components/responses/BodyTimeout"},
            "413": {"$ref": "#/components/responses/TooLarge"},
            "415": {"$ref": "#/components/responses/UnsupportedMediaType"},
            "422": {"$ref": "#/components/responses/InvalidRequest"},
            "500": {"$ref": "#/components/responses/InternalError"},
            "502": {"$ref": "#/components/responses/SourceFailed"},
            "503": {"$ref": "#/components/responses/Unavailable"},
            "504": {"$ref": "#/components/responses/DeadlineExceeded"},
        },
    }


def test_a_get_takes_from_the_query_what_a_post_takes_from_the_body(document: Any) -> None:
    """But not what is only read from the body, which a GET cannot bring."""
    operation = document(credit_risk=SCORE)["paths"]["/orchestrator/credit_risk/score/{entity_id}"]["get"]
    assert "requestBody" not in operation
    assert operation["parameters"][1:] == [
        {"name": "amount", "in": "query", "required": True, "schema": {"type": "number"}},
        {"name": "currency", "in": "query", "schema": {"type": "string", "default": "EUR"}},
    ]


def test_the_document_starts_with_the_generation_and_the_domains(document: Any) -> None:
    made = document(credit_risk=SCORE, empty="endpoints: {}")
    assert made["openapi"] == "3.1.0"
    assert made["info"]["title"] == "Orchestrator API"
    assert len(made["info"]["version"]) == 12
    assert made["tags"] == [
        {"name": "credit_risk", "description": "Credit risk of customers."},
        {"name": "empty"},
        {"name": "service", "description": "The service itself."},
    ]


def test_the_routes_of_the_service_are_there_without_any_endpoint(document: Any) -> None:
    paths = document()["paths"]
    assert {path: item["get"]["operationId"] for path, item in paths.items()} == {
        "/orchestrator": "list_domains",
        "/orchestrator/{domain}": "list_endpoints",
        "/health/live": "health_live",
        "/health/ready": "health_ready",
    }


ENTITY = """
    endpoints:
      find:
        methods: [GET]
        data_sources: [{{name: entity, type: direct, params: {{id: "{}"}}}}]
"""


def test_a_parameter_that_is_needed_leaves_out_the_route_without_it(document: Any) -> None:
    made = document(d=ENTITY.format("$request.path_params.entity_id"))
    assert [path for path in made["paths"] if "/d/" in path] == ["/orchestrator/d/find/{entity_id}"]


def test_a_parameter_with_a_fallback_leaves_both_routes(document: Any) -> None:
    paths = document(d=ENTITY.format("$request.path_params.entity_id ?? 7"))["paths"]
    with_it, without = paths["/orchestrator/d/find/{entity_id}"]["get"], paths["/orchestrator/d/find"]["get"]
    assert (with_it["operationId"], without["operationId"]) == ("d__find__get", "d__find__get__without_entity_id")
    assert with_it["parameters"] == [
        {"name": "entity_id", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
    assert "parameters" not in without


def test_an_explicit_path_is_the_only_route(document: Any) -> None:
    made = document(d='endpoints: {find: {path: "/{a}/of/{b}", response_mapping: {a: $request.path_params.a}}}')
    operation = made["paths"]["/orchestrator/d/find/{a}/of/{b}"]["get"]
    assert [(parameter["name"], parameter["in"]) for parameter in operation["parameters"]] == [
        ("a", "path"),
        ("b", "path"),
    ]


REFERENCES = """
    endpoints:
      find:
        data_sources:
          - name: found
            type: direct
            params:
              anywhere: $request.anywhere
              page: $request.query_params.page ?? 1
              limit: $request.query_params.limit
              tenant: $request.headers['X-Tenant']
              again: $request.headers['x-tenant'] ?? null
              names: "$request.body.filter.names[0]"
              deep: $request.body.filter.deep ?? null
          - {name: perhaps, type: direct, condition: $found.page == 2, params: {x: $request.query_params.sometimes}}
        response_mapping: {either: "$found.page == 1 ? $request.query_params.one : $found.page"}
"""


def test_without_a_schema_the_references_tell_the_parameters(document: Any) -> None:
    """What a request cannot do without is required; what only some requests need is not."""
    item = document(d=REFERENCES)["paths"]["/orchestrator/d/find"]
    query = [("page", False), ("limit", True), ("sometimes", False), ("one", False)]
    for method, expected in (("get", [*query, ("anywhere", True)]), ("post", query)):
        parameters = item[method]["parameters"]
        assert parameters[-1] == {"name": "X-Tenant", "in": "header", "required": True, "schema": {"type": "string"}}
        assert [(each["name"], each.get("required", False)) for each in parameters[:-1]] == expected
    assert item["post"]["requestBody"] == {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "filter": {
                            "type": "object",
                            "properties": {"names": {"type": "array", "items": {}}, "deep": {}},
                            "required": ["names"],
                        },
                        "anywhere": {},
                    },
                    "required": ["filter"],
                }
            }
        },
    }


def test_a_whole_body_can_be_anything(document: Any) -> None:
    item = document(d="endpoints: {echo: {response_mapping: {all: $request.body}}}")["paths"]["/orchestrator/d/echo"]
    assert schema_of(item["post"]) == {}


def test_an_endpoint_that_reads_nothing_takes_nothing(document: Any) -> None:
    item = document(d="endpoints: {ping: {response_mapping: pong}}")["paths"]["/orchestrator/d/ping"]
    assert "requestBody" not in item["post"]
    assert "parameters" not in item["post"]
    assert answer_of(item["post"]) == {"type": "string"}


def test_a_property_that_is_only_read_from_the_query_stays_out_of_the_body(document: Any) -> None:
    item = document(
        d="""
        endpoints:
          find:
            input_schema: {properties: {page: {type: integer}, name: {type: string}}, required: [page, name]}
            response_mapping: {page: $request.query_params.page, name: $request.name}
        """
    )["paths"]["/orchestrator/d/find"]
    assert item["post"]["parameters"] == [
        {"name": "page", "in": "query", "required": True, "schema": {"type": "integer"}}
    ]
    assert schema_of(item["post"]) == {"properties": {"name": {"type": "string"}}, "required": ["name"]}


def test_authorization_is_a_security_scheme_because_openapi_has_no_parameter_for_it(document: Any) -> None:
    made = document(
        d="""
        endpoints:
          asks: {response_mapping: {token: $request.headers.authorization}}
          takes: {response_mapping: {token: $request.headers.Authorization ?? ''}}
        """
    )
    assert made["components"]["securitySchemes"] == {
        "authorization": {"type": "apiKey", "in": "header", "name": "Authorization"}
    }
    assert made["paths"]["/orchestrator/d/asks"]["get"]["security"] == [{"authorization": []}]
    assert made["paths"]["/orchestrator/d/takes"]["get"]["security"] == [{"authorization": []}, {}]
    assert "parameters" not in made["paths"]["/orchestrator/d/asks"]["get"]


# --- schemas --------------------------------------------------------------------------------------------------------

TREE = {"value": 1, "children": [{"value": 2, "children": []}]}
SCHEMAS = {
    "definitions": (
        {"$defs": {"money": {"type": "number"}}, "properties": {"amount": {"$ref": "#/$defs/money"}}},
        [{"amount": 1}, {"amount": "1"}, 3],
    ),
    "itself": (
        {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#"}}},
            "required": ["value", "children"],
        },
        [TREE, {**TREE, "children": [{"value": "x", "children": []}]}, {}],
    ),
    "another property": (
        {"properties": {"a/b": {"type": "integer"}, "b": {"$ref": "#/properties/a~1b"}}},
        [{"b": 1}, {"b": "x"}],
    ),
    "an anchor": (
        {"$defs": {"x": {"$anchor": "word", "type": "string"}}, "properties": {"a": {"$ref": "#word"}}},
        [{"a": "x"}, {"a": 1}],
    ),
    "a dynamic anchor": (
        {
            "$dynamicAnchor": "node",
            "type": "object",
            "properties": {"children": {"type": "array", "items": {"$dynamicRef": "#node"}}},
            "unevaluatedProperties": False,
        },
        [{"children": [{}]}, {"children": [{"other": 1}]}],
    ),
    "an id": (
        {
            "$id": "https://example.com/request",
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$defs": {"x": {"type": "string"}},
            "properties": {"a": {"$ref": "https://example.com/request#/$defs/x"}, "b": {"$ref": "#/$defs/x"}},
        },
        [{"a": "x", "b": "y"}, {"a": 1}, {"b": 1}],
    ),
    "an id that is a name": (
        {
            "$id": "urn:example:request",
            "$defs": {"x": {"$anchor": "word", "type": "string"}},
            "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "urn:example:request#word"}},
        },
        [{"a": "x", "b": "y"}, {"a": 1}, {"b": 1}],
    ),
    "an id inside": (
        {
            "properties": {
                "a": {
                    "$id": "https://example.com/inside",
                    "$defs": {"x": {"type": "string"}},
                    "items": {"$ref": "#/$defs/x"},
                },
                "b": {"$ref": "https://example.com/inside"},
                "c": {"$ref": "https://example.com/inside#/$defs/x"},
            }
        },
        [{"a": ["x"]}, {"a": [1]}, {"b": [1]}, {"c": 1}],
    ),
    "data that looks like a reference": (
        {"properties": {"$ref": {"type": "string"}, "a": {"const": {"$ref": "#/$defs/x"}}}},
        [{"$ref": "x"}, {"$ref": 1}, {"a": {"$ref": "#/$defs/x"}}, {"a": {"$ref": "#/other"}}],
    ),
    "a list": ({"type": "array", "items": {"type": "integer"}}, [[1], ["x"], {}]),
}


@pytest.mark.parametrize(("schema", "instances"), SCHEMAS.values(), ids=SCHEMAS)
def test_an_embedded_schema_accepts_what_it_accepts_alone(
    document: Any, schema: dict[str, Any], instances: list[Any]
) -> None:
    text = orjson.dumps(schema).decode()
    made = document(
        d=f"endpoints: {{e: {{input_schema: {text}, output_schema: {text}, response_mapping: $request.body}}}}"
    )
    post = ("paths", "/orchestrator/d/e", "post")
    alone = jsonschema_rs.Draft202012Validator(schema)
    taken = validator_at(made, *post, "requestBody", "content", "application/json", "schema")
    given = validator_at(made, *post, "responses", "200", "content", "application/json", "schema")
    expected = [alone.is_valid(instance) for instance in instances]
    assert set(expected) == {True, False}
    assert [taken.is_valid(instance) for instance in instances] == expected
    assert [given.is_valid(instance) for instance in instances] == expected


def test_references_also_hold_where_a_property_becomes_a_parameter(document: Any) -> None:
    made = document(
        d="""
        endpoints:
          e:
            input_schema:
              $defs: {money: {type: number}}
              properties: {id: {type: string}, amount: {$ref: "#/$defs/money"}}
              required: [amount]
            response_mapping: {id: $request.path_params.id, amount: $request.amount}
        """
    )
    item = made["paths"]["/orchestrator/d/e/{id}"]
    amount = {"$ref": "#/components/schemas/d.e.input/$defs/money"}
    assert item["get"]["parameters"][1] == {"name": "amount", "in": "query", "required": True, "schema": amount}
    assert schema_of(item["post"]) == {"properties": {"amount": amount}, "required": ["amount"]}
    assert made["components"]["schemas"]["d.e.input"] == {
        "$defs": {"money": {"type": "number"}},
        "properties": {"id": {"type": "string"}, "amount": amount},
        "required": ["amount"],
    }


def test_names_that_would_collide_stay_apart(document: Any) -> None:
    endpoint = "{input_schema: {type: object}, response_mapping: $request.body}"
    made = document(
        a__b=f"endpoints: {{c: {endpoint}}}",
        a=f"endpoints: {{b__c: {endpoint}, x~y: {endpoint}, x_y: {endpoint}}}",
        service=f"endpoints: {{list_domains: {endpoint}}}",
    )
    operations = [operation["operationId"] for item in made["paths"].values() for operation in item.values()]
    assert len(operations) == len(set(operations))
    assert {"a__b__c__get", "a__b__c__get_2"} <= set(operations)
    assert {"a.x_y.input", "a.x_y.input_2"} <= made["components"]["schemas"].keys()
    assert [tag["name"] for tag in made["tags"]] == ["a", "a__b", "service", "service_2"]


# --- answers --------------------------------------------------------------------------------------------------------

NUMBER, STRING, BOOLEAN = {"type": "number"}, {"type": "string"}, {"type": "boolean"}


CUSTOMER = {"type": "object", "properties": {"id": {}, "score": {}}, "required": ["id", "score"]}
ANSWERS = {
    "score": STRING,
    "1": {"type": "integer"},
    "1.5": NUMBER,
    "null": {"type": "null"},
    "[1, 2]": {"type": "array", "items": {"type": "integer"}},
    "[1, x]": {"type": "array", "items": {}},
    "{a: true}": {"type": "object", "properties": {"a": BOOLEAN}, "required": ["a"]},
    "{}": {"type": "object", "properties": {}},
    '"id {{ $customer.id }}"': STRING,
    "$customer.id == 3": BOOLEAN,
    "$customer.score * 2": NUMBER,
    "$customer.score + 2": {},
    '"$customer.id == 3 ? -$customer.score : abs($customer.score)"': NUMBER,
    '"$customer.id == 3 ? !$customer.id : bool($customer.id)"': BOOLEAN,
    '"$customer.id == 3 ? len($customer.id) : 0"': {"type": "integer"},
    '"$customer.id == 3 ? upper($customer.id) : null"': {},
    '"$customer.id == 3 ? max(1, $customer.score) : max(1, 2)"': {},
    "$execution.id": STRING,
    "$execution.degraded": BOOLEAN,
    "$customer.score": {},
    "$customer": CUSTOMER,
    "[$customers]": {"type": "array", "items": {"type": "array", "items": CUSTOMER}},
    "$named": {"type": "object", "properties": {"id": {}, "word": STRING}, "required": ["id", "word"]},
    "$perhaps ?? 1": {},
    "$request.headers.host": STRING,
}


def test_the_answer_has_the_shape_of_the_response_mapping(document: Any) -> None:
    mapping = "\n".join(f"              field_{index}: {text}" for index, text in enumerate(ANSWERS))
    made = document(
        d=f"""
        endpoints:
          e:
            data_sources:
              - {{name: customer, type: customers, operation: one}}
              - {{name: customers, type: customers, operation: all}}
              - {{name: named, type: direct, params: {{id: $customer.id, word: w}}}}
              - {{name: perhaps, type: customers, operation: one, condition: $customer.id == 3}}
            response_mapping:
{mapping}
        """
    )
    answer = answer_of(made["paths"]["/orchestrator/d/e"]["get"])
    assert dict(zip(ANSWERS, answer["properties"].values(), strict=True)) == ANSWERS
    assert answer["required"] == list(answer["properties"])


def test_without_a_mapping_the_answer_has_the_shape_of_the_step_that_answers(document: Any) -> None:
    made = document(
        d="""
        endpoints:
          only: {data_sources: [{name: a, type: customers, operation: one}]}
          several: {data_sources: [{name: a, type: customers, operation: one}, {name: b, type: direct, default: 1}]}
        """
    )
    assert answer_of(made["paths"]["/orchestrator/d/only"]["get"]) == CUSTOMER
    assert answer_of(made["paths"]["/orchestrator/d/several"]["get"]) == {
        "type": "object",
        "properties": {"a": CUSTOMER, "b": {}},
    }


def test_an_output_schema_is_the_shape_of_the_answer(document: Any) -> None:
    made = document(d="endpoints: {e: {output_schema: {type: string}, response_mapping: pong}}")
    assert answer_of(made["paths"]["/orchestrator/d/e"]["get"]) == {"$ref": "#/components/schemas/d.e.output"}
    assert made["components"]["schemas"]["d.e.output"] == {"type": "string"}


def test_the_problem_schema_describes_the_problems_that_the_engine_writes(document: Any) -> None:
    validator = validator_at(document(), "components", "schemas", "Problem")
    errors = [{"pointer": "/x", "message": "is required"}]
    problem = Failure(422, "invalid request", "x is required", "step", errors).problem("1f", "/orchestrator/d/e")
    assert list(validator.iter_errors(problem)) == []
    known = document()["components"]["schemas"]["Problem"]["properties"]
    assert set(problem) == set(known)
    assert [validator.is_valid({key: value for key, value in problem.items() if key != name}) for name in known] == [
        name in ("instance", "step", "errors") for name in known
    ]
