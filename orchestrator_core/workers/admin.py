"""The one admin listener: it asks the workers, and answers for all of them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web
from attrs import frozen

from orchestrator_core.config.secrets import Redactor
from orchestrator_core.documents import problem_json
from orchestrator_core.engine import failure_of, new_execution_id
from orchestrator_core.errors import BadRequest
from orchestrator_core.http.admin import allow_line, parse_execution_query
from orchestrator_core.http.answers import JSON_TYPE, Answer, common_headers, own_timing, problem
from orchestrator_core.http.models_page import parse_model_path
from orchestrator_core.reload import Reloaded
from orchestrator_core.run import clock
from orchestrator_core.workers.merging import merge_entries, merge_executions, totals_of_metrics, totals_of_tracking
from orchestrator_core.workers.process import Figures, Reply, Worker, WorkerGone, WorkerSilent
from orchestrator_core.workers.supervisor import Supervisor

ASK_SECONDS = 30.0
"""How long a page may take of a worker that is there, such as one whose store answers late."""
FIGURES_SECONDS = 4.0
"""How long a worker may take to say its metrics; then what it said last stands. Prometheus waits for 10 s.

So long it may also take to have its executions in the store that others are asked for.
"""
SUMMED = ("requests", "failures")
FLUSH = "/executions?limit=1"
_EXECUTION = re.compile(r"/executions/[^/]+\Z")


@frozen
class Said:
    """The replies of those who gave one, by process id, and what is missing: why others did not."""

    replies: dict[int, Reply]
    missing: tuple[str, ...] = ()


class Passed(Exception):
    """A worker's own answer, which is everybody's."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class MergedAdmin:
    """Answers as :class:`~orchestrator_core.http.admin.AdminApp` does, for several workers.

    Besides its pages, ``POST /restart`` replaces the workers one by one.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self._metric_totals = totals_of_metrics()
        self._tracking_totals = totals_of_tracking()
        # Each is counted by one after the other, or a worker that dies meanwhile is counted twice.
        self._counting_metrics = asyncio.Lock()
        self._counting_tracking = asyncio.Lock()
        supervisor.left.append(self._left)

    def _left(self, pid: int, figures: Figures) -> None:
        if figures.metrics:
            self._metric_totals.left(pid, figures.metrics)
        if figures.tracking is not None:
            self._tracking_totals.left(pid, figures.tracking)

    async def handle(self, request: web.BaseRequest) -> Answer:
        started, execution_id = clock(), new_execution_id()
        redact = self.supervisor.taken.configuration.redactor
        try:
            reply = await self._answer(request, redact)
        except Passed as passed:
            reply = passed.reply
        except Exception as error:  # the boundary of the admin listener
            failure = failure_of(error, None, redact)
            headers = common_headers(execution_id, own_timing(started))
            if failure.status == 405:
                headers += allow_line(request.path)
            return problem(failure, execution_id, headers, request.path)
        headers = common_headers(execution_id, own_timing(started))
        if reply.status == 405:
            headers += allow_line(request.path)
        return Answer(reply.status, reply.body, reply.content_type, headers)

    async def _answer(self, request: web.BaseRequest, redact: Redactor) -> Reply:
        path = request.path
        if path in ("/reload", "/restart"):
            if request.method != "POST":
                raise BadRequest(f"{path} takes POST, not {request.method}", 405)
            return await (self._reload() if path == "/reload" else self._restart(redact))
        model = parse_model_path(path)
        if request.method not in ("GET", "HEAD"):
            return await self._model(request) if model and model.is_action else await self._first(request)
        if path == "/executions":
            return await self._executions(request)
        if path == "/sources":
            return await self._entries(request, "sources", ("domain", "type", "source_id"))
        if path == "/models":
            return await self._entries(request, "models", ("id",))
        if path == "/config":
            return await self._config(request)
        if path == "/metrics":
            return await self._metrics(request)
        if path == "/health/live":
            return _json(200, {"status": "live", "generation": self._generation, "workers": self._workers()})
        if path == "/health/ready":
            return self._ready()
        if _EXECUTION.match(path) or (model and model.page == "logs"):
            return await self._any(request)
        if model:
            return await self._model(request)
        return await self._first(request)

    # --- one worker or another -----------------------------------------------------------------------------------

    async def _first(self, request: web.BaseRequest, workers: Sequence[Worker] | None = None) -> Reply:
        """Return what the first worker says that answers, of what is the same for all."""
        for worker in self.supervisor.serving if workers is None else workers:
            try:
                return await worker.ask_while_there(_method(request), request.path_qs, seconds=ASK_SECONDS)
            except WorkerGone:
                continue
        raise WorkerGone("no worker answers")

    async def _any(self, request: web.BaseRequest) -> Reply:
        """Return what the worker says that knows it. While one does not answer, nobody knows that none does."""
        said = await self._ask(request)
        replies = said.replies.values()
        known = next((reply for reply in replies if reply.status == 200), None)
        if known is None and said.missing:
            raise WorkerGone("; ".join(said.missing))
        return known or next(iter(replies))

    async def _ask(
        self, request: web.BaseRequest, targets: Mapping[int, str] | None = None, seconds: float = ASK_SECONDS
    ) -> Said:
        """Ask every worker. With ``targets``, by process id, only those workers are asked, each for its own."""
        workers = [worker for worker in self.supervisor.serving if targets is None or worker.pid in targets]
        asked = (
            worker.ask_while_there(
                _method(request), targets[worker.pid] if targets else request.path_qs, seconds=seconds
            )
            for worker in workers
        )
        replies: dict[int, Reply] = {}
        missing: list[str] = []
        for worker, reply in zip(workers, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(reply, Reply):
                replies[worker.pid] = reply
            elif isinstance(reply, WorkerSilent):
                missing.append(str(reply))
            elif not isinstance(reply, WorkerGone):  # who has ended says nothing any more
                raise reply
        if not replies and not targets == {}:
            raise WorkerGone("; ".join(missing) or "no worker answers")
        return Said(replies, tuple(missing))

    # --- all of them ---------------------------------------------------------------------------------------------

    async def _entries(self, request: web.BaseRequest, name: str, key: tuple[str, ...]) -> Reply:
        said = await self._ask(request)
        entries = {pid: page[name] for pid, page in _good(said).items()}
        return _json(200, _whole({name: merge_entries(entries, key, SUMMED)}, said.missing))

    async def _model(self, request: web.BaseRequest) -> Reply:
        said = await self._ask(request)
        (entry,) = merge_entries({pid: [page] for pid, page in _good(said).items()}, ("id",), SUMMED)
        status = next(reply.status for reply in said.replies.values() if reply.status < 300)
        return _json(status, _whole(entry, said.missing))

    async def _executions(self, request: web.BaseRequest) -> Reply:
        limit = parse_execution_query(request.query_string).limit
        asked = self.supervisor.serving
        missing: tuple[str, ...] = ()
        if len(_keepers(asked)) < len(asked):
            # Each answers once the store has what it had for it, so that those who are asked find that too.
            flushed = await self._ask(request, dict.fromkeys(_pids(asked), FLUSH), seconds=FIGURES_SECONDS)
            missing = flushed.missing
            asked = [worker for worker in asked if worker.pid in flushed.replies]
        keepers = _keepers(asked)
        if not keepers:
            raise WorkerGone("no worker answers")
        if len(keepers) == 1 and keepers[0].store is not None:
            reply = await self._first(request, asked)
            return _json(200, _whole(reply.json, missing)) if missing and reply.status == 200 else reply
        said = await self._ask(request, dict.fromkeys(_pids(keepers), request.path_qs))
        page = merge_executions(list(_good(said).values()), limit)
        return _json(200, _whole(page, (*missing, *said.missing)))

    async def _config(self, request: web.BaseRequest) -> Reply:
        async with self._counting_tracking:
            return await self._summed_config(request)

    async def _summed_config(self, request: web.BaseRequest) -> Reply:
        said = await self._ask(request)
        pages = _good(said)
        first = next(iter(pages.values()))
        generations = {pid: page["generation"] for pid, page in pages.items()}
        reloaded = self.supervisor.reloads.last
        last = {"last_reload": {"at": _moment(reloaded.at), **_reloaded(reloaded)}}
        stores = {pid: page["tracking"] for pid, page in pages.items() if page["tracking"] is not None}
        tracking = self._tracking_totals.merged(stores, self.supervisor.alive) if stores else None
        page = {**first, **last, "tracking": tracking, "workers": self._workers(generations)}
        return _json(200, _whole(page, said.missing))

    async def _metrics(self, request: web.BaseRequest) -> Reply:
        async with self._counting_metrics:
            return await self._summed_metrics(request)

    async def _summed_metrics(self, request: web.BaseRequest) -> Reply:
        said = (await self._ask(request, seconds=FIGURES_SECONDS)).replies
        if refused := next((reply for reply in said.values() if reply.status != 200), None):
            return refused
        texts = {pid: reply.body.decode() for pid, reply in said.items() if reply.body}
        text = self._metric_totals.merged(texts, self.supervisor.alive)
        content_type = next(iter(said.values())).content_type
        return Reply(200, content_type, (text + self._own_metrics()).encode())

    def _own_metrics(self) -> str:
        slots = self.supervisor.slots
        return (
            "# HELP orchestrator_workers Workers that serve.\n"
            "# TYPE orchestrator_workers gauge\n"
            f"orchestrator_workers {len(self.supervisor.serving)}\n"
            "# HELP orchestrator_worker_restarts_total Workers that were started after another one had ended.\n"
            "# TYPE orchestrator_worker_restarts_total counter\n"
            f"orchestrator_worker_restarts_total {sum(slot.restarts for slot in slots)}\n"
            "# HELP orchestrator_reloads_total Reloads: swapped or failed.\n"
            "# TYPE orchestrator_reloads_total counter\n"
            + "".join(
                f'orchestrator_reloads_total{{outcome="{outcome}"}} {number}\n'
                for outcome, number in self.supervisor.reloads.counts.items()
            )
        )

    # --- the supervisor's own ------------------------------------------------------------------------------------

    @property
    def _generation(self) -> str:
        return self.supervisor.taken.configuration.generation

    def _ready(self) -> Reply:
        if self.supervisor.serving and not self.supervisor.stopping:
            return _json(200, {"status": "ready", "generation": self._generation, "workers": self._workers()})
        return _json(503, {"status": "shutting down" if self.supervisor.stopping else "no worker serves"})

    def _workers(self, generations: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
        return [
            {
                "slot": slot.index,
                "pid": worker.pid if worker else None,
                "state": worker.state if worker else "failed" if slot.failed else "starting",
                "generation": (generations or {}).get(worker.pid, worker.generation) if worker else None,
                "started_at": _moment(worker.started_at) if worker else None,
                "restarts": slot.restarts,
                "last_exit": slot.last_exit or None,
            }
            for slot in self.supervisor.slots
            for worker in [slot.worker]
        ]

    async def _reload(self) -> Reply:
        reloaded = await self.supervisor.reloads.reload()
        document = {"generation": reloaded.generation, **_reloaded(reloaded), "workers": self._workers()}
        return _json(200 if reloaded.swapped else 422, document)

    async def _restart(self, redact: Redactor) -> Reply:
        restarted = await self.supervisor.restart()
        document = {
            "restarted": restarted.workers,
            "error": redact(restarted.error) or None,
            "problems": [problem_json(found) for found in restarted.problems],
            "workers": self._workers(),
        }
        return _json(503 if restarted.error else 200, document)


def _reloaded(reloaded: Reloaded) -> dict[str, Any]:
    return {"swapped": reloaded.swapped, "problems": [problem_json(found) for found in reloaded.problems]}


def _good(said: Said) -> dict[int, Any]:
    """Return the documents of those who gave one; a refusal is everybody's when nobody did."""
    good = {pid: reply.json for pid, reply in said.replies.items() if reply.status < 300}
    if not good:
        raise Passed(next(iter(said.replies.values())))
    return good


def _whole(page: Mapping[str, Any], missing: Sequence[str]) -> Mapping[str, Any]:
    """Return the page, which says under ``incomplete`` what is missing in it, if something is."""
    reasons = [*((page["incomplete"],) if "incomplete" in page else ()), *missing]
    return {**page, "incomplete": "; ".join(dict.fromkeys(reasons))} if reasons else page


def _keepers(workers: Sequence[Worker]) -> list[Worker]:
    """Return whom to ask for executions: each worker that keeps its own, and one of those that share a store."""
    keepers: list[Worker] = []
    for worker in workers:
        if worker.store is None or all(worker.store != other.store for other in keepers):
            keepers.append(worker)
    return keepers


def _pids(workers: Iterable[Worker]) -> list[int]:
    return [worker.pid for worker in workers]


def _json(status: int, document: Any) -> Reply:
    return Reply(status, JSON_TYPE, orjson.dumps(document, option=orjson.OPT_INDENT_2))


def _method(request: web.BaseRequest) -> str:
    return "GET" if request.method == "HEAD" else request.method


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
