"""The admin listener: executions, sources, models, the configuration and its reload."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import frozen

from orchestrator_core.errors import SourceError
from orchestrator_core.plugin_api import SourceKind, hookimpl, option
from orchestrator_core.testing.pytest_plugin import Served
from tests.engine.lab import Lab

Serve = Callable[..., Served]

FILES = {
    "config.yaml": "tracking: {capacity: 8}\n",
    "domains/a.yaml": """
        endpoints:
          ok: {response_mapping: 1}
          broken:
            data_sources: [{name: step, type: lab, operation: raises}]
          degraded:
            data_sources: [{name: step, type: lab, operation: raises, default: 1}]
    """,
    "domains/b.yaml": "endpoints: {ok: {response_mapping: 2}}",
}


async def raises(_: Any) -> Any:
    raise SourceError("it is down")


@pytest.fixture
def shop(serve: Serve) -> Served:
    return serve(FILES, plugins={"lab": Lab({"raises": raises})})


def test_pages_are_in_the_order_of_the_ids_whichever_execution_ends_first(serve: Serve) -> None:
    """So that they are exact while executions end that began before those on the page before."""
    ends = {name: asyncio.Event() for name in ("first", "second")}

    async def waits(params: Any) -> Any:
        if params["for"] in ends:
            await ends[params["for"]].wait()
        return 1

    domain = """
        endpoints:
          waits:
            data_sources: [{name: step, type: lab, operation: waits, params: {for: $request.query_params.for}}]
    """
    lab = Lab({"waits": waits})
    shop = serve({"domains/d.yaml": domain}, plugins={"lab": lab})

    async def main() -> list[str]:
        served, url = shop.service, "/orchestrator/d/waits?for="
        early = []
        for number, name in enumerate(ends, 1):
            early.append(asyncio.ensure_future(served.get(url + name)))
            async with asyncio.timeout(10):
                while lab.events.count(("start", "waits")) < number:  # noqa: ASYNC110
                    await asyncio.sleep(0)
        late = [(await served.get(f"{url}late")).headers["X-Execution-Id"] for _ in range(3)]
        ends["second"].set()
        ids = [(await early[1]).headers["X-Execution-Id"], *late]
        found, cursor = [], ""
        while cursor is not None:
            page = (await served.admin("GET", f"/executions?limit=1{cursor and f'&cursor={cursor}'}")).json
            found += [one["id"] for one in page["executions"]]
            cursor = page["cursor"]
            ends["first"].set()  # it began before all of them
            await early[0]
        assert found == [*ids[::-1], (await early[0]).headers["X-Execution-Id"]]
        return found

    assert len(set(shop.run(main()))) == 5


def test_an_execution_says_what_happened_step_by_step(shop: Served) -> None:
    answer = shop.get("/orchestrator/a/degraded", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    id_ = answer.headers["X-Execution-Id"]
    shown = shop.admin("GET", f"/executions/{id_}")
    assert shown.status == 200
    execution = shown.json
    assert execution == shop.executions()[0]
    moment = datetime.fromisoformat(execution.pop("started_at"))
    assert abs(datetime.now(UTC) - moment) < timedelta(seconds=60)
    (step,) = execution.pop("steps")
    times = {execution.pop("duration_ms"), execution.pop("engine_ms"), step.pop("start_ms"), step.pop("duration_ms")}
    assert all(0 <= time < 1000 for time in times)
    assert step == {"name": "step", "status": "default", "attempts": 1, "error": "it is down"}
    assert execution == {
        "id": id_,
        "domain": "a",
        "endpoint": "degraded",
        "generation": shop.get("/orchestrator").json["generation"],
        "status": "degraded",
        "http_status": 200,
        "trace_id": "ab" * 16,
        "degraded": ["step"],
        "models": [],
        "error": "",
    }


def test_an_execution_that_is_not_kept_is_404(shop: Served) -> None:
    answer = shop.admin("GET", "/executions/nothing")
    assert (answer.status, answer.json["detail"]) == (404, "no execution nothing is kept")


def called(shop: Served) -> list[str]:
    targets = ("a/ok", "a/broken", "b/ok", "a/degraded", "a/ok")
    return [shop.get(f"/orchestrator/{target}").headers["X-Execution-Id"] for target in targets]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, [4, 3, 2, 1, 0]),
        ({"domain": "a"}, [4, 3, 1, 0]),
        ({"domain": "nobody"}, []),
        ({"endpoint": "ok"}, [4, 2, 0]),
        ({"domain": "a", "endpoint": "ok"}, [4, 0]),
        ({"status": "failed"}, [1]),
        ({"status": "degraded"}, [3]),
        ({"status": "ok"}, [4, 2, 0]),
        ({"status": "cancelled"}, []),
        ({"limit": "2"}, [4, 3]),
        ({"since": "2000-01-01"}, [4, 3, 2, 1, 0]),
        ({"since": "2000-01-01T00:00:00+02:00", "until": "9999-12-31T00:00:00Z"}, [4, 3, 2, 1, 0]),
        ({"until": "946684800.5"}, []),
        ({"since": "2000-01-01T00:00:00 02:00"}, [4, 3, 2, 1, 0]),
    ],
)
def test_executions_can_be_filtered(shop: Served, filters: dict[str, str], found: list[int]) -> None:
    ids = called(shop)
    assert [execution["id"] for execution in shop.executions(**filters)] == [ids[index] for index in found]


def test_pages_of_executions_follow_one_another(shop: Served) -> None:
    ids = called(shop)
    seen, cursor = [], ""
    for _ in range(10):
        page = shop.admin("GET", f"/executions?limit=2{f'&cursor={cursor}' if cursor else ''}").json
        seen += [execution["id"] for execution in page["executions"]]
        cursor = page["cursor"]
        shop.get("/orchestrator/b/ok")  # a newer one moves nothing on later pages
        if cursor is None:
            break
    assert seen == ids[::-1]


def test_a_filtered_page_has_a_cursor_only_while_there_is_more(shop: Served) -> None:
    ids = called(shop)
    first = shop.admin("GET", "/executions?limit=1&endpoint=broken").json
    assert ([execution["id"] for execution in first["executions"]], first["cursor"]) == ([ids[1]], None)


def test_only_the_latest_executions_are_kept(shop: Served) -> None:
    ids = called(shop) + called(shop)
    assert [execution["id"] for execution in shop.executions()] == ids[:-9:-1]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("limit=0", "/limit expected a number from 1 to 1000"),
        ("limit=1001", "/limit expected a number from 1 to 1000"),
        (f"limit={'9' * 5000}", "/limit expected a number from 1 to 1000"),
        ("limit=x", "/limit expected a number from 1 to 1000"),
        ("limit=%C2%B2", "/limit expected a number from 1 to 1000"),
        ("since=yesterday", "/since expected Unix seconds or an ISO 8601 time"),
        ("since=nan", "/since expected Unix seconds or an ISO 8601 time"),
        ("since=1e308", "/since expected Unix seconds or an ISO 8601 time"),
        ("until=-1e308", "/until expected Unix seconds or an ISO 8601 time"),
        ("cursor=", "/cursor expected the cursor of the page before"),
        ("cursor=zzz", "/cursor expected the cursor of the page before"),
        ("status=fine", "/status expected one of ok, degraded, failed, cancelled"),
        ("domian=a", "/domian unknown filter: did you mean 'domain'?"),
        ("status=failed&status=degraded", "/status is given more than once, and takes one value"),
    ],
)
def test_a_filter_that_is_none_is_422_and_says_what_is_expected(shop: Served, query: str, detail: str) -> None:
    answer = shop.admin("GET", f"/executions?{query}")
    assert (answer.status, answer.json["detail"]) == (422, detail)


SECRETS = {
    "config.yaml": """
        lab2:
          sources:
            default: {key: "${env:LAB_KEY}", url: "http://user:hunter2@host/x", n: 3}
    """,
    "domains/a.yaml": "endpoints: {ok: {data_sources: [{name: x, type: lab2, operation: y}]}}",
}
LAB2 = """
    from contextlib import asynccontextmanager
    from attrs import frozen
    from orchestrator_core.plugin_api import SourceError, SourceKind, hookimpl, option

    @frozen
    class Options:
        key: str = option(help="A key.")
        url: str = option(help="A URL.")
        n: int = option(1, help="A number.")

    class Lab2:
        def __init__(self, options):
            self.options = options
        async def fetch(self, operation, params):
            raise SourceError(f"refused with {self.options.key} in {self.options!r}")
        async def check_ready(self):
            raise SourceError(f"no answer with {self.options.key}")

    @asynccontextmanager
    async def opened(options, context):
        yield Lab2(options)

    @hookimpl
    def orchestrator_source_kinds():
        return [SourceKind("lab2", "Tells its secrets.", Options, opened)]
