"""The optional abilities of an open source or model: it has one by having the method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from attrs import field, frozen

from orchestrator_core.errors import OrchestratorError
from orchestrator_core.plugin_api.calls import OperationFacts, are_names
from orchestrator_core.plugin_api.options import JSON


@frozen
class Identity:
    """Which model or source answered: a name with a version and, where there is one, a digest of its content."""

    name: str
    version: str = ""
    digest: str = ""


@frozen
class ModelFacts:
    """The features that a model asks for and the fields it returns; ``None`` where that is not known."""

    inputs: tuple[str, ...] | None = field(default=None, validator=are_names)
    outputs: tuple[str, ...] | None = field(default=None, validator=are_names)


@frozen
class Finding:
    """Something the backend told about a declared operation: it becomes a problem at the operation's line.

    ``at`` is the path inside the operation, such as ``("query",)``; ``near`` a word of the text there, which the
    problem then points at. With an empty ``operation`` it is about the source, and ``at`` a path inside the source.
    """

    operation: str
    message: str
    at: tuple[str | int, ...] = ()
    near: str = ""
    hint: str = ""


@frozen
class Inspection:
    """What a source found out about its operations by asking its backend."""

    facts: Mapping[str, OperationFacts] = field(factory=dict)
    findings: tuple[Finding, ...] = ()


@frozen
class CallInspection:
    """What a source found out about one step's call. The paths of ``findings`` start inside the step's ``params``.

    ``facts`` replace those of the operation: None says that nothing is known of this call.
    """

    facts: OperationFacts | None = None
    findings: tuple[Finding, ...] = ()


@runtime_checkable
class Preparable(Protocol):
    """A source that can bind an operation once, at load."""

    def prepare(self, operation: str, param_names: Sequence[str]) -> Callable[..., Awaitable[JSON]]:
        """Return a coroutine function that takes the parameters' values by position, in the order of the names.

        It means the same as ``fetch(operation, dict(zip(param_names, values)))``, and raises the same.
        """
        ...


@runtime_checkable
class PreparesMany(Protocol):
    """A source that can do an operation for many items in one call, such as SQL's ``IN`` or a model's rows."""

    def prepare_many(
        self, operation: str, param_names: Sequence[str]
    ) -> Callable[[Sequence[Sequence[JSON]]], Awaitable[Sequence[JSON | OrchestratorError]]] | None:
        """Return a coroutine function that takes the values of each item, or ``None`` where that cannot be done.

        Each item is a sequence of values in the order of the names. Each answer, in the items' order, is what the call
        that :meth:`Preparable.prepare` returns would have answered, or the error that it would have raised. What fails
        all items is raised.
        """
        ...


@runtime_checkable
class Inspects(Protocol):
    """A source that can hold its operations against its backend."""

    async def inspect(self) -> Inspection:
        """Ask the backend. Raise :class:`SourceUnavailable` or :class:`SourceError` when it cannot be reached."""
        ...


@runtime_checkable
class InspectsCalls(Protocol):
    """A source whose operations take and return what a step's params say, such as a list of features."""

    def inspect_call(
        self, operation: str, param_names: Sequence[str], constants: Mapping[str, JSON]
    ) -> CallInspection | None:
        """Return what a step's call takes and returns, or ``None`` where the operation's own facts hold.

        ``constants`` are the values of those params that are no expressions. Called once at load, after ``inspect``.
        """
        ...


@runtime_checkable
class ReadyCheck(Protocol):
    """A source or model that can say whether its backend can be reached now."""

    async def check_ready(self) -> None:
        """Return when it can; raise what a call would raise when it cannot.

        One that is there and would have to be waited for raises ``SourceUnavailable`` with ``busy=True`` at once.
        """
        ...


@runtime_checkable
class Identified(Protocol):
    """A source or model that knows which version of itself answers."""

    def identity(self) -> Identity: ...


@runtime_checkable
class PredictsOne(Protocol):
    """A model with a shorter way for a single row, which is what most requests have.

    Not used where concurrent requests are batched.
    """

    def predict_one(self, row: Mapping[str, JSON]) -> Awaitable[JSON]:
        """Score one row. It means the same as ``(await predict([row]))[0]``, and raises the same.

        A coroutine function, as a method or as an attribute.
        """
        ...


class EndedByOthers(str):
    """How a model ended whose end was none of its own doing: it was killed or stopped by hand, its engine went away.

    Such an end of a model that was ready is none of the starts that ``restart.max_starts`` limits.
    """

    __slots__ = ()


@runtime_checkable
class Ends(Protocol):
    """A model that may end by itself: a container, a server process, threads that all hang."""

    async def ended(self) -> str:
        """Wait until it has ended, and return how: the exit status and its last lines of output.

        Return :class:`EndedByOthers` when it did not end by itself, as far as that can be told.
        The core then closes the model, and opens it again with growing pauses.
        """
        ...


@runtime_checkable
class Endable(Protocol):
    """A model that can be ended for everyone who uses it: what was started for it, such as a container."""

    async def end_for_all(self, why: str) -> str:
        """End it, since it hangs: its health checks have got no answer for long. Return ``why``, and what it said last.

        The core then closes the model, and opens it again with growing pauses.
        """
        ...


@runtime_checkable
class Changes(Protocol):
    """A model that can tell cheaply whether what it was loaded from has changed since."""

    async def changed(self) -> bool:
        """Return whether opening it anew would give another model. Asked at a reload that leaves its options alone.

        True, or an error, has the reload open the model anew beside this one.
        """
        ...


@runtime_checkable
class KeepsLogs(Protocol):
    """A model whose output can be read."""

    async def logs(self, lines: int) -> str:
        """Return its last lines of output."""
        ...


@runtime_checkable
class Describes(Protocol):
    """A model that knows its features and its fields."""

    def facts(self) -> ModelFacts: ...


__all__ = [
    "CallInspection",
    "Changes",
    "Describes",
    "Endable",
    "EndedByOthers",
    "Ends",
    "Finding",
    "Identified",
    "Identity",
    "Inspection",
    "Inspects",
    "InspectsCalls",
    "KeepsLogs",
    "ModelFacts",
    "PredictsOne",
    "Preparable",
    "PreparesMany",
    "ReadyCheck",
]
