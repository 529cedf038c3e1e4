"""A whole service from a dictionary of configuration files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent
from typing import Any, NamedTuple

import aiohttp
import orjson
from attrs import frozen
from multidict import CIMultiDictProxy
from yarl import URL

from orchestrator_core.errors import Problem
from orchestrator_core.http.app import Service, run_service
from orchestrator_core.reload import check

Plugins = Mapping[str, object]
"""Plugins by name: the source of a single-file plugin, or a module or object with hooks."""


class Answer(NamedTuple):
    """An answer. ``json`` is its body: parsed where it is JSON, else its text; an empty body is ``None``."""

    status: int
    headers: CIMultiDictProxy[str]
    json: Any


@frozen
class RunningService:
    """A service that runs in this process, and a client of it. ``running`` is what serves."""

    folder: Path
    running: Service
    _client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return self.running.url

    @property
    def admin_url(self) -> str:
        return self.running.admin_url

    async def request(
        self,
        method: str,
        target: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request to the public listener; ``target`` is sent as it is, percent-encoding included.

        ``json`` is sent as a JSON body; ``body`` as it is, as ``application/json`` unless ``headers`` say otherwise.
        """
        return await self._request(self.url, method, target, json=json, body=body, headers=headers)

    async def get(self, target: str, *, headers: Mapping[str, str] | None = None) -> Answer:
        return await self.request("GET", target, headers=headers)

    async def post(self, target: str, json: Any = None, *, headers: Mapping[str, str] | None = None) -> Answer:
        return await self.request("POST", target, json=json, headers=headers)

    async def admin(self, method: str, target: str) -> Answer:
        """Send a request to the admin listener."""
        return await self._request(self.admin_url, method, target)

    async def executions(self, **filters: str) -> list[dict[str, Any]]:
        """Return the latest executions, the newest first, as ``GET /executions`` shows them."""
        answer = await self.admin("GET", str(URL("/executions").with_query(filters)))
        found: list[dict[str, Any]] = answer.json["executions"]
        return found

    def write(self, name: str, text: str) -> None:
        """Write a file of the configuration folder. Nothing is reloaded unless the service watches."""
        write_files(self.folder, {name: text})

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()

    async def reload(self) -> Answer:
        """Reload the folder: 200 when the new configuration serves, 422 with its problems when the old one does."""
        return await self.admin("POST", "/reload")

    async def _request(
        self,
        base: str,
        method: str,
        target: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        if json is not None:
            body = orjson.dumps(json)
        if body is not None and not any(name.lower() == "content-type" for name in sent):
            sent["Content-Type"] = "application/json"
        url = URL(base + target, encoded=True)
        async with self._client.request(method, url, data=body, headers=sent, allow_redirects=False) as response:
            raw = await response.read()
            is_json = response.content_type == "application/json" or response.content_type.endswith("+json")
            content = None if not raw else orjson.loads(raw) if is_json else raw.decode("utf-8", "replace")
            return Answer(response.status, response.headers, content)


@asynccontextmanager
async def service(
    files: Mapping[str, str],
    *,
    plugins: Plugins | None = None,
    folder: Path | None = None,
    watch: bool = False,
) -> AsyncIterator[RunningService]:
    """Serve a configuration on free ports until the block is left.

    ``files`` maps names such as ``domains/shop.yaml`` to their text, which is dedented. Installed plugins are there;
    ``plugins`` adds others. The folder is a temporary one unless ``folder`` is given. Raises :class:`ConfigError`
    with every problem of the configuration.

    >>> async with service({"domains/shop.yaml": '''
    ...     endpoints:
    ...       hello: {response_mapping: {text: "hello {{ $request.name }}"}}
    ... '''}) as shop:
    ...     status, headers, json = await shop.get("/orchestrator/shop/hello?name=Ada")
    """
    with TemporaryDirectory(prefix="orchestrator-") as temporary:
        config = folder or Path(temporary) / "config"
        plugins_dir, objects = _plugins(Path(temporary) / "plugins", plugins or {})
        write_files(config, files)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client,
            run_service(config, port=0, admin_port=0, plugins_dir=plugins_dir, plugins=objects, watch=watch) as running,
        ):
            yield RunningService(config, running, client)


def check_problems(files: Mapping[str, str], *, plugins: Plugins | None = None, offline: bool = False) -> list[Problem]:
    """Return every problem of a configuration, sorted, as ``orchestrator check`` does. Not for a running event loop.

    >>> [str(problem) for problem in check_problems({"config.yaml": "server: {prot: 8000}"})]
    """
    with TemporaryDirectory(prefix="orchestrator-") as temporary:
        config = Path(temporary) / "config"
        plugins_dir, objects = _plugins(Path(temporary) / "plugins", plugins or {})
        write_files(config, files)
        with asyncio.Runner() as runner:
            _, problems = runner.run(check(config, plugins_dir, offline=offline, plugins=objects))
        return sorted(problems)


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write each text, dedented, to its name below the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")


def _plugins(folder: Path, plugins: Plugins) -> tuple[Path | None, dict[str, object]]:
    """Write the plugins that are source text; return their folder, if there are any, and the other plugins."""
    sources = {f"{name}.py": source for name, source in plugins.items() if isinstance(source, str)}
    if sources:
        write_files(folder, sources)
    objects = {name: plugin for name, plugin in plugins.items() if not isinstance(plugin, str)}
    return (folder if sources else None), objects
