"""What came of a call, and the checks that sources and models have in common."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, get_args

import attrs
import orjson
from attrs import field, frozen

from orchestrator_core.plugin_api import OrchestratorError
from orchestrator_core.testing.opening import structured

CONCURRENT_CALLS = 100
LOOP_STEPS_BEFORE_CANCEL = (0, 1, 2, 3, 5, 8, 20)

ANY_RESULT = object()


@frozen
class Call:
    """A call of an operation and what comes of it: a result, or an error with the whole of its message.

    Without ``result`` any will do, as long as it is the same each time. ``repeatable=False`` is for an operation that
    writes: it is called once and left out where calls are repeated or run at once.

    >>> Call("greet", {"name": "Ada"}, {"text": "hello Ada"})
    >>> Call("greet", {"name": ""}, error=EntityNotFound, message="greet: there is nobody to greet")
    """

    operation: str
    params: Mapping[str, Any] = field(factory=dict)
    result: Any = ANY_RESULT
    error: type[OrchestratorError] | None = None
    message: str = ""
    repeatable: bool = True

    def __str__(self) -> str:
        return f"{self.operation}({', '.join(f'{name}={value!r}' for name, value in self.params.items())})"


@frozen
class Outcome:
    """What came of a call: a result or an error."""

    result: Any = None
    error: type[BaseException] | None = None
    message: str = ""

    def __str__(self) -> str:
        return f"{self.error.__name__}: {self.message}" if self.error else f"the result {self.result!r}"

    def same(self, other: Outcome, tolerance: float = 0.0) -> bool:
        if self.error or other.error:
            return (self.error, self.message) == (other.error, other.message)
        return same(self.result, other.result, tolerance)


async def outcome(call: Callable[..., Awaitable[Any]], *arguments: Any) -> Outcome:
    """Make a call and return what came of it; a defect in the plugin is raised as it is."""
    try:
        return Outcome(await call(*arguments))
    except OrchestratorError as error:
        return Outcome(None, type(error), str(error))


def same(left: Any, right: Any, tolerance: float = 0.0) -> bool:
    """Return whether two JSON values are equal in value and type, numbers within a relative tolerance."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key], tolerance) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(same(*pair, tolerance) for pair in zip(left, right, strict=True))
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)
    return type(left) is type(right) and bool(left == right)


def check(condition: object, message: str) -> None:
    """Raise with the message: pytest explains bare asserts in test modules only."""
    if not condition:
        raise AssertionError(message)


def check_documented(*classes: type[Any] | None) -> None:
    undocumented = [name for cls in classes if cls is not None for name in _without_help(cls, set())]
    check(not undocumented, f"these options have no help: {', '.join(undocumented)}")


def check_equal_when_read_twice(cls: type[Any], options: Mapping[str, Any]) -> None:
    """A reload carries a source over when its options are equal to those before."""
    first, second = structured(cls, options), structured(cls, copy.deepcopy(dict(options)))
    check(first == second, f"the same options read twice are not equal: {first!r} and {second!r}")


async def called(call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Call and await, as one coroutine, so that a task cancelled before it starts has called nothing."""
    return await call(*arguments)


async def cancel_after(steps: int, what: str, call: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
    """Start ten calls, let the loop turn a few times, and cancel them all."""
    tasks = [asyncio.ensure_future(called(call, *arguments)) for _ in range(10)]
    for _ in range(steps):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    _, pending = await asyncio.wait(tasks, timeout=10)
    check(not pending, f"{what}: {len(pending)} of {len(tasks)} cancelled calls still run after 10 s")
    for task in tasks:
        if not task.cancelled() and task.exception() is not None:
            check(isinstance(task.exception(), OrchestratorError), f"{what}, cancelled, raised {task.exception()!r}")


def check_json(value: Any, what: str) -> None:
    for place, item in _leaves(value, ""):
        plain = item is None or type(item) in (bool, int, float, str)
        check(plain, f"{what}: {place or 'the result'} is a {type(item).__name__}, not plain JSON: {item!r}")
        finite = not isinstance(item, float) or math.isfinite(item)
        check(finite, f"{what}: {place or 'the result'} is {item!r}, which JSON cannot hold: raise, or give null")
    try:
        orjson.dumps(value)
    except TypeError as error:
        raise AssertionError(f"{what} cannot be written as JSON: {error}") from error


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield each part of a value that is no object or list, and each key that is no string, with its JSON Pointer."""
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                yield f"a key of {place or 'the result'}", object()
            yield from _leaves(item, f"{place}/{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}/{index}")
    else:
        yield place, value


def _without_help(cls: Any, seen: set[Any]) -> list[str]:
    """Return the options without help, of the class and of the options classes inside it."""
    if not isinstance(cls, type) or not attrs.has(cls) or cls in seen:
        return [name for part in get_args(cls) for name in _without_help(part, seen)]
    seen.add(cls)
    attrs.resolve_types(cls)
    found = []
    for attribute in attrs.fields(cls):
        if attribute.init and not attribute.metadata.get("help"):
            found.append(f"{cls.__name__}.{attribute.name}")
        found += _without_help(attribute.type, seen)
    return found
