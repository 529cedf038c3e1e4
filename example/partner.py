"""The example's partner: customers' contracts, and the scores of a credit bureau, over HTTP.

It is somebody else's service as far as the orchestrator knows. `python -m example` starts it; alone it is
`python -m example.partner --port 9001`. With `--delay 0.3` it takes 0.3 s for every answer, as partners do.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from aiohttp import web

from example.places import PARTNER
from example.serving import options, serve

PORT = 9001
TOKEN = "example-token"  # of the bureau; example/config/integrations/apis.yaml has the same


def create_app(database: Path, delay_seconds: float = 0.0) -> web.Application:
    """Return the partner's API over the file that the builder has made."""

    async def find(query: str, customer_id: str) -> sqlite3.Row:
        await asyncio.sleep(delay_seconds)
        row = _find(database, query, customer_id)
        if row is None:
            raise _refusal(web.HTTPNotFound, f"we have no customer {customer_id}")
        return row

    async def contract(request: web.Request) -> web.Response:
        query = "SELECT customer_id, tenure_months, monthly_charges FROM contracts WHERE customer_id = ?"
        row = await find(query, request.match_info["customer_id"])
        months, charges = row["tenure_months"], row["monthly_charges"]
        return web.json_response({"id": row["customer_id"], "contract": {"months": months, "monthly_charges": charges}})

    async def score(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _refusal(web.HTTPUnauthorized, "the bureau's scores need a token")
        row = await find("SELECT score FROM scores WHERE customer_id = ?", request.match_info["applicant_id"])
        return web.json_response({"score": row["score"], "scale": [300, 850]})

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app = web.Application()
    app.router.add_get("/customers/{customer_id}", contract)
    app.router.add_get("/scores/{applicant_id}", score)
    app.router.add_get("/health", health)
    return app


def _find(database: Path, query: str, customer_id: str) -> sqlite3.Row | None:
    if not customer_id.isdecimal():
        return None
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        row: sqlite3.Row | None = connection.execute(query, (customer_id,)).fetchone()
        return row


def _refusal(kind: type[web.HTTPException], reason: str) -> web.HTTPException:
    return kind(text=json.dumps({"detail": reason}), content_type="application/json")


def main(arguments: Sequence[str]) -> None:
    parser = options("example.partner", __doc__, PORT)
    parser.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="how long every answer takes")
    given = parser.parse_args(arguments)
    serve(create_app(given.data / PARTNER, given.delay), given)


if __name__ == "__main__":
    main(sys.argv[1:])
