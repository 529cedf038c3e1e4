"""The Docker engine, asked through its SDK on threads of our own: nothing here waits on the event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

from orchestrator_core.plugin_api import SourceError, SourceUnavailable

T = TypeVar("T")

ANSWER_SECONDS = 60
"""How long the engine may take to answer; it unpacks images when it creates containers."""
LOOK_SECONDS = 20
"""The same where nothing is made, and somebody waits for it at a terminal; it asks registries."""

_THREADS = 2
_DEFAULT_HOST = "unix:///var/run/docker.sock"


class EngineRefused(Exception):
    """The engine answered with an error. ``status`` is its HTTP status, ``message`` what it said."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class EngineSlow(SourceUnavailable):
    """The engine did not answer in time; it may still do what it was asked for."""

    def __init__(self, host: str, seconds: float) -> None:
        super().__init__(f"the Docker engine at {host} did not answer within {seconds:g} s", started=False)


class Engine:
    """The engine that ``DOCKER_HOST`` names, else the current context of the Docker command line, else the usual one.

    Questions are functions of the SDK's ``APIClient``. They run on at most two threads, which end with the engine.
    """

    def __init__(self, answer_seconds: float) -> None:
        self._seconds = answer_seconds
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="docker")
        self._connecting = threading.Lock()
        self._client: Any = None
        self.host = _DEFAULT_HOST

    async def call(self, ask: Callable[[Any], T]) -> T:
        """Return what the engine answers.

        Raises :class:`EngineRefused` for its errors, ``SourceUnavailable`` when it cannot be reached or does not answer
        in time, and ``SourceError`` when this user may not ask it. When the caller is cancelled, the question is waited
        for, so that whoever cleans up sees what it did.
        """
        asked = asyncio.get_running_loop().run_in_executor(self._threads, self._ask, ask)
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            await asyncio.wait([asked])
            with suppress(Exception):  # nobody waits for it any more
                asked.result()
            raise

    async def call_long(self, ask: Callable[[Any, threading.Event], T], timeout_seconds: float) -> T:
        """Return what the engine answers to a question that may take minutes, on a thread of its own.

        ``ask`` is given an event that is set when nobody waits any more. Raises as :meth:`call` does, and
        ``TimeoutError``.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        given_up = threading.Event()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result, error = None, None
            try:
                result = self._ask(lambda client: ask(client, given_up))
            except BaseException as raised:  # it belongs to the caller
                error = raised
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=work, name="docker-pull", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_seconds):
                return await answer
        finally:
            given_up.set()

    @asynccontextmanager
    async def end_of(self, container: str) -> AsyncIterator[asyncio.Future[None]]:
        """Listen for the end of a container; the future is done when it ends, or the engine stops talking."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Future[None] = loop.create_future()
        filters = {"type": "container", "container": container, "event": ["die"]}
        stream = await self.call(lambda client: client.events(filters=filters, decode=True))

        def listen() -> None:
            with suppress(Exception):  # however the stream ends, it has ended
                next(iter(stream), None)
            with suppress(Exception):  # closing the stream leaves its response open
                stream._response.close()
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(lambda: None if heard.done() else heard.set_result(None))

        thread = threading.Thread(target=listen, name="docker-events", daemon=True)
        thread.start()
        try:
            yield heard
        finally:
            heard.cancel()
            with suppress(Exception):  # it has ended, or is not one that can be interrupted
                stream.close()

    async def close(self) -> None:
        self._threads.shutdown(wait=False)
        if self._client is not None:
            self._client.close()

    # --- on the threads -----------------------------------------------------------------------------------------------

    def _ask(self, ask: Callable[[Any], T]) -> T:
        with self._in_our_words():
            client = self._connected()
            self._knock()
            return ask(client)

    def _knock(self) -> None:
        """Raise what connecting raises: the SDK would leave its socket open then."""
        scheme, _, path = self.host.partition("://")
        if scheme.endswith("unix"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(self._seconds)
                probe.connect(f"/{path.lstrip('/')}")

    def _connected(self) -> Any:
        with self._connecting:
            if self._client is None:
                from docker import APIClient  # takes its time
                from docker.context import ContextAPI
                from docker.utils import kwargs_from_env

                where = kwargs_from_env()
                if "base_url" not in where:
                    for name, value in ContextAPI.kwargs_from_context(environment=os.environ).items():
                        where.setdefault(name, value)
                self.host = where.get("base_url") or _DEFAULT_HOST
                self._knock()
                self._client = APIClient(version="auto", timeout=self._seconds, **where)
            return self._client

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        import requests
        import urllib3
        from docker.errors import APIError, DockerException

        try:
            yield
        except APIError as error:
            raise EngineRefused(error.status_code or 500, str(error.explanation or error)) from error
        except requests.exceptions.ReadTimeout as error:
            raise EngineSlow(self.host, self._seconds) from error
        except (DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException) -> SourceError | SourceUnavailable:
        causes = list(_causes(error))
        if any(isinstance(cause, TimeoutError) for cause in causes):
            return EngineSlow(self.host, self._seconds)
        where = f"{self.host} (from DOCKER_HOST)" if os.environ.get("DOCKER_HOST") else self.host
        if any(isinstance(cause, PermissionError) for cause in causes):
            return SourceError(
                f"this user may not use the Docker engine at {where}: add the user to the group docker and log in "
                "anew, or set DOCKER_HOST to an engine of the user's own"
            )
        if any(isinstance(cause, FileNotFoundError | ConnectionRefusedError) for cause in causes):
            wanted = "" if os.environ.get("DOCKER_HOST") else ", or set DOCKER_HOST if it is elsewhere"
            return SourceUnavailable(f"no Docker engine answers at {where}: start it{wanted}", started=False)
        return SourceUnavailable(f"the Docker engine at {where} cannot be asked: {causes[-1]}", started=False)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was made of: the SDK wraps, and so do the two libraries below it."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inner = (each.__cause__, each.__context__, *each.args)
        waiting += [cause for cause in inner if isinstance(cause, BaseException)]


@asynccontextmanager
async def open_engine(*, to_look: bool = False) -> AsyncIterator[Engine]:
    """Use the engine until the block is left, for more than ``to_look`` as a rule. Nothing is asked yet."""
    engine = Engine(LOOK_SECONDS if to_look else ANSWER_SECONDS)
    try:
        yield engine
    finally:
        await engine.close()
