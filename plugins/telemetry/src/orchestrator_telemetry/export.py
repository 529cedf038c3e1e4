"""The export of spans: a bounded queue that requests only append to, and a thread that empties it."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog
from attrs import frozen

from orchestrator_core.plugin_api import TelemetryContext
from orchestrator_telemetry.options import TracesOptions
from orchestrator_telemetry.recorded import Recorded

log = structlog.get_logger("orchestrator.telemetry")

BATCH = 256
"""How many requests go into one export."""

FAILED = "spans cannot be exported: they are dropped until it can be done again"
REJECTED = "the collector rejects some of the spans: they are dropped"


@frozen
class Lost:
    """How many spans of one export the collector did not take, and why."""

    spans: int
    why: str


class Export:
    """Keeps what waits to be exported, and counts what was and what was not: all are numbers of spans.

    ``put`` is for the event loop's thread, ``work`` for a thread of its own.
    """

    def __init__(
        self,
        spans_of: Callable[[Recorded], Sequence[Any]],
        send: Callable[[Sequence[Any]], Lost | None],
        options: TracesOptions,
    ) -> None:
        self.exported = 0
        self._refused = 0
        self._lost = 0
        self._spans_of = spans_of
        self._send = send
        self._limit = options.max_queue
        self._interval = float(options.interval)
        self._waiting: deque[Recorded] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._told = ""
        self._under_way = 0

    @property
    def dropped(self) -> int:
        return self._refused + self._lost

    def put(self, recorded: Recorded) -> None:
        """Queue a run, or drop its spans when the queue is full. Never waits."""
        waiting = len(self._waiting)
        if waiting >= self._limit:
            self._refused += recorded.spans
            return
        self._waiting.append(recorded)
        if waiting == BATCH:
            self._wake.set()

    def stop(self) -> None:
        """Have the thread export what is left, and end."""
        self._stopping = True
        self._wake.set()

    def give_up(self) -> int:
        """Drop what still waits, and return how many runs were not exported, with those that are under way."""
        left = len(self._waiting) + self._under_way
        while self._waiting:
            self._lost += self._waiting.popleft().spans
        return left

    def work(self) -> None:
        while True:
            stopping = self._stopping
            if not stopping:
                self._wake.wait(self._interval)
                self._wake.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                self._under_way = len(batch)
                self._export(batch)
                self._under_way = 0
            if stopping:
                return

    def _export(self, batch: Sequence[Recorded]) -> None:
        spans: list[Any] = []
        try:
            for recorded in batch:
                spans += self._spans_of(recorded)
            lost = self._send(spans)
        except Exception as error:  # the thread must outlive any defect, of the exporter's too
            lost = Lost(len(spans) or len(batch), f"{type(error).__name__}: {error}")
        # What is said comes first: whoever sees the count can look for it in the log.
        if lost is None:
            if self._told:
                log.info("spans are exported again")
            self._told = ""
            self.exported += len(spans)
            return
        taken = max(0, len(spans) - lost.spans)
        event = REJECTED if taken else FAILED
        if event != self._told:
            log.warning(event, error=lost.why)
        self._told = event
        self.exported += taken
        self._lost += lost.spans


@asynccontextmanager
async def open_export(options: TracesOptions, context: TelemetryContext) -> AsyncIterator[Export]:
    """Export until the block is left, and then what is left, for as long as ``shutdown_timeout`` says."""
    from orchestrator_telemetry.exporter import open_exporter
    from orchestrator_telemetry.spans import SpanMaker

    exporter, words = await asyncio.to_thread(open_exporter, options)
    maker = SpanMaker(options, context)

    def send(spans: Sequence[Any]) -> Lost | None:
        words.begin()
        if exporter.export(spans).name != "SUCCESS" or words.sent_elsewhere:
            return Lost(len(spans), context.redact(words.text or "the exporter says that it failed"))
        rejected = min(words.rejected, len(spans))
        return Lost(rejected, context.redact(words.text)) if rejected else None

    export = Export(maker.spans, send, options)
    thread = threading.Thread(target=export.work, name="orchestrator spans", daemon=True)
    thread.start()
    try:
        yield export
    finally:
        export.stop()
        await asyncio.to_thread(thread.join, float(options.shutdown_timeout))
        if thread.is_alive():
            left = export.give_up()
            log.warning("the last spans were not exported in time", requests=left)
        await asyncio.to_thread(exporter.shutdown)
        await asyncio.to_thread(thread.join, 1.0)
