"""Whole answers of an endpoint that are kept for a while, and given to requests that are alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from time import time
from typing import Any, TypeAlias

from orchestrator_core.blame import located
from orchestrator_core.errors import DeadlineExceeded
from orchestrator_core.expressions import MISSING, Node, compile_expression, unparse
from orchestrator_core.models import Slot
from orchestrator_core.plan import AnswerCache
from orchestrator_core.plugin_api import Degraded
from orchestrator_core.policies.cached import is_outage
from orchestrator_core.policies.flights import TimeIsUp
from orchestrator_core.policies.keys import document
from orchestrator_core.policies.notes import Cached
from orchestrator_core.policies.state import SourceState
from orchestrator_core.run import KeptAnswer, Request, Run, clock
from orchestrator_core.time_limits import TimeLimit

__all__ = ["Answers", "Make"]

Make = Callable[[Request, Run], Awaitable[bytes]]
"""What makes an answer's body by executing the plan."""

_Kept: TypeAlias = Any
"""``[body, execution id, Unix time, degraded steps]``: who made it, and when. It is JSON, for the shared cache."""


class Answers:
    """The answers of one endpoint. Neither a failure nor a degraded answer is kept.

    ``renew`` makes an answer for nobody in particular, in an execution of its own.
    """

    def __init__(self, cache: AnswerCache, state: SourceState, models: Sequence[Slot]) -> None:
        self.state = state
        self._cache = state.cache(cache.options, "answer", (), _is_kept)
        self._key = _whole_request(cache.headers) if cache.key is None else _own_key(cache.key)
        self._models = tuple(models)

    def key(self, request: Request) -> Hashable:
        """Return what tells the answer to a request apart; None where nothing can.

        What another version of a model has said is not given for this one's.
        """
        of: list[Any] = [self._key(request)]
        if self._models:
            of += [(found := slot.identity) and [found.version, found.digest] for slot in self._models]
        return document(of)

    def fresh(self, key: Hashable, run: Run) -> bytes | None:
        """Return the body of an answer that is kept and not past its time, and note in the run where it is from."""
        cache = self._cache
        entry = cache.entries.get(key)
        if entry is None or cache.clock() >= entry[0]:
            return None
        cache.entries.move_to_end(key)
        cache.hits += 1
        return _given(entry[1], run, "hit")

    async def answer(
        self,
        key: Hashable,
        request: Request,
        run: Run,
        time_limit: TimeLimit,
        make: Make,
        renew: Callable[[Request], Awaitable[tuple[bytes, Run]]],
    ) -> bytes:
        """Return the body of an answer of which there is no :meth:`fresh` one, and note in the run where it is from.

        Raises what executing it raises. ``time_limit`` is the endpoint's: ``make`` keeps to it, and so does who waits
        for another's answer.
        """
        cache = self._cache
        if key is None:
            return await make(request, run)

        async def made() -> _Kept:
            try:
                return _kept(await make(request, run), run)
            except Exception as error:
                if isinstance(error, DeadlineExceeded) and error.of_request:
                    raise TimeIsUp(error) from None
                vars(error)["failed_step"] = run.failed_step  # for those who wait for this execution
                raise

        async def renewed() -> _Kept:
            return _kept(*await renew(request))

        try:
            try:
                result, how = await cache.obtain(key, made, renewed, time_limit.seconds - (clock() - run.started))
            except TimeoutError:
                message = f"the request took longer than its {time_limit.seconds:g} s"
                raise DeadlineExceeded(message, of_request=True) from None
        except Exception as error:
            stale = cache.if_error(key) if is_outage(error) else None
            if stale is None:
                run.failed_step = run.failed_step or getattr(error, "failed_step", "")
                raise
            return _given(stale[1], run, "stale")
        kept = result.result if type(result) is Degraded else result
        return _given(kept, run, how) if how else _body(kept)


def _kept(body: bytes, run: Run) -> _Kept:
    kept: _Kept = [body.decode(), run.id, time(), list(run.degraded_steps)]
    return Degraded(kept) if run.degraded_steps else kept


def _is_kept(value: Any) -> bool:
    return (
        isinstance(value, list)
        and tuple(map(type, value)) == (str, str, float, list)
        and all(isinstance(step, str) for step in value[3])
    )


def _given(kept: _Kept, run: Run, how: Cached) -> bytes:
    _, execution_id, made_at, degraded = kept
    run.kept = KeptAnswer(how, execution_id, made_at)
    run.degraded_steps = tuple(degraded)
    return _body(kept)


def _body(kept: _Kept) -> bytes:
    text: str = kept[0]
    return text.encode()


def _own_key(node: Node) -> Callable[[Request], Any]:
    evaluate, text = compile_expression(node, ["request"]), unparse(node)
    return lambda request: located("cache.key", text, ("request",), lambda: evaluate(request))


def _whole_request(headers: Sequence[str]) -> Callable[[Request], Any]:
    def key(request: Request) -> Any:
        given = [request.headers.get(name) for name in headers]
        body = [] if request.body is MISSING else [request.body]
        return [request.path_params, request.query_params, given, *body]

    return key