"""


@frozen
class WrittenOut:
    """Options with secrets that stand in the configuration."""

    code: str = option(help="A secret.", secret=True)
    unset: str | None = option(None, help="Another.", secret=True)
    plain: str | None = option(None, help="No secret.")
    more: dict[str, Any] = option(factory=dict, help="What is not read yet.")


def test_secrets_that_are_written_out_in_the_configuration_are_not_shown(serve: Serve) -> None:
    @asynccontextmanager
    async def opened(options: Any, context: Any) -> AsyncIterator[Any]:
        yield Lab()

    class Plugin:
        @hookimpl
        def orchestrator_source_kinds(self) -> list[SourceKind[Any]]:
            return [SourceKind("open", "Tells nothing.", WrittenOut, opened)]

    more = "{n: 1, list: [{login: {user: ada, Password: canary-1}}], headers: {X-Api-Key: canary-2, X: y}, token: null}"
    shop = serve(
        {"database.yaml": f"open: {{sources: {{default: {{code: canary-0, more: {more}}}}}}}"}, plugins={"o": Plugin()}
    )
    (source,) = (found for found in shop.admin("GET", "/sources").json["sources"] if found["type"] == "open")
    assert source["options"] == {
        "code": "***",
        "unset": None,
        "plain": None,
        "more": str(
            {
                "n": 1,
                "list": [{"login": {"user": "ada", "Password": "***"}}],
                "headers": {"X-Api-Key": "***", "X": "y"},
                "token": None,
            }
        ),
    }


def test_secrets_are_masked_on_every_page_in_every_answer_and_record(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAB_KEY", "sesame-open")
    shop = serve(SECRETS, plugins={"lab2": LAB2})
    sources = shop.admin("GET", "/sources").json["sources"]
    (source,) = [source for source in sources if source["type"] == "lab2"]
    assert source.pop("plugin").endswith("lab2.py")
    assert source.pop("policies")["circuit_breaker"]["state"] == "closed"
    assert source == {
        "type": "lab2",
        "source_id": "default",
        "domain": None,
        "operations": [],
        "options": {"key": "***", "url": "http://user:***@host/x", "n": "3"},
        "state": "unreachable",
        "error": "no answer with ***",
    }
    answer = shop.get("/orchestrator/a/ok")
    assert answer.json["detail"].startswith("step 'x': refused with *** in Options(key='***', ")
    seen = [
        answer.json,
        shop.executions(),
        sources,
        shop.admin("GET", "/config").json,
        shop.admin("GET", "/models").json,
    ]
    shop.write("config.yaml", SECRETS["config.yaml"].replace("n: 3", "n: '${env:LAB_KEY}'"))
    refused = shop.reload()
    assert refused.status == 422
    (problem,) = refused.json["problems"]
    assert problem["message"] == "expected an integer, got a string: what a placeholder stands for is text"
    seen += [refused.json, shop.admin("GET", "/config").json]
    assert "sesame-open" not in json.dumps(seen)
    assert "sesame-open" not in "".join(capsys.readouterr())


WAITING = """
    import asyncio
    from contextlib import asynccontextmanager
    from attrs import frozen
    from orchestrator_core.plugin_api import SourceError, SourceKind, hookimpl

    @frozen
    class Options:
        pass

    class Waiting:
        asked = set()
        both = asyncio.Event()
        async def fetch(self, operation, params):
            return 1
        async def check_ready(self):
            Waiting.asked.add(self)
            if len(Waiting.asked) >= 2:
                Waiting.both.set()
            try:
                async with asyncio.timeout(5):
                    await Waiting.both.wait()
            except TimeoutError:
                raise SourceError("the other was not asked") from None

    @asynccontextmanager
    async def opened(options, context):
        yield Waiting()

    @hookimpl
    def orchestrator_source_kinds():
        return [SourceKind("waiting", "Waits for the other.", Options, opened)]
