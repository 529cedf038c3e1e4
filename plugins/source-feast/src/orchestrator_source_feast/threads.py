"""A bounded pool of threads, for everything that waits in synchronous code: Feast's SDK, its registry, slow files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from orchestrator_source_feast.places import Places
from orchestrator_source_feast.stores import NoAnswer

__all__ = ["CLOSE_SECONDS", "Threads"]

T = TypeVar("T")
CLOSE_SECONDS = 5.0
log = logging.getLogger(__name__)


class Threads:
    """At most ``size`` calls at a time; who waits longer than ``wait_seconds`` for a thread is answered 503.

    A cancelled call gives its thread back when the thread is done, not before.
    """

    def __init__(self, name: str, size: int, *, wait_seconds: float, call_seconds: float) -> None:
        self._name = name
        self._call_seconds = call_seconds
        self._free = Places(name, "threads", size, wait_seconds)
        self._executor = ThreadPoolExecutor(size, thread_name_prefix="feast")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        try:
            async with asyncio.timeout(min(self._call_seconds, CLOSE_SECONDS)):
                for _ in range(self._free.size):
                    await self._free.acquire()
        except TimeoutError:
            log.warning(
                "feast '%s': a thread still waits for the store or its registry; it is left to itself", self._name
            )
            return
        await asyncio.to_thread(self._executor.shutdown)  # the threads have nothing left to do but end

    def refuse_if_busy(self) -> None:
        """Raise ``SourceUnavailable`` if all threads are in use: for who only asks whether all is well."""
        self._free.refuse_if_busy()

    async def run(self, job: Callable[[], T], *, give_up: Callable[[], Any] | None = None) -> T:
        """Run the job. ``give_up`` is called when nobody waits for it any more, to end it early."""
        await self._free.take()
        loop = asyncio.get_running_loop()
        try:
            running: Future[T] = self._executor.submit(job)
        except BaseException:
            self._free.release()
            raise
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
        try:
            async with asyncio.timeout(self._call_seconds):
                return await asyncio.wrap_future(running)
        except BaseException as error:
            if give_up is not None and not running.done():
                give_up()
            if isinstance(error, TimeoutError) and not running.done():
                raise NoAnswer(f"feast '{self._name}': no answer within {self._call_seconds:g} s") from None
            raise
