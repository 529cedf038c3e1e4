"""Micro-batching: rows of concurrent requests to few calls of the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from orchestrator_core.models.options import BatchOptions
from orchestrator_core.plugin_api import JSON, InvalidParam, Model, SourceError, SourceUnavailable
from orchestrator_core.policies.batches import mark
from orchestrator_core.tasks import ends_task, fault_of

Row = Mapping[str, JSON]


async def predict_rows(model: Model, rows: Sequence[Row]) -> Sequence[JSON]:
    """Call the model, and hold it to one result for each row."""
    results = await model.predict(rows)
    if not isinstance(results, list | tuple):  # a dict or a string has a length too, and would be taken for its results
        raise SourceError(f"the model returned {type(results).__name__} and no list of results, one for each row")
    if len(results) != len(rows):
        raise SourceError(f"the model returned {len(results)} results for {len(rows)} rows")
    return results


class Batcher:
    """Collects rows of concurrent callers into calls of at most ``max_size`` rows.

    While no call is under way, the rows that arrive in one turn of the event loop go together, at once. While one is,
    rows wait for its end, but for no longer than ``max_wait``: so a busy model gets batches as large as its traffic
    allows, and an idle one makes nobody wait. A full batch goes at once. Each caller gets its own row's answer. A call
    that fails fails all of its callers; a caller that is cancelled leaves the others alone. When all of them are, the
    call is ended: nobody waits for it, and a model that hangs would keep it for long. ``called`` is told of each.
    """

    def __init__(self, model: Model, options: BatchOptions, called: Callable[[], None] = lambda: None) -> None:
        self._model = model
        self._called = called
        self._max_size = options.max_size
        self._max_wait = options.max_wait
        self._waiting: list[tuple[Row, asyncio.Future[JSON]]] = []
        self._timer: asyncio.Handle | None = None
        self._calls: dict[asyncio.Task[None], list[tuple[Row, asyncio.Future[JSON]]]] = {}

    async def predict_one(self, row: Row) -> JSON:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[JSON] = loop.create_future()
        self._waiting.append((row, answer))
        if len(self._waiting) >= self._max_size:
            self._send()
        elif self._timer is None:
            self._timer = loop.call_later(self._max_wait, self._send) if self._calls else loop.call_soon(self._send)
        try:
            return await answer
        except asyncio.CancelledError:
            self._end_unwanted()
            raise

    def _end_unwanted(self) -> None:
        for call, batch in self._calls.items():
            if all(answer.done() for _, answer in batch):
                call.cancel()

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = [(row, answer) for row, answer in self._waiting if not answer.done()]
        self._waiting.clear()
        if batch:
            call = asyncio.ensure_future(self._call(batch))
            self._calls[call] = batch
            call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        _fail(self._calls.pop(call, ()), _closed())  # none is left, unless the call was cancelled
        if not self._calls and self._waiting:
            # The callers that were just answered may ask again in the next turn, and go with those who wait.
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_soon(self._send)

    async def _call(self, batch: list[tuple[Row, asyncio.Future[JSON]]]) -> None:
        self._called()
        try:
            results = await predict_rows(self._model, [row for row, _ in batch])
        except InvalidParam:
            await self._one_by_one(batch)
        except BaseException as raised:  # it belongs to the callers, who wait for it
            if ends_task(raised):
                raise
            error = fault_of(raised)
            mark(error)
            _fail(batch, error)
        else:
            for (_, answer), result in zip(batch, results, strict=True):
                if not answer.done():
                    answer.set_result(result)

    async def _one_by_one(self, batch: list[tuple[Row, asyncio.Future[JSON]]]) -> None:
        """Score each row by itself, so that one caller's unfit row does not fail the others."""
        for row, answer in batch:
            if answer.done():
                continue
            self._called()
            try:
                (result,) = await predict_rows(self._model, [row])
            except BaseException as raised:  # it belongs to the caller, who waits for it
                if ends_task(raised):
                    raise
                _fail([(row, answer)], fault_of(raised))
            else:
                if not answer.done():
                    answer.set_result(result)

    async def close(self) -> None:
        """Give up what still waits: the model is being closed."""
        if self._timer is not None:
            self._timer.cancel()
        _fail(self._waiting, _closed())
        self._waiting.clear()
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


def _fail(batch: Iterable[tuple[Row, asyncio.Future[JSON]]], error: Exception) -> None:
    for _, answer in batch:
        if not answer.done():
            answer.set_exception(error)


def _closed() -> SourceUnavailable:
    return SourceUnavailable("the model was taken out of service during the call")
