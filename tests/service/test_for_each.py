"""Steps with ``for_each`` over HTTP: answers, headers, problems, records, and what the documents say of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from orchestrator_core.errors import EntityNotFound, SourceError
from orchestrator_core.testing.pytest_plugin import Served
from tests.engine.lab import Lab

Serve = Callable[..., Served]
FILES = {
    "domains/shop.yaml": """
        endpoints:
          prices:
            data_sources:
              - name: price
                type: lab
                operation: price
                for_each: "$request.body.items"
                max_concurrency: 3
                params: {sku: "$item.sku", count: "$item.count ?? 1", place: "$index", shop: "$request.body.shop"}
            response_mapping: {prices: "$price"}
          tolerant:
            data_sources:
              - name: price
                type: lab
                operation: price
                for_each: "$request.body.items"
                params: {sku: "$item.sku"}
                default: {price: 0}
          listed:
            data_sources:
              - {name: customer, type: lab, operation: customer, params: {id: "$request.path_params.id"}}
              - {name: order, type: lab, operation: price, for_each: "$customer.orders", params: {sku: "$item"}}
              - {name: name, type: direct, for_each: [first, second], params: {is: "$item"}}
            response_mapping: {orders: "$order", names: "$name"}
          direct:
            data_sources:
              - {name: pair, type: direct, for_each: "$request.body.items", params: {sku: "$item.sku", at: "$index"}}
    """,
}
PRICES = {"a": 1.5, "b": 20}


async def price(params: Mapping[str, Any]) -> Any:
    await asyncio.sleep(0)
    if params["sku"] == "down":
        raise SourceError("the price list is down")
    if params["sku"] not in PRICES:
        raise EntityNotFound(f"no price for {params['sku']}")
    return {"price": PRICES[params["sku"]], **params}


async def customer(params: Mapping[str, Any]) -> Any:
    return {"orders": {"1": ["b", "a", "b"], "2": None, "3": ["a", "x"]}[params["id"]]}


@pytest.fixture
def shop(serve: Serve) -> Served:
    return serve(FILES, plugins={"lab": Lab({"price": price, "customer": customer})})


def test_the_answer_has_a_result_for_each_item_in_order(shop: Served) -> None:
    items = [{"sku": "b", "count": 2}, {"sku": "a"}, {"sku": "b"}]
    answer = shop.post("/orchestrator/shop/prices", {"items": items, "shop": "x"})
    assert (answer.status, answer.json) == (
        200,
        {
            "prices": [
                {"price": 20, "sku": "b", "count": 2, "place": 0, "shop": "x"},
                {"price": 1.5, "sku": "a", "count": 1, "place": 1, "shop": "x"},
                {"price": 20, "sku": "b", "count": 1, "place": 2, "shop": "x"},
            ]
        },
    )
    assert "X-Orchestrator-Degraded" not in answer.headers
    assert answer.headers["Server-Timing"].startswith("price;dur=")


def test_a_failed_item_is_a_problem_that_names_step_and_item(shop: Served) -> None:
    for sku, status, detail in [
        ("x", 404, "step 'price', item 1: no price for x"),
        ("down", 502, "step 'price', item 1: the price list is down"),
    ]:
        answer = shop.post("/orchestrator/shop/prices", {"items": [{"sku": "a"}, {"sku": sku}], "shop": "x"})
        assert (answer.status, answer.json["detail"], answer.json["step"]) == (status, detail, "price")


def test_a_failed_item_with_a_default_degrades_the_answer(shop: Served) -> None:
    answer = shop.post("/orchestrator/shop/tolerant", {"items": [{"sku": "x"}, {"sku": "a"}, {"sku": "down"}, {}]})
    assert answer.status == 200
    assert answer.json == [{"price": 0}, {"price": 1.5, "sku": "a"}, {"price": 0}, {"price": 0}]
    assert answer.headers["X-Orchestrator-Degraded"] == "price"
    execution = shop.executions()[0]
    (step,) = execution["steps"]
    assert (execution["status"], execution["degraded"]) == ("degraded", ["price"])
    assert {key: step[key] for key in ("status", "items", "items_failed")} == {
        "status": "default",
        "items": 4,
        "items_failed": 3,
    }


@pytest.mark.parametrize(
    ("body", "pointer", "message", "detail"),
    [
        (
            {"items": {"a": 1}},
            "/body/items",
            "must be a list",
            "step 'price': for_each takes a list, but $request.body.items is an object",
        ),
        (
            {"items": None},
            "/body/items",
            "must be a list",
            "step 'price': for_each takes a list, but $request.body.items is null",
        ),
        (
            {},
            "/body/items",
            "is required",
            "$request.body.items is missing: $request.body has no field 'items' (it has: nothing)",
        ),
        (
            {"items": [{"sku": "a"}, {"count": 2}], "shop": "x"},
            "/body/items/1/sku",
            "is required",
            (
                "step 'price', item 1: $request.body.items[1].sku is missing: "
                "$request.body.items[1] has no field 'sku' (it has: count)"
            ),
        ),
    ],
)
def test_what_the_caller_has_to_mend_is_422_with_a_pointer(
    shop: Served, body: Any, pointer: str, message: str, detail: str
) -> None:
    answer = shop.post("/orchestrator/shop/prices", body)
    assert (answer.status, answer.json["detail"]) == (422, detail)
    assert answer.json["errors"] == [{"pointer": pointer, "message": message}]


def test_a_list_of_another_step_and_a_constant_one(shop: Served) -> None:
    answer = shop.get("/orchestrator/shop/listed/1")
    assert answer.json == {
        "orders": [{"price": PRICES[sku], "sku": sku} for sku in ("b", "a", "b")],
        "names": [{"is": "first"}, {"is": "second"}],
    }
    answer = shop.get("/orchestrator/shop/listed/2")
    assert (answer.status, answer.json["detail"]) == (
        502,
        "step 'order': for_each takes a list, but $customer.orders is null",
    )
    answer = shop.get("/orchestrator/shop/listed/3")
    assert (answer.status, answer.json["detail"]) == (404, "step 'order', item 1: no price for x")


def test_open_api_describes_the_items(shop: Served) -> None:
    paths = shop.get("/openapi.json").json["paths"]
    body = paths["/orchestrator/shop/prices"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "items": {"type": "object", "properties": {"sku": {}, "count": {}}, "required": ["sku"]},
            },
            "shop": {},
        },
        "required": ["items"],
    }
    answer = paths["/orchestrator/shop/direct"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer == {
        "type": "array",
        "items": {"type": "object", "properties": {"sku": {}, "at": {}}, "required": ["sku", "at"]},
    }
