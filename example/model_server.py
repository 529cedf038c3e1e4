"""The example's model server: credit, churn and recommendations, each an HTTP POST of one customer's features.

It knows nothing of the orchestrator, and the orchestrator nothing of its models. `python -m example` starts it; alone
it is `python -m example.model_server --port 9002`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from math import exp
from pathlib import Path
from typing import Any

from aiohttp import web

from example.credit import Features, Predict, Unfit, credit, number
from example.places import CHURN_MODEL, CREDIT_WEIGHTS, RECOMMENDER
from example.serving import options, serve

PORT = 9002
MOST_RECOMMENDED = 3


def churn(folder: Path) -> Predict:
    """Return the model that tells how likely a customer is to leave."""
    model = json.loads((folder / CHURN_MODEL).read_text())

    def predict(features: Features) -> dict[str, Any]:
        odds = model["intercept"]
        for name, weight in model["weights"].items():
            odds += weight * number(features, name)
        probability = round(1 / (1 + exp(-odds)), 4)
        level = next(word for word, bound in model["tiers"].items() if probability <= bound)
        return {"probability": probability, "risk_level": level}

    return predict


def recommender(folder: Path) -> Predict:
    """Return the model that knows what is bought together.

    A product's relevance is the mean share of those who bought it too, over what the customer has bought; in a category
    that the customer never buys it counts half.
    """
    model = json.loads((folder / RECOMMENDER).read_text())
    categories, also_bought = model["categories"], model["also_bought"]

    def predict(features: Features) -> dict[str, Any]:
        history, affinity = features.get("purchase_history"), features.get("category_affinity")
        if not isinstance(history, list) or not history:
            raise Unfit("feature 'purchase_history': expected a list of products that has one")
        if not isinstance(affinity, dict):
            raise Unfit("feature 'category_affinity': expected a number for each category")
        if unknown := [product for product in history if product not in also_bought]:
            raise Unfit(f"feature 'purchase_history': there is no product '{unknown[0]}'")
        relevance = {}
        for product, category in categories.items():
            if product not in history:
                shared = sum(also_bought[bought][product] for bought in history) / len(history)
                relevance[product] = round(shared * (1 + number(affinity, category)) / 2, 3)
        best = sorted(relevance, key=lambda product: (-relevance[product], product))[:MOST_RECOMMENDED]
        return {"recommended_products": best, "relevance_scores": [relevance[product] for product in best]}

    return predict


def create_app(folder: Path) -> web.Application:
    """Return the server of the models that the builder has written to the folder."""
    app = web.Application()
    app.router.add_post("/credit/predict", _handler(credit(folder / CREDIT_WEIGHTS)))
    app.router.add_post("/churn/predict", _handler(churn(folder)))
    app.router.add_post("/recommender/predict", _handler(recommender(folder)))

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app.router.add_get("/health", health)
    return app


def _handler(predict: Predict) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        try:
            features = await request.json()
        except ValueError as error:
            return web.json_response({"detail": f"the body is not JSON: {error}"}, status=400)
        try:
            return web.json_response(predict(features if isinstance(features, dict) else {}))
        except Unfit as unfit:
            return web.json_response({"detail": str(unfit)}, status=422)

    return handle


def main(arguments: Sequence[str]) -> None:
    given = options("example.model_server", __doc__, PORT).parse_args(arguments)
    serve(create_app(given.data), given)


if __name__ == "__main__":
    main(sys.argv[1:])
