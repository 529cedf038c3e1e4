"""What a container is made from, and what became of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any

from attrs import astuple, frozen

from orchestrator_core.plugin_api import Identity, SourceError, SourceUnavailable, lease_domain
from orchestrator_model_docker.engine import Engine, EngineRefused, EngineSlow
from orchestrator_model_docker.images import Image
from orchestrator_model_docker.options import ContainerOptions

LABEL = "orchestrator."
SCOPE = f"{LABEL}scope"
MODEL = f"{LABEL}model"
LAST_LINES, LINE_LENGTH = 20, 500
_NOT_TEXT = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")
"""The colours of terminals, and control characters."""

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_.-]+")
_LOG_SIZE = {"max-size": "10m", "max-file": "3"}
_ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a port that is on every address is reached."""

_LAST_SIGNAL = 64
_SENT_SIGNALS = {1, 2, 9, 15}
_SIGNALS = {137: "SIGKILL", 139: "SIGSEGV, a crash in native code", 143: "SIGTERM", 134: "SIGABRT"}


@frozen
class Design:
    """One container as it is wanted. Its name tells it from one that is made in any other way.

    ``scope`` is the configuration folder on this host, ``model`` the model's name in it.
    """

    model: str
    scope: str
    name: str
    port: int
    image: Image
    options: ContainerOptions
    config_dir: Path

    def labels(self) -> dict[str, str]:
        identity = self.image.identity
        return {
            SCOPE: self.scope,
            MODEL: self.model,
            f"{LABEL}config": str(self.config_dir),
            f"{LABEL}image.name": identity.name,
            f"{LABEL}image.version": identity.version,
            f"{LABEL}image.digest": identity.digest,
        }


def scope_of(config_dir: Path) -> str:
    """Return a word for a configuration folder as the processes of this host serve it."""
    return sha256(f"{lease_domain()}\0{config_dir}".encode()).hexdigest()[:12]


def model_key(scope: str, model: str) -> str:
    """Return the name of the lease that everybody holds who has the model, whatever its container."""
    return f"docker-{scope}-{_slug(model)}"


def design(model: str, config_dir: Path, image: Image, options: ContainerOptions) -> Design:
    """Return the container for a model. Raises ``ValueError`` when the port is not known."""
    scope = scope_of(config_dir)
    port = options.container_port or _only_port(image)
    made_from = dumps(
        [scope, model, image.id, astuple(image.identity), port, options.settings(config_dir)], sort_keys=True
    )
    name = f"orchestrator-{_slug(model)}-{sha256(made_from.encode()).hexdigest()[:12]}"
    return Design(model, scope, name, port, image, options, config_dir)


def _slug(model: str) -> str:
    return _NOT_IN_NAMES.sub("-", model.removeprefix("ml.").removesuffix(".default"))[:60]


def _only_port(image: Image) -> int:
    if len(image.ports) == 1:
        return image.ports[0]
    exposed = f"several ports ({', '.join(map(str, image.ports))})" if image.ports else "no port"
    raise ValueError(f"the image {image.reference} exposes {exposed}: say container_port")


# --- making -------------------------------------------------------------------------------------------------------


async def create(engine: Engine, design: Design) -> None:
    """Create the container. When the engine does not answer in time, what it has made counts."""
    try:
        await engine.call(lambda client: _create(client, design))
    except EngineSlow:
        if await find(engine, design.name) is None:
            raise
    except EngineRefused as error:
        raise _not_made(design, error) from error


def _create(client: Any, design: Design) -> None:
    options, limits = design.options, design.options.limits
    on_host_network = options.network == "host"
    host = client.create_host_config(
        binds=options.binds(design.config_dir),
        port_bindings=None if on_host_network else {design.port: (options.host_address, options.host_port)},
        network_mode=options.network,
        cap_drop=["ALL"],
        cap_add=options.capabilities or None,
        security_opt=["no-new-privileges"] if options.no_new_privileges else None,
        pids_limit=limits.pids,
        mem_limit=limits.memory and int(limits.memory),
        memswap_limit=limits.memory and int(limits.memory),
        nano_cpus=limits.cpus and int(limits.cpus * 1e9),
        read_only=options.read_only,
        tmpfs={"/tmp": "rw,nosuid,nodev"} if options.read_only else None,
        device_requests=_device_requests(options),
        log_config=_log_config(client),
    )
    client.create_container(
        _name_or_id(client, design.image),
        options.command,
        name=design.name,
        user=None if options.user is None else str(options.user),
        environment=[f"{name}={value}" for name, value in options.environment.items()],
        ports=None if on_host_network else [design.port],
        labels=design.labels(),
        host_config=host,
    )


