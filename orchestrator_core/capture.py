"""Capturing what goes through an execution: the request, each call's parameters and result, and the answer.

While a request runs, references to its values are noted and nothing else. When it has ended they become a JSON
document, bounded in size and without what must not be kept, and the values are let go::

    {"request": {"method": "POST", "path_params": {…}, "query_params": {…}, "headers": {…}, "body": …},
     "steps": {"customer": {"calls": [{"params": {"id": 1}, "result": {…}}]},
               "score": {"calls": [{"params": {…}, "error": {"type": "SourceError", "message": "…"}}]}},
     "models": {"score": {"name": "risk", "version": "7", "digest": "…"}}, "answer": …}

``request`` is as expressions see it, and so is ``models``, which is there where a model answered. A step has one call,
and one with ``for_each`` a call for each item, in the order of the items; a result is as the step got it, before its
transforms. Some values are stood for by an object: one that is too large by ``{"$truncated": {"bytes": 123456,
"start": "…"}}``, a number that JSON cannot hold by ``{"$number": "nan"}``, a result of a lesser kind by
``{"$degraded": …}``, what is no JSON, or too deep in other values, by ``{"$unfit": "…"}``. An object that has one of
these names itself is ``{"$literal": {…}}``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import orjson
from attrs import define, field, frozen

from orchestrator_core import errors
from orchestrator_core.config.secrets import Redactor
from orchestrator_core.depth import MOST_DEEP, is_deeper
from orchestrator_core.errors import OrchestratorError
from orchestrator_core.expressions import MISSING
from orchestrator_core.plugin_api import Captured, Degraded
from orchestrator_core.redaction import ANY, Elsewhere, Hiding, Tree, merged, redacted, tree_of

__all__ = ["REDACTED_HEADERS", "Capture", "Taken", "make_capture", "note"]

REDACTED_HEADERS = ("authorization", "cookie", "proxy-authorization", "x-api-key")
"""Headers that are always redacted."""

NOTHING = Elsewhere(())

MARKS = frozenset({"$truncated", "$number", "$degraded", "$unfit", "$literal"})
"""The names of objects that stand for a value."""

LONGEST_REPR = 200
MOST_BITS = 1024
"""Of an integer that is kept though it is none of JSON's, which have 64 at most."""

Fit: TypeAlias = Callable[[Any], Any]
"""Makes of a value what is kept of it: JSON of no more than the allowed size."""


class Requested(Protocol):
    """The request of an execution, as expressions see it."""

    path_params: Mapping[str, Any]
    query_params: Mapping[str, Any]
    headers: Mapping[str, str]
    body: Any


@define(eq=False)
class TakenCall:
    """A call of a step, by its index, from its begin on. ``result`` is missing until it ends, and if it fails."""

    index: int
    values: Sequence[Any]
    result: Any = MISSING
    error: BaseException | None = None

    def end(self, result: Any, error: BaseException | None) -> None:
        if error is None:
            self.result = result
        else:
            self.error = error


@define(eq=False)
class Taken:
    """What was noted of one execution: its calls in the order in which they began, and the answer's JSON.

    ``document`` is what :meth:`Capture.seal` makes of it; the rest is let go then.
    """

    method: str
    request: Requested | None
    calls: list[TakenCall] = field(factory=list)
    answer: bytes = b""
    document: Captured | None = None

    @property
    def size(self) -> int:
        """Return the bytes of the document."""
        return 0 if self.document is None else len(self.document.text)


def note(run: Any, index: int, values: Sequence[Any]) -> Callable[[Any, BaseException | None], None]:
    """Note a call that begins, and return what notes its end; what policies know as ``Capture``."""
    call, taken = TakenCall(index, values), run.taken
    if taken is not None and taken.document is None:
        taken.calls.append(call)
    return call.end


@frozen
class CapturedStep:
    """A step's name, the names of its parameters, and what is redacted of a call."""

    name: str
    params: tuple[str, ...]
    redacted: Tree | None


