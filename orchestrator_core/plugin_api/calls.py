"""What runs for each request, and what is known of it before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
from attrs import field, frozen

from orchestrator_core.plugin_api.options import JSON


class Source(Protocol):
    """A configured backend. One instance serves all requests: ``fetch`` is called concurrently."""

    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        """Run the operation and return its result, which is shared and must not be changed afterwards.

        Raise :class:`EntityNotFound` (404) when what was asked for does not exist, :class:`InvalidParam` when a
        parameter has a value that the operation cannot take, :class:`SourceUnavailable` (503) when nothing was
        tried, and :class:`SourceError` (502) for anything that the backend did wrong. Any other exception is a
        defect and answers 500. When the request is given up the coroutine is cancelled: give connections back.
        """
        ...


class Model(Protocol):
    """A model ready to be called. ``predict`` is called concurrently."""

    async def predict(self, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
        """Score N rows of features and return N results in the same order.

        Each row is an object of feature name to value. Raise as :meth:`Source.fetch` does.
        """
        ...


def are_names(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    """Raise ``TypeError`` for a text where names are expected: each of its letters would be one."""
    if isinstance(value, str):
        raise TypeError(f"{attribute.name} is the text '{value}', expected names, such as ('{value}',)")


@frozen
class OperationFacts:
    """What is known about an operation before it runs; the plan is checked against it.

    ``required`` and ``optional`` are parameter names; ``optional=None`` means that any others are taken.
    ``fields`` are the names in the result, or ``None`` where they are not known; ``many`` says that the result is
    a list of such objects. ``inputs`` names the keys that an object parameter must have, such as
    ``{"features": ("income", "age")}``. ``degrades`` says that a result can be :class:`Degraded`.

    ``idempotent`` says that a second call does no harm, as for a read: then the core tries again after a failure that
    is :attr:`SourceError.transient`. False says that one may, as for a write: what a source's cache would keep of it is
    asked for each time; None leaves both to the configuration. ``in_process`` says that a call never leaves this
    process, so that nothing about its failures is transient. Both are taken from the ``facts`` of the kind: they have
    to be known before it is opened.
    """

    required: tuple[str, ...] = field(default=(), validator=are_names)
    optional: tuple[str, ...] | None = field(default=None, validator=are_names)
    fields: tuple[str, ...] | None = field(default=None, validator=are_names)
    many: bool = False
    inputs: Mapping[str, tuple[str, ...]] = field(factory=dict)
    degrades: bool = False
    idempotent: bool | None = None
    in_process: bool = False


@frozen
class Degraded:
    """The result of an operation that something lesser than the backend gave, such as a fallback.

    Returned in place of the result, by an operation whose :class:`OperationFacts` say ``degrades``: the step's result
    is ``result``, and the answer counts as degraded.
    """

    result: JSON


__all__ = ["Degraded", "Model", "OperationFacts", "Source"]
