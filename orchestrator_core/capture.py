"""Capturing what goes through an execution: the request, each call's parameters and result, and the answer.

While a request runs, references to its values are noted and nothing else. When it has ended they become a JSON
document, bounded in size and without what must not be kept, and the values are let go::

    {"request": {"method": "POST", "path_params": {…}, "query_params": {…}, "headers": {…}, "body": …},
     "steps": {"customer": {"calls": [{"params": {"id": 1}, "result": {…}}]},
               "score": {"calls": [{"params": {…}, "error": {"type": "SourceError", "message": "…"}}]}},
     "answer": …}

``request`` is as expressions see it. A step has one call, and one with ``for_each`` a call for each item, in the order
of the items; a result is as the step got it, before its transforms. Some values are stood for by an object: one
that is too large by ``{"$truncated": {"bytes": 123456, "start": "…"}}``, a number that JSON cannot hold by
``{"$number": "nan"}``, a result of a lesser kind by ``{"$degraded": …}``, what is no JSON, or too deep in other values,
by ``{"$unfit": "…"}``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import orjson
from attrs import define, field, frozen

from orchestrator_core import errors
from orchestrator_core.config.model import Configuration
from orchestrator_core.config.secrets import MASK, Redactor
from orchestrator_core.depth import MOST_DEEP, is_deeper
from orchestrator_core.errors import Problem, did_you_mean
from orchestrator_core.expressions import MISSING
from orchestrator_core.plugin_api import Captured, Degraded

__all__ = ["REDACTED_HEADERS", "Capture", "Taken", "check_redacted", "make_capture", "note", "parse_path"]

REDACTED_HEADERS = ("authorization", "cookie", "proxy-authorization", "x-api-key")
"""Headers that are always redacted."""

LONGEST_REPR = 200
ANY = "*"
REQUEST_PARTS = ("path_params", "query_params", "headers", "body")
CALL_PARTS = ("params", "result", "error")

Tree: TypeAlias = "dict[str, Tree]"
"""What is redacted below a value, by the next part of each path. An empty one says: the value itself."""


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
    """What is kept of an endpoint's executions: ``steps`` in the plan's order, ``largest`` a value's size in bytes."""

    results: bool
    steps: tuple[CapturedStep, ...]
    largest: int
    request: Tree
    answer: Tree | None
    redactor: Redactor
    _secrets: tuple[bytes, ...] = field(repr=False)

    def seal(self, taken: Taken) -> Captured:
        """Make the document of what was taken, once."""
        if taken.document is None:
            taken.document = Captured(orjson.dumps(self._document(taken)))
            taken.request, taken.calls, taken.answer = None, [], b""
        return taken.document

    def _document(self, taken: Taken) -> dict[str, Any]:
        document: dict[str, Any] = {}
        if taken.request is not None:
            document["request"] = self._request(taken.method, taken.request)
        steps: dict[str, Any] = {}
        for call in taken.calls:
            step = self.steps[call.index]
            steps.setdefault(step.name, {"calls": []})["calls"].append(self._call(step, call))
        document["steps"] = steps
        if self.results and taken.answer:
            document["answer"] = self._fit(_redacted(orjson.loads(taken.answer), self.answer))
        return document

    def _request(self, method: str, request: Requested) -> Any:
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            headers.setdefault(name.lower(), value)  # of several, expressions see the first
        parts = {
            "path_params": request.path_params,
            "query_params": request.query_params,
            "headers": headers,
            **({} if request.body is MISSING else {"body": request.body}),
        }
        kept = _redacted(parts, self.request)
        if not isinstance(kept, dict):
            return kept
        return {"method": method, **{name: self._fit(part) for name, part in kept.items()}}

    def _call(self, step: CapturedStep, taken: TakenCall) -> Any:
        # A key for the cache can follow the values of the parameters.
        call: dict[str, Any] = {"params": dict(zip(step.params, taken.values, strict=False))}
        result = taken.result
        if taken.error is not None:
            call["error"] = _error(taken.error)
        elif self.results and result is not MISSING:
            call["result"] = result.result if type(result) is Degraded else result
        call = _redacted(call, step.redacted)
        if not isinstance(call, dict):
            return call
        if type(result) is Degraded and "result" in call:
            call["result"] = {"$degraded": call["result"]}
        params = call["params"]
        if isinstance(params, dict):
            call["params"] = {name: self._fit(value) for name, value in params.items()}
        return call | {name: self._fit(call[name]) for name in ("result", "error") if name in call}

    def _fit(self, value: Any) -> Any:
        """Return the value as JSON that is no larger than allowed, with no secret in it."""
        try:
            encoded = orjson.dumps(value)
            deep = encoded.count(b"[") + encoded.count(b"{") > MOST_DEEP and is_deeper(value, MOST_DEEP)
            fits = not deep and not (b"null" in encoded and _has_odd_number(value))
        except TypeError:
            fits = False
        if not fits:
            value = _clean(value)
            encoded = orjson.dumps(value)
        if any(secret in encoded for secret in self._secrets):
            encoded = orjson.dumps(self._masked(value))
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
    """Return what captures the executions of an endpoint with these steps and their parameters; None for ``none``."""
    if level == "none":
        return None
    tree: Tree = {}
    for path in (*redact, *(f"request.headers.{name}" for name in REDACTED_HEADERS)):
        _add(tree, parse_path(path))
    of_steps = tree.get("steps")
    captured = tuple(
        CapturedStep(name, tuple(params), _merged([of_steps[key] for key in (ANY, name) if key in of_steps]))
        if of_steps
        else CapturedStep(name, tuple(params), of_steps)
        for name, params in steps
    )
    secrets = tuple(orjson.dumps(form)[1:-1] for form in redactor.forms)
    return Capture(level == "full", captured, largest, tree["request"], tree.get("answer"), redactor, secrets)


