"""Transformers in a running service: on a step's result and on an answer."""

from __future__ import annotations

from typing import Any

DOMAIN = """
    endpoints:
      score:
        data_sources:
          - name: customer
            type: direct
            params: {income: "$request.body.income", debt: "$request.body.debt", ssn: "078-05-1120"}
            transform:
              - drop: [ssn]
              - compute: {ratio: "$value.debt / $value.income"}
          - name: features
            type: direct
            params: {income: "$customer.income", ratio: "$customer.ratio"}
            transform:
              - scale: {income: {min: 0, max: 200000}}
        response_mapping: {features: "$features", customer: {debt: "$customer.debt"}}
        transform:
          - flatten
          - round: 3
      tolerant:
        data_sources:
          - name: customer
            type: direct
            params: {age: "$request.body.age"}
            default: {age: 0}
            transform:
              - cast: {age: integer}
        response_mapping: {age: "$customer.age"}
"""


def test_results_and_answers_are_transformed(serve: Any) -> None:
    answer = serve({"domains/credit.yaml": DOMAIN}).post(
        "/orchestrator/credit/score", {"income": 52000, "debt": 13333.33}
    )
    assert (answer.status, answer.json) == (
        200,
        {"features_income": 0.26, "features_ratio": 0.256, "customer_debt": 13333.33},
    )


PARAMS = """
    endpoints:
      batch:
        data_sources:
          - name: scored
            type: direct
            params: {rows: "$request.body.rows", one: "$request.body.one", untouched: "$request.body.one"}
            transform:
              params:
                rows: [{default: {plan: basic}}, {one_hot: {plan: {values: [basic, plus]}}}]
                one: [{select: [income]}, {scale: {income: {min: 0, max: 200000}}}]
              result: [{compute: {count: "$value.rows == null ? 0 : len($value.rows)"}}]
        response_mapping: "$scored"
"""


def test_parameters_are_transformed_before_the_call_and_a_list_row_by_row(serve: Any) -> None:
    body = {"rows": [{"plan": "plus"}, {}, None], "one": {"income": 52000, "name": "Ada"}}
    batch = serve({"domains/credit.yaml": PARAMS})
    answer = batch.post("/orchestrator/credit/batch", body)
    assert (answer.status, answer.json) == (
        200,
        {
            "rows": [{"plan_basic": 0, "plan_plus": 1}, {"plan_basic": 1, "plan_plus": 0}, None],
            "one": {"income": 0.26},
            "untouched": {"income": 52000, "name": "Ada"},
            "count": 3,
        },
    )
    unfit = batch.post("/orchestrator/credit/batch", {**body, "rows": [{}, {"plan": "gold"}]})
    assert (unfit.status, unfit.json["step"], unfit.json["detail"]) == (
        422,
        "scored",
        "step 'scored': one_hot: row 1: field 'plan': got a string that is none of the values (basic, plus)",
    )


def test_a_failed_transformer_is_a_bad_gateway_that_names_the_step_and_the_field(serve: Any) -> None:
    credit = serve({"domains/credit.yaml": DOMAIN})
    answer = credit.post("/orchestrator/credit/score", {"income": 0, "debt": 1})
    assert (answer.status, answer.json["step"]) == (502, "customer")
    assert answer.json["detail"] == "step 'customer': compute: field 'ratio': '/' by zero"
    (record,) = credit.executions()
    assert [(step["name"], step["status"]) for step in record["steps"]] == [
        ("customer", "failed"),
        ("features", "cancelled"),
    ]


def test_the_default_of_a_step_stands_in_for_a_result_that_cannot_be_transformed(serve: Any) -> None:
    answer = serve({"domains/credit.yaml": DOMAIN}).post("/orchestrator/credit/tolerant", {"age": "unknown"})
    assert (answer.status, answer.json, answer.headers["X-Orchestrator-Degraded"]) == (200, {"age": 0}, "customer")
