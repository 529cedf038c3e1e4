"""The built-in ``direct`` source type: its one operation returns its params.

It gives a name to a value that several later steps or the answer need::

    - {name: limits, type: direct, params: {max_amount: "$applicant.income * 4"}}
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from attrs import frozen

from orchestrator_core.plugin_api import JSON, OpenContext, SourceKind, hookimpl


@frozen
class DirectOptions:
    """There is nothing to configure."""


class DirectSource:
    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        return params

    def prepare(self, operation: str, param_names: Sequence[str]) -> Callable[..., Awaitable[JSON]]:
        names = tuple(param_names)

        async def assemble(*values: JSON) -> JSON:
            return dict(zip(names, values, strict=True))

        return assemble

    def prepare_many(
        self, operation: str, param_names: Sequence[str]
    ) -> Callable[[Sequence[Sequence[JSON]]], Awaitable[Sequence[JSON]]]:
        names = tuple(param_names)

        async def assemble(items: Sequence[Sequence[JSON]]) -> Sequence[JSON]:
            return [dict(zip(names, values, strict=True)) for values in items]

        return assemble


@asynccontextmanager
async def open_direct(options: DirectOptions, context: OpenContext) -> AsyncIterator[DirectSource]:
    yield DirectSource()


DIRECT = SourceKind(
    name="direct",
    summary="Returns its params, to name a value.",
    options=DirectOptions,
    open=open_direct,
    in_process=True,
)


class DirectPlugin:
    """The built-in plugin of the ``direct`` source type."""

    @hookimpl
    def orchestrator_source_kinds(self) -> Iterable[SourceKind[Any]]:
        return [DIRECT]
