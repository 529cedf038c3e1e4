"""The image of the model type ``ecr``: a tag resolved to a digest, pulled by it, and kept under its tag here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import structlog
from orchestrator_model_docker.engine import Engine, EngineRefused
from orchestrator_model_docker.images import (
    Image,
    ImageAbsent,
    PullRefused,
    exposed_ports,
    find_image,
    has_digest,
    pull,
    pull_failed,
)

from orchestrator_core.plugin_api import Identity, SourceError, SourceUnavailable
from orchestrator_model_ecr.aws import Aws, Login
from orchestrator_model_ecr.options import EcrOptions

log = structlog.get_logger("orchestrator.models.ecr")

_HOST_OF_ECR = r"\d{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.amazonaws\.com(\.cn)?"


class EcrImage:
    """An image of a repository.

    The image that a tag stood for when it was last pulled keeps the tag on the engine. It is what a model is made from
    when AWS or the registry cannot be reached.
    """

    def __init__(self, options: EcrOptions) -> None:
        self._options = options
        self._aws = Aws(options)
        tag = options.wanted_tag
        self.name = f"{options.repository}:{tag}" if tag else f"{options.repository}@{options.digest}"

    async def get(self, engine: Engine) -> Image:
        kept = await self._kept(engine)
        if self._options.pull_when == "never":
            return self._here(kept)
        if kept is not None and self._options.digest:
            return kept  # there is no other with this digest
        try:
            return await self._fetched(engine, hurry=kept is not None)
        except SourceUnavailable as error:
            if kept is None:
                raise
            log.warning("the image that is here is used", image=kept.reference, error=str(error))
            return kept

    async def look(self, engine: Engine) -> None:
        kept = await self._kept(engine)
        if self._options.pull_when == "never":
            self._here(kept)
            return
        if kept is not None and self._options.digest:
            return
        try:
            digest = await self._digest(hurry=True)
            login = await asyncio.to_thread(self._aws.login, hurry=True)
            await self._at_registry(engine, f"{self._repository(login)}@{digest}", login)
        except SourceUnavailable:
            if kept is None:
                raise

    async def moved(self, engine: Engine, image: str) -> bool:
        if self._options.digest:
            return False
        if self._options.pull_when == "never":
            return self._here(await self._kept(engine)).id != image
        return not await has_digest(engine, image, await self._digest(hurry=True))

    # --- from the registry ------------------------------------------------------------------------------------------

    async def _fetched(self, engine: Engine, *, hurry: bool) -> Image:
        """Return the image that the tag or digest stands for now, pulled if the engine does not have it."""
        digest = await self._digest(hurry=hurry)
        host = self._options.registry_host
        if host is not None:
            found = await find_image(engine, f"{host}/{self._options.repository}@{digest}")
            if found is not None:
                return await self._keep(engine, found, f"{host}/{self._options.repository}", digest)
        login = await asyncio.to_thread(self._aws.login, hurry=hurry)
        repository = self._repository(login)
        found = await find_image(engine, f"{repository}@{digest}")
        if found is None:
            digest = await self._pull(engine, repository, digest, login, hurry=hurry)
            found = await find_image(engine, f"{repository}@{digest}")
        if found is None:
            raise SourceUnavailable(f"the image {repository}@{digest} was pulled and is not there", started=False)
        return await self._keep(engine, found, repository, digest)

    async def _pull(self, engine: Engine, repository: str, digest: str, login: Login, *, hurry: bool) -> str:
        """Pull the image, with a new login if the registry refuses the first. Return its digest."""
        try:
            await self._pull_with(engine, f"{repository}@{digest}", login)
        except (PullRefused, SourceUnavailable) as error:
            # An engine says of a login that has expired that it is denied, or that the registry answered 500 or 403.
            log.info("the login for ECR is renewed", error=str(error))
            login = await asyncio.to_thread(self._aws.login, login, hurry=hurry)
            await self._pull_with(engine, f"{repository}@{digest}", login)
        except ImageAbsent:
            if self._options.digest:
                raise
            # It was deleted since AWS told of it. What the registry itself has under the tag is what can be had.
            digest = await self._at_registry(engine, f"{repository}:{self._options.wanted_tag}", login)
            await self._pull_with(engine, f"{repository}@{digest}", login)
        return digest

    async def _pull_with(self, engine: Engine, reference: str, login: Login) -> None:
        try:
            await pull(engine, reference, _as_docker_says(login), self._options.pull_timeout)
        except PullRefused as error:
            raise self._not_taken(error.__cause__ or error) from error

    def _not_taken(self, said: BaseException) -> PullRefused:
        return PullRefused(
            f"{said}: the registry does not take the login that AWS gave: check that the "
            f"credentials may pull from {self._options.repository} (ecr:BatchGetImage), and registry_id"
        )

    async def _at_registry(self, engine: Engine, reference: str, login: Login) -> str:
        """Return the digest of what the registry has; nothing is pulled."""
        try:
            found = await engine.call(lambda client: client.inspect_distribution(reference, _as_docker_says(login)))
        except EngineRefused as error:
            failed = pull_failed(reference, error)
            raise (self._not_taken(error) if isinstance(failed, PullRefused) else failed) from error
        return str(found["Descriptor"]["digest"])

    async def _digest(self, *, hurry: bool) -> str:
        tag = self._options.wanted_tag
        if tag is None:
            assert self._options.digest is not None
            return self._options.digest
        return await asyncio.to_thread(self._aws.digest_of, tag, hurry=hurry)

    def _repository(self, login: Login) -> str:
        return f"{self._options.registry_host or login.host}/{self._options.repository}"

    # --- on the engine ------------------------------------------------------------------------------------------------

    async def _keep(self, engine: Engine, found: Mapping[str, Any], repository: str, digest: str) -> Image:
        """Give the image its tag on the engine, by which it is found when the registry is down."""
        tag = self._options.wanted_tag
        if tag is not None and f"{repository}:{tag}" not in (found.get("RepoTags") or ()):
            try:
                await engine.call(lambda client: client.tag(found["Id"], repository, tag, force=True))
            except EngineRefused as error:
                log.warning("the image cannot be tagged", image=f"{repository}:{tag}", error=error.message)
        return self._image(found, repository, digest)

    async def _kept(self, engine: Engine) -> Image | None:
        """Return the image that was last pulled for the tag or digest, if the engine still has it."""
        options = self._options
        end = f":{options.wanted_tag}" if options.digest is None else f"@{options.digest}"
        if options.registry_host is not None:
            hosts = re.escape(options.registry_host)
        elif options.registry_id is not None:
            hosts = _HOST_OF_ECR.replace(r"\d{12}", options.registry_id)
        else:
            hosts = _HOST_OF_ECR
        if options.region and options.registry_host is None:
            hosts = hosts.replace("[a-z0-9-]+", re.escape(options.region))
        wanted = re.compile(f"({hosts}/{re.escape(options.repository)}){re.escape(end)}")
        try:
            images = await engine.call(lambda client: client.images())
        except EngineRefused as error:
            raise SourceUnavailable(f"the engine cannot list its images: {error.message}", started=False) from error
        for listed in images:
            for known in [*(listed.get("RepoTags") or ()), *(listed.get("RepoDigests") or ())]:
                match = wanted.fullmatch(known)
                if match is None:
                    continue
                digest = options.digest or _digest_in(listed, match[1])
                found = await find_image(engine, listed["Id"]) if digest else None
                if found is not None and digest is not None:
                    return self._image(found, match[1], digest)
        return None

    def _here(self, kept: Image | None) -> Image:
        """Return the image where none is pulled. Raises ``SourceError`` when the engine does not have it."""
        if kept is None:
            raise SourceError(f"the engine has no image {self.name} of ECR, and pull is never: write pull: missing")
        return kept

    def _image(self, found: Mapping[str, Any], repository: str, digest: str) -> Image:
        identity = Identity(repository, self._options.wanted_tag or "", digest)
        return Image(f"{repository}@{digest}", found["Id"], identity, exposed_ports(found))


def _digest_in(listed: Mapping[str, Any], repository: str) -> str | None:
    known = [digest for digest in listed.get("RepoDigests") or () if digest.startswith(f"{repository}@")]
    return known[0].partition("@")[2] if known else None


def _as_docker_says(login: Login) -> dict[str, str]:
    return {"username": login.username, "password": login.password}
