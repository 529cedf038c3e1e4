"""The protocol ``json``: features are posted as they are, and the answer is the prediction."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

from orchestrator_core.plugin_api import JSON
from orchestrator_model_http.exchange import Exchange


class JsonProtocol:
    """Rows to requests and answers to results."""

    def __init__(self, exchange: Exchange, rows: Literal["one", "list"]) -> None:
        self._exchange = exchange
        self.predict = self._predict_list if rows == "list" else self._predict_each

    async def _predict_each(self, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
        if len(rows) == 1:
            return [await self._exchange(rows[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._exchange(row)) for row in rows]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the other requests were cancelled, or failed at the same moment
        return [task.result() for task in tasks]

    async def _predict_list(self, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
        results = await self._exchange(rows)
        if isinstance(results, list) and len(results) == len(rows):
            return results
        wanted = "1 result" if len(rows) == 1 else f"{len(rows)} results"
        raise self._exchange.unfit(f"a list of {wanted}", results)