def check_redacted(configuration: Configuration) -> Iterator[Problem]:
    """Yield a problem for each path of ``tracking.redact`` that leads nowhere: what it was meant for would be kept.

    A step, or its parameter, has to be one of some endpoint; what is in a body, a result or an answer is not known.
    """
    located = configuration.app_located
    params = None if configuration.incomplete else _params_by_step(configuration)
    for index, path in enumerate(configuration.app.tracking.redact):
        if located is not None and (found := _nowhere(path, params)):
            code, message, part, hint = found
            yield located.problem(code, message, "tracking", "redact", index, near=part, hint=hint)


_Params: TypeAlias = "dict[str, set[str] | None]"
"""The parameters of steps by the step's name; None where they are not known."""


def _params_by_step(configuration: Configuration) -> _Params:
    params: _Params = {}
    for endpoint in configuration.endpoints:
        for step in endpoint.steps:
            known = params.setdefault(step.config.name, set())
            if known is not None:
                known.update(step.config.params)
        params |= dict.fromkeys(endpoint.unreadable_names)
    return params


def _nowhere(path: str, params: _Params | None) -> tuple[str, str, str, str] | None:
    """Return the code, the message, the part that is to blame and the hint of a path that leads nowhere."""
    root, *rest = path.split(".")
    if root not in ("request", "steps", "answer") or not all(rest):
        hint = "expected such as request.body.ssn, steps.*.params.token or answer.name"
        return "ORC204", f"'{path}' is no path of captured values", "", hint
    if root == "request" and rest and rest[0] not in (ANY, *REQUEST_PARTS):
        return "ORC503", f"there is no part '{rest[0]}' of a request", rest[0], did_you_mean(rest[0], REQUEST_PARTS)
    if root != "steps" or not rest:
        return None
    name, *below = rest
    if below and below[0] not in (ANY, *CALL_PARTS):
        return "ORC204", f"there is no part '{below[0]}' of a call", below[0], did_you_mean(below[0], CALL_PARTS)
    if not params or name == ANY:
        return None
    if name not in params:
        return "ORC502", f"there is no step '{name}'", name, did_you_mean(name, params)
    known = params[name]
    if known is not None and below[:1] == ["params"] and below[1:] and below[1] not in (ANY, *known):
        return "ORC407", f"the step '{name}' has no parameter '{below[1]}'", below[1], did_you_mean(below[1], known)
    return None


def parse_path(path: str) -> list[str]:
    """Return the parts of a path such as ``request.body.ssn`` or ``steps.*.params.token``."""
    parts = path.split(".")
    return [part.lower() for part in parts] if parts[:2] == ["request", "headers"] else parts


def _add(tree: Tree, parts: Sequence[str]) -> None:
    for part in parts[:-1]:
        if part in tree and not tree[part]:
            return  # more than that is redacted already
        tree = tree.setdefault(part, {})
    tree[parts[-1]] = {}


def _merged(trees: Sequence[Tree]) -> Tree | None:
    if not trees:
        return None
    if not all(trees):
        return {}
    keys = dict.fromkeys(key for tree in trees for key in tree)
    return {key: _merged([tree[key] for tree in trees if key in tree]) or {} for key in keys}


def _redacted(value: Any, tree: Tree | None) -> Any:
    """Return the value without what is redacted. In a list, a part that is no number holds for every item."""
    if tree is None:
        return value
    if not tree:
        return MASK
    if isinstance(value, Mapping):
        kept = dict(value)
        for part, below in tree.items():
            for key in kept if part == ANY else (part,):
                if key in kept:
                    kept[key] = _redacted(kept[key], below)
        return kept
    if isinstance(value, list | tuple):
        return [_redacted_item(index, item, tree) for index, item in enumerate(value)]
    return value


def _redacted_item(index: int, item: Any, tree: Tree) -> Any:
    for part, below in tree.items():
        if part in (ANY, str(index)):
            item = _redacted(item, below)
        elif not part.isdigit():
            item = _redacted(item, {part: below})
    return item


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
    return {"type": known, "message": str(error), **attributes}


def _has_odd_number(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_has_odd_number, value.values()))
    return isinstance(value, list | tuple) and any(map(_has_odd_number, value))


def _clean(value: Any, depth: int = 0) -> Any:
    """Return what JSON can hold in place of a value that it cannot."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$number": str(value)}
    if isinstance(value, Mapping | list | tuple) and depth == MOST_DEEP:
        return {"$unfit": f"nested more than {MOST_DEEP} deep"}
    if isinstance(value, Mapping):
        return {str(_clean(key, depth + 1)): _clean(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, depth + 1) for item in value]
    try:
        orjson.dumps(value)
    except TypeError:
        return {"$unfit": repr(value)[:LONGEST_REPR]}
    return value
