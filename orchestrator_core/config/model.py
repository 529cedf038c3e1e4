"""The configuration as frozen values: what ``config.yaml`` and a domain file may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen

from orchestrator_core.config.secrets import Redactor
from orchestrator_core.config.structure import Located
from orchestrator_core.errors import Problem
from orchestrator_core.plugin_api import Duration, Size, option

DEFAULT_TIMEOUT = Duration(10)
RESERVED_ROOTS = ("request", "execution", "item", "index")
_STEP_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PATH_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.~-]*\Z")


class Unset(Enum):
    """The value of an option that was not given, where null is a value of its own."""

    UNSET = "unset"


UNSET = Unset.UNSET


def _port(instance: Any, attribute: Any, value: int) -> None:
    if not 0 <= value <= 65535:
        raise ValueError(f"a port is a number from 0 (any free one) to 65535, got {value}")


def _positive(instance: Any, attribute: Any, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"expected more than 0, got {value:g}")


def _at_least_one(instance: Any, attribute: Any, value: int) -> None:
    if value < 1:
        raise ValueError(f"expected at least 1, got {value}")


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
class ServerOptions:
    """The public listener."""

    host: str = option("127.0.0.1", help="Address that the public listener binds.")
    port: int = option(8000, help="Port of the public listener; 0 takes any free one.", validator=_port)
    max_body_size: Size = option(Size(2**20), help="Largest request body; a larger one answers 413.")
    shutdown_timeout: Duration = option(
        Duration(30), help="How long requests in flight may take to finish when the service stops."
    )
    preload_wait: Duration = option(
        Duration(10),
        help="How long the start waits for the models that are loaded at the start; then it serves without.",
    )
    docs: bool = option(True, help="Serve /docs and /openapi.json.")


@frozen
class AdminOptions:
    """The admin listener, which shows executions, sources and the configuration."""

    enabled: bool = option(True, help="Serve the admin listener.")
    host: str = option("127.0.0.1", help="Address that the admin listener binds.")
    port: int = option(8001, help="Port of the admin listener; 0 takes any free one.", validator=_port)


@frozen
class TrackingOptions:
    """Execution records."""

    capacity: int = option(1000, help="How many of the latest executions are kept in memory.", validator=_positive)


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
    plugins_dir: str | None = option(None, help="Folder of single-file plugins.")
    telemetry: Any = option(
        None, help="Metrics and traces, or false: the options are those of the plugin orchestrator-api-telemetry."
    )


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
        validator=_at_least_one,
    )
    depends_on: tuple[str, ...] = option((), help="Steps to wait for besides those that are referred to.")
    transform: tuple[Any, ...] | StepTransforms = option(
        (), help="Transformers that the result passes through, or {params: …, result: …}."
    )
    timeout: Duration | None = option(None, help="Longest time for the step.", validator=_positive)
    retry: Any = option(None, help="Retry policy. Not available in this version.")
    required: bool = option(True, help="Whether a failure of the step fails the request.")
    default: Any = option(UNSET, help="Result to use when the step fails.")
    cache: Any = option(None, help="Cache policy. Not available in this version.")

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
    input_schema: Mapping[str, Any] | None = option(None, help="JSON Schema that requests must fit.")
    output_schema: Mapping[str, Any] | None = option(None, help="JSON Schema that answers must fit.")
    data_sources: tuple[StepConfig, ...] = option((), help="The steps.")
    primary_source: str | None = option(None, help="Step whose result is the answer without a response_mapping.")
    response_mapping: Any = option(None, help="The answer: values and expressions.")
    transform: tuple[Any, ...] = option((), help="Transformers that the answer passes through.")
    timeout: Duration = option(DEFAULT_TIMEOUT, help="Longest time for the request.", validator=_positive)
    cache: Any = option(None, help="Cache policy. Not available in this version.")


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

    ``sections`` is keyed by scope and type. ``generation`` is a hash of all files; ``files`` maps each file's name
    to the hash of its content. ``incomplete`` says that a file could not be read, so that what seems to be missing
    may be there.
    """

    folder: Path
    app: AppConfig
    descriptions: Mapping[str, str]
    endpoints: tuple[Endpoint, ...]
    sections: Mapping[tuple[str, str], Section]
    files: Mapping[str, str]
    generation: str
    redactor: Redactor
    secret_files: tuple[Path, ...] = ()
    telemetry: Located | None = field(default=None, repr=False)
    """The section of that name in ``config.yaml``."""
    problems: tuple[Problem, ...] = ()
    incomplete: bool = False
