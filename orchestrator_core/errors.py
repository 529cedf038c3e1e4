"""What can be wrong with a configuration, and what can go wrong with a request.

A :class:`Problem` is one finding about the configuration; :class:`ConfigError` carries all of them at once.
The other classes are the errors of a running request. Each knows the HTTP status it becomes, so that the one
place which turns errors into RFC 9457 answers needs no table of its own.
"""

from __future__ import annotations

import asyncio
import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

from attrs import evolve, field, frozen

__all__ = [
    "OFFLINE_HINT",
    "BadRequest",
    "ConfigError",
    "DeadlineExceeded",
    "EntityNotFound",
    "ExpressionError",
    "InvalidParam",
    "InvalidRequest",
    "MissingReference",
    "NotBegun",
    "OrchestratorError",
    "Problem",
    "Refused",
    "SourceError",
    "SourceTimeout",
    "SourceUnavailable",
    "did_you_mean",
    "has_begun",
]

Severity = Literal["error", "warning"]


@frozen(order=True)
class Problem:
    """One finding about the configuration, ordered by where it stands.

    ``file`` is relative to the configuration folder; ``line`` and ``column`` count from 1, and 0 means that the
    finding has no place of its own. ``path`` is the place in the data, ``endpoints.predict.data_sources[0].type``.
    ``source_line`` and ``length`` are what the caret is drawn under.
    """

    file: str = ""
    line: int = 0
    column: int = 0
    code: str = ""
    message: str = ""
    path: str = ""
    hint: str = ""
    severity: Severity = "error"
    source_line: str = field(default="", eq=False, repr=False)
    length: int = field(default=1, eq=False, repr=False)

    def as_warning(self) -> Problem:
        return evolve(self, severity="warning")

    def __str__(self) -> str:
        """``file:line:column: CODE message``, the source line, a caret and the hint."""
        where = f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: " if self.file else ""
        level = "warning: " if self.severity == "warning" else ""
        lines = [f"{where}{self.code} {level}{self.message}"]
        if self.source_line:
            gutter = f"{self.line:>5} | "
            lines.append(f"{gutter}{self.source_line}")
            start, end = self.column - 1, self.column - 1 + self.length
            pad = "".join("\t" if char == "\t" else " " * _width(char) for char in self.source_line[:start])
            caret = "^" * max(1, sum(map(_width, self.source_line[start:end])))
            lines.append(" " * (len(gutter) - 2) + "| " + pad + caret)
        if self.hint:
            lines.append(f"      = {self.hint}")
        return "\n".join(lines)


OFFLINE_HINT = "skip with --offline"
"""What one can do about something that ``orchestrator check`` cannot reach."""


def _width(char: str) -> int:
    """Return how many columns of a terminal a character takes."""
    return 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1


class ConfigError(Exception):
    """A configuration that cannot be served, with every problem found in it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(sorted(set(problems)))
        super().__init__("\n".join(map(str, self.problems)))


class OrchestratorError(Exception):
    """An error of a request that becomes an answer of the given ``status``.

    The message is shown to the client: it names what is missing or failed and never a secret.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "internal error"
    retry_after_seconds: float | None = None
    transient: bool = False


class BadRequest(OrchestratorError):
    """The request cannot be read: 400 malformed, 405 method, 413 too large, 415 wrong media type."""

    title = "bad request"

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status  # type: ignore[misc]  # one class for the handful of statuses of an unreadable request


class InvalidRequest(OrchestratorError):
    """422: the request was read, but a value in it is absent or unfit.

    ``errors`` has one ``{"pointer": "/query_params/limit", "message": "…"}`` per finding.
    """

    status = 422
    title = "invalid request"

    def __init__(self, message: str, errors: Sequence[dict[str, str]] = ()) -> None:
        super().__init__(message)
        self.errors = list(errors)


class EntityNotFound(OrchestratorError):
    """404: what the step was asked for does not exist, such as a row or an entity. The message names the key."""

    status = 404
    title = "not found"


