"""Executing a plan for one request: check it, run the generated coroutine under its deadline, keep a record."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

import structlog
from attrs import frozen

from orchestrator_core.blame import UnfitAnswer, culprit, describe, request_error
from orchestrator_core.config.secrets import Redactor
from orchestrator_core.errors import (
    DeadlineExceeded,
    ExpressionError,
    InvalidRequest,
    MissingReference,
    OrchestratorError,
    SourceError,
    SourceUnavailable,
)
from orchestrator_core.expressions import MISSING, Missing
from orchestrator_core.plugin_api import JSON
from orchestrator_core.run import (
    CLIENT_CLOSED_REQUEST,
    Request,
    Run,
    clock,
)
from orchestrator_core.schemas import RequestSchema, coerce, coerce_all, pointer
from orchestrator_core.snapshot import ReadyPlan
from orchestrator_core.tasks import ends_task, exit_asked_for
from orchestrator_core.time_limits import NO_DEADLINE

log = structlog.get_logger("orchestrator.engine")

_random = random.Random(os.urandom(32))
_NO_TEXTS: Mapping[str, list[str]] = {}


def new_execution_id() -> str:
    """Return 32 hexadecimal digits: 12 of the time in milliseconds and 3 of its 4096th parts, so that ids sort by it.

    The others are random.
    """
    return f"{int(time() * 4_096_000):015x}{_random.getrandbits(68):017x}"


def make_request(
    ready: ReadyPlan,
    path_params: dict[str, Any],
    query_texts: Mapping[str, list[str]],
    headers: Mapping[str, str],
    body: JSON | Missing = MISSING,
) -> Request:
    """Return the request as expressions see it: strings made what ``input_schema`` declares, defaults filled in.

    The schema is held against one object: the fields of the body, the query parameters, and those path parameters
    that it declares. Where two of them have one name, each value must fit. A body that is no object is held against it
    alone, and so are the declared parameters beside it, each for itself. Raises :class:`InvalidRequest`.
    """
    schema = ready.plan.input
    if schema is None:
        query = {name: texts[-1] for name, texts in query_texts.items()} if query_texts else {}
        return Request(path_params, query, headers, body)
    declared = schema.properties
    path_params = {name: coerce(text, declared.get(name, {})) for name, text in path_params.items()}
    query = {name: coerce_all(texts, declared.get(name, {})) for name, texts in query_texts.items()}
    in_path = {name: value for name, value in path_params.items() if name in declared}
    known = {**query, **in_path}
    hidden: list[Mapping[str, Any]] = []  # what expressions can still ask for by its place
    if body is MISSING or isinstance(body, dict):
        given = {**(body if isinstance(body, dict) else {}), **known}
        defaults = {name: value for name, value in schema.defaults.items() if name not in given}
        instance: Any = {**given, **defaults}
        if in_path and not in_path.keys().isdisjoint(query):
            hidden.append(query)
        if isinstance(body, dict) and not known.keys().isdisjoint(body):
            hidden.append(body)
        if defaults and isinstance(body, dict):
            body = {**body, **defaults}
        elif defaults:
            query = {**query, **defaults}
    else:
        instance = body
    errors = schema.errors(instance)
    if not errors and hidden:
        errors = next(filter(None, (schema.errors({**instance, **values}) for values in hidden)), [])
    elif not errors and instance is body:
        errors = _errors_beside(schema, in_path) or _errors_beside(schema, query)
    if errors:
        what = "; ".join(f"{error['pointer'] or 'the request'} {error['message']}" for error in errors[:3])
        raise InvalidRequest(f"the request does not fit the endpoint's input_schema: {what}", errors)
    return Request(path_params, query, headers, body)


def _errors_beside(schema: RequestSchema, params: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what of the parameters does not fit that the schema declares, beside a body that is no object."""
    places = {pointer([name]) for name in params if name in schema.properties}
    if not places:
        return []
    return [error for error in schema.errors(params) if "/".join(error["pointer"].split("/")[:2]) in places]


