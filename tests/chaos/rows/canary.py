"""A secret in every place that one can stand in, and a search for it in everything that the service says.

Each place has a value of its own, so that one that is found tells which. The sources repeat what they were sent in
their errors, as careless partners do.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import quote

from aiohttp import web
from attrs import frozen

from tests.bench.process import ROOT
from tests.chaos.outcome import Finding, Row, Setting
from tests.chaos.stage import Stage, stage

COMMAND_SECONDS = 60.0
AWKWARD = ("header_quoted", "database_quoted", "basic_quoted", "tells_quoted")

CONFIG = """
logging: {{level: debug, format: {log_format}, requests: true}}
tracking:
  capture: full
  redact: [request.body.secret, "request.query_params.secret"]
  store: {{type: sql, url: "postgresql://postgres:${{env:CANARY_TRACKING}}@{{database_at}}"}}
cache: {{url: "redis://:${{env:CANARY_CACHE}}@127.0.0.1:6379/0"}}
telemetry:
  traces:
    endpoint: "{echo}/v1/traces"
    headers: {{Authorization: "Bearer ${{env:CANARY_TELEMETRY}}"}}
    interval: 200ms
"""
SOURCES = """\
database:
  sources:
    canary: {{connection_string: "postgresql://postgres:${{env:DATABASE}}@{host}/{name}"}}
    literal: {{connection_string: "postgresql://postgres:{literal}@{host}/{name}"}}
    quoted: {{connection_string: "postgresql://postgres:${{env:DATABASE_QUOTED}}@127.0.0.1:1/none"}}
    gone: {{connection_string: "postgresql://postgres:${{env:DATABASE_GONE}}@127.0.0.1:1/none", connect_timeout: 300ms}}
  operations:
    one: {{query: "SELECT 1 AS one"}}
    fails: {{query: "SELECT 1 / CAST(:number AS integer) AS one", params: {{number: integer}}}}
api:
  sources:
    header: {{base_url: "{echo}", headers: {{X-Api-Key: "${{env:HEADER}}", Cookie: "a=${{file:secrets/cookie}}"}}}}
    quoted: {{base_url: "{echo}", headers: {{X-Api-Key: "${{env:HEADER_QUOTED}}"}}}}
    bearer: {{base_url: "{echo}", auth: {{bearer: "${{file:secrets/bearer}}"}}}}
    basic: {{base_url: "{echo}", auth: {{basic: {{username: ada, password: "${{env:BASIC}}"}}}}}}
    basic_quoted: {{base_url: "{echo}", auth: {{basic: {{username: ada, password: "${{env:BASIC_QUOTED}}"}}}}}}
    in_url: {{base_url: "{echo_with_user}"}}
    token_url: {{base_url: "{echo_with_token}"}}
    whole_url: {{base_url: "${{env:WHOLE_URL}}"}}
    query: {{base_url: "{echo}", query: {{api_key: "${{env:QUERY}}"}}}}
    proxy: {{base_url: "http://partner.test", proxy: "http://ada:${{env:PROXY}}@127.0.0.1:1"}}
    oauth2:
      base_url: "{echo}"
      auth: {{oauth2: {{token_url: "{echo}/500", client_id: ada, client_secret: "${{env:OAUTH2}}", client_auth: body}}}}
    literal: {{base_url: "{echo}", auth: {{bearer: "{literal_bearer}"}}}}
  operations:
    get: {{path: "/{{status}}"}}
tells:
  sources:
    default: {{key: "${{env:TELLS}}"}}
    quoted: {{key: "${{env:TELLS_QUOTED}}"}}
ml:
  sources:
    scores:
      base_url: "{echo}"
      models:
        default: {{endpoint: "/500?key=${{env:MODEL}}"}}
    started:
      source:
        type: artifact
        preload: false
        startup_command: "sh -c 'echo the key is ${{env:COMMAND}} >&2; exit 3'"
        port: {port}
"""
SCOPED = """\
api:
  sources:
    scoped: {{base_url: "{echo}", headers: {{X-Api-Key: "${{env:SCOPED}}"}}}}
database:
  sources:
    scoped: {{connection_string: "postgresql://postgres:${{env:SCOPED_DATABASE}}@{host}/{name}"}}
