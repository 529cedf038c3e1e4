"""What the example's models in containers need, where this machine has it: an image, and a registry like ECR.

Where it has not, the model stays switched off, and whoever started the demo is told why.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from example import image

ROOT = Path(__file__).parents[1]
NAME = "orchestrator-example-credit"
REPOSITORY = "models/credit"
LABEL = "orchestrator.example"
ANSWER_SECONDS = 30
"""How long the engine may take for one answer: an image that takes longer is not worth the wait."""

START_SECONDS = 40.0
STOP_SECONDS = 10.0
ACCOUNT, REGION = "123456789012", "eu-west-1"
Report = Callable[[str], None]


class LeftOut(Exception):
    """A strategy that this machine has not what it takes for; the message says what is missing."""


@contextmanager
def offered(data: Path, report: Report) -> Iterator[Mapping[str, str]]:
    """Have what the models in containers need; yield the variables that switch them on; tell ``report`` of the others.

    What was made on the engine for the registry is gone afterwards; the image stays for the next time, see ``clean``.
    """
    variables: dict[str, str] = {}
    with ExitStack() as stack:
        try:
            with _refusals():
                engine = stack.enter_context(connected_engine())
                made = _image(engine, data, report)
        except LeftOut as why:
            report(f"left out   docker and ecr: {why}")
        else:
            variables |= {"CREDIT_DOCKER": "true", "CREDIT_IMAGE": made}
            try:
                registry = stack.enter_context(_registry())
                stack.callback(_forget, engine, registry["registry"])
                with _refusals():
                    _push(engine, made, registry)
                variables |= _of_ecr(registry)
            except LeftOut as why:
                report(f"left out   ecr: {why}")
        yield variables


def clean(data: Path, report: Report) -> None:
    """Remove from the engine what the example of this folder made there: containers and images."""
    try:
        with _refusals(), connected_engine() as engine:
            ours = {"label": f"{LABEL}={_owner(data)}"}
            containers = engine.containers.list(all=True, filters=ours, ignore_removed=True)
            for container in containers:
                container.remove(force=True, v=True)
            images = engine.images.list(filters=ours)
            for made in images:
                engine.images.remove(made.id, force=True)
            report(f"removed    {len(containers)} containers and {len(images)} images of the example")
    except LeftOut as why:
        report(f"nothing to remove: {why}")


# --- the engine -----------------------------------------------------------------------------------------------------


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise :class:`LeftOut` for what the engine refuses in the block."""
    try:
        import requests
        from docker.errors import DockerException
    except ModuleNotFoundError as error:
        raise LeftOut(f"the package '{error.name}' is not installed: pip install -e plugins/model-docker") from error
    try:
        yield
    except requests.exceptions.Timeout as error:
        raise LeftOut(f"the Docker engine did not answer within {ANSWER_SECONDS} s") from error
    except (DockerException, requests.exceptions.RequestException) as error:
        raise LeftOut(f"the Docker engine refuses: {getattr(error, 'explanation', None) or error}") from error


@contextmanager
def connected_engine() -> Iterator[Any]:
    """Give the engine that the model type ``docker`` would use."""
    import docker
    from docker.context import ContextAPI
    from docker.utils import kwargs_from_env

    where = kwargs_from_env()
    if "base_url" not in where:
        where = {**ContextAPI.kwargs_from_context(environment=os.environ), **where}
    address = where.get("base_url") or "unix:///var/run/docker.sock"
    _refuse_if_dead(address)
    client = docker.DockerClient(timeout=ANSWER_SECONDS, **where)
    try:
        client.ping()
        yield client
    finally:
        client.close()


def _refuse_if_dead(address: str) -> None:
    """Raise :class:`LeftOut` if nobody listens there: the SDK would leave its socket open then."""
    scheme, _, path = address.partition("://")
    if scheme.endswith("unix"):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(f"/{path.lstrip('/')}")
            except OSError as error:
                raise LeftOut(f"no Docker engine answers at {address} ({error.strerror})") from error


def _owner(data: Path) -> str:
    """Return what the example of one folder calls its own on an engine that others use too."""
    return hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:12]


