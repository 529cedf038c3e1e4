"""A model that is one function on arrays, and what any model's predictions look like when they are tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from attrs import AttrsInstance, evolve, frozen

from orchestrator_model_artifact.features import Array, Column, Row
from orchestrator_model_artifact.fields import Head

Bound = Callable[[Sequence[Row]], "list[Array]"]


class NativeModel(AttrsInstance, Protocol):
    """A model with its features, in its order, and what it predicts."""

    @property
    def columns(self) -> tuple[Column, ...]: ...

    @property
    def heads(self) -> tuple[Head, ...]: ...

    def bind(self, heads: Sequence[Head]) -> Bound:
        """Return the function from rows to the arrays of these heads."""
        ...


@frozen
class ArrayModel:
    """A model that is one function from a matrix of numbers to an array for each of ``heads``."""

    columns: tuple[Column, ...]
    heads: tuple[Head, ...]
    gather: Callable[[Sequence[Row]], Any]
    predict: Callable[[Any], Sequence[Array]]

    def bind(self, heads: Sequence[Head]) -> Callable[[Sequence[Row]], list[Array]]:
        """Return the function from rows to the arrays of these heads."""
        gather, predict = self.gather, self.predict
        names = [head.name for head in self.heads]
        wanted = [names.index(head.name) for head in heads]

        def arrays(rows: Sequence[Row]) -> list[Array]:
            found = predict(gather(rows))
            return [found[index] for index in wanted]

        return arrays


M = TypeVar("M", bound=NativeModel)


def probed(model: M, sample: Sequence[Row]) -> M:
    """Return the model with the width of what it predicts, seen on a row; unchanged where the row does not fit it."""
    try:
        arrays = model.bind(model.heads)(sample[:1])
    except BaseException:  # a made-up row may hold a category that the model has never seen
        return model
    widths = [array.shape[1] if array.ndim > 1 else None for array in arrays]
    heads = tuple(evolve(head, width=width) for head, width in zip(model.heads, widths, strict=True))
    return evolve(model, heads=heads)  # type: ignore[misc]  # mypy knows attrs classes, and not what is bound to one