"""
TELLS = """
import base64, html, json, logging
from contextlib import asynccontextmanager
from urllib.parse import quote
import structlog
from attrs import frozen
from orchestrator_core.plugin_api import SourceError, SourceKind, hookimpl, option

@frozen
class Options:
    key: str = option(help="What it tells everybody.")

def told(key):
    escaped, percent = json.dumps({"said": json.dumps(key)}), quote(key, safe="")
    ways = [key, repr(key), ascii(key), escaped, html.escape(key), percent, percent.lower(), quote(percent)]
    return [*ways, key.encode(), *(base64.b64encode(f"{user}{key}".encode()).decode() for user in ("", "u:", "it"))]

class Tells:
    def __init__(self, key):
        self.key = key

    async def fetch(self, operation, params):
        if operation == "defect":
            raise RuntimeError(f"{told(self.key)}")
        raise SourceError(f"the partner says {told(self.key)}", transient=operation == "again")

@asynccontextmanager
async def opened(options, context):
    logging.getLogger("partner").warning("opened with %s", told(options.key))
    structlog.get_logger("partner").warning("opened", told=told(options.key))
    if options.key.startswith("late"):
        raise SourceError(f"not with {told(options.key)}")
    yield Tells(options.key)

@hookimpl
def orchestrator_source_kinds():
    return [SourceKind("tells", "Tells its key.", Options, opened)]
