"""A whole service: endpoints that read features, from the request to the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orchestrator_source_feast.plugin as feast_plugin
import pytest
from feast_kit import Made

from orchestrator_core.testing import run, service

FEAST = """
    feast:
      sources:
        default:
          repo_path: "{folder}"
          entity_key: customer_id
          operations:
            get_customer_features: {{features: ["customer:purchase_history", "customer:category_affinity"]}}
            get_features: {{features: ["customer:visits", "customer:tier"]}}
"""
# The data sources stand as in the description that the product was ordered with.
SHOP = """
    endpoints:
      recommend:
        description: "Generate recommendations using Feast features"
        endpoint_type: "composite"
        data_sources:
          - name: customer_features
            type: feast
            source_id: default
            operation: get_customer_features
            params:
              entity_id: "$request.path_params.entity_id"
              feature_refs:
                - "customer:purchase_history"
                - "customer:category_affinity"
          - name: behavior_features
            type: feast
            source_id: default
            operation: get_features
            params:
              entity_id: "$request.path_params.entity_id"
        response_mapping:
          customer_id: "$request.path_params.entity_id"
          purchase_history: "$customer_features.purchase_history"
          category_affinity: "$customer_features.category_affinity"
          visits: "$behavior_features.visits"
      by_default:
        data_sources:
          - name: features
            type: feast
            operation: undeclared
            params: {entity_id: "$request.path_params.entity_id", feature_refs: ["customer:tier"]}
            default: {tier: "none"}
        response_mapping: {tier: "$features.tier ?? 'null'"}
"""
PLUGINS = {"feast": feast_plugin}


def files(repo: Made) -> dict[str, str]:
    return {"integrations/feast.yaml": FEAST.format(folder=repo.folder), "domains/shop.yaml": SHOP}


def test_features_come_out_by_name_and_a_missing_entity_is_404(repo: Made) -> None:
    async def main() -> None:
        async with service(files(repo), plugins=PLUGINS) as shop:
            answer = await shop.get("/orchestrator/shop/recommend/1")
            assert (answer.status, answer.json) == (
                200,
                {"customer_id": "1", "purchase_history": [3, 1, 2], "category_affinity": 0.25, "visits": 12},
            )
            missing = await shop.get("/orchestrator/shop/recommend/99")
            assert missing.status == 404
            assert missing.json["step"] in ("customer_features", "behavior_features")
            assert (
                "there is no customer_id='99' in feature view 'customer' of the online store" in missing.json["detail"]
            )
            unfit = await shop.get("/orchestrator/shop/recommend/ada")
            assert unfit.status == 422
            assert (await shop.get("/orchestrator/shop/by_default/2")).json == {"tier": "null"}
            degraded = await shop.get("/orchestrator/shop/by_default/3")
            assert (degraded.status, degraded.json) == (200, {"tier": "none"})
            assert degraded.headers["X-Orchestrator-Degraded"] == "features"
            together = await asyncio.gather(*(shop.get("/orchestrator/shop/recommend/1") for _ in range(50)))
            assert {each.status for each in together} == {200}

    run(main())


@pytest.mark.parametrize("store", ["sqlite"])
def test_a_reload_leaves_the_source_as_it_is(store: str, made: Callable[[str], Made]) -> None:
    async def main() -> None:
        written: dict[str, Any] = files(made(store))
        async with service(written, plugins=PLUGINS) as shop:
            shop.write("domains/shop.yaml", written["domains/shop.yaml"].replace("visits: ", "count: "))
            assert (await shop.reload()).status == 200
            assert (await shop.get("/orchestrator/shop/recommend/1")).json["count"] == 12

    run(main())
