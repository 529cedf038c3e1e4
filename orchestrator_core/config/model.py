"""The configuration as frozen values: what ``config.yaml`` and a domain file may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen

from orchestrator_core.bounds import at_least_one, positive
from orchestrator_core.config.secrets import Redactor, Secret
from orchestrator_core.config.structure import Located
from orchestrator_core.errors import Problem
from orchestrator_core.plugin_api import Duration, Size, option
from orchestrator_core.policies.options import (
    BreakerOptions,
    CacheOptions,
    ConcurrencyOptions,
    DefaultPolicies,
    Off,
    RetryOptions,
    SharedCacheOptions,
)

DEFAULT_TIMEOUT = Duration(10)
RESERVED_ROOTS = ("request", "execution", "item", "index")
REQUEST_PARTS = ("path_params", "query_params", "headers", "body")
_STEP_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PATH_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.~-]*\Z")


class Unset(Enum):
    """The value of an option that was not given, where null is a value of its own."""

    UNSET = "unset"


UNSET = Unset.UNSET


def _port(instance: Any, attribute: Any, value: int) -> None:
    if not 0 <= value <= 65535:
        raise ValueError(f"a port is a number from 0 (any free one) to 65535, got {value}")


def _off(instance: Any, attribute: Any, value: object) -> None:
    if value is True:
        raise ValueError("expected false, or a mapping such as {max: 100}")


def _most(instance: Any, attribute: Any, value: int | str) -> None:
    if isinstance(value, int) and value < 1:
        raise ValueError(f"expected adaptive, or at least 1, got {value}")


def _step_name(instance: Any, attribute: Any, value: str) -> None:
    if not _STEP_NAME.match(value):
        raise ValueError(f"'{value}' is not a step name: use letters, digits and _, not starting with a digit")
    if value in RESERVED_ROOTS:
        raise ValueError(f"'{value}' cannot name a step: ${value} means something else")


def check_path_name(value: str) -> str | None:
    """Return what is wrong with the name of a domain or endpoint, which becomes a part of a URL."""
    if _PATH_NAME.match(value):
        return None
    return f"'{value}' cannot stand in a URL: use letters, digits, _, - and ."


@frozen
class LimitOptions:
    """How many requests are let in at once. ``limit: false`` lets all in."""

    max: int | Literal["adaptive"] = option(
        "adaptive",
        help="Most requests in flight; or `adaptive`: as many as the worker keeps up with, whatever they wait for.",
        validator=_most,
    )
    min: int = option(
        32,
        help="So many requests may wait for their turn at once, but in an overload; only beyond is one refused.",
        validator=at_least_one,
    )
    wait: Duration = option(
        Duration(0.02), help="Longest line that is kept under lasting overload, as a time.", validator=positive
    )
    burst: Duration = option(Duration(0.5), help="Longest line that is kept in a burst, as a time.", validator=positive)
    ceiling: int = option(
        10_000, help="Most requests in flight where max is adaptive, which bounds memory.", validator=at_least_one
    )
    retry_after: Duration = option(
        Duration(1), help="What the header Retry-After of a refusal says, in whole seconds.", validator=positive
    )


def _address(instance: Any, attribute: Any, value: str) -> None:
    if not value.strip():  # such as of a variable that is empty: it would be every address of the machine
        raise ValueError("expected an address; write 0.0.0.0 for every address of the machine")


def _a_second(instance: Any, attribute: Any, value: float | None) -> None:
    if value is not None and value < 1:
        raise ValueError("expected at least 1 s: a worker may be busy for a moment")


MOST_WORKERS = 512
"""More than one for each core of the largest machines. A port that stands there by mistake would end any machine."""


def _workers(instance: Any, attribute: Any, value: int) -> None:
    at_least_one(instance, attribute, value)
    if value > MOST_WORKERS:
        raise ValueError(f"expected at most {MOST_WORKERS}, got {value}: one for each core is a good number")


@frozen
class ServerOptions:
    """The public listener."""

    host: str = option("127.0.0.1", help="Address that the public listener binds.", validator=_address)
    port: int = option(8000, help="Port of the public listener; 0 takes any free one.", validator=_port)
    max_body_size: Size = option(Size(2**20), help="Largest request body; a larger one answers 413.")
    limit: LimitOptions | bool = option(
        factory=LimitOptions,
        help="Limit on requests in flight, beyond which one is refused with 503; or false.",
        validator=_off,
    )
    max_connections: int = option(
        10_000, help="Most connections; one more is refused with 503.", validator=at_least_one
    )
    header_timeout: Duration = option(
        Duration(8),
        help="How long the head of a request may take to arrive; the connection is closed then.",
        validator=positive,
    )
    body_timeout: Duration = option(
        Duration(8), help="How long the body of a request may take to arrive; 408 then.", validator=positive
    )
    send_timeout: Duration = option(
        Duration(8),
        help="How long a client may take to read an answer; the connection is closed then.",
        validator=positive,
    )
    shutdown_timeout: Duration = option(
        Duration(30), help="How long requests in flight may take to finish when the service stops."
    )
    preload_wait: Duration = option(
        Duration(10),
        help="How long the start waits for the models that are loaded at the start; then it serves without.",
    )
    docs: bool = option(True, help="Serve /docs and /openapi.json.")
    workers: int = option(
        1, help="How many processes serve, at most 512. With several, one more looks after them.", validator=_workers
    )
    worker_timeout: Duration | None = option(
        Duration(30),
        help="How long one of several workers may answer nothing; then it is killed and started again. null: for ever.",
        validator=_a_second,
    )


@frozen
class AdminOptions:
    """The admin listener, which shows executions, sources and the configuration."""

    enabled: bool = option(True, help="Serve the admin listener.")
    host: str = option("127.0.0.1", help="Address that the admin listener binds.", validator=_address)
    port: int = option(8001, help="Port of the admin listener; 0 takes any free one.", validator=_port)


@frozen
class TrackingOptions:
    """Execution records."""

    capacity: int = option(1000, help="How many of the latest executions are kept in memory.", validator=positive)
    store: Mapping[str, Any] | None = option(
        None, help="Where executions are kept for longer: {type: …} and the options of that type."
    )
    mode: Literal["buffered", "durable"] = option(
        "buffered",
        help="Buffered never holds up a request; durable answers once the execution is stored, else with 503.",
    )
    queue: int = option(
        10_000,
        help="How many executions may wait for the store, those included that it is being given; others are dropped.",
        validator=at_least_one,
    )
    queue_size: Size = option(
        Size(64 * 2**20), help="How much of captured values may wait for the store; those beyond are dropped."
    )
    retry_window: Duration = option(
        Duration(60), help="How long an execution is tried again while the store fails; then it is dropped."
    )
    commit_timeout: Duration = option(
        Duration(2), help="How long a durable answer waits for its execution to be stored.", validator=positive
    )
    retention: Duration | None = option(
        Duration(30 * 24 * 3600), help="How long the store keeps an execution; null for ever.", validator=positive
    )
    max_executions: int | None = option(
        None, help="How many executions the store keeps at most: the newest.", validator=positive
    )
    capture: Literal["none", "params", "full"] = option(
        "none",
        help="Which values are kept: none; the request and what calls were given; or those with results and answers.",
    )
    redact: tuple[str, ...] = option(
        (),
        help="Paths of values that are never kept, such as request.body.ssn or steps.*.params.token; what those of the"
        " request lead to is not named in errors either.",
    )
    max_payload_size: Size = option(
        Size(64 * 2**10), help="Largest captured value; of a larger one the beginning is kept.", validator=positive
    )


@frozen
class ReloadOptions:
    """How a changed configuration is noticed."""

    watch: bool = option(True, help="Reload when a file of the configuration folder changes.")
    drain_timeout: Duration = option(
        Duration(30), help="How long requests on the old configuration may take before its sources are closed."
    )


@frozen
class LoggingOptions:
    """The service's own log."""

    level: Literal["debug", "info", "warning", "error"] = option("info", help="Least severe level that is logged.")
    format: Literal["console", "json"] = option("console", help="Lines for people, or one JSON object a line.")
    requests: bool = option(True, help="Log one line for each request of an endpoint, and for one that nobody serves.")


