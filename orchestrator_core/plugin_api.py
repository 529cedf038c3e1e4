"""Everything that the author of a plugin imports.

A plugin is a module (or a single file in a plugins folder) with hooks marked by :data:`hookimpl`. The hooks answer
once, at start-up, with *kinds*: frozen values that name a type, say what its options are, and open it. What runs
for each request is a small class of your own, with one coroutine to write::

    from contextlib import asynccontextmanager

    from attrs import frozen

    from orchestrator_core.plugin_api import SourceKind, hookimpl, option


    @frozen
    class GreetingOptions:
        greeting: str = option("hello", help="The word to greet with.")


    class GreetingSource:
        def __init__(self, options):
            self.options = options

        async def fetch(self, operation, params):
            return {"text": f"{self.options.greeting} {params['name']}"}


    @asynccontextmanager
    async def open_greeting(options, context):
        yield GreetingSource(options)


    @hookimpl
    def orchestrator_source_kinds():
        return [SourceKind(name="greeting", summary="Greets.", options=GreetingOptions, open=open_greeting)]

With this in the configuration::

    greeting:
      sources:
        default: {greeting: "good morning"}

a step ``{name: welcome, type: greeting, operation: greet, params: {name: "$request.name"}}`` calls ``fetch``.

The abilities at the end of this module are optional. A source has one by having the method; there is nothing to
register and nothing to inherit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import attrs
import orjson
import pluggy
from attrs import Factory, field, frozen

from orchestrator_core.bounds import at_least_one, not_negative, positive
from orchestrator_core.errors import (
    EntityNotFound,
    ExpressionError,
    InvalidParam,
    MissingReference,
    OrchestratorError,
    SourceError,
    SourceUnavailable,
    did_you_mean,
)
from orchestrator_core.expressions import CompiledValue, Reference, compile_value
from orchestrator_core.http_client import (
    EgressOptions,
    HttpClient,
    HttpOptions,
    HttpOrigin,
    HttpResponse,
    TlsOptions,
    TraceParent,
    parse_traceparent,
    trace_lines,
)
from orchestrator_core.leases import Lease, hold_lease, if_unheld, is_held, lease_domain

__all__ = [
    "JSON",
    "AddsRuns",
    "CallInspection",
    "Captured",
    "Changes",
    "CompiledValue",
    "Degraded",
    "Describes",
    "Duration",
    "EgressOptions",
    "EndedByOthers",
    "EndpointInfo",
    "Ends",
    "EntityNotFound",
    "Execution",
    "ExecutionStore",
    "Exposition",
    "ExpressionError",
    "Finding",
    "Finished",
    "FinishedRun",
    "Generation",
    "HttpClient",
    "HttpOptions",
    "HttpOrigin",
    "HttpResponse",
    "Identified",
    "Identity",
    "Inspection",
    "Inspects",
    "InspectsCalls",
    "InvalidParam",
    "KeepsLogs",
    "Lease",
    "MissingReference",
    "Model",
    "ModelFacts",
    "ModelKind",
    "Noted",
    "OpenContext",
    "OperationFacts",
    "OptionError",
    "OrchestratorError",
    "Page",
    "PredictsOne",
    "Preparable",
    "PreparesMany",
    "Query",
    "ReadyCheck",
    "Reference",
    "RunPlan",
    "Size",
    "Source",
    "SourceError",
    "SourceKind",
    "SourceUnavailable",
    "StepInfo",
    "StepRecord",
    "StorableRun",
    "StoreContext",
    "StoreKind",
    "Telemetry",
    "TelemetryContext",
    "TelemetryKind",
    "TlsOptions",
    "Trace",
    "TraceParent",
    "TransformerKind",
    "at_least_one",
    "compile_value",
    "did_you_mean",
    "hold_lease",
    "hookimpl",
    "if_unheld",
    "is_held",
    "lease_domain",
    "not_negative",
    "option",
    "parse_traceparent",
    "positive",
    "trace_lines",
]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Options = TypeVar("Options")


class Duration(float):
    """Seconds. In YAML a number of seconds, or ``"250ms"``, ``"5s"``, ``"2m"``, ``"1h"``."""


class Size(int):
    """Bytes. In YAML a number of bytes, or ``"64KiB"``, ``"1MiB"``, ``"2GiB"``."""


PROJECT = "orchestrator"
hookimpl = pluggy.HookimplMarker(PROJECT)


def option(
    default: Any = attrs.NOTHING,
    *,
    help: str,  # the word that click and argparse use for the same thing
    factory: Callable[[], Any] | None = None,
    validator: Any = None,
    secret: bool = False,
) -> Any:
    """Return an attrs field for an options class, with the sentence that the reference page and the schema show.

    A validator that raises ``ValueError("…")`` is reported as a problem at the option's line. The value of a ``secret``
    option is not shown in representations, nor on pages, even where it is written out in the configuration.
    """
    default = Factory(factory) if factory else default
    located = validator and _located(validator)
    return field(default=default, validator=located, metadata={"help": help}, repr=_hidden if secret else True)


def _hidden(value: Any) -> str:
    return "None" if value is None else "'***'"


class OptionError(ValueError):
    """What a validator said of one option: ``option`` is its name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.option = name


