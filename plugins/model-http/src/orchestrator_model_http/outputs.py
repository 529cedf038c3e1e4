"""From what a model server predicts for one row to the fields of the result, by the option ``outputs``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, TypeAlias

from orchestrator_core.plugin_api import JSON, SourceError, did_you_mean

Take: TypeAlias = int | str
"""A column of the prediction by its number, or an output by its name: ``1``, ``"label"``, ``"probabilities[1]"``."""

VALUE = "value"
MOST_NAMES = 20
"""Of a server's names so many are looked through and shown: it can send hundreds of thousands of them."""
_PLACE = re.compile(r"(?P<name>.+?)(?:\[(?P<index>\d+)\])?\Z")


def split_take(take: Take) -> tuple[str | None, int | None]:
    """Return the name and the number that a ``take`` says. Raises ``ValueError`` when it says neither."""
    if isinstance(take, int):
        if take < 0:
            raise ValueError(f"a column is counted from 0, not {take}")
        return None, take
    match = _PLACE.match(take)
    if match is None:
        raise ValueError("expected the number of a column, or the name of an output")
    return match["name"], None if match["index"] is None else int(match["index"])


def names_in(outputs: Mapping[str, Take]) -> tuple[str, ...]:
    """Return the outputs that are taken by name, each once."""
    names = (split_take(take)[0] for take in outputs.values())
    return tuple(dict.fromkeys(name for name in names if name is not None))


def result_of(outputs: Mapping[str, Take] | None) -> Callable[[JSON], JSON]:
    """Return what makes a row's result of the row's prediction.

    Without ``outputs`` a prediction that is an object is the result, and any other is its field ``value``. What the
    function returns raises ``SourceError`` for a prediction that has no such output.
    """
    if outputs is None:
        return lambda prediction: prediction if isinstance(prediction, dict) else {VALUE: prediction}
    takes = [(field, *split_take(take)) for field, take in outputs.items()]

    def result(prediction: JSON) -> JSON:
        return {field: _taken(prediction, name, index, field) for field, name, index in takes}

    return result


def _taken(prediction: Any, name: str | None, index: int | None, field: str) -> JSON:
    if name is not None:
        if not isinstance(prediction, dict):
            if name == VALUE:  # as it is called where nothing renames it
                prediction = {VALUE: prediction}
            else:
                raise SourceError(
                    f"outputs.{field}: the prediction has no names, so no '{name}'; give a column by number, or 'value'"
                )
        if name not in prediction:
            hint = did_you_mean(name, prediction) if len(prediction) <= MOST_NAMES else ""
            raise SourceError(f"outputs.{field}: the prediction has no '{name}'{f'; {hint}' if hint else ''}")
        prediction = prediction[name]
    elif isinstance(prediction, dict):
        if len(prediction) != 1:
            more = f", and {len(prediction) - MOST_NAMES} more" if len(prediction) > MOST_NAMES else ""
            names = f"{', '.join(islice(prediction, MOST_NAMES))}{more}"
            raise SourceError(f"outputs.{field}: the prediction has several outputs ({names}): give one by name")
        (prediction,) = prediction.values()
    if index is None:
        taken: JSON = prediction
        return taken
    if not isinstance(prediction, list):
        if index == 0 and name is None:
            only: JSON = prediction
            return only  # the one column of a model that predicts a number
        raise SourceError(f"outputs.{field}: the prediction is one value and has no column {index}")
    if index >= len(prediction):
        raise SourceError(f"outputs.{field}: the prediction has {len(prediction)} columns, and none is number {index}")
    element: JSON = prediction[index]
    return element