@frozen
class AppConfig:
    """What ``config.yaml`` may say besides the sections of source types."""

    server: ServerOptions = option(factory=ServerOptions, help="The public listener.")
    admin: AdminOptions = option(factory=AdminOptions, help="The admin listener.")
    tracking: TrackingOptions = option(factory=TrackingOptions, help="Execution records.")
    reload: ReloadOptions = option(factory=ReloadOptions, help="How a changed configuration is noticed.")
    logging: LoggingOptions = option(factory=LoggingOptions, help="The service's own log.")
    cache: SharedCacheOptions | None = option(
        None,
        help="A Redis that all processes keep cached results in, each beside its own memory; by default there is none.",
    )
    policies: DefaultPolicies = option(
        factory=DefaultPolicies, help="Policies of every source that does not have its own."
    )
    telemetry: Any = option(
        None, help="Metrics and traces, or false: the options are those of the plugin orchestrator-api-telemetry."
    )
    plugins_dir: str | None = option(None, help="Folder of single-file plugins.")


@frozen
class StepTransforms:
    """The long form of a step's ``transform``: what its parameters and what its result pass through."""

    params: Mapping[str, tuple[Any, ...]] = option(
        factory=dict, help="Transformers that a parameter's value passes through, by parameter."
    )
    result: tuple[Any, ...] = option((), help="Transformers that the result passes through.")


