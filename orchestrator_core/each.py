"""The items of a ``for_each`` step: all in one call of the source where it can, else several calls at once.

The generated code makes the values of each item's parameters; what becomes of them is here. An item has its own
outcome, which is that of a step without ``for_each`` called with the same values: a result, or an error that fails the
request or has the step's default at the item's place.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from attrs import field, frozen

from orchestrator_core.blame import request_pointer
from orchestrator_core.capture import Taken
from orchestrator_core.errors import (
    DeadlineExceeded,
    ExpressionError,
    InvalidParam,
    InvalidRequest,
    MissingReference,
    OrchestratorError,
    SourceError,
)
from orchestrator_core.expressions.values import kind
from orchestrator_core.plugin_api import JSON, Degraded
from orchestrator_core.policies.notes import Guarded
from orchestrator_core.run import Request, Run
from orchestrator_core.tasks import Branches, ends_task, fault_of
from orchestrator_core.time_limits import TimeLimit, Timer
from orchestrator_core.time_limits import within as run_within

__all__ = ["AtOnce", "ForEach"]

Values: TypeAlias = Sequence[Any]
Given: TypeAlias = "list[Values | None]"
"""The values of each item's parameters; None for an item that failed before it was called."""
Finish: TypeAlias = Callable[[JSON], JSON]
Answers: TypeAlias = "Sequence[JSON | OrchestratorError]"

ITEMS_BETWEEN_PAUSES = 8


@frozen
class AtOnce:
    """A call that takes the values of all items."""

    call: Callable[[Sequence[Values]], Awaitable[Answers]] | Guarded


@frozen
class ForEach:
    """What the plan says of a step that runs for each item.

    ``reference`` is the one that the items stand in, ``""`` where the list is computed, and ``list_text`` what messages
    call the list; ``on_request_only`` says that it comes from the request alone. ``paths`` has, for each parameter that
    depends on the item, where in the item its value stands, as far as it is told by a plain reference.
    """

    index: int
    name: str
    optional: bool
    default: JSON
    list_text: str
    reference: str
    on_request_only: bool
    paths: Mapping[str, str] = field(factory=dict)
    call: Callable[..., Awaitable[JSON]] | Guarded | AtOnce | None = None
    _limits: dict[float, TimeLimit] = field(factory=dict, init=False, repr=False, eq=False)

    def check(self, run: Run, items: Any) -> None:
        """Note how many items there are. Raise unless they are in a list."""
        if not isinstance(items, list | tuple):
            run.note(self.index).attempts = 0
            message = f"step '{self.name}': for_each takes a list, but {self.list_text} is {kind(items)}"
            if self.on_request_only:
                finding = {"pointer": request_pointer(self.reference), "message": "must be a list"}
                raise InvalidRequest(message, [finding])
            raise ExpressionError(message)
        run.note_items(self.index, len(items))

    def values(
        self, params: Callable[..., Values], request: Request, run: Run, items: Sequence[Any], *steps: Any
    ) -> Given:
        """Return each item's values after not all could be had at once: this says which item is to blame."""
        given: Given = []
        for position, item in enumerate(items):
            try:
                given.append(params(request, run, item, position, *steps))
            except Exception as error:  # it is this item's: see fail
                if not self.optional:
                    run.note(self.index).attempts = 0
                self.fail(run, position, error)
                given.append(None)
        return given

    async def results(
        self, run: Run, given: Given, finish: Finish | None = None, *, at_most: int, within: float | None = None
    ) -> list[JSON]:
        """Return each item's result, in order. When this returns or raises, nothing of it is left running.

        ``at_most`` items are under way at once where the source does not take all in one call. What has not ended
        ``within`` so many seconds has failed. ``finish`` makes the result of an answer.
        """
        results = [self.default] * len(given)
        todo = deque((position, values) for position, values in enumerate(given) if values is not None)
        if not todo:
            run.note(self.index).attempts = 0
            return results
        count = len(todo)
        calls = _Calls(self, run, todo, results, finish)

        def made(timer: Timer | None) -> Awaitable[None]:
            if timer is not None:
                calls.known = _Bounded(run, timer)
            return calls.at_once(self.call) if isinstance(self.call, AtOnce) else calls.several(at_most)

        try:
            await run_within(None if within is None else self._limit(within), made)
        except TimeoutError:
            if not self.optional:
                raise
            calls.time_out()
        finally:
            note = run.notes.get(self.index) if run.notes else None
            if note is not None and note.uncalled and note.uncalled >= count - len(todo) - calls.given_up:
                note.attempts = 0
        return results

    def _limit(self, seconds: float) -> TimeLimit:
        """Return the one time limit of the step: each has a timer of the loop."""
        limit = self._limits.get(seconds)
        if limit is None:
            limit = self._limits[seconds] = TimeLimit(seconds)
        return limit

    def fail(self, run: Run, position: int, error: Exception) -> None:
        """Note that an item failed which the step can do without; raise what fails the request otherwise."""
        error = self.of_item(run, position, error)
        if not self.optional:
            raise error
        run.note_failed_items(self.index, error)

    def of_item(self, run: Run, position: int, error: Exception) -> Exception:
        """Return the error as the answer shows it, with the step and the number of the item."""
        if not isinstance(error, OrchestratorError | TimeoutError):
            error.add_note(f"item {position} of the step '{self.name}'")
            return error
        where = f"{self.reference}[{position}]" if self.reference else ""
        blamed = run.blamed(self.name, error)
        message = str(blamed).removeprefix(f"step '{self.name}': ")
        if isinstance(error, MissingReference) and error.reference.startswith("$item"):
            reference = error.reference
            if where:
                reference = where + reference.removeprefix("$item")
                message = message.replace("$item", where)
            blamed = run.blamed(self.name, MissingReference(reference, message))
            if self.on_request_only and not isinstance(blamed, InvalidRequest):
                blamed = InvalidRequest(message)
        elif isinstance(blamed, InvalidRequest) and where and isinstance(error, InvalidParam | ExpressionError):
            path = self.paths.get(error.param) if isinstance(error, InvalidParam) else ""
            if path is not None:
                blamed.errors = [{"pointer": request_pointer(where + path), "message": str(error)}]
        return _saying(blamed, f"step '{self.name}', item {position}: {message}")


