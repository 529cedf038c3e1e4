"""What stands in YAML for a model in a container."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from shlex import split
from typing import Any, Literal

from attrs import Attribute, fields, frozen

from orchestrator_core.plugin_api import Duration, OptionError, Size, option, positive

SMALLEST_MEMORY = 6 * 2**20
"""The engine's own lower bound."""

_MODES = {"ro", "rw", "z", "Z", "cached", "delegated", "consistent", "nocopy"}
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
_REFERENCE = re.compile(r"[a-zA-Z0-9][\w.:/-]*(@sha256:[0-9a-f]{64})?\Z")
_CAPABILITY = re.compile(r"[A-Z][A-Z_]+\Z")


def _path(_: Any, __: Any, path: str | None) -> None:
    if path is not None and not path.startswith("/"):
        raise ValueError(f"expected a path that starts with /, got '{path}'")


def _port(_: Any, __: Any, port: int | None) -> None:
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"expected a port from 1 to 65535, got {port}")


def _address(_: Any, __: Any, address: str) -> None:
    try:
        ip_address(address)
    except ValueError:  # which an engine takes for every address of the host
        raise ValueError(f"'{address}' is no IP address: write one of this host's, such as 127.0.0.1") from None


def _environment(_: Any, __: Any, environment: dict[str, str]) -> None:
    for name in environment:
        if not name or "=" in name:
            before = name.partition("=")[0]  # what stands behind it may be a secret
            raise ValueError(f"'{before}=' is no name of a variable: write {before or 'NAME'}: value")


def _command(_: Any, __: Any, command: str | list[str] | None) -> None:
    if isinstance(command, str):
        try:
            split(command)
        except ValueError as error:
            raise ValueError(f"it cannot be split as a shell would: {str(error).lower()}") from error


def _enough_memory(_: Any, __: Any, size: int | None) -> None:
    if size is not None and size < SMALLEST_MEMORY:
        raise ValueError(f"expected at least 6MiB, which is the least that an engine takes, got {size} bytes")


def _pids(_: Any, __: Any, pids: int) -> None:
    if pids < 1 and pids != -1:
        raise ValueError(f"expected at least 1, or -1 for no limit, got {pids}")


def _capabilities(_: Any, __: Any, names: list[str]) -> None:
    for name in names:
        if not _CAPABILITY.match(name):
            raise ValueError(f"'{name}' is no capability: write it as NET_BIND_SERVICE")


def _volumes(_: Any, __: Any, volumes: dict[str, str] | list[str]) -> None:
    read_volumes(volumes)


def _reference(_: Any, __: Any, image: str) -> None:
    if not _REFERENCE.match(image):
        raise ValueError(f"'{image}' is no image: write name:tag or name@sha256:… with 64 hexadecimal digits")


@frozen
class Volume:
    """A part of the host's file system, or a volume of the engine, in the container.

    ``source`` is a path if ``is_path``, else a volume's name.
    """

    source: str
    target: str
    mode: str = ""

    @property
    def is_path(self) -> bool:
        return not _VOLUME_NAME.match(self.source)


def read_volumes(volumes: Mapping[str, str] | list[str]) -> tuple[Volume, ...]:
    """Return the volumes of a mapping of sources to targets, or a list of ``source:target:mode``."""
    texts = volumes if isinstance(volumes, list) else [f"{source}:{target}" for source, target in volumes.items()]
    found = []
    for text in texts:
        source, _, rest = text.partition(":")
        target, _, mode = rest.partition(":")
        if not source or not target.startswith("/"):
            raise ValueError(f"'{text}': expected source:/path/in/the/container, or that with :ro")
        if unknown := set(mode.split(",")) - _MODES - {""}:
            raise ValueError(f"'{text}': unknown mode '{sorted(unknown)[0]}': write ro or rw")
        found.append(Volume(source, target, mode))
    targets = [volume.target for volume in found]
    if twice := sorted({target for target in targets if targets.count(target) > 1}):
        raise ValueError(f"{twice[0]} is given twice")
    return tuple(found)