"""


def test_sources_are_asked_at_once_so_that_one_that_hangs_holds_up_no_other(serve: Serve) -> None:
    calls = ", ".join(f"{{name: {name}, type: waiting, source_id: {name}, operation: x}}" for name in "ab")
    given = {
        "integrations/waiting.yaml": "waiting: {sources: {a: {}, b: {}}}",
        "domains/d.yaml": f"endpoints: {{e: {{data_sources: [{calls}]}}}}",
    }
    sources = serve(given, plugins={"waiting": WAITING}).admin("GET", "/sources").json["sources"]
    assert [(found["source_id"], found["state"]) for found in sources if found["source_id"] != "default"] == [
        ("a", "ready"),
        ("b", "ready"),
    ]


def test_a_source_whose_check_is_defective_is_told_of_beside_the_others(serve: Serve) -> None:
    given = {
        "integrations/waiting.yaml": "waiting: {sources: {a: {}}}",
        "domains/d.yaml": "endpoints: {e: {data_sources: [{name: a, type: waiting, source_id: a, operation: x}]}}",
    }
    broken = WAITING.replace("Waiting.asked.add(self)", 'raise LookupError("no such ping")')
    answer = serve(given, plugins={"waiting": broken}).admin("GET", "/sources")
    (source,) = [found for found in answer.json["sources"] if found["source_id"] == "a"]
    assert (answer.status, source["state"], source["error"]) == (200, "unreachable", "LookupError: no such ping")


def test_the_configuration_page_names_files_endpoints_and_the_last_reload(shop: Served) -> None:
    page = shop.admin("GET", "/config").json
    assert sorted(page["files"]) == ["config.yaml", "domains/a.yaml", "domains/b.yaml"]
    assert page["endpoints"] == ["a.ok", "a.broken", "a.degraded", "b.ok"]
    assert page["problems"] == []
    assert page["last_reload"]["swapped"] is True
    shop.write("domains/b.yaml", "endpoints: {ok: {response_mapping: '$x'}}")
    refused = shop.reload()
    assert (refused.status, refused.json["swapped"]) == (422, False)
    assert refused.json["generation"] == page["generation"]
    after = shop.admin("GET", "/config").json
    assert (after["generation"], after["endpoints"]) == (page["generation"], page["endpoints"])
    (problem,) = after["last_reload"]["problems"]
    assert after["last_reload"]["swapped"] is False
    assert problem == {
        "code": "ORC502",
        "severity": "error",
        "file": "domains/b.yaml",
        "line": 1,
        "column": 37,
        "end_column": 39,
        "path": "endpoints.ok.response_mapping",
        "message": "there is no step 'x'",
        "hint": problem["hint"],
        "source_line": "endpoints: {ok: {response_mapping: '$x'}}",
        "text": problem["text"],
    }
    assert shop.get("/orchestrator/b/ok").json == 2


@pytest.mark.parametrize(
    ("method", "target", "status", "detail"),
    [
        ("GET", "/reload", 405, "/reload takes POST, not GET"),
        ("POST", "/config", 405, "/config takes GET and HEAD, not POST"),
        ("DELETE", "/executions/1", 405, "/executions/1 takes GET and HEAD, not DELETE"),
        ("GET", "/configs", 404, "no such page: did you mean '/config'?"),
        ("GET", "/orchestrator/a/ok", 404, None),
    ],
)
def test_a_page_that_is_not_there_or_not_so_is_told(
    shop: Served, method: str, target: str, status: int, detail: str | None
) -> None:
    answer = shop.admin(method, target)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert detail is None or answer.json["detail"] == detail
    allowed = ("POST" if target == "/reload" else "GET, HEAD") if status == 405 else None
    assert answer.headers.get("Allow") == allowed


def test_every_admin_answer_has_its_id_and_timing(shop: Served) -> None:
    for method, target in (("GET", "/config"), ("GET", "/nothing"), ("POST", "/reload"), ("HEAD", "/sources")):
        headers = shop.admin(method, target).headers
        assert len(headers["X-Execution-Id"]) == 32
        assert headers["Server-Timing"].startswith("engine;dur=")


def test_the_admin_listener_can_be_turned_off(serve: Serve) -> None:
    shop = serve({**FILES, "config.yaml": "admin: {enabled: false}"}, plugins={"lab": Lab()})
    assert shop.service.running.admin is None
    assert shop.get("/orchestrator/a/ok").json == 1
