"""The service's log: where it goes, in which form, and what is masked in it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

import structlog

from orchestrator_core.config.model import LoggingOptions
from orchestrator_core.config.secrets import Redactor


class LogMask:
    """Masks the secrets of the configuration that serves, and of those before: requests may still be on them."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def learn(self, redactor: Redactor) -> None:
        self._redactor = Redactor.of({*self._redactor.values, *redactor.values})

    def __call__(self, text: str) -> str:
        return self._redactor(text)


def configure_logging(options: LoggingOptions, redact: Callable[[str], str]) -> None:
    """Send the log to standard error, as lines for people or as JSON, with every known secret masked."""

    def mask(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {key: redact(value) if isinstance(value, str) else value for key, value in event.items()}

    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if options.format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ,
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            mask,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, options.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
