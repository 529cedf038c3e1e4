"""How an image comes to the engine, and what it is then known as."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Protocol

import structlog
from attrs import asdict, frozen

from orchestrator_core.plugin_api import Identity, SourceError, SourceUnavailable
from orchestrator_model_docker.engine import Engine, EngineRefused
from orchestrator_model_docker.options import DockerOptions

log = structlog.get_logger("orchestrator.models.docker")

_REFUSED = (
    "access denied",
    "access to the resource is denied",
    "unauthorized",
    "no basic auth credentials",
    "authentication required",
    "authorization token",
    "denied:",
)
_ABSENT = ("manifest unknown", "name unknown", "not found", "does not exist", "no such image", "invalid reference")


@frozen
class Image:
    """An image that the engine has. ``reference`` is what a container is made from, ``identity`` what is recorded."""

    reference: str
    id: str
    identity: Identity
    ports: tuple[int, ...] = ()

    def noted(self) -> dict[str, Any]:
        """Return what :meth:`of_note` makes the same image of, as JSON."""
        return {**asdict(self), "ports": list(self.ports)}

    @classmethod
    def of_note(cls, note: Mapping[str, Any]) -> Image:
        return cls(**{**note, "identity": Identity(**note["identity"]), "ports": tuple(note["ports"])})


class ImageSource(Protocol):
    """Where a model's image comes from. ``name`` is how it is configured."""

    name: str

    async def get(self, engine: Engine) -> Image:
        """Have the image on the engine, and return it. Raises as opening a model does."""
        ...

    async def look(self, engine: Engine) -> None:
        """Raise what :meth:`get` would raise, without pulling anything."""
        ...

    async def moved(self, engine: Engine, image: str) -> bool:
        """Return whether :meth:`get` would give another image than the one with this id.

        Raises what :meth:`get` would raise, as far as that can be told: then nobody knows of another image.
        """
        ...


class PullRefused(SourceError):
    """The registry does not let these credentials pull the image."""


class ImageAbsent(SourceError):
    """The registry does not have the image."""


def pull_failed(reference: str, error: EngineRefused) -> SourceError | SourceUnavailable:
    """Return what a failed pull means: the wrong credentials, no such image, or a registry that may come back."""
    said = error.message.strip()
    lowered = said.lower()
    # "denied … does not exist or may require 'docker login'" is how a registry says either.
    if any(word in lowered for word in _REFUSED):
        return PullRefused(
            f"the registry refuses to give the image {reference}: {said}; check its name, and give credentials or log "
            "in with docker login"
        )
    if any(word in lowered for word in _ABSENT):
        return ImageAbsent(f"the registry has no image {reference}: {said}")
    return SourceUnavailable(f"the image {reference} cannot be pulled: {said}", started=False)


async def find_image(engine: Engine, reference: str) -> Mapping[str, Any] | None:
    """Return what the engine knows of an image, None if it does not have it."""
    try:
        found: Mapping[str, Any] = await engine.call(lambda client: client.inspect_image(reference))
    except EngineRefused as error:
        if error.status == 404:
            return None
        raise SourceError(f"the engine refuses the image {reference}: {error.message}") from error
    return found


async def has_digest(engine: Engine, image: str, digest: str) -> bool:
    """Return whether the engine has the image with this id, and knows it by this digest of a registry."""
    found = await find_image(engine, image)
    return found is not None and any(known.endswith(f"@{digest}") for known in found.get("RepoDigests") or ())


async def pull(engine: Engine, reference: str, login: Mapping[str, str] | None, timeout_seconds: float) -> None:
    """Pull an image. Raises :class:`PullRefused`, :class:`ImageAbsent`, or ``SourceUnavailable``."""
    name, tag = split_reference(reference)

    def work(client: Any, given_up: threading.Event) -> None:
        for line in client.pull(name, tag=tag, auth_config=login, stream=True, decode=True):
            if "error" in line:
                raise EngineRefused(500, str(line["error"]))
            if given_up.is_set():
                return

    try:
        await engine.call_long(work, timeout_seconds)
    except EngineRefused as error:
        raise pull_failed(reference, error) from error
    except TimeoutError as error:
        raise SourceUnavailable(
            f"the image {reference} was not pulled within {timeout_seconds:g} s (pull_timeout)", started=False
        ) from error