def _image(engine: Any, data: Path, report: Report) -> str:
    """Return the image, made now unless it is there as it would be made today."""
    from docker.errors import ImageNotFound

    _refuse_other_machines(engine)
    owner = _owner(data)
    tag = f"{owner}-{image.content_hash(data)[:12]}"
    with suppress(ImageNotFound):
        engine.images.get(f"{NAME}:{tag}")
        return f"{NAME}:{tag}"
    started = time.monotonic()
    changes = [
        f"CMD {json.dumps(image.command())}",
        f"EXPOSE {image.PORT}",
        "USER 65534:65534",
        f"LABEL {LABEL}={owner}",
    ]
    try:
        content = image.root_file_system(data)
    except OSError as error:  # a file that this user may not read, or no `ldd`
        raise LeftOut(f"its image cannot be made from this machine's Python: {error}") from error
    said = engine.api.import_image_from_data(content, repository=NAME, tag=tag, changes=changes)
    if '"error"' in str(said):
        raise LeftOut(f"the engine does not take the image: {said}")
    report(f"made       the image {NAME}:{tag} ({len(content) / 1e6:.0f} MB, {time.monotonic() - started:.1f} s)")
    return f"{NAME}:{tag}"


def _refuse_other_machines(engine: Any) -> None:
    try:
        here = image.architecture()
    except image.CannotMake as error:
        raise LeftOut(str(error)) from error
    about = engine.version()
    there = f"{about['Os']}/{about['Arch']}"
    if there != f"linux/{here}":
        raise LeftOut(f"its image is made for linux/{here}, and the Docker engine runs {there}")


# --- the registry ---------------------------------------------------------------------------------------------------


@contextmanager
def _registry() -> Iterator[Mapping[str, str]]:
    """Run a registry like ECR; yield the addresses of its API and of the registry."""
    missing = [
        *([] if shutil.which("docker-registry") else ["the program docker-registry (apt-get install docker-registry)"]),
        *(
            []
            if importlib.util.find_spec("moto") and importlib.util.find_spec("flask")
            else [f"the package moto ({_shown_python()} -m pip install 'moto[ecr,server]')"]
        ),
    ]
    if missing:
        raise LeftOut(f"a registry like AWS's on this machine needs {' and '.join(missing)}")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "example.registry"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdin
    assert process.stdout
    too_late = threading.Timer(START_SECONDS, process.kill)
    too_late.start()
    try:
        line = process.stdout.readline()
        too_late.cancel()
        if not line:
            raise LeftOut("the registry does not start: python -m example.registry says why")
        yield json.loads(line)
    finally:
        too_late.cancel()
        process.stdin.close()  # which it takes as the end
        process.stdout.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _shown_python() -> str:
    path = os.path.relpath(sys.executable)
    return sys.executable if path.startswith("..") else path


def _of_ecr(registry: Mapping[str, str]) -> dict[str, str]:
    return {
        "CREDIT_ECR": "true",
        "CREDIT_ECR_URL": registry["api"],
        "CREDIT_REGISTRY": registry["registry"],
        "AWS_ACCESS_KEY_ID": "example",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _push(engine: Any, made: str, registry: Mapping[str, str]) -> None:
    """Put the image into the registry, and tell the API of it, as a push to ECR does."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError as error:
        raise LeftOut(f"the package '{error.name}' is not installed: pip install -e plugins/model-ecr") from error
    name = f"{registry['registry']}/{REPOSITORY}"
    engine.api.tag(made, name, "live")
    login = {"username": "AWS", "password": "any"}
    for line in engine.api.push(name, "live", auth_config=login, stream=True, decode=True):
        if "error" in line:
            raise LeftOut(f"the registry does not take the image: {line['error']}")
    known = engine.api.inspect_image(f"{name}:live")["RepoDigests"]
    digest = next(each.partition("@")[2] for each in known if each.startswith(f"{name}@"))
    client = boto3.client(
        "ecr", region_name=REGION, endpoint_url=registry["api"],
        aws_access_key_id="example", aws_secret_access_key="example",
    )  # fmt: skip
    try:
        client.create_repository(repositoryName=REPOSITORY, registryId=ACCOUNT)
        client.put_image(
            registryId=ACCOUNT,
            repositoryName=REPOSITORY,
            imageManifest=json.dumps({"layers": [], "digest": digest}),
            imageManifestMediaType="application/vnd.docker.distribution.manifest.v2+json",
            imageDigest=digest,
            imageTag="live",
        )
    except (BotoCoreError, ClientError) as error:
        raise LeftOut(f"the registry's API refuses the image: {error}") from error
    finally:
        client.close()
    engine.api.remove_image(f"{name}:live", noprune=True)


def _forget(engine: Any, registry: str) -> None:
    """Take the registry's names off the engine: its port is another one the next time."""
    from docker.errors import DockerException

    with suppress(DockerException):  # an engine that is gone has nothing to forget
        for found in engine.api.images():
            for name in [*(found["RepoTags"] or ()), *(found["RepoDigests"] or ())]:
                if name.startswith(f"{registry}/"):
                    with suppress(DockerException):  # the digest goes with its tag
                        engine.api.remove_image(name, noprune=True)