async def execute(ready: ReadyPlan, request: Request, run: Run) -> JSON:
    """Run the plan. Raises what failed it; when it returns or raises, nothing of the run is left running."""
    run.deadline = deadline = ready.time_limit.begin(clock() - run.started)
    try:
        result = await ready.run(request, run)
    except asyncio.CancelledError:
        if deadline.caused():
            raise _out_of_time(ready, run) from None
        raise
    except SystemExit as error:  # of a transformer's in the response: it would end the event loop
        raise RuntimeError(exit_asked_for(error)) from error
    except BaseException as error:
        if isinstance(error, Exception) or ends_task(error):
            raise
        # A panic of such a transformer's would end the connection, and the record tell of an answer.
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    finally:
        ready.time_limit.end(deadline)
        run.deadline = NO_DEADLINE  # the run is kept: it must not keep the task
    schema = ready.plan.output
    if schema is not None and (errors := schema.errors(result)):
        what = "; ".join(f"{error['pointer'] or 'the answer'} {error['message']}" for error in errors[:3])
        raise SourceError(f"the answer does not fit the endpoint's output_schema: {what}")
    return result


def _out_of_time(ready: ReadyPlan, run: Run) -> OrchestratorError:
    """Return the error of a request whose deadline has passed, or for which the service that stops waits no longer."""
    waiting = run.unfinished()
    run.failed_step = waiting[0] if waiting else ""
    where = f" in step {', '.join(map(repr, waiting))}" if waiting else ""
    error: OrchestratorError = DeadlineExceeded("the deadline passed")
    message = f"the request took longer than its {ready.time_limit.seconds:g} s{where}"
    whole: OrchestratorError = DeadlineExceeded(message, of_request=True)
    if ready.time_limit.is_cut:
        error = SourceUnavailable("the service is shutting down")
        whole = SourceUnavailable(f"{error}, and the request was not done{where}")
    for step in waiting:
        run.count_failure(step, error)
    return whole


@frozen
class Failure:
    """An error as the client sees it: RFC 9457, with the step to blame."""

    status: int
    title: str
    detail: str
    step: str = ""
    errors: Sequence[Mapping[str, str]] = ()
    retry_after_seconds: float | None = None

    def problem(self, execution_id: str, instance: str = "") -> dict[str, Any]:
        """Return ``{"type", "title", "status", "detail", "execution_id", …}``."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "execution_id": execution_id,
        }
        if instance:
            body["instance"] = instance
        if self.step:
            body["step"] = self.step
        if self.errors:
            body["errors"] = list(self.errors)
        return body


def failure_of(error: BaseException, run: Run | None, redactor: Redactor) -> Failure:
    """Return what the client is told of an error. A defect of ours is logged, and tells nothing."""
    if isinstance(error, MissingReference):
        if run is not None and not run.failed_step:
            run.failed_step = culprit(error, "")
        error = request_error(error)
    if isinstance(error, ExpressionError | UnfitAnswer) and run is not None and not run.failed_step:
        run.failed_step = error.step
    step = run.failed_step if run is not None else ""
    if step == "request":
        step = ""
    if not isinstance(error, OrchestratorError):
        log.error("defect", execution_id=run.id if run else "", step=step, exc_info=error)
        return Failure(500, "internal error", "an internal error; the log tells more under the execution id", step)
    detail = redactor(str(error))
    if step and not isinstance(error, MissingReference | InvalidRequest) and f"'{step}'" not in detail:
        detail = f"step '{step}': {detail}"
    errors = redactor.data(error.errors) if isinstance(error, InvalidRequest) else ()
    return Failure(error.status, error.title, detail, step, errors, error.retry_after_seconds)


def finish(run: Run, http_status: int, error: BaseException | None, redactor: Redactor) -> None:
    """Note how a run ended."""
    run.ended = clock()
    run.http_status = http_status
    run.failure = None  # with its traceback it would keep what the source answered, as long as the record is kept
    if error is not None:
        run.error = redactor(describe(error))


__all__ = [
    "CLIENT_CLOSED_REQUEST",
    "Failure",
    "execute",
    "failure_of",
    "finish",
    "make_request",
    "new_execution_id",
]