def _name_or_id(client: Any, image: Image) -> str:
    """Return the image as its container is to name it: as configured, unless that means another one by now."""
    from docker.errors import NotFound

    try:
        named = client.inspect_image(image.reference)["Id"]
    except NotFound:
        return image.id
    return image.reference if named == image.id else image.id


def _device_requests(options: ContainerOptions) -> list[Any] | None:
    from docker.types import DeviceRequest

    if options.gpus is None or options.gpus == 0:
        return None
    if isinstance(options.gpus, list):
        return [DeviceRequest(device_ids=options.gpus, capabilities=[["gpu"]])]
    return [DeviceRequest(count=-1 if options.gpus == "all" else options.gpus, capabilities=[["gpu"]])]


def _log_config(client: Any) -> Any:
    """Bound the output that is kept, where the engine keeps it in files that otherwise grow without end."""
    from docker.types import LogConfig

    driver = client.info().get("LoggingDriver")
    return LogConfig(type=driver, config=_LOG_SIZE) if driver == "json-file" else None


async def start(engine: Engine, design: Design) -> None:
    """Start the container. Raises :class:`PortTaken`, and ``SourceError`` for what cannot succeed as configured."""
    try:
        await engine.call(lambda client: client.start(design.name))
    except EngineSlow:
        found = await find(engine, design.name)
        if found is None or not is_running(found):
            raise
    except EngineRefused as error:
        lowered = error.message.lower()
        if "port is already allocated" in lowered or "address already in use" in lowered:
            raise PortTaken(design.options.host_port, error.message) from error
        raise _not_made(design, error) from error


class PortTaken(SourceUnavailable):
    """Somebody else has the port on this host."""

    def __init__(self, port: int | None, said: str) -> None:
        where = f"the port {port} of this host (host_port) is taken" if port else f"the container gets no port: {said}"
        super().__init__(f"{where}: free it, choose another, or leave host_port out", started=False)


def _not_made(design: Design, error: EngineRefused) -> SourceError | SourceUnavailable:
    """Return what the engine's refusal to create or start the container means."""
    said, lowered = error.message.strip(), error.message.lower()
    image = design.image.reference
    if "exec format error" in lowered:
        return SourceError(f"the image {image} was built for another processor than the engine's: {said}")
    if "could not select device driver" in lowered:
        return SourceError(f"gpus: the engine has no driver for GPUs: install the NVIDIA Container Toolkit ({said})")
    if "executable file not found" in lowered or "no such file or directory" in lowered:
        return SourceError(f"the image {image} has no such program: {said}")
    if "network" in lowered and "not found" in lowered:
        return SourceError(f"network: the engine has no network '{design.options.network}': see docker network create")
    if "user" in lowered and "passwd" in lowered:
        return SourceError(f"user: the image {image} does not know the user '{design.options.user}': {said}")
    if error.status == 404 and "image" in lowered:
        return SourceUnavailable(f"the image {image} has been removed from the engine", started=False)
    if error.status == 409:
        return SourceUnavailable(f"the engine still has a container {design.name}: {said}", started=False)
    if error.status >= 500 and "oci runtime" not in lowered:
        return SourceUnavailable(f"the container of {image} cannot be started: {said}", started=False)
    return SourceError(f"the engine refuses the container of {image}: {said}")


# --- looking and taking away --------------------------------------------------------------------------------------


async def find(engine: Engine, container: str) -> Mapping[str, Any] | None:
    """Return what the engine knows of a container, None if there is none."""
    try:
        found: Mapping[str, Any] = await engine.call(lambda client: client.inspect_container(container))
    except EngineRefused as error:
        if error.status == 404:
            return None
        raise SourceUnavailable(f"the engine cannot tell of a container: {error.message}", started=False) from error
    return found