class _Bounded:
    """The run as the policies of a step know it that has a time limit for all items: that is a deadline as well."""

    __slots__ = ("_run", "_timer", "id", "note", "note_hit")

    def __init__(self, run: Run, timer: Timer) -> None:
        self.id = run.id
        self._run = run
        self._timer = timer
        self.note = run.note
        self.note_hit = run.note_hit

    @property
    def deadline(self) -> _Bounded:
        return self

    @property
    def passed(self) -> bool:
        return self._timer.passed or self._run.deadline.passed

    def remaining(self) -> float:
        return min(self._timer.remaining(), self._run.deadline.remaining())

    @property
    def taken(self) -> Taken | None:
        return self._run.taken


class _Calls:
    """The calls of one run of a step: ``todo`` are those that have not started, ``given_up`` are never to."""

    def __init__(
        self,
        step: ForEach,
        run: Run,
        todo: deque[tuple[int, Values]],
        results: list[JSON],
        finish: Finish | None,
    ) -> None:
        self.step = step
        self.run = run
        self.known: Run | _Bounded = run
        self.todo = todo
        self.results = results
        self.finish = finish
        self.unsettled = len(todo)
        self.given_up = 0

    def knowing(self, call: Any) -> Callable[..., Awaitable[Any]]:
        """Return the call as it takes its values alone."""
        bound: Callable[..., Awaitable[Any]] = (
            partial(call.call, self.known, self.step.index) if isinstance(call, Guarded) else call
        )
        return bound

    async def at_once(self, many: AtOnce) -> None:
        step, items = self.step, list(self.todo)
        try:
            answers = await self.knowing(many.call)([values for _, values in items])
            if len(answers) != len(items):
                raise SourceError(f"the source returned {len(answers)} results for {len(items)} items")
        except BaseException as error:  # it is every item's
            if ends_task(error) or not step.optional:
                raise
            self.run.note_failed_items(step.index, self.run.blamed(step.name, fault_of(error)), len(items))
            return
        for (position, _), answer in zip(items, answers, strict=True):
            self.settle(position, answer)

    async def several(self, at_most: int) -> None:
        more = min(at_most, len(self.todo)) - 1
        if not more:
            await self.work()
            return
        branches = Branches()
        try:
            workers = [branches.start(self.work()) for _ in range(more)]
            await self.work()
            for worker in workers:
                await worker
        except BaseException as error:
            raise await branches.end(error)  # noqa: B904  # the first failure there was, as it was raised

    async def work(self) -> None:
        call, todo = self.knowing(self.step.call), self.todo
        while todo:
            if todo[0][0] % ITEMS_BETWEEN_PAUSES == ITEMS_BETWEEN_PAUSES - 1:
                await asyncio.sleep(0)  # for calls that never wait, and would hold up every other request
                if not todo:
                    return
            position, values = todo.popleft()  # right before the call: items are captured in their order
            try:
                answer = await call(*values)
            except BaseException as error:  # it is this item's: see fail
                if ends_task(error):
                    raise
                self.fail(position, fault_of(error))
            else:
                self.settle(position, answer)

    def settle(self, position: int, answer: Any) -> None:
        if isinstance(answer, OrchestratorError):
            self.fail(position, answer)
            return
        if type(answer) is Degraded:
            answer = self.run.settle(self.step.index, answer)
        try:
            self.results[position] = answer if self.finish is None else self.finish(answer)
        except Exception as error:  # it is this item's: see fail
            self.fail(position, error)
        else:
            self.unsettled -= 1

    def fail(self, position: int, error: Exception) -> None:
        self.unsettled -= 1
        try:
            self.step.fail(self.run, position, error)
        except Exception:
            self.given_up += len(self.todo)
            self.todo.clear()
            raise

    def time_out(self) -> None:
        """Give the items that have not ended the default; those that have keep their results."""
        error = DeadlineExceeded(f"step '{self.step.name}' took longer than its timeout")
        self.run.note_failed_items(self.step.index, error, self.unsettled)


def _saying(error: Exception, message: str) -> Exception:
    """Return a copy of the error with another message: the error itself can be that of several requests."""
    copied = type(error).__new__(type(error))
    copied.__dict__.update(error.__dict__)
    copied.args = (message,)
    copied.__cause__ = error.__cause__
    copied.__suppress_context__ = error.__suppress_context__
    return copied.with_traceback(error.__traceback__)