@frozen
class ReadinessOptions:
    """When the model counts as started."""

    path: str | None = option(
        None, help="A path that answers 2xx when the model is ready. Default: that of the protocol.", validator=_path
    )
    timeout: Duration = option(
        Duration(60), help="Longest time from the container's start until the model is ready.", validator=positive
    )
    interval: Duration = option(Duration(0.2), help="Pause between two probes.", validator=positive)


@frozen
class LimitOptions:
    """What the container may use."""

    memory: Size | None = option(
        None, help="Memory, with no swap beside it. Default: no limit.", validator=_enough_memory
    )
    cpus: float | None = option(None, help="CPUs, such as `1.5`. Default: no limit.", validator=positive)
    pids: int = option(256, help="Processes and threads; `-1` is no limit.", validator=_pids)


@frozen
class RegistryCredentials:
    """A login for the image's registry."""

    username: str = option(help="The user.")
    password: str = option(
        help="The password or token; write it as `${env:NAME}` or `${file:/run/secrets/x}`.", secret=True
    )


@frozen(kw_only=True)
class CallOptions:
    """How the model in the container is spoken to: what the model type ``http`` takes. Its defaults hold."""

    protocol: Literal["json", "mlflow", "v2"] | None = option(
        None, help="How features and predictions are written, see the type `http`."
    )
    endpoint: str | None = option(None, help="The path that predictions are posted to.", validator=_path)
    rows: Literal["one", "list"] | None = option(None, help="With `json`: one row in each request, or a list.")
    model_name: str | None = option(None, help="With `v2`: the model's name on the server.")
    model_version: str | None = option(None, help="With `v2`: the version to ask for.")
    features: list[str] | None = option(None, help="With `v2`: the features in the order of the columns.")
    parameters: dict[str, Any] | None = option(None, help="With `v2`: sent as the request's `parameters`.")
    outputs: dict[str, int | str] | None = option(
        None, help="With `mlflow` and `v2`: the result's fields, see the type `http`."
    )
    headers: dict[str, str] | None = option(None, help="Sent with every request.")
    idempotent: bool | None = option(None, help="A prediction may be asked for twice.")
    timeout: Duration = option(Duration(2.0), help="Longest time for one request, all in all.", validator=positive)
    connect_timeout: Duration | None = option(None, help="Longest time to connect.", validator=positive)
    max_connections: int | None = option(None, help="Most connections at a time.", validator=positive)
    max_response_bytes: Size | None = option(None, help="Largest answer that is read.", validator=positive)

    def http_options(self, base_url: str, health: str | None) -> dict[str, Any]:
        """Return the options of the type ``http`` for a server at the address."""
        names = [attribute.name for attribute in fields(CallOptions)]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"base_url": base_url, **given, **({"health": health} if health else {})}


_FOR_CALLS = {attribute.name for attribute in fields(CallOptions)}


def own_first(_: type, attributes: list[Attribute[Any]]) -> list[Attribute[Any]]:
    """Put what a class adds first and what is for calls last, as a reader of the reference looks for it."""
    return sorted(
        attributes,
        key=lambda each: (each.name in _FOR_CALLS, each.inherited),  # type: ignore[attr-defined]  # not in the stubs
    )


