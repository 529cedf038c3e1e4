"""The service under test, as a process, with a chaos proxy before each of its sources."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from attrs import field, frozen

from orchestrator_core.testing import free_port
from orchestrator_core.testing.service import write_files
from tests.bench.backends import make_customers, postgresql_database
from tests.bench.process import START_SECONDS, Process, Unusable, started
from tests.chaos.load import Driven, Stream, load
from tests.chaos.outcome import Setting
from tests.chaos.proxy import Proxy, chaos_proxy
from tests.memory import resident_bytes

STOP_SECONDS = 40.0

INSIDE = '''
"""A source that tells of the process it is in, or sleeps."""
import asyncio
import gc
from contextlib import asynccontextmanager
from attrs import frozen
from orchestrator_core.errors import Problem
from orchestrator_core.models.source import Trouble
from orchestrator_core.plugin_api import SourceKind, hookimpl

# What a backend said, on its way: it is masked where it leaves the service.
MESSAGES = (BaseException, Problem, Trouble)

@frozen
class Options:
    """Nothing to configure."""

def holders(texts):
    """Return the classes of ours with an instance that shows one of the texts, and the number of the text."""
    found = set()
    for thing in gc.get_objects():
        kind = type(thing)
        if not str(getattr(kind, "__module__", "")).startswith("orchestrator_") or isinstance(thing, (type, *MESSAGES)):
            continue
        try:
            shown = repr(thing)
        except Exception as error:
            shown = f"{type(error).__name__}: {error}"
        found |= {f"{kind.__qualname__}: {number}" for number, text in enumerate(texts) if text in shown}
    return sorted(found)

class Inside:
    async def fetch(self, operation, params):
        match params:
            case {"what": "tasks"}:
                return sorted(task.get_coro().__qualname__ for task in asyncio.all_tasks() if not task.done())
            case {"what": "holders", "texts": texts}:
                return holders(["".join(text) for text in texts])
            case {"what": "nap", "seconds": seconds}:
                await asyncio.sleep(float(seconds))
                return None
            case {"what": "echo"}:
                return params

@asynccontextmanager
async def opened(options, context):
    yield Inside()

@hookimpl
def orchestrator_source_kinds():
    return [SourceKind("inside", "Tells of the process.", Options, opened)]
'''

CONFIG = """\
plugins_dir: ../plugins
"""
DATABASE = """\
database:
  sources:
    default:
      connection_string: "{database}"
      pool_size: {pool_size}
      pool_timeout: 1s
      connect_timeout: 400ms
  operations:
    get_customer:
      query: "SELECT customer_id, age, credit_score, debt_ratio FROM customers WHERE customer_id = :customer_id"
      params: {{customer_id: integer}}
    nap:
      query: "SELECT 1 AS done FROM pg_sleep(:seconds)"
      params: {{seconds: number}}
"""
APIS = """\
api:
  sources:
    bureau: {{base_url: "{api}", timeout: {timeout}, connect_timeout: 200ms}}
  operations:
    get_report: {{path: "/reports/{{customer_id}}"}}
"""
MODELS = """\
ml:
  sources:
    risk:
      base_url: "{model}"
      models:
        default: {{endpoint: /predict, timeout: {timeout}}}
"""
DOMAIN = """\
endpoints:
  plain:
    path: "/{entity_id}"
    data_sources:
      - {name: echo, type: direct, params: {entity_id: "$request.path_params.entity_id"}}
    response_mapping: {entity_id: $echo.entity_id}
  customer:
    path: "/{entity_id}"
    timeout: 1s
    data_sources:
      - {name: customer, type: database, operation: get_customer, params: {customer_id: $request.path_params.entity_id}}
  report:
    path: "/{entity_id}"
    timeout: 1s
    data_sources:
      - {name: report, type: api, source_id: bureau, operation: get_report,
         params: {customer_id: $request.path_params.entity_id}}
  report_or_default:
    path: "/{entity_id}"
    timeout: 1s
    data_sources:
      - {name: report, type: api, source_id: bureau, operation: get_report,
         params: {customer_id: $request.path_params.entity_id}, default: {score: 500}}
  score:
    path: "/{entity_id}"
    timeout: 1s
    data_sources:
      - {name: risk, type: ml, source_id: risk, operation: predict,
         params: {features: {credit_score: 640, debt_ratio: 0.31}}}
    response_mapping: {score: $risk.score}
  nap:
    path: "/{seconds}"
    data_sources: [{name: nap, type: inside, params: {what: nap, seconds: $request.path_params.seconds}}]
  long_query:
    path: "/{seconds}"
    timeout: 5s
    data_sources:
      - {name: nap, type: database, operation: nap, params: {seconds: $request.path_params.seconds}}
  tasks:
    data_sources: [{name: tasks, type: inside, params: {what: tasks}}]