"""
STEP = "{{name: step, type: {type}, source_id: {source}, operation: {operation}, params: {{{params}}}{more}}}"
APIS = (
    *("header", "quoted", "bearer", "basic", "basic_quoted", "in_url", "token_url", "whole_url", "query", "proxy"),
    *("oauth2", "literal", "scoped"),
)
ENVIRONMENT = (
    *("DATABASE", "DATABASE_GONE", "DATABASE_QUOTED", "HEADER", "HEADER_QUOTED", "BASIC", "BASIC_QUOTED", "QUERY"),
    *("PROXY", "OAUTH2", "MODEL", "COMMAND", "IN_URL", "TOKEN_URL", "WHOLE_URL", "TRACKING", "CACHE", "TELEMETRY"),
    *("SCOPED", "SCOPED_DATABASE", "TELLS", "TELLS_QUOTED"),
)


@frozen
class Canaries:
    """The secrets by their place. ``marks`` are what is looked for: the part that every way of writing leaves alone."""

    values: Mapping[str, str]
    marks: Mapping[str, tuple[str, ...]]

    def found_in(self, text: str) -> list[str]:
        text += " ".join(_decoded(run[0]) for run in _CODED.finditer(text))
        return sorted(place for place, marks in self.marks.items() if any(mark in text for mark in marks))


_CODED = re.compile(r"[A-Za-z0-9+/_-]{24,}")


def _decoded(run: str) -> str:
    """Return what base64 holds, wherever in the text that it was made of it begins."""
    text = run.replace("-", "+").replace("_", "/")
    pieces = (text[start : start + (len(text) - start) // 4 * 4] for start in range(4))
    return " ".join(base64.b64decode(piece).decode("latin-1") for piece in pieces)


def make_canaries() -> Canaries:
    values, marks = {}, {}
    files = ("cookie", "bearer_file", "late", "literal", "literal_bearer")
    for place in (*(name.lower() for name in ENVIRONMENT), *files):
        mark = secrets.token_hex(12)
        values[place] = f"ca'n\"a%41\\r y<{mark}" if place in AWKWARD else f"canary-{mark}"
        marks[place] = (mark,)
    return Canaries(values, marks)


@asynccontextmanager
async def echoing(spans: list[bytes]) -> AsyncIterator[int]:
    """An API that answers with the status it is asked for, and repeats the request in every part of the answer.

    It also is a collector of spans.
    """

    async def collect(request: web.Request) -> web.Response:
        spans.append(await request.read())
        return web.Response()

    async def answer(request: web.Request) -> web.Response:
        told = {
            "detail": f"{request.method} {request.rel_url} with {dict(request.headers)}",
            "message": f"refused: {await request.text()} {request.headers.get('X-Api-Key')}",
            "error": request.headers.get("Authorization", ""),
        }
        status = int(request.match_info["status"])
        headers = {"X-Echo": quote(str(dict(request.headers)))}
        if status == 302:
            headers["Location"] = f"http://elsewhere.test/{quote(told['detail'])}"
        if status == 200:
            return web.Response(text=f"<html>{told}</html>", content_type="text/html")
        return web.json_response(told, status=status, headers=headers)

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    app.router.add_route("*", "/{status}", answer)
    app.router.add_route("*", "/{secret}/{status}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def domain() -> str:
    endpoints = ["endpoints:"]

    def endpoint(name: str, kind: str, source: str, operation: str, params: str = "", more: str = "") -> None:
        step = STEP.format(type=kind, source=source, operation=operation, params=params, more=more)
        endpoints.append(f"  {name}: {{path: '/{{status}}', timeout: 3s, data_sources: [{step}]}}")

    for source in APIS:
        endpoint(f"api_{source}", "api", source, "get", "status: $request.path_params.status")
    endpoint("api_default", "api", "header", "get", "status: $request.path_params.status", ", default: {}")
    for source in ("canary", "literal", "gone", "quoted", "scoped"):
        endpoint(f"database_{source}", "database", source, "one")
    endpoint("database_fails", "database", "canary", "fails", "number: $request.path_params.status")
    for source in ("scores", "started"):
        endpoint(f"model_{source}", "ml", source, "predict", "features: {a: 1}")
    cached = ", cache: {ttl: 5s}"
    endpoint("database_cached", "database", "canary", "fails", "number: $request.path_params.status", cached)
    for source in ("default", "quoted"):
        for operation in ("defect", "once", "again"):
            endpoint(f"tells_{source}_{operation}", "tells", source, operation)
    endpoint("holders", "inside", "default", "tell", "what: holders, texts: $request.body")
    return "\n".join(endpoints) + "\n"


async def measure(setting: Setting) -> list[Finding]:
    from orchestrator_core.testing import free_port

    canaries = make_canaries()
    findings: list[Finding] = []
    environment = {f"CANARY_{name}": canaries.values[name.lower()] for name in ENVIRONMENT}
    formats = ("json",) if setting.quick else ("console", "json")
    found: dict[str, list[str]] = {}
    looked: dict[str, int] = {}
    problems: list[str] = []

    def look(where: str, text: str) -> None:
        kind = where.split(" ")[0]
        looked[kind] = looked.get(kind, 0) + len(text)
        if places := canaries.found_in(text):
            found.setdefault(where, []).extend(places)

    spans: list[bytes] = []
    async with echoing(spans) as echo:
        for log_format in formats:
            setting.say(f"a service with {len(canaries.values)} secrets, its log as {log_format}")
            host, name = setting.postgresql.rpartition("@")[2].split("/", 1)
            sources = (
                SOURCES.format(
                    host=host,
                    name=name,
                    echo=f"http://127.0.0.1:{echo}",
                    echo_with_user=f"http://ada:${{env:CANARY_IN_URL}}@127.0.0.1:{echo}",
                    echo_with_token=f"http://${{env:CANARY_TOKEN_URL}}@127.0.0.1:{echo}",
                    literal=canaries.values["literal"],
                    literal_bearer=canaries.values["literal_bearer"],
                    port=free_port(),
                )
                .replace("${env:", "${env:CANARY_")
                .replace("CANARY_CANARY_", "CANARY_")
            )
            where = {"host": host, "name": name, "echo": f"http://127.0.0.1:{echo}"}
            scoped = SCOPED.format(**where).replace("${env:", "${env:CANARY_")
            files = {
                **dict.fromkeys(("database.yaml", "integrations/api.yaml", "integrations/ml.yaml"), "{}"),
                "domains/shop.yaml": "endpoints: {}",
                "integrations/canary.yaml": sources,
                "domains/canary.yaml": domain(),
                "domains/canary/integrations/scoped.yaml": scoped,
                "../plugins/tells.py": TELLS,
                "secrets/late": f"late {canaries.values['late']}",
                "secrets/cookie": canaries.values["cookie"],
                "secrets/bearer": canaries.values["bearer_file"],
            }
            environment["CANARY_WHOLE_URL"] = f"http://127.0.0.1:{echo}/{canaries.values['whole_url']}/"
            config = CONFIG.format(log_format=log_format, echo=f"http://127.0.0.1:{echo}")
            async with stage(setting, files=files, config=config, environment=environment) as service:
                problems += await converse(service, look)
                shown = await representations(service, canaries)
                look("reprs", shown)
                if holders := shown.removeprefix("[]"):
                    found["reprs"] = [holders]
                setting.say("the command line")
                await commands(service, environment, look, few=setting.quick)
                log = service.log
            look("logs", log.read_text(errors="replace"))
            look("spans", b"".join(spans).decode("latin-1"))
    findings.append(
        Finding(
            f"not once, of {len(canaries.values)} places, in what the service says",
            "; ".join(f"{where}: {', '.join(sorted(set(places)))}" for where, places in found.items())
            or "nowhere in " + ", ".join(f"{kind} ({size:,} characters)" for kind, size in sorted(looked.items())),
            not found,
        )
    )
    findings.append(
        Finding("the secrets are used: each source is asked with its own", f"{problems or 'each'}", not problems)
    )
    return findings


async def converse(service: Stage, look: object) -> list[str]:
    """Ask every endpoint for every kind of failure, then read every page. Returns what is not as it should be."""
    assert callable(look)
    statuses = (200, 302, 400, 401, 404, 429, 500, 503)
    names = [f"api_{source}" for source in APIS] + ["api_default"]
    targets = [f"/orchestrator/canary/{name}/{status}" for name in names for status in statuses]
    databases = ("canary", "literal", "gone", "quoted", "scoped")
    targets += [f"/orchestrator/canary/database_{source}/1" for source in databases]
    tells = [f"tells_{source}_{how}" for source in ("default", "quoted") for how in ("defect", "once", "again")]
    targets += [f"/orchestrator/canary/{name}/1" for name in tells]
    targets += ["/orchestrator/canary/database_fails/0", *["/orchestrator/canary/database_cached/1"] * 2]
    targets += [f"/orchestrator/canary/model_{source}/1" for source in ("scores", "started") for _ in range(3)]
    targets += ["/openapi.json", "/docs", "/orchestrator", "/orchestrator/canary", "/health/ready", "/nowhere"]
    answers: dict[str, int] = {}

    async def ask(port: int, method: str, target: str, what: str) -> str:
        async with service.client.request(
            method, f"http://127.0.0.1:{port}{target}", allow_redirects=False
        ) as response:
            text = await response.text()
            answers[target] = response.status
            look(f"{what} {target}", f"{dict(response.headers)}\n{text}")
            return text

    for target in targets:
        await ask(service.port, "GET", target, "answers")
    asked = {target: answers[f"/orchestrator/canary/{target}/1"] for target in ("database_canary", "database_literal")}
    problems = [f"{target}: {status}" for target, status in asked.items() if status != 200]
    pages = ["/executions?limit=1000", "/sources", "/models", "/config", "/metrics", "/health/ready", "/nowhere"]
    for page in pages:
        await ask(service.admin_port, "GET", page, "pages")
    listed = json.loads(await ask(service.admin_port, "GET", "/executions?limit=200", "pages"))["executions"]
    for execution in listed:
        await ask(service.admin_port, "GET", f"/executions/{execution['id']}", "executions")
    kept = await ask(service.admin_port, "GET", f"/generations/{listed[0]['generation']}", "executions")
    if "literal: " not in kept:
        problems.append("the text of the configuration is not kept")
    models = json.loads(await ask(service.admin_port, "GET", "/models", "pages"))["models"]
    for model in models:
        for page in ("", "/logs"):
            await ask(service.admin_port, "GET", f"/models/{model['id']}{page}", "pages")
    await broken_reloads(service, ask)
    return problems


async def representations(service: Stage, canaries: Canaries) -> str:
    """Return which objects of ours in the service show a secret. The secrets are sent letter by letter."""
    texts = [list(marks[0]) for marks in canaries.marks.values()]
    url = f"http://127.0.0.1:{service.port}/orchestrator/canary/holders/1"
    async with service.client.post(url, json=texts) as response:
        return await response.text()


async def broken_reloads(service: Stage, ask: object) -> None:
    """Reload with a secret where it cannot stand, so that every message about a value has one to repeat."""
    assert callable(ask)
    file = service.folder / "config" / "integrations" / "wrong.yaml"
    for text in (
        'api: {sources: {wrong: {base_url: "${env:CANARY_HEADER}"}}}',
        'api: {sources: {wrong: {base_url: "http://127.0.0.1:1", timeout: "${env:CANARY_HEADER}"}}}',
        'api: {sources: {wrong: {base_url: "http://127.0.0.1:1", max_connections: "${env:CANARY_HEADER}"}}}',
        'api: {sources: {wrong: {base_url: "http://ada:${env:CANARY_IN_URL}@127.0.0.1:1:2"}}}',
        'database: {sources: {wrong: {connection_string: "${env:CANARY_DATABASE}"}}}',
        'database: {sources: {wrong: {connection_string: "oracle://a:${env:CANARY_DATABASE}@b/c"}}}',
        'ml: {sources: {wrong: {base_url: "${env:CANARY_MODEL}", models: {default: {}}}}}',
        'ml: {sources: {wrong: {source: {type: "${env:CANARY_MODEL}"}}}}',
        'ml: {sources: {wrong: {source: {type: artifact, path: "${env:CANARY_MODEL}"}}}}',
        'feast: {sources: {wrong: {repo_path: "${env:CANARY_MODEL}"}}}',
        '"${env:CANARY_HEADER}": {sources: {}}',
        'nothing: {sources: {wrong: {a: "${env:CANARY_HEADER}"}}}',
        'tells: {sources: {wrong: {key: "${file:secrets/late}"}}}',
    ):
        file.write_text(text)
        await ask(service.admin_port, "POST", "/reload", "reload")
        await ask(service.admin_port, "GET", "/config", "pages")
    file.unlink()
    sources = service.folder / "config" / "integrations" / "canary.yaml"
    whole = sources.read_text()
    for line in [line for line in whole.splitlines(keepends=True) if line.lstrip().startswith("literal: ")]:
        upto = whole.index(line)
        for half in (whole[: upto + line.index("}")], whole[:upto] + line.replace('"', "", 1) + "  literal: {}\n"):
            sources.write_text(half)
            await ask(service.admin_port, "POST", "/reload", "reload")
            await ask(service.admin_port, "GET", "/config", "pages")
    sources.write_text(whole)
    await ask(service.admin_port, "POST", "/reload", "reload")


async def commands(service: Stage, environment: Mapping[str, str], look: object, *, few: bool) -> None:
    """Run every command on the configuration, or a few, once as it is and once with a mistake in it."""
    assert callable(look)
    config = ["--config", str(service.folder / "config")]
    admin = ["--admin", f"http://127.0.0.1:{service.admin_port}"]
    plan = "canary.api_header"
    listed: Sequence[Sequence[str]] = (
        *(("check", *config, "--format", form) for form in ("text", "json", "sarif")),
        *(("plan", plan, *config, "--format", form) for form in ("text", "mermaid", "json", "python")),
        ("plugins", *config),
        ("schema", *config),
        ("openapi", *config),
        ("run", plan, *config, "--path-param", "status=400", "--trace"),
        ("run", "canary.tells_quoted_defect", *config, "--path-param", "status=1", "--trace"),
        ("run", "canary.database_gone", *config, "--path-param", "status=1", "--trace"),
        ("executions", "list", *config, *admin),
        ("executions", "list", *config, *admin, "--format", "json"),
        ("reload", *config, *admin),
    )
    slots = asyncio.Semaphore(2)

    async def run(arguments: Sequence[str]) -> None:
        async with slots, asyncio.timeout(COMMAND_SECONDS):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "orchestrator_core", *arguments),
                cwd=service.folder,
                env={**os.environ, **environment, "PYTHONPATH": _python_path()},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output, _ = await process.communicate()
        look(f"commands {' '.join(arguments[:2])}", output.decode(errors="replace"))

    await asyncio.gather(*map(run, listed[::4] if few else listed))
    wrong = service.folder / "config" / "integrations" / "wrong.yaml"
    wrong.write_text('api: {sources: {wrong: {base_url: "${env:CANARY_HEADER}", timeout: "${env:CANARY_HEADER}"}}}')
    await asyncio.gather(*(run(("check", *config, "--format", form)) for form in ("text", "json", "sarif")[few:]))
    wrong.unlink()


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


ROW = Row("canary", "a canary secret in every place a secret can stand", measure)