@frozen
class Capture:
    """What is kept of an endpoint's executions: ``steps`` in the plan's order, ``largest`` a value's size in bytes.

    Without ``values`` nothing is: the request is only noted for what its errors must not name. ``hides_request`` says
    that something of it must not be named, besides the headers that never are.
    """

    values: bool
    results: bool
    hides_request: bool
    steps: tuple[CapturedStep, ...]
    largest: int
    request: Tree
    answer: Tree | None
    redactor: Redactor

    def hiding(self, taken: Taken) -> Hiding:
        """Return what takes redacted values of the request out of a message."""
        request = taken.request
        return Hiding(lambda: {} if request is None else _parts(request), self.request)

    def seal(self, taken: Taken, *, failed: bool, models: Mapping[str, Any] | None = None) -> Captured:
        """Make the document of what was taken, once. ``failed`` says that the answer is a problem.

        ``models`` is what ``$execution.models`` was.
        """
        if taken.document is None:
            left_out: list[Any] = []
            text = orjson.dumps(self._document(taken, self._whole, failed, models, left_out))
            said, elsewhere = text.decode(), Elsewhere(left_out)
            if self.redactor.spellings.may_be_in(said) or elsewhere.may_be_in(said):
                fit = partial(self._without_secrets, elsewhere)
                text = orjson.dumps(self._document(taken, fit, failed, models, []))
            taken.document = Captured(text)
            taken.request, taken.calls, taken.answer = None, [], b""
        return taken.document

    def _document(
        self, taken: Taken, fit: Fit, failed: bool, models: Mapping[str, Any] | None, left_out: list[Any]
    ) -> dict[str, Any]:
        """Return the document, and put what is redacted of the request into a list."""
        document: dict[str, Any] = {}
        hide = self.hiding(taken)
        if taken.request is not None:
            document["request"] = self._request(taken.method, taken.request, fit, left_out)
        steps: dict[str, Any] = {}
        for call in taken.calls:
            step = self.steps[call.index]
            steps.setdefault(step.name, {"calls": []})["calls"].append(self._call(step, call, fit, hide))
        document["steps"] = steps
        if models:
            document["models"] = fit(models)
        if self.results and taken.answer:
            answer = orjson.loads(taken.answer)
            if failed:
                answer = hide.data(self.redactor.data(answer))
            document["answer"] = fit(redacted(answer, self.answer))
        return document

    def _request(self, method: str, request: Requested, fit: Fit, left_out: list[Any]) -> dict[str, Any]:
        parts = _parts(request)
        kept = redacted(parts, self.request or dict.fromkeys(parts, self.request), left_out.append)
        return {"method": method, **{name: fit(part) for name, part in kept.items()}}

    def _call(self, step: CapturedStep, taken: TakenCall, fit: Fit, hide: Hiding) -> Any:
        # A key for the cache can follow the values of the parameters.
        call: dict[str, Any] = {"params": dict(zip(step.params, taken.values, strict=False))}
        result = taken.result
        if taken.error is not None:
            error = _error(taken.error)
            call["error"] = {**hide.data(self.redactor.data(error)), "type": error["type"]}
        elif self.results and result is not MISSING:
            call["result"] = result.result if type(result) is Degraded else result
        call = redacted(call, step.redacted)
        if not isinstance(call, dict):
            return call
        params = call["params"]
        if isinstance(params, dict):
            call["params"] = {name: fit(value) for name, value in params.items()}
        call |= {name: fit(call[name]) for name in ("result", "error") if name in call}
        if type(result) is Degraded and "result" in call:
            call["result"] = {"$degraded": call["result"]}
        return call

    def _whole(self, value: Any) -> Any:
        """Return the value as JSON, in which a secret may be, unless it is larger than allowed."""
        encoded = _encoded(value)
        return orjson.Fragment(encoded) if len(encoded) <= self.largest else self._without_secrets(NOTHING, value)

    def _without_secrets(self, elsewhere: Elsewhere, value: Any) -> Any:
        """Return the value as JSON that is no larger than allowed, with no secret and nothing redacted in it."""
        encoded = _encoded(value)
        text = encoded.decode()
        if self.redactor.spellings.may_be_in(text):
            encoded = orjson.dumps(self._masked(orjson.loads(encoded)))
        if elsewhere.may_be_in(text):
            encoded = orjson.dumps(elsewhere.data(orjson.loads(encoded)))
        if len(encoded) > self.largest:
            start = encoded[: self.largest].decode("utf-8", "ignore")
            return {"$truncated": {"bytes": len(encoded), "start": start}}
        return orjson.Fragment(encoded)

    def _masked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.redactor(value)
        if isinstance(value, Mapping):
            return {self.redactor(key): self._masked(item) for key, item in value.items()}
        return [self._masked(item) for item in value] if isinstance(value, list | tuple) else value