@frozen
class StepConfig:
    """One entry of an endpoint's ``data_sources``."""

    name: str = option(help="Name by which later steps and the response refer to the result.", validator=_step_name)
    type: str = option(help="Source type, such as database or ml.")
    source_id: str = option("default", help="Which source of that type.")
    operation: str | None = option(None, help="Operation to call.")
    params: Mapping[str, Any] = option(factory=dict, help="Parameters of the operation: values and expressions.")
    condition: str | bool = option(True, help="Expression; the step is skipped when it is false or null.")
    for_each: str | tuple[Any, ...] | None = option(
        None, help="List, or expression of one: the step runs for each item, which params know as $item and $index."
    )
    max_concurrency: int = option(
        8,
        help="How many items of for_each are under way at once, where the source cannot take all in one call.",
        validator=at_least_one,
    )
    depends_on: tuple[str, ...] = option((), help="Steps to wait for besides those that are referred to.")
    transform: tuple[Any, ...] | StepTransforms = option(
        (), help="Transformers that the result passes through, or {params: …, result: …}."
    )
    timeout: Duration | None = option(None, help="Longest time for the step.", validator=positive)
    retry: RetryOptions | bool | None = option(None, help="Trying again after a transient failure: over the source's.")
    circuit_breaker: BreakerOptions | bool | None = option(
        None, help="A circuit breaker of the step's own, in place of the source's."
    )
    concurrency: ConcurrencyOptions | Off | None = option(
        None, help="A limit of the step's own to the calls at once, in place of the source's."
    )
    required: bool = option(True, help="Whether a failure of the step fails the request.")
    default: Any = option(UNSET, help="Result to use when the step fails.")
    cache: CacheOptions | Off | None = option(None, help="A cache of the step's own, in place of the source's.")

    @property
    def transforms(self) -> StepTransforms:
        """Return ``transform`` in its long form."""
        return self.transform if isinstance(self.transform, StepTransforms) else StepTransforms(result=self.transform)


