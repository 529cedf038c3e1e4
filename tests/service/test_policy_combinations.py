"""Each kind of call with each of the policies that change how it is made: the result is that of a call without any."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import product
from typing import Any

from attrs import frozen

from orchestrator_core.plugin_api import JSON, SourceKind, hookimpl
from orchestrator_core.testing import service

RunFixture = Callable[..., Any]

CACHES = (
    "",
    "cache: {ttl: 1h}",
    "cache: {ttl: 1h, key: id}",
    "cache: {ttl: 1h, key: [k, id]}",
    'cache: {ttl: 1h, key: "$params.id"}',
    "cache: {ttl: 1ms, stale_if_error: 1h, stale_while_revalidate: 1h, key: KEY}",
)
OTHERS = (
    "",
    "retry: false, circuit_breaker: false",
    "concurrency: {max: 2, queue: 1}, timeout: 5s",
)


@frozen
class NoOptions:
    pass


class Fetching:
    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        await asyncio.sleep(0)
        return dict(params)


class Preparing(Fetching):
    def prepare(self, operation: str, names: Sequence[str]) -> Callable[..., Awaitable[JSON]]:
        async def call(*values: JSON) -> JSON:
            return await self.fetch(operation, dict(zip(names, values, strict=True)))

        return call


class PreparingMany(Preparing):
    def prepare_many(self, operation: str, names: Sequence[str]) -> Callable[..., Awaitable[Sequence[JSON]]]:
        async def call(rows: Sequence[Sequence[JSON]]) -> Sequence[JSON]:
            return [await self.fetch(operation, dict(zip(names, row, strict=True))) for row in rows]

        return call


class Sources:
    @hookimpl
    def orchestrator_source_kinds(self) -> list[SourceKind[Any]]:
        return [
            SourceKind(kind.__name__.lower(), "Returns its params.", NoOptions, opener(kind), idempotent=True)
            for kind in (Fetching, Preparing, PreparingMany)
        ]


def opener(kind: Callable[[], Any]) -> Any:
    @asynccontextmanager
    async def opened(options: Any, context: Any) -> AsyncIterator[Any]:
        yield kind()

    return opened


def test_policies_leave_the_result_of_every_kind_of_call_alone(run: RunFixture) -> None:
    items = [{"id": 1, "k": 1}, {"id": 2, "k": 0}, {"id": 1, "k": 1}, {"id": 4, "k": 0}]
    endpoints, sources = [], {}
    kinds = ("fetching", "preparing", "preparingmany")
    for number, (kind, each, cache, other) in enumerate(product(kinds, ("", "each"), CACHES, OTHERS)):
        value = "$item" if each else "$request.body[0]"
        own, key = ("", cache) if "$params" in cache else (cache.replace("KEY", f'"{value}.id"'), "")
        sources.setdefault(kind, []).append(f"    s{number}: {{{key}}}")
        step = [
            f"name: s, type: {kind}, source_id: s{number}, operation: get",
            f'params: {{id: "{value}.id", k: "{value}.k"}}',
            *(["for_each: $request.body"] if each else []),
            *filter(None, (own, other)),
        ]
        endpoints.append(f"  e{number}{each}: {{data_sources: [{{{', '.join(step)}}}]}}")
    files = {
        "integrations/all.yaml": "\n".join(f"{kind}:\n  sources:\n" + "\n".join(sources[kind]) for kind in kinds),
        "domains/d.yaml": "endpoints:\n" + "\n".join(endpoints),
    }

    async def main() -> None:
        async with service(files, plugins={"sources": Sources()}) as served:
            for endpoint in endpoints:
                name = endpoint.split(":")[0].strip()
                answers = [await served.post(f"/orchestrator/d/{name}", items) for _ in range(3)]
                expected = items if name.endswith("each") else items[0]
                assert [(answer.status, answer.json) for answer in answers] == [(200, expected)] * 3, endpoint

    run(main())
