"""The protocol ``mlflow``: what ``mlflow models serve`` and MLflow's images speak.

``POST /invocations`` with ``{"dataframe_split": {"columns": [...], "data": [[...], ...]}}`` answers
``{"predictions": [...]}``; see "Deploy MLflow Model as a Local Inference Server" in MLflow's documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from orchestrator_core.plugin_api import JSON, InvalidParam
from orchestrator_model_http.exchange import Exchange

FEATURES = "features"


class MlflowProtocol:
    """Rows to a data frame, predictions to results."""

    def __init__(self, exchange: Exchange, result: Callable[[JSON], JSON]) -> None:
        self._exchange = exchange
        self._result = result

    async def predict(self, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
        columns = list(rows[0])
        data = [[row[name] for name in columns] if row.keys() == rows[0].keys() else _unlike(row, rows) for row in rows]
        answer = await self._exchange({"dataframe_split": {"columns": columns, "data": data}})
        predictions = answer.get("predictions") if isinstance(answer, dict) else None
        if isinstance(predictions, dict):
            predictions = _rows_of(predictions)
        if not isinstance(predictions, list) or len(predictions) != len(rows):
            got = predictions if isinstance(answer, dict) and "predictions" in answer else answer
            raise self._exchange.unfit(f"{{'predictions': a list of {len(rows)}}}", got)
        return [self._result(prediction) for prediction in predictions]


def _unlike(row: Mapping[str, JSON], rows: Sequence[Mapping[str, JSON]]) -> list[JSON]:
    first = rows[0].keys()
    if missing := [name for name in first if name not in row]:
        raise InvalidParam(FEATURES, f"feature '{missing[0]}' is missing in one of the rows, and there in another")
    extra = next(name for name in row if name not in first)
    raise InvalidParam(FEATURES, f"feature '{extra}' is there in one of the rows, and missing in another")


def _rows_of(columns: Mapping[str, JSON]) -> JSON:
    """Return the predictions of a model that answers with named columns, row by row."""
    lists = [column for column in columns.values() if isinstance(column, list)]
    if len(lists) != len(columns) or len({len(column) for column in lists}) != 1:
        return dict(columns)
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