@frozen
class EndpointConfig:
    """One REST operation."""

    description: str = option("", help="What the endpoint answers; shown in the API documentation.")
    endpoint_type: str | None = option(None, help="Source type of the steps, or composite for several.")
    path: str | None = option(None, help="Path after /orchestrator/<domain>/<endpoint>, with {parameters}.")
    methods: tuple[Literal["GET", "POST", "PUT", "PATCH", "DELETE"], ...] = option(
        ("GET", "POST"), help="HTTP methods."
    )
    capture: Literal["none", "params", "full"] | None = option(
        None, help="Which values of its executions are kept; default `tracking.capture`."
    )
    input_schema: Mapping[str, Any] | None = option(None, help="JSON Schema that requests must fit.")
    output_schema: Mapping[str, Any] | None = option(None, help="JSON Schema that answers must fit.")
    data_sources: tuple[StepConfig, ...] = option((), help="The steps.")
    primary_source: str | None = option(None, help="Step whose result is the answer without a response_mapping.")
    response_mapping: Any = option(None, help="The answer: values and expressions.")
    transform: tuple[Any, ...] = option((), help="Transformers that the answer passes through.")
    timeout: Duration = option(DEFAULT_TIMEOUT, help="Longest time for the request.", validator=positive)
    cache: CacheOptions | Off | None = option(
        None, help="Keeping whole answers: of the same path and query parameters and body, unless `key` says otherwise."
    )


@frozen
class DomainFile:
    """What ``domains/<domain>.yaml`` may say. The domain's name is the file's unless it is given."""

    domain_id: str | None = option(None, help="Name of the domain in URLs; default the file's name.")
    domain_name: str | None = option(None, help="The same as domain_id.")
    description: str = option("", help="What the domain is about.")
    endpoints: Mapping[str, EndpointConfig] = option(factory=dict, help="The endpoints by name.")


@frozen
class Step:
    """A step with the place in its file."""

    config: StepConfig
    located: Located = field(repr=False)


@frozen
class Endpoint:
    """An endpoint with the place in its file.

    ``scope`` is the folder of the domain's own sources. ``unreadable`` are the entries that are left out of ``steps``
    because there is no making a step of them.
    """

    domain: str
    scope: str
    name: str
    config: EndpointConfig
    steps: tuple[Step, ...]
    located: Located = field(repr=False)
    unreadable: tuple[Located, ...] = field(default=(), repr=False)

    @property
    def unreadable_names(self) -> set[str]:
        """Return the names of the steps that are left out, as far as they have one."""
        entries = [entry.data for entry in self.unreadable if isinstance(entry.data, dict)]
        return {entry["name"] for entry in entries if isinstance(entry.get("name"), str)}


@frozen
class Section:
    """The sources of one type in one scope: global (``""``) or a domain's. Values stand in their own files.

    ``located`` is the first place at which the section stands.
    """

    located: Located = field(repr=False)
    sources: Mapping[str, Located]
    operations: Mapping[str, Located]


@frozen
class Configuration:
    """All that a configuration folder says.

    ``app_located`` is what ``config.yaml`` says of ``app``, None where it says nothing. ``sections`` is keyed by scope
    and type. ``generation`` is a hash of all files; ``files`` maps each file's name to the hash of its content.
    ``secret_files`` maps each file that ``${file:…}`` names to what it says, or to None when it cannot be read;
    ``secrets`` is a hash of all secrets, of the environment too. ``telemetry`` is the section of that name.
    ``incomplete`` says that a file could not be read, so that what seems to be missing may be there.
    ``texts`` are the files' contents by their names: with placeholders, and without secrets that are written out.
    """

    folder: Path
    app: AppConfig
    app_located: Located | None = field(repr=False)
    descriptions: Mapping[str, str]
    endpoints: tuple[Endpoint, ...]
    sections: Mapping[tuple[str, str], Section]
    files: Mapping[str, str]
    generation: str
    redactor: Redactor
    secret_files: Mapping[Path, Secret | None] = field(factory=dict, repr=False)
    secrets: str = field(default="", repr=False)
    telemetry: Located | None = field(default=None, repr=False)
    """The section of that name in ``config.yaml``."""
    problems: tuple[Problem, ...] = ()
    incomplete: bool = False
    texts: Mapping[str, str] = field(factory=dict, repr=False, eq=False)

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]