@frozen(kw_only=True, field_transformer=own_first)
class ContainerOptions(CallOptions):
    """All that can be said of a container but for its image. The model type ``ecr`` shares it."""

    pull: Literal["always", "missing", "never"] | bool = option(
        "missing",
        help="When the image is pulled: `always` when the model is loaded (`true` is the same), `missing` when the "
        "engine does not have it, `never` (`false`).",
    )
    pull_timeout: Duration = option(Duration(900), help="Longest time for a pull.", validator=positive)
    container_port: int | None = option(
        None,
        help="The port that the model listens on. Default: the image's, if it exposes exactly one.",
        validator=_port,
    )
    host_port: int | None = option(None, help="The port on this host. Default: any free one.", validator=_port)
    host_address: str = option("127.0.0.1", help="The address of this host that the port is on.", validator=_address)
    environment: dict[str, str] = option(factory=dict, help="Environment variables.", validator=_environment)
    volumes: dict[str, str] | list[str] = option(
        factory=dict,
        help='`"./models": "/app/models"`, or a list such as `["./models:/app/models:ro"]`. Paths are relative to the '
        "configuration folder; a name without `/` or `.` at its start is a volume of the engine.",
        validator=_volumes,
    )
    command: str | list[str] | None = option(
        None,
        help="Instead of the image's command: a list, or a string that is split as a shell would.",
        validator=_command,
    )
    readiness: ReadinessOptions = option(ReadinessOptions(), help="When the model counts as started.")
    startup_delay: Duration = option(
        Duration(0), help="A lower bound of `readiness.timeout`. Nothing waits that long if the model is ready before."
    )
    stop_timeout: Duration = option(Duration(5), help="How long the model may take to stop before it is killed.")
    limits: LimitOptions = option(LimitOptions(), help="What the container may use.")
    network: str | None = option(None, help="A network of the engine, or `host`. Default: the engine's bridge.")
    user: str | int | None = option(None, help='User, or `"user:group"`. Default: the image\'s.')
    read_only: bool = option(False, help="Its file system cannot be written, but for volumes and an empty `/tmp`.")
    capabilities: list[str] = option(
        factory=list,
        help="Root capabilities that are not dropped, such as `NET_BIND_SERVICE`.",
        validator=_capabilities,
    )
    no_new_privileges: bool = option(True, help="`false` lets set-user-id programs raise their privileges.")
    gpus: Literal["all"] | int | list[str] | None = option(
        None, help="`all`, how many, or a list of device ids; the engine needs a driver for them."
    )

    def __attrs_post_init__(self) -> None:
        if self.network == "none":
            raise OptionError("network", "a model without a network cannot be asked: name a network, or leave it out")
        if self.network == "host" and self.host_port not in (None, self.container_port):
            raise OptionError("host_port", "in the network of the host there are no ports to map: leave host_port out")
        if self.network == "host" and self.container_port is None:
            raise OptionError("network", "in the network of the host, container_port has to be given")

    @property
    def pull_when(self) -> Literal["always", "missing", "never"]:
        if isinstance(self.pull, bool):
            return "always" if self.pull else "never"
        return self.pull

    @property
    def ready_within_seconds(self) -> float:
        return max(self.readiness.timeout, self.startup_delay)

    def settings(self, config_dir: Path) -> dict[str, Any]:
        """Return what a container is made from, as JSON: one with other settings is another container."""
        return {
            "ports": [self.container_port, self.host_address, self.host_port],
            "environment": dict(self.environment),
            "volumes": self.binds(config_dir),
            "command": self.command,
            "limits": [self.limits.memory, self.limits.cpus, self.limits.pids],
            "network": self.network,
            "user": self.user,
            "read_only": self.read_only,
            "capabilities": sorted(self.capabilities),
            "no_new_privileges": self.no_new_privileges,
            "gpus": self.gpus,
        }

    def binds(self, config_dir: Path) -> list[str]:
        """Return the volumes as the engine takes them."""
        found = []
        for volume in read_volumes(self.volumes):
            source = str(_on_host(volume, config_dir)) if volume.is_path else volume.source
            found.append(":".join(filter(None, (source, volume.target, volume.mode))))
        return found

    def check_volumes(self, config_dir: Path) -> None:
        """Raise ``ValueError`` for a path that is not there; the engine would make an empty folder of root's."""
        for volume in read_volumes(self.volumes):
            if volume.is_path and not _on_host(volume, config_dir).exists():
                raise OptionError(
                    "volumes", f"volumes: '{volume.source}': there is no file or folder {_on_host(volume, config_dir)}"
                )


def _on_host(volume: Volume, config_dir: Path) -> Path:
    return (config_dir / Path(volume.source).expanduser()).resolve()


@frozen(kw_only=True, field_transformer=own_first)
class DockerOptions(ContainerOptions):
    """A model in a Docker container: one container, however many processes serve the configuration."""

    image: str = option(help="The image: `name:tag` or `name@sha256:…`, with its registry.", validator=_reference)
    credentials: RegistryCredentials | None = option(
        None, help="A login for the image's registry. Default: what `docker login` has kept for this user."
    )


__all__ = [
    "CallOptions",
    "ContainerOptions",
    "DockerOptions",
    "LimitOptions",
    "ReadinessOptions",
    "RegistryCredentials",
    "Volume",
    "own_first",
    "read_volumes",
]