def make_capture(
    level: Literal["none", "params", "full"],
    steps: Iterable[tuple[str, Sequence[str]]],
    redact: Sequence[str],
    largest: int,
    redactor: Redactor,
) -> Capture | None:
    """Return what captures the executions of an endpoint with these steps and their parameters.

    That is None for ``none``, unless something of the request is redacted.
    """
    hides_request = any(path.startswith("request") for path in redact)
    if level == "none" and not hides_request:
        return None
    tree = tree_of([*redact, *(f"request.headers.{name}" for name in REDACTED_HEADERS)])
    of_steps = tree.get("steps")
    captured = tuple(
        CapturedStep(name, tuple(params), merged([of_steps[key] for key in (ANY, name) if key in of_steps]))
        if of_steps
        else CapturedStep(name, tuple(params), of_steps)
        for name, params in steps
    )
    values, results = level != "none", level == "full"
    return Capture(values, results, hides_request, captured, largest, tree["request"], tree.get("answer"), redactor)


def _parts(request: Requested) -> dict[str, Any]:
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers.setdefault(name.lower(), value)  # of several, expressions see the first
    return {
        "path_params": request.path_params,
        "query_params": request.query_params,
        "headers": headers,
        **({} if request.body is MISSING else {"body": request.body}),
    }


def _encoded(value: Any) -> bytes:
    """Return the value as JSON, with what JSON cannot hold stood for by an object."""
    try:
        encoded = orjson.dumps(value)
        deep = encoded.count(b"[") + encoded.count(b"{") > MOST_DEEP and is_deeper(value, MOST_DEEP)
        odd = (b"null" in encoded and _has_odd_number(value)) or (b'"$' in encoded and _has_mark(value))
        if not deep and not odd:
            return encoded
    except TypeError:
        pass
    return orjson.dumps(_clean(value))


def _error(error: BaseException) -> dict[str, Any]:
    """Return what it takes to raise an error of its kind again."""
    if isinstance(error, asyncio.CancelledError):
        return {"type": "CancelledError", "message": str(error)}
    names = (cls.__name__ for cls in type(error).__mro__ if getattr(errors, cls.__name__, None) is cls)
    known = next(names, type(error).__name__)
    attributes = {
        name: value
        for name in ("param", "reference", "transient", "retry_after_seconds", "errors", "step", "status")
        if (value := vars(error).get(name)) is not None
    }
    if isinstance(error, OrchestratorError) and error.title != getattr(errors, known).title:
        attributes |= {"status": error.status, "title": error.title}  # such as a plugin's own kind of timeout
    return {"type": known, "message": str(error), **attributes}


def _has_odd_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_has_odd_number, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_odd_number, value))


def _has_mark(value: Any) -> bool:
    if isinstance(value, Mapping):
        return not MARKS.isdisjoint(value) or any(map(_has_mark, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_mark, value))


def _clean(value: Any, depth: int = 0) -> Any:
    """Return what JSON can hold in place of a value that it cannot."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$number": str(value)}
    if isinstance(value, Mapping | list | tuple) and depth == MOST_DEEP:
        return {"$unfit": f"nested more than {MOST_DEEP} deep"}
    if isinstance(value, Mapping):
        cleaned = {str(_clean(key, depth + 1)): _clean(item, depth + 1) for key, item in value.items()}
        return cleaned if MARKS.isdisjoint(cleaned) else {"$literal": cleaned}
    if isinstance(value, list | tuple):
        return [_clean(item, depth + 1) for item in value]
    try:
        orjson.dumps(value)
    except TypeError:
        if type(value) is int and value.bit_length() <= MOST_BITS:
            return {"$number": str(value)}
        return {"$unfit": _repr(value)}
    return value


def _repr(value: Any) -> str:
    try:
        return repr(value)[:LONGEST_REPR]
    except Exception:  # it is a plugin's, or an integer of more digits than Python writes
        return f"<{type(value).__name__}>"