async def of_scope(engine: Engine, scope: str) -> list[Mapping[str, Any]]:
    """Return all containers of a configuration folder, running or not."""
    filters = {"label": [f"{SCOPE}={scope}"]}
    try:
        found: list[Mapping[str, Any]] = await engine.call(lambda client: client.containers(all=True, filters=filters))
    except EngineRefused as error:
        raise SourceUnavailable(f"the engine cannot list its containers: {error.message}", started=False) from error
    return found


def is_running(found: Mapping[str, Any]) -> bool:
    state = found["State"]
    return bool(state["Running"]) and not state.get("Paused") and not state.get("Restarting")


def identity_of(found: Mapping[str, Any]) -> Identity:
    labels = found["Config"]["Labels"]
    parts = (labels.get(f"{LABEL}image.{part}", "") for part in ("name", "version", "digest"))
    return Identity(*parts)


def address_of(found: Mapping[str, Any], design: Design) -> tuple[str, int]:
    """Return where a running container is reached."""
    if design.options.network == "host":
        return "127.0.0.1", design.port
    ports = (found["NetworkSettings"].get("Ports") or {}).get(f"{design.port}/tcp")
    if not ports:
        raise SourceUnavailable(f"the container {design.name} has no port on this host", started=True)
    host = ports[0]["HostIp"]
    return _ANY.get(host, host), int(ports[0]["HostPort"])


async def remove(engine: Engine, container: str, *, stop_seconds: float | None = None) -> None:
    """Take a container away, with the volumes that have no name; stop it first, in peace, if seconds are given."""

    def work(client: Any) -> None:
        from docker.errors import APIError, NotFound

        try:
            if stop_seconds is not None:
                client.stop(container, timeout=round(stop_seconds))
            client.remove_container(container, v=True, force=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != 409:  # somebody else is removing it
                raise

    try:
        await engine.call(work)
    except EngineRefused as error:
        raise SourceUnavailable(
            f"the container {container} cannot be removed: {error.message}", started=False
        ) from error


async def last_lines(engine: Engine, container: str, lines: int) -> str:
    """Return the last lines of a container's output, or nothing where the engine does not keep it."""
    try:
        output: bytes = await engine.call(lambda client: client.logs(container, tail=lines))
    except EngineRefused:
        return ""
    return _NOT_TEXT.sub("", output.decode("utf-8", "replace").replace("\r\n", "\n")).rstrip()


async def shown_lines(engine: Engine, container: str) -> str:
    """Return the last lines as they stand in a message: few, and none of them long."""
    output = await last_lines(engine, container, LAST_LINES)
    return "\n".join(line if len(line) <= LINE_LENGTH else f"{line[:LINE_LENGTH]}…" for line in output.splitlines())


async def describe_end(engine: Engine, found: Mapping[str, Any]) -> str:
    """Return how a container ended, with its last lines of output."""
    state, host = found["State"], found["HostConfig"]
    code, said = int(state["ExitCode"]), str(state.get("Error") or "")
    output = await shown_lines(engine, found["Id"])
    name = found["Name"].lstrip("/")
    if state.get("OOMKilled"):
        limit = int(host.get("Memory") or 0)
        allowed = f"its limit of {limit / 2**20:g} MiB (limits.memory)" if limit else "what this host has"
        how = f"the container {name} was killed because it used more memory than {allowed}"
    elif 128 < code <= 128 + _LAST_SIGNAL:
        how = f"the container {name} was ended by signal {code - 128} ({_SIGNALS.get(code, 'see kill -l')})"
    else:
        how = f"the container {name} exited with status {code}"
    if "exec format error" in output.lower() or "exec format error" in said.lower():
        how += ": its image was built for another processor than the engine's"
    elif said:
        how += f": {said}"
    return f"{how}; its last lines:\n{output}" if output else f"{how}, without any output"


def ended_by_others(found: Mapping[str, Any]) -> bool:
    """Return whether a container was ended by a signal that somebody sends, such as ``docker kill`` or ``stop`` do."""
    state = found["State"]
    return not state.get("OOMKilled") and int(state["ExitCode"]) - 128 in _SENT_SIGNALS


def ended_at(found: Mapping[str, Any]) -> float:
    """Return when a container ended, as a Unix time."""
    text = str(found["State"].get("FinishedAt") or "")
    try:
        return datetime.fromisoformat(f"{text[:19]}+00:00").timestamp()
    except ValueError:
        return 0.0
