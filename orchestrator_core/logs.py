"""The service's log: one stream of lines for people or of JSON, also for what libraries log, with secrets masked."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from orchestrator_core.config.model import LoggingOptions
from orchestrator_core.config.secrets import Redactor
from orchestrator_core.request_lines import (
    FileStream,
    Lines,
    LineStream,
    RequestLine,
    json_dropped,
    json_line,
    may_hold_up,
    text_dropped,
    text_line,
)

log = structlog.get_logger("orchestrator")


class LogMask:
    """Masks the secrets of the configuration that serves, and of those before: requests may still be on them."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def learn(self, redactor: Redactor) -> None:
        self._redactor = Redactor.of({*self._redactor.values, *redactor.values})

    def __call__(self, text: str) -> str:
        return self._redactor(text)


class LineFactory(structlog.WriteLoggerFactory):
    """structlog's logger of lines, which knows how the line of a request is written to the same stream."""

    def __init__(self, file: Any, lines: Lines, request_line: RequestLine | None) -> None:
        super().__init__(file)
        self.lines = lines
        self.request_line = request_line


def request_line() -> RequestLine | None:
    """Return what writes the line of a request, None where none was set up here or its level leaves it out."""
    factory = structlog.get_config()["logger_factory"]
    return factory.request_line if isinstance(factory, LineFactory) else None


def flush_log() -> None:
    """Write what of the log is on its way, for a process that ends without Python's leave."""
    factory = structlog.get_config()["logger_factory"]
    if isinstance(factory, LineFactory):
        factory.lines.flush()
    sys.stderr.flush()


def configure_logging(options: LoggingOptions, redact: Callable[[str], str], **bound: int) -> None:
    """Send the log to standard error, as lines for people or as JSON, with every known secret masked.

    What is ``bound`` is in every line, such as the place of a worker.
    What libraries log comes with it: from warnings on, since what they say below that may hold a secret that no
    configuration has, such as the token that a login was answered with. Where the stream can be held up by whoever
    reads it, all of it is written by a thread.
    """
    stream = sys.stderr
    mask = MaskEvents(redact)
    level: int = getattr(logging, options.level.upper())
    is_json = options.format == "json"
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    render: list[Processor] = [
        structlog.processors.format_exc_info,
        mask,
        structlog.processors.JSONRenderer(default=repr)
        if is_json
        else structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
    ]
    dated: list[Processor] = [
        lambda logger, name, event: {**bound, **event},
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    lines = Lines(stream, partial(json_dropped if is_json else text_dropped, **bound))
    line = json_line(lines.add, **bound) if is_json else text_line(lines.add, colors=colors, **bound)
    to: Any = LineStream(lines) if may_hold_up(stream) else FileStream(stream)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, *dated, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=LineFactory(to, lines, line if level <= logging.INFO else None),
        cache_logger_on_first_use=True,
    )
    _take_over_libraries(to, [structlog.stdlib.add_logger_name, *dated], render, max(level, logging.WARNING))


def configure_early_logging() -> None:
    """Log until it is known how: without the variables that a traceback would show, which may hold secrets."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


@contextmanager
def logging_what_nobody_caught() -> Iterator[None]:
    """Log what ends a thread, or fails where nobody can be told, and with secrets masked: Python would print it."""

    def in_a_thread(told: threading.ExceptHookArgs) -> None:
        if told.exc_type is not SystemExit:
            named = told.thread.name if told.thread else ""
            log.error("defect in a thread", thread=named, exc_info=_exc_info(told))

    def where_nobody_is_told(told: sys.UnraisableHookArgs) -> None:
        log.error("defect that nobody is told of", what=told.err_msg, where=told.object, exc_info=_exc_info(told))

    before = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = in_a_thread, where_nobody_is_told
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before


def _exc_info(told: threading.ExceptHookArgs | sys.UnraisableHookArgs) -> Any:
    return told.exc_type, told.exc_value, told.exc_traceback


def _take_over_libraries(stream: Any, before: list[Processor], render: list[Processor], level: int) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)


class MaskEvents:
    """A structlog processor that masks every string in an event, however deep, and how other values show themselves."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact

    def __call__(self, logger: object, name: str, event: EventDict) -> EventDict:
        return {key: self._masked(value) for key, value in event.items()}

    def _masked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._redact(value)
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)  # JSON has no number for it
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {self._redact(str(key)): self._masked(item) for key, item in value.items()}
        if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
            return [self._masked(item) for item in value]
        return self._redact(repr(value))