class SourceError(OrchestratorError):
    """502: the source failed, or answered what cannot be used.

    ``transient`` says that the same call may succeed when tried again. ``answered`` says of such a failure that the
    source did answer, if with nothing that can be used, such as half an answer: it is not down. Neither is one that is
    ``busy``: the call never came to it, since others had all connections for as long as it might take.
    ``retry_after_seconds`` is how long the source asked to wait, as by the header ``Retry-After``: it is not called
    again for this request before, and the client is told.
    """

    status = 502
    title = "source failed"

    def __init__(
        self,
        message: str,
        *,
        transient: bool = False,
        answered: bool = False,
        busy: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.transient = transient
        self.answered = answered
        self.busy = busy
        self.retry_after_seconds = retry_after_seconds


class SourceTimeout(SourceError):
    """504: one attempt of a call took longer than the source's ``timeout``. The next may not."""

    status = 504
    title = "deadline passed"

    def __init__(self, message: str, *, busy: bool = False) -> None:
        super().__init__(message, transient=True, busy=busy)


class SourceUnavailable(OrchestratorError):
    """503 with ``Retry-After``: nothing was tried, because the source, model or service is not ready for it.

    ``started`` is for the opening of a model. True: something was started and ended, which counts as a failed start;
    after a few the model stays failed. False: nothing could be started, such as while an engine is down; that is tried
    again for as long as it takes. None leaves it open: it counts until the model has been ready once.

    ``transient`` says that the source itself asked to come again after ``retry_after_seconds``: a call may be tried
    again then, as one that failed with a transient :class:`SourceError`.

    ``busy`` says of a source that it is there and has its hands full, such as when all its connections are in use. A
    check that says so takes nobody's place in line: a source that is busy is not missing.
    """

    status = 503
    title = "not available"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float = 1.0,
        started: bool | None = None,
        transient: bool = False,
        busy: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.started = started
        self.transient = transient
        self.busy = busy


class Refused(SourceUnavailable):
    """503: this service did not let the call through, which tells nothing about the source.

    Its circuit breaker is open, its queue is full, or the model is not ready.
    """


class NotLetThrough(Refused):
    """503: the policies around a call refused it, so that neither the source nor its fallback has been asked."""


class TooLittleTime(NotLetThrough):
    """503: a place came when the time that this call has left was too short. Others that wait for it may have more."""


class NotBegun(asyncio.CancelledError):
    """A call was cancelled before it came to its source, such as while it waited for its model to be loaded."""


def has_begun(error: BaseException) -> bool:
    """Return whether a call that was cancelled may have come to its source, or would have if that were well.

    Who waits for a connection while others are served says so by ``begun = False`` on the error. It does not raise
    :class:`NotBegun`, since ``asyncio.timeout`` makes a ``TimeoutError`` of ``CancelledError`` itself only.
    """
    return not isinstance(error, NotBegun) and getattr(error, "begun", True)


class DeadlineExceeded(OrchestratorError):
    """504: the time for the request or the step ran out. ``of_request`` says that it was the whole request's."""

    status = 504
    title = "deadline passed"

    def __init__(self, message: str, *, of_request: bool = False) -> None:
        super().__init__(message)
        self.of_request = of_request


class InvalidParam(OrchestratorError):
    """A step's parameter has a value that its operation cannot take.

    422 when the value came straight from the request, else 502: the step that made it is to blame.
    """

    status = 502
    title = "invalid parameter"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class MissingReference(OrchestratorError):
    """A reference that found nothing. 422 when it asked the request, else 502: a step did not return the field."""

    status = 502
    title = "missing value"

    def __init__(self, reference: str, message: str = "") -> None:
        super().__init__(message or f"{reference} is missing")
        self.reference = reference


class ExpressionError(OrchestratorError):
    """An expression got values it cannot work on, such as ``'a' - 1``. 422 when they all came from the request.

    ``step`` is the one that they came from, where it is known and one only.
    """

    status = 502
    title = "expression failed"

    def __init__(self, message: str, *, step: str = "") -> None:
        super().__init__(message)
        self.step = step


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the closest of the known words, the list of them if it is short, else ``""``."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    lowered = {name.lower(): name for name in names}
    if not close and [word.lower(), *lowered] != [word, *names]:
        close = [lowered[key] for key in difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)]
    if close:
        return f"did you mean '{close[0]}'?"
    return f"expected one of: {', '.join(names)}" if 0 < len(names) <= 13 else ""