"""


@frozen
class Stage:
    """A running service. Its proxies are ``database``, ``api`` and ``model``."""

    setting: Setting
    folder: Path
    process: Process
    port: int
    admin_port: int
    database: Proxy
    api: Proxy
    model: Proxy
    client: aiohttp.ClientSession = field(repr=False)
    log: Path
    database_name: str

    def path(self, endpoint: str) -> str:
        return f"/orchestrator/shop/{endpoint}"

    def load(self, *streams: Stream) -> AbstractAsyncContextManager[Driven]:
        return load(self.port, streams, self.setting.load_cores)

    async def get(self, target: str) -> tuple[int, Any]:
        return await self._ask(self.port, "GET", target)

    async def admin(self, target: str, method: str = "GET") -> tuple[int, Any]:
        return await self._ask(self.admin_port, method, target)

    async def _ask(self, port: int, method: str, target: str) -> tuple[int, Any]:
        async with self.client.request(method, f"http://127.0.0.1:{port}{target}") as response:
            return response.status, await response.json(content_type=None)

    async def tasks(self) -> list[str]:
        """Return what the tasks of the service run."""
        names: list[str] = (await self.get(self.path("tasks")))[1]
        return names

    def resident_bytes(self) -> int:
        return resident_bytes(self.process.pid)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def ended(self) -> float:
        """Wait until the process has ended. Returns how long that took, in seconds."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while running(self.process.pid):
            if loop.time() - begun > STOP_SECONDS:
                raise Unusable(f"the service did not stop within {STOP_SECONDS:g} s")
            await asyncio.sleep(0.01)
        return loop.time() - begun

    async def peak(self, *targets: str, seconds: float, connections: int = 32, ids: int = 1000) -> float:
        """Return how many requests a second the service answers when it is asked for as many as it can do.

        With several targets they take turns.
        """
        stream = Stream("peak", targets[0], rate=0, connections=connections, ids=ids, more=targets[1:])
        async with self.load(stream) as driven:
            await asyncio.sleep(seconds)
        met = driven["peak"]
        if set(met.status) != {200}:
            raise Unusable(f"{targets[0]} at its peak: {met.shown()}")
        start, end = min(met.at) + seconds * 0.1, max(met.at)
        return len(met.between(start, end)) / (end - start)


async def _ready(client: aiohttp.ClientSession, admin_port: int) -> bool:
    async with client.get(f"http://127.0.0.1:{admin_port}/health/ready") as response:
        return response.status == 200


def running(pid: int) -> bool:
    """Return whether a process is there and not merely waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@asynccontextmanager
async def stage(
    setting: Setting,
    *,
    files: Mapping[str, str] | None = None,
    config: str = "",
    arguments: Sequence[str] = (),
    source_timeout: str = "2s",
    pool_size: int = 10,
    watch: bool = False,
    direct: bool = False,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Stage]:
    """Start the sources, a proxy before each, and the service; ``direct`` leaves the proxies aside.

    ``files`` of the configuration come over the usual ones, and may use ``{database}``, ``{api}`` and ``{model}``, the
    URLs of the proxies, and ``{database_at}``, which is without the scheme and the user; so may ``config``, which is
    appended to ``config.yaml``. ``source_timeout`` is that of the
    partner API and the model.
    """
    folder = setting.folder / f"stage-{free_port()}"
    folder.mkdir()
    async with AsyncExitStack() as stack:
        try:
            url = await stack.enter_async_context(postgresql_database(setting.postgresql, make_customers()))
        except OSError as error:
            raise Unusable(f"PostgreSQL does not answer: {error}") from error
        parts = urlsplit(url)
        command = [sys.executable, "-m", "tests.bench.backends", str(stub := free_port()), "0", "0"]
        await stack.enter_async_context(started("stub", command, stub, setting.load_cores, folder / "stub.log"))
        database = await stack.enter_async_context(chaos_proxy(parts.hostname or "127.0.0.1", parts.port or 5432))
        api = await stack.enter_async_context(chaos_proxy("127.0.0.1", stub))
        model = await stack.enter_async_context(chaos_proxy("127.0.0.1", stub))
        user = parts.netloc.rpartition("@")[0]
        database_port, api_port, model_port = (
            (parts.port or 5432, stub, stub) if direct else (database.port, api.port, model.port)
        )
        urls = {
            "database": f"postgresql://{user}@127.0.0.1:{database_port}{parts.path}",
            "api": f"http://127.0.0.1:{api_port}",
            "model": f"http://127.0.0.1:{model_port}",
        }
        # A test may run where others take the cores, and a service that gets none is overloaded by any load.
        limit = "server: {limit: false}\n" if setting.quick else ""
        texts = {
            "config.yaml": CONFIG + f"reload: {{watch: {str(watch).lower()}}}\n" + limit + dedent(config),
            "database.yaml": DATABASE.format(**urls, pool_size=pool_size),
            "integrations/api.yaml": APIS.format(**urls, timeout=source_timeout),
            "integrations/ml.yaml": MODELS.format(**urls, timeout=source_timeout),
            "domains/shop.yaml": DOMAIN,
        }
        urls["database_at"] = f"127.0.0.1:{database_port}{parts.path}"
        for name, text in {**(files or {}), "config.yaml": texts["config.yaml"]}.items():
            for what, address in urls.items():
                text = text.replace(f"{{{what}}}", address)  # one after the other
            texts[name] = text
        write_files(folder / "config", texts)
        write_files(folder / "plugins", {"inside.py": INSIDE})
        port, admin_port = free_port(), free_port()
        command = [sys.executable, "-m", "orchestrator_core", "serve", "--config", str(folder / "config"), *arguments]
        command += ["--port", str(port), "--admin-port", str(admin_port)]
        log = folder / "service.log"
        process = await stack.enter_async_context(
            started("service", command, admin_port, setting.server_cores, log, environment or {})
        )
        client = await stack.enter_async_context(aiohttp.ClientSession())
        async with asyncio.timeout(START_SECONDS):
            while not await _ready(client, admin_port):  # noqa: ASYNC110  # it is asked, not told
                await asyncio.sleep(0.05)
        yield Stage(
            setting, folder, process, port, admin_port, database, api, model, client, log, parts.path.strip("/")
        )
