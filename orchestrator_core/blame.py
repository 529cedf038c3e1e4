"""Who is to blame for an error: the step, the field of the request, or the place of an expression."""

from __future__ import annotations

import re
from ast import literal_eval
from asyncio import CancelledError
from collections.abc import Callable

from orchestrator_core.errors import ExpressionError, InvalidRequest, MissingReference, OrchestratorError, SourceError
from orchestrator_core.plugin_api import JSON

BROKEN_OFF = "cancelled before it ended"
"""What a record says of a call or a request that was cancelled."""

_STEP = re.compile(r"\.(\w+)|\[(-?[0-9]+)\]|\['((?:[^'\\]|\\.)*)'\]")
"""A step of a reference as ``step_text`` writes it."""


class UnfitAnswer(SourceError):
    """502: the answer holds a value that cannot be written. ``step`` is the one that gave it, where that is known."""

    def __init__(self, message: str, *, step: str = "") -> None:
        super().__init__(message)
        self.step = step


def describe(error: BaseException) -> str:
    """Return what a record says of an error: the message, and its type where it is a defect."""
    if isinstance(error, CancelledError):
        return BROKEN_OFF
    return str(error) if isinstance(error, OrchestratorError) else f"{type(error).__name__}: {error}"


def is_defect(error: BaseException) -> bool:
    """Return whether an error is one that code does not raise on purpose: its type says more than its message."""
    return not isinstance(error, OrchestratorError | ValueError | OSError)


def why_unusable(error: BaseException) -> str:
    """Return why something could not be opened: the message, and the error's type where it is a defect."""
    return f"{type(error).__name__}: {error}" if is_defect(error) else str(error)


def culprit(error: BaseException, step: str) -> str:
    """Return the step to blame: for a field that is missing, the one that should have returned it."""
    if isinstance(error, MissingReference):
        root = error.reference[1:].split(".", 1)[0].split("[", 1)[0]
        return step if root == "item" else root
    return "" if isinstance(error, InvalidRequest) and not str(error).startswith("step ") else step


def request_error(error: MissingReference) -> Exception:
    """Return the 422 for a reference to the request that found nothing; the error itself for any other."""
    reference = error.reference
    if not reference.startswith("$request"):
        return error
    return InvalidRequest(str(error), [{"pointer": request_pointer(reference), "message": "is required"}])


def request_pointer(reference: str) -> str:
    """Return where in the request a reference leads: ``/body/items/0`` for ``$request.body.items[0]``.

    A key that is computed ends it: what it was is not told.
    """
    pointer, at = "", len("$request")
    while step := _STEP.match(reference, at):
        name, position, quoted = step.groups()
        key = name or position or literal_eval(f"'{quoted}'")
        pointer += "/" + key.replace("~", "~0").replace("/", "~1")
        at = step.end()
    return pointer


def located(place: str, expression: str, roots: tuple[str, ...], evaluate: Callable[[], JSON]) -> JSON:
    """Return the value of an expression; its error says where it stands, and whose values it could not work on."""
    try:
        return evaluate()
    except ExpressionError as error:
        message = f"{place}: {error}, in {expression}"
        if roots == ("request",):
            raise InvalidRequest(message) from error
        steps = [root for root in roots if root not in ("request", "execution")]
        raise ExpressionError(message, step=steps[0] if len(steps) == 1 else "") from error


__all__ = [
    "BROKEN_OFF",
    "UnfitAnswer",
    "culprit",
    "describe",
    "is_defect",
    "located",
    "request_error",
    "request_pointer",
    "why_unusable",
]
