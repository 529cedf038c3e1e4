"""Fixtures. In a ``conftest.py``: ``pytest_plugins = ["orchestrator_core.testing.pytest_plugin"]``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Literal, TypeVar

import pytest
from attrs import frozen

from orchestrator_core.testing.running import loop_factory
from orchestrator_core.testing.running import run as run_coroutine
from orchestrator_core.testing.service import Answer, RunningService, service

T = TypeVar("T")


@pytest.fixture
def run() -> Callable[..., Any]:
    """Return what runs a coroutine to its end on a new event loop, on which no task may be left."""
    return run_coroutine


@pytest.fixture(params=["uvloop", "asyncio"])
def run_on_each_loop(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Like ``run``, once with uvloop and once with the standard loop."""
    loop: Literal["uvloop", "asyncio"] = request.param

    def run_there(main: Any, **options: Any) -> Any:
        return run_coroutine(main, loop=loop, **options)

    return run_there


@frozen
class Served:
    """A :class:`~orchestrator_core.testing.RunningService` for tests without ``async``; it runs while it is asked."""

    service: RunningService
    _runner: asyncio.Runner

    def request(self, method: str, target: str, **given: Any) -> Answer:
        return self._runner.run(self.service.request(method, target, **given))

    def get(self, target: str, **given: Any) -> Answer:
        return self._runner.run(self.service.get(target, **given))

    def post(self, target: str, json: Any = None, **given: Any) -> Answer:
        return self._runner.run(self.service.post(target, json, **given))

    def admin(self, method: str, target: str) -> Answer:
        return self._runner.run(self.service.admin(method, target))

    def executions(self, **filters: str) -> list[dict[str, Any]]:
        return self._runner.run(self.service.executions(**filters))

    def write(self, name: str, text: str) -> None:
        self.service.write(name, text)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the test's own while the service runs."""
        return self._runner.run(main)

    def reload(self) -> Answer:
        return self._runner.run(self.service.reload())


@contextmanager
def serving() -> Iterator[Callable[..., Served]]:
    """What ``serve`` does, for fixtures of another scope."""
    with asyncio.Runner(loop_factory=loop_factory("uvloop")) as runner:
        stack = AsyncExitStack()

        def start(files: Mapping[str, str], **options: Any) -> Served:
            running = runner.run(stack.enter_async_context(service(files, **options)))
            return Served(running, runner)

        try:
            yield start
        finally:
            runner.run(stack.aclose())


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Return what serves a dictionary of files until the test ends; it takes what ``service`` takes.

    >>> def test_it_greets(serve):
    ...     assert serve(FILES).get("/orchestrator/shop/hello?name=Ada").json == {"text": "hello Ada"}
    """
    with serving() as start:
        yield start
