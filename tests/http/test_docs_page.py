"""The ``/docs`` page, as a browser shows it."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import orjson
import pytest
from aiohttp import web
from attrs import frozen

from orchestrator_core.config.load import load_configuration
from orchestrator_core.direct import DIRECT
from orchestrator_core.http.docs import docs_asset
from orchestrator_core.http.openapi import openapi
from orchestrator_core.plugins import Plugin, Provided, Registry
from orchestrator_core.snapshot import draft

BROWSER_SECONDS = 60
STATIC = files("orchestrator_core.http") / "static"
ENDPOINT = """
description: Credit risk of customers.
endpoints:
  predict:
    description: Predict how likely a customer defaults.
    input_schema: {$defs: {id: {type: integer}}, properties: {entity_id: {$ref: "#/$defs/id"}, rebate: {type: number}}}
    response_mapping: {id: $request.path_params.entity_id, rebate: $request.rebate ?? 0}
"""


@asynccontextmanager
async def serve_page(folder: Path) -> AsyncIterator[str]:
    """Serve the page and the document of an endpoint, at ``/`` and at ``/behind/``; yield the origin."""
    (folder / "domains").mkdir()
    (folder / "domains" / "credit_risk.yaml").write_text(ENDPOINT)
    drafted = draft(
        load_configuration(folder), Registry(sources={"direct": Provided(DIRECT, Plugin("direct", "core"))})
    )
    document = orjson.dumps(openapi(drafted.configuration, drafted.plans))

    async def answer(request: web.BaseRequest) -> web.Response:
        path = request.path.removeprefix("/behind")
        if path == "/openapi.json":
            return web.Response(body=document, content_type="application/json")
        asset = docs_asset(path)
        if asset is None:
            return web.Response(status=404)
        return web.Response(body=asset.body, headers={**asset.headers, "Content-Type": asset.content_type})

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Text(HTMLParser):
    """The text of a page, without its scripts and styles, and its title."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.title = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title += data
        elif self._inside not in ("script", "style", "noscript"):
            self.words.append(data.replace("\N{ZERO WIDTH SPACE}", ""))

    def __contains__(self, text: str) -> bool:
        return text in "".join(self.words)


@frozen
class Visit:
    """What a browser showed, what the page asked for, and what the browser complained about."""

    page: Text
    asked: set[str]
    complaints: list[str]


async def browse(origin: str, path: str, folder: Path) -> Visit:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("there is no chromium on PATH: apt-get install chromium")
    network = folder / "network.json"
    process = await asyncio.create_subprocess_exec(
        browser,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", "--enable-logging=stderr"),
        "--proxy-server=http://127.0.0.1:9",  # nobody listens there: nothing leaves loopback, whoever asks for it
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={network}",
        "--virtual-time-budget=15000",
        "--dump-dom",
        f"{origin}{path}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(BROWSER_SECONDS):
            html, log = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    complaints = re.findall(r"CONSOLE[^\n]*?(\"[^\n]*(?:Refused|Security Policy|Error)[^\n]*)", log.decode())
    return Visit(Text(html.decode()), asked_by_page(network, origin), complaints)


def asked_by_page(network: Path, origin: str) -> set[str]:
    """Return the URLs that the page asked for, without their queries. The browser's own requests have no initiator."""
    log = orjson.loads(network.read_bytes())
    start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    requests = [event["params"] for event in log["events"] if event["type"] == start and "params" in event]
    return {request["url"].partition("?")[0] for request in requests if request.get("initiator") == origin}


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/behind/docs"])
def test_a_browser_shows_the_endpoints_and_asks_nobody_else(tmp_path: Path, path: str) -> None:
    """Also with a slash at the end, and behind a proxy that puts a prefix before each path."""

    async def check() -> None:
        async with serve_page(tmp_path) as origin:
            visit = await browse(origin, path, tmp_path)
        assert visit.page.title.strip() == "Orchestrator API"
        assert "/orchestrator/credit_risk/predict/{entity_id}" in visit.page
        assert "Predict how likely a customer defaults." in visit.page
        assert "Credit risk of customers." in visit.page
        assert visit.complaints == []
        base = origin + ("/behind" if path.startswith("/behind") else "")
        assert visit.asked - {f"{base}/docs/favicon-32x32.png"} == {
            f"{base}/docs/docs.js",
            f"{base}/docs/swagger-ui-bundle.js",
            f"{base}/docs/swagger-ui.css",
            f"{base}/openapi.json",
        }

    asyncio.run(check())


def test_a_deep_link_opens_the_operation_with_its_references_followed(tmp_path: Path) -> None:
    async def check() -> None:
        async with serve_page(tmp_path) as origin:
            visit = await browse(origin, "/docs#/credit_risk/credit_risk__predict__get", tmp_path)
        assert "Try it out" in visit.page
        assert "integer" in visit.page
        assert "rebate" in visit.page
        assert "application/problem+json" in visit.page
        assert "Could not resolve" not in visit.page
        assert visit.complaints == []

    asyncio.run(check())


def test_the_page_forbids_scripts_of_others_and_its_own_inline_ones() -> None:
    page = docs_asset("/docs")
    assert page is not None
    assert page.content_type == "text/html; charset=utf-8"
    assert page.headers == {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "ETag": page.headers["ETag"],
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    assert re.fullmatch(r'"[0-9a-f]{16}"', page.headers["ETag"])
    assert re.findall(rb"<script(?![^>]* src=)", page.body) == []


def test_files_are_named_by_their_content_and_cached_for_ever() -> None:
    page, style = docs_asset("/docs"), docs_asset("/docs/swagger-ui.css")
    assert page is not None
    assert style is not None
    assert style.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert style.content_type == "text/css; charset=utf-8"
    assert len(set(re.findall(rb'="docs/[^"?]+\?([0-9a-f]{16})"', page.body))) == 1
    assert docs_asset("/docs/swagger-ui.css") is style


@pytest.mark.parametrize("path", ["/", "/docs/index.html", "/docs/../docs.py", "/docs/README.md", "/docs/docs.js/"])
def test_nothing_else_is_served(path: str) -> None:
    assert docs_asset(path) is None


def test_the_vendored_files_come_with_their_licence_and_version() -> None:
    vendored = STATIC / "swagger-ui"
    assert sorted(file.name for file in vendored.iterdir()) == [
        "LICENSE",
        "NOTICE",
        "README.md",
        "favicon-32x32.png",
        "swagger-ui-bundle.js",
        "swagger-ui-bundle.js.LICENSE.txt",
        "swagger-ui.css",
    ]
    version = re.search(r"`swagger-ui-dist` (5\.[0-9]+\.[0-9]+)", (vendored / "README.md").read_text())
    assert version
    assert f'"{version[1]}"' in (vendored / "swagger-ui-bundle.js").read_text(encoding="utf-8")
    assert "Apache License" in (vendored / "LICENSE").read_text()
