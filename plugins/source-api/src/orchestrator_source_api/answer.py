"""From an answer to the step's result, or to the error that says what is wrong with it."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import orjson

from orchestrator_core.plugin_api import (
    JSON,
    EntityNotFound,
    ExpressionError,
    HttpResponse,
    MissingReference,
    OrchestratorError,
    SourceError,
    SourceUnavailable,
    check_depth,
    check_integers,
    compile_value,
)
from orchestrator_source_api.options import RESPONSE, OperationOptions
from orchestrator_source_api.request import Params, Request

__all__ = ["CallTimeout", "Read", "named", "reader"]

Read: TypeAlias = Callable[[HttpResponse, Params], JSON]

_TRANSIENT: Final = frozenset({408, 425, 429})
# What a server says of its refusal to authorize can repeat the key that it refused.
_SILENT: Final = frozenset({401, 403, 407})
_REASONS: Final = ("detail", "message", "error_description", "error", "title")
_LONGEST_REASON: Final = 200


class CallTimeout(SourceError):
    """504: the API did not answer in time."""

    status = 504
    title = "deadline passed"


def named(operation: str, error: SourceError) -> SourceError:
    """Return an error of the HTTP client as the operation's own."""
    kind = CallTimeout if error.status == CallTimeout.status else SourceError
    return kind(
        f"{operation}: {error}",
        transient=error.transient,
        answered=error.answered,
        busy=error.busy,
        retry_after_seconds=error.retry_after_seconds,
    )


def reader(request: Request, options: OperationOptions) -> Read:
    """Return the function from an answer to the result, and compile ``result`` for it."""
    name = request.name
    expected = range(200, 300) if options.expected_status is None else frozenset(options.expected_status)
    on_missing = options.on_missing
    value = compile_value(options.result, RESPONSE)
    is_whole_body = options.result == "$response.body"
    parts = {str(reference.path[0]) if reference.path else "" for reference in value.references}
    reads_body, reads_headers = bool(parts & {"", "body"}), bool(parts & {"", "headers"})

    def read(answer: HttpResponse, params: Params) -> JSON:
        status = answer.status
        if status not in expected:
            if status == 404 and on_missing == "allow":
                return None
            if status == 404 and on_missing == "error":
                key = request.key(params)
                raise EntityNotFound(f"{name}: nothing found{f' for {key}' if key else ''}")
            raise _refusal(name, answer)
        body = _parsed(name, answer) if reads_body else None
        if is_whole_body:
            return body
        headers = dict(answer.headers) if reads_headers else {}
        try:
            result: JSON = value.evaluate({"status": status, "headers": headers, "body": body})
        except (MissingReference, ExpressionError) as error:
            raise SourceError(f"{name}: {_call(answer)}: {error}") from error
        return result

    return read


def _parsed(name: str, answer: HttpResponse) -> JSON:
    raw = answer.body.removeprefix(BOM_UTF8)  # some servers begin with one, which RFC 8259 lets a reader ignore
    if not raw:
        return None
    try:
        body: JSON = orjson.loads(raw)
        check_integers(raw)
        check_depth(body, raw)
    except (ValueError, RecursionError) as error:
        what = answer.headers.get("content-type", "").partition(";")[0].strip()
        described = f"{answer.status}, {what}" if what.isascii() and 0 < len(what) <= _LONGEST_REASON else answer.status
        raise SourceError(f"{name}: {_call(answer)}: the answer ({described}) is not JSON: {error}") from error
    return body


# --- errors ----------------------------------------------------------------------------------------------------------


def _call(answer: HttpResponse) -> str:
    return answer.request.call


def _refusal(name: str, answer: HttpResponse) -> OrchestratorError:
    status = answer.status
    message = f"{name}: {_call(answer)}: answered {status}"
    if 300 <= status < 400:
        return SourceError(f"{message}, a redirect that is not followed")
    wait = answer.retry_after_seconds
    if wait is not None:
        message += f" and asks to wait {wait:g} s"
        return SourceUnavailable(message, retry_after_seconds=wait, transient=True, busy=True)
    reason = _reason(answer) if 400 <= status < 500 and status not in _SILENT else ""
    return SourceError(f"{message}{': ' if reason else ''}{reason}", transient=status >= 500 or status in _TRANSIENT)


def _reason(answer: HttpResponse) -> str:
    """Return what the API says of its error: the usual field of a JSON body, or the first line of a plain text."""
    try:
        body: Any = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        is_text = answer.headers.get("content-type", "").startswith("text/plain")
        body = answer.body.decode("utf-8", "replace").strip() if is_text else ""
    if isinstance(body, dict):
        body = next((body[key] for key in _REASONS if body.get(key)), "")
    if isinstance(body, dict):
        body = body.get("message", "")
    lines = answer.request.masked(body).splitlines() if isinstance(body, str) else []
    return "".join(char for char in lines[0][:_LONGEST_REASON] if char.isprintable()) if lines else ""