def split_reference(reference: str) -> tuple[str, str]:
    """Return name and tag, or name and digest; a tag that is not written is ``latest``."""
    name, at, digest = reference.partition("@")
    if at:
        return name, digest
    head, colon, tag = reference.rpartition(":")
    if colon and "/" not in tag:
        return head, tag
    return reference, "latest"


def exposed_ports(found: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the TCP ports that an image exposes; TCP is what is meant where a port is written without its protocol."""
    exposed = (port.partition("/") for port in (found.get("Config") or {}).get("ExposedPorts") or {})
    return tuple(sorted(int(number) for number, _, protocol in exposed if protocol in ("", "tcp") and number.isdigit()))


class DockerImage:
    """The image of the model type ``docker``: one that the engine has or can pull."""

    def __init__(self, options: DockerOptions) -> None:
        self.name = options.image
        self._when = options.pull_when
        self._pull_timeout = options.pull_timeout
        login = options.credentials
        self._login = {"username": str(login.username), "password": str(login.password)} if login else None

    async def get(self, engine: Engine) -> Image:
        found = None if self._when == "always" else await find_image(engine, self.name)
        if found is None and self._when == "never":
            raise self._absent()
        if found is None:
            found = await self._pulled(engine)
        return self._image(found)

    async def look(self, engine: Engine) -> None:
        found = await find_image(engine, self.name)
        if found is None and self._when == "never":
            raise self._absent()
        if found is None or self._when == "always":
            try:
                await self._distributed(engine)
            except SourceUnavailable:
                if found is None:
                    raise

    async def moved(self, engine: Engine, image: str) -> bool:
        found = await find_image(engine, self.name)
        if found is not None and found["Id"] != image:
            return True
        if found is None and self._when == "never":
            raise self._absent()
        if found is not None and (self._when != "always" or "@" in self.name):
            return False
        return not await has_digest(engine, image, await self._distributed(engine))

    async def _pulled(self, engine: Engine) -> Mapping[str, Any]:
        try:
            await pull(engine, self.name, self._login, self._pull_timeout)
        except SourceUnavailable as error:
            found = await find_image(engine, self.name)
            if found is None:
                raise
            log.warning("the image that is here is used", image=self.name, error=str(error))
            return found
        found = await find_image(engine, self.name)
        if found is None:
            raise SourceUnavailable(f"the image {self.name} was pulled and is not there", started=False)
        return found

    async def _distributed(self, engine: Engine) -> str:
        """Return the digest that the registry has under the name. Raises as a pull does."""
        try:
            found = await engine.call(lambda client: client.inspect_distribution(self.name, self._login))
        except EngineRefused as error:
            raise pull_failed(self.name, error) from error
        return str(found["Descriptor"]["digest"])

    def _absent(self) -> SourceError:
        return SourceError(
            f"the engine has no image {self.name}, and pull is never: build or load it, or write pull: missing"
        )

    def _image(self, found: Mapping[str, Any]) -> Image:
        name, version = split_reference(self.name)
        digests = [known.partition("@")[2] for known in found.get("RepoDigests") or () if _is_of(known, name)]
        digest = version if "@" in self.name else digests[0] if digests else found["Id"]
        identity = Identity(name, "" if "@" in self.name else version, digest)
        return Image(self.name, found["Id"], identity, exposed_ports(found))


def _is_of(repo_digest: str, name: str) -> bool:
    """Return whether a digest that the engine knows is one of this name, which may leave away the usual registry."""
    return repo_digest.partition("@")[0].removeprefix("docker.io/").removeprefix("library/") == name.removeprefix(
        "docker.io/"
    ).removeprefix("library/")