def _located(validator: Callable[[Any, Any, Any], None]) -> Callable[[Any, Any, Any], None]:
    def validate(instance: Any, attribute: Any, value: Any) -> None:
        try:
            validator(instance, attribute, value)
        except (ValueError, TypeError) as error:
            raise OptionError(attribute.name, str(error)) from error

    return validate


# --- what runs per request -------------------------------------------------------------------------------------


class Source(Protocol):
    """A configured backend. One instance serves all requests: ``fetch`` is called concurrently."""

    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        """Run the operation and return its result, which is shared and must not be changed afterwards.

        Raise :class:`EntityNotFound` (404) when what was asked for does not exist, :class:`InvalidParam` when a
        parameter has a value that the operation cannot take, :class:`SourceUnavailable` (503) when nothing was
        tried, and :class:`SourceError` (502) for anything that the backend did wrong. Any other exception is a
        defect and answers 500. When the request is given up the coroutine is cancelled: give connections back.
        """
        ...


class Model(Protocol):
    """A model ready to be called. ``predict`` is called concurrently."""

    async def predict(self, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
        """Score N rows of features and return N results in the same order.

        Each row is an object of feature name to value. Raise as :meth:`Source.fetch` does.
        """
        ...


# --- what the hooks answer with --------------------------------------------------------------------------------


@frozen
class OperationFacts:
    """What is known about an operation before it runs; the plan is checked against it.

    ``required`` and ``optional`` are parameter names; ``optional=None`` means that any others are taken.
    ``fields`` are the names in the result, or ``None`` where they are not known; ``many`` says that the result is
    a list of such objects. ``inputs`` names the keys that an object parameter must have, such as
    ``{"features": ("income", "age")}``. ``degrades`` says that a result can be :class:`Degraded`.

    ``idempotent`` says that a second call does no harm, as for a read: then the core tries again after a failure that
    is :attr:`SourceError.transient`. False says that one may, as for a write: what a source's cache would keep of it is
    asked for each time; None leaves both to the configuration. ``in_process`` says that a call never leaves this
    process, so that nothing about its failures is transient. Both are taken from the ``facts`` of the kind: they have
    to be known before it is opened.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] | None = None
    fields: tuple[str, ...] | None = None
    many: bool = False
    inputs: Mapping[str, tuple[str, ...]] = field(factory=dict)
    degrades: bool = False
    idempotent: bool | None = None
    in_process: bool = False


@frozen
class Degraded:
    """The result of an operation that something lesser than the backend gave, such as a fallback.

    Returned in place of the result, by an operation whose :class:`OperationFacts` say ``degrades``: the step's result
    is ``result``, and the answer counts as degraded.
    """

    result: JSON


@frozen
class OpenContext:
    """What a kind is given when it is opened.

    ``name`` is the source's (``database.sources.<name>``) or the model's name, for messages and labels.
    ``operations`` holds the declared operations by name, as instances of the kind's ``operation`` class.
    ``config_dir`` is where relative paths start; use :meth:`path`. ``http`` is the one outbound client.

    ``failed_starts`` is how many times a model could not be opened, or ended, since somebody last asked for it, and
    ``max_starts`` how many of that may be failed starts. They are for kinds that share what they start with other
    processes, and therefore count the starts of all.
    """

    name: str
    config_dir: Path
    http: HttpClient
    operations: Mapping[str, Any] = field(factory=dict)
    failed_starts: int = 0
    max_starts: int = 5
    _open_model: Callable[[str, Mapping[str, Any]], AbstractAsyncContextManager[Model]] | None = field(
        default=None, alias="open_model", repr=False
    )

    def path(self, path: str) -> Path:
        """Return the path, taken relative to the configuration folder unless it is absolute."""
        return (self.config_dir / path).resolve()

    def named(self, name: str) -> OpenContext:
        """Return the same context under the name of a part of the source."""
        return attrs.evolve(self, name=name, operations={})

    def open_model(self, kind: str, options: Mapping[str, Any]) -> AbstractAsyncContextManager[Model]:
        """Open a model of another kind, such as ``http`` for a server this kind has started.

        ``options`` is what would stand in YAML. Raises :class:`ConfigError` when they do not fit the kind.
        """
        if self._open_model is None:
            raise RuntimeError(f"{self.name}: this context opens no other kinds")
        return self._open_model(kind, options)


@frozen
class SourceKind(Generic[Options]):
    """A type of source, as ``type:`` in a step and the section of that name in the configuration.

    ``options`` is the attrs class of ``<name>.sources.<source_id>`` (without ``operations``), ``operation`` that of
    one entry of ``operations``. Without an ``operation`` class the operations need not be declared: any name is
    passed to ``fetch``. With one, an undeclared operation is a problem unless ``undeclared_operations`` is true.
    ``facts`` tells, from the options alone and without touching the backend, what each operation takes.
    ``in_process`` says that a call may be answered without a pause of the event loop, as from memory or a local file:
    steps that wait for something else are then begun before it. ``idempotent`` says that a second call of any of its
    operations does no harm; where that differs, ``facts`` say so of each.
    """

    name: str
    summary: str
    options: type[Options]
    open: Callable[[Options, OpenContext], AbstractAsyncContextManager[Source]]
    operation: type[Any] | None = None
    undeclared_operations: bool = False
    facts: Callable[[Options, Mapping[str, Any]], Mapping[str, OperationFacts]] | None = None
    in_process: bool = False
    idempotent: bool = False


@frozen
class ModelKind(Generic[Options]):
    """A way to bring a model, as ``type:`` of a model in ``ml.sources``. ``aliases`` are other names for it.

    ``open`` loads or starts the model, and leaves when it is ready to be called. It raises ``ValueError`` or
    :class:`SourceError` when that can never succeed as configured (a wrong digest, no such image), and
    :class:`SourceUnavailable` when it may later: the core then tries again, with growing pauses. Say ``started=True``
    when something was started and ended, which is done a few times only, and ``started=False`` while there is nothing
    to start it with, such as an engine that is down, which is waited for.

    ``look`` tells what is known of the model without starting anything, for ``orchestrator check``; it raises as
    ``open`` does. A kind without it is opened and closed for that.

    ``idempotent`` says that asking such a model twice does no harm, and ``in_process``, of a model's options, that it
    is scored inside this process: see :class:`OperationFacts`.
    """

    name: str
    summary: str
    options: type[Options]
    open: Callable[[Options, OpenContext], AbstractAsyncContextManager[Model]]
    aliases: tuple[str, ...] = ()
    look: Callable[[Options, OpenContext], Awaitable[ModelFacts | None]] | None = None
    idempotent: bool = False
    in_process: Callable[[Options], bool] | None = None


@frozen
class TransformerKind(Generic[Options]):
    """A pure function on a JSON value, named in a ``transform:`` list as ``name`` or ``{name: options}``.

    ``build`` is called once at load and returns the function that runs for each value. The function must not
    change its argument. It raises :class:`SourceError` for a value it cannot work on, naming the field.
    ``options`` is an attrs class, or any type that YAML data can be checked against, such as ``dict[str, str]``.
    """

    name: str
    summary: str
    options: Any
    build: Callable[[Options], Callable[[JSON], JSON]]


# --- optional abilities of an open source or model ---------------------------------------------------------------


@frozen
class Identity:
    """Which model or source answered: a name with a version and, where there is one, a digest of its content."""

    name: str
    version: str = ""
    digest: str = ""


@frozen
class ModelFacts:
    """The features that a model asks for and the fields it returns; ``None`` where that is not known."""

    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None


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
        """Return when it can; raise what a call would raise when it cannot."""
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
    """A model that runs outside this process and may end there: a container, a server process."""

    async def ended(self) -> str:
        """Wait until it has ended, and return how: the exit status and its last lines of output.

        Return :class:`EndedByOthers` when it did not end by itself, as far as that can be told.
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


# --- what observers are told --------------------------------------------------------------------------------------

StepStatus = Literal["ok", "cached", "default", "skipped", "failed", "cancelled"]
ExecutionStatus = Literal["ok", "degraded", "failed", "cancelled"]


@frozen
class StepRecord:
    """What one step did. Times are seconds, ``start_seconds`` counted from the start of the execution.

    ``attempts`` is how often the source was called: 0 for a step that was not, or that a cache answered; the items of
    a ``for_each`` count as one attempt, and each further attempt of an item as one more. ``error`` is the message of
    its failure, or empty. ``items`` is how many items a step with ``for_each`` ran for, and ``items_failed`` how many
    of them have its default instead of a result; the error is then that of the first.

    ``cache`` says how a cache answered: ``hit``, ``stale``, ``shared`` with a call that was under way, or not at all:
    an empty string. ``breaker`` is ``open`` where the circuit breaker refused the call, ``half_open`` where the call
    was its probe. ``waited_seconds`` is how long the call waited for its turn.
    """

    name: str
    status: StepStatus
    start_seconds: float = 0.0
    duration_seconds: float = 0.0
    attempts: int = 0
    error: str = ""
    items: int | None = None
    items_failed: int = 0
    cache: str = ""
    breaker: str = ""
    waited_seconds: float = 0.0


class Captured(Mapping[str, Any]):
    """The values that went through an execution: a JSON document, of which ``text`` is the text.

    It has ``request``, ``steps`` and ``answer``: see ``docs/tracking.md``. It is parsed when somebody looks inside.
    """

    __slots__ = ("_parsed", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._parsed: dict[str, Any] | None = None

    def _document(self) -> dict[str, Any]:
        if self._parsed is None:
            self._parsed = orjson.loads(self.text)
        return self._parsed

    def __getitem__(self, key: str) -> Any:
        return self._document()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._document())

    def __len__(self) -> int:
        return len(self._document())

    def __repr__(self) -> str:
        return f"<captured values, {len(self.text)} bytes>"


@frozen
class Execution:
    """One run of an endpoint. ``started_at`` is a Unix time in seconds; durations are seconds.

    ``engine_seconds`` is the part of the duration in which no step was under way. ``generation`` is the hash of
    the configuration that answered, ``models`` the identities of the models that were called. ``cache`` says how a
    cache gave the whole answer (``hit``, ``stale`` or ``shared``), ``cached_from`` is the execution that made it then.
    ``captured`` are the values that went through, or None where ``tracking.capture`` keeps none.
    """

    id: str
    domain: str
    endpoint: str
    generation: str
    status: ExecutionStatus
    http_status: int
    started_at: float
    duration_seconds: float
    engine_seconds: float
    trace_id: str
    degraded: tuple[str, ...]
    models: tuple[Identity, ...]
    steps: tuple[StepRecord, ...]
    error: str = ""
    cache: str = ""
    cached_from: str = ""
    captured: Captured | None = None


# --- runs that have finished --------------------------------------------------------------------------------------


class Noted(Protocol):
    """What policies have noted of a step's calls: how many there were, and how a cache answered."""

    @property
    def attempts(self) -> int: ...
    @property
    def cached(self) -> str: ...


class FinishedRun(Protocol):
    """A run after its answer was made: the raw times, of which an :class:`Execution` is only made when asked for.

    ``started`` and ``ended`` are moments of ``perf_counter``, ``started_at`` is ``started`` as a Unix time; all in
    seconds. ``steps`` has for each step ``None`` if it was never begun, its start if the run ended before it did, else
    its status, start, end and the message of its failure, which may hold secrets. ``error`` holds none. ``notes`` has
    what policies noted, by the step's place: None, or no entry, where a step was called once as usual.
    """

    @property
    def id(self) -> str: ...
    @property
    def started_at(self) -> float: ...
    @property
    def started(self) -> float: ...
    @property
    def ended(self) -> float: ...
    @property
    def http_status(self) -> int: ...
    @property
    def error(self) -> str: ...
    @property
    def degraded_steps(self) -> tuple[str, ...]: ...
    @property
    def steps(self) -> Sequence[tuple[StepStatus, float, float, str] | float | None]: ...
    @property
    def notes(self) -> Mapping[int, Noted] | None: ...
    def cached_steps(self) -> Container[str]:
        """Return the names of the steps that a cache answered."""
        ...

    def step_record(self, index: int) -> StepRecord:
        """Return all that is known of a step."""
        ...


# --- stores of executions -----------------------------------------------------------------------------------------


@frozen
class Query:
    """Which executions to return: the newest first. ``since`` and ``until`` are Unix times in seconds.

    ``cursor`` is the one that :class:`Page` had for the page before: the id of its last execution.
    """

    domain: str | None = None
    endpoint: str | None = None
    status: str | None = None
    since: float | None = None
    until: float | None = None
    limit: int = 50
    cursor: str | None = None


@frozen
class Page:
    """Executions and the cursor of the next page, or None after the last."""

    executions: tuple[Execution, ...]
    cursor: str | None


@frozen
class Generation:
    """A configuration that has served: ``id`` is what :class:`Execution` calls its ``generation``.

    ``served_at`` is the Unix time in seconds at which it first did. ``files`` maps each file's name to the SHA-256 of
    its content, ``texts`` to the content itself where it is kept, with every known secret masked.
    """

    id: str
    served_at: float
    files: Mapping[str, str]
    texts: Mapping[str, str] = field(factory=dict, repr=False)


class ExecutionStore(Protocol):
    """Keeps executions. The core calls ``add`` one at a time, the others at any time.

    Raise :class:`SourceUnavailable` while the store takes or gives nothing, such as a database that is locked, full or
    gone: the core tries again. Any other exception of ``add`` says that some execution cannot be stored as it is. Each
    method returns within a few seconds, whatever the database does; what a cancelled ``add`` began must have ended when
    it raises, so that what was written can be counted.
    """

    async def add(self, executions: Sequence[Execution]) -> None:
        """Store all of them or none. One whose id is there already is left as it is: a retry stores nothing twice."""
        ...

    async def find(self, query: Query) -> Page:
        """Return the executions that the filters fit, by descending id and without ``captured``.

        Ids sort by the time at which they were given, so pages stay as they are while executions are added.
        """
        ...

    async def get(self, execution_id: str) -> Execution | None: ...

    async def prune(self, before: float | None, keep: int | None) -> int:
        """Delete some of the oldest executions, and return how many: the core asks again until it is 0.

        Those that started before the Unix time ``before`` go, and those beyond the ``keep`` newest. A call deletes so
        few that it holds nothing up.
        """
        ...

    async def add_generation(self, generation: Generation) -> None:
        """Keep a configuration that serves now, unless it is there already."""
        ...

    async def get_generation(self, generation_id: str) -> Generation | None: ...


class RunPlan(Protocol):
    """What a run executed: the endpoint, as the configuration of that generation has it."""

    @property
    def domain(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def generation(self) -> str: ...
    @property
    def step_names(self) -> tuple[str, ...]: ...


class StorableRun(FinishedRun, Protocol):
    """The same run as a store may read it instead of its :class:`Execution`, which ``record`` makes.

    A ``usual`` run is not degraded and has no error, its answer as a whole is not from a cache and nothing is captured.
    Its ``steps`` hold all there is to tell of them: for each the status ``ok`` or ``skipped``, its start, its end and
    an empty text. Of those whose places are in ``notes`` there is more to tell, which ``step_record`` does.
    """

    @property
    def usual(self) -> bool: ...
    @property
    def plan(self) -> RunPlan: ...
    @property
    def trace_id(self) -> str: ...
    def engine_seconds(self) -> float: ...
    def identities(self) -> tuple[Identity, ...]:
        """Return the models that were called, as ``Execution.models`` has them."""
        ...

    def record(self) -> Execution:
        """Return the whole record."""
        ...


@runtime_checkable
class AddsRuns(Protocol):
    """An :class:`ExecutionStore` that takes the runs themselves, and so spares the event loop the records.

    The core calls ``add_runs`` in place of ``add``; the same holds for it. The runs are for the event loop's thread.
    """

    async def add_runs(self, runs: Sequence[StorableRun]) -> None: ...


@frozen
class StoreContext:
    """What a store's kind is given when it is opened.

    ``durable`` says that answers wait for ``add``: when it returns, the executions must survive a crash of the machine.
    """

    config_dir: Path
    durable: bool = False

    def path(self, path: str) -> Path:
        """Return the path, taken relative to the configuration folder unless it is absolute."""
        return (self.config_dir / path).resolve()


@frozen
class StoreKind(Generic[Options]):
    """A way to keep executions, as ``type:`` of ``tracking.store``; ``options`` is the attrs class of the rest.

    ``open`` raises :class:`SourceUnavailable` while the store cannot be reached, and is called again then. It raises
    ``ValueError`` for a store that can never be used as it is, such as one of a later version: the service does not
    start then.
    """

    name: str
    summary: str
    options: type[Options]
    open: Callable[[Options, StoreContext], AbstractAsyncContextManager[ExecutionStore]]


# --- telemetry ----------------------------------------------------------------------------------------------------


@frozen
class StepInfo:
    """A step as the configuration has it. ``source`` is the source's label, such as ``database.default``.

    ``remote`` says that its calls may leave the process.
    """

    name: str
    source: str
    operation: str
    remote: bool


@frozen
class EndpointInfo:
    """An endpoint as the configuration has it. ``route`` is its template, such as ``/orchestrator/shop/cart/{id}``.

    ``steps`` stand in the order in which a :class:`FinishedRun` has their outcomes.
    """

    domain: str
    endpoint: str
    route: str
    generation: str
    steps: tuple[StepInfo, ...]


class Trace(Protocol):
    """The trace that a request or a step is part of. ``trace_id`` is 32 hexadecimal digits.

    ``lines`` are the header lines, each with its line end, that calls of the core's HTTP client carry outward.
    """

    @property
    def trace_id(self) -> str: ...
    @property
    def lines(self) -> bytes: ...
    def of_step(self, index: int) -> Trace:
        """Return the trace as the calls of a step carry it; that of a step returns itself."""
        ...


@frozen
class Exposition:
    """What ``GET /metrics`` answers. The text holds no secrets: nothing in it is masked any more."""

    content_type: str
    text: str


Finished: TypeAlias = Callable[[FinishedRun, str, "Trace | None"], None]


@frozen
class Telemetry:
    """What an open telemetry plugin does. A part that is ``None`` is off, and then costs a request nothing.

    ``observe`` is called for each endpoint of each configuration, and returns what is called on the event loop with
    every finished run of it, the request's method and its trace: it must take few microseconds. ``answered`` is called
    with the template of a page of the service's own (an empty string where there is no such route), the method, the
    status and the seconds. ``begin`` is called with the headers of each request of an endpoint and returns the trace
    that the request is part of. ``metrics`` renders the metrics, and may take its time.
    """

    observe: Callable[[EndpointInfo], Finished] | None = None
    answered: Callable[[str, str, int, float], None] | None = None
    begin: Callable[[Mapping[str, str]], Trace | None] | None = None
    metrics: Callable[[], Awaitable[Exposition]] | None = None


@frozen
class TelemetryContext:
    """What a telemetry plugin is given when it is opened.

    ``state`` returns the state of the service as JSON data; it is cheap, and for the event loop's thread only. A part
    that the service does not have is absent::

        {"generation": "0f3a…", "endpoints": 3, "requests": {"in_flight": 2, "limit": 100, "shed": 0},
         "reloads": {"swapped": 1, "failed": 0}, "tracking": {"written": 9, "dropped": 0, "queued": 0},
         "sources": [{"source": "database.default", "type": "database", "unreachable": false,
                      "circuit_breaker": {…}, "retry": {…}, "concurrency": {…}, "cache": {…}}],
         "answers": [{"endpoint": "shop.cart", "cache": {…}}],
         "models": [{"model": "ml.credit", "type": "artifact", "state": "ready", "requests": 5, "failures": 0,
                     "starts": 1, "restarts": 0, "falls_back": false}]}

    Each model of a source of models is an entry of ``sources``. The policies' parts are those that ``GET /sources``
    shows. ``redact`` masks every secret of the configuration in a text. ``version`` is the core's.
    """

    config_dir: Path
    version: str
    state: Callable[[], Mapping[str, Any]]
    redact: Callable[[str], str]


@frozen
class TelemetryKind(Generic[Options]):
    """Metrics and traces of the service. ``options`` is the attrs class of ``telemetry`` in ``config.yaml``.

    ``traces`` tells from the options whether calls outward are to carry the ids of their steps.
    """

    name: str
    summary: str
    options: type[Options]
    open: Callable[[Options, TelemetryContext], AbstractAsyncContextManager[Telemetry]]
    traces: Callable[[Options], bool] = lambda options: False
