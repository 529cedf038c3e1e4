"""Small images for a real engine, and a registry with a real login. All have names of their own, and are taken away."""

from __future__ import annotations

import io
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import docker
import pytest
from docker.errors import APIError, DockerException
from orchestrator_model_docker.plugin import DOCKER
from orchestrator_model_http.plugin import HTTP

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_core.testing import open_model, run

APPLETS = ("sh", "cat", "cut", "echo", "env", "httpd", "id", "nc", "printf", "sed", "sleep", "tail", "touch", "yes")
PREDICT = """#!/bin/sh
body=$(cat)
tenure=$(printf '%s' "$body" | sed 's/.*"tenure": *\\([0-9.]*\\).*/\\1/')
printf 'Content-Type: application/json\\r\\n\\r\\n{"tenure": %s, "who": "%s"}' "$tenure" "$WHO"
"""
SERVE = ["httpd", "-f", "-p", "8080", "-h", "/www"]
PREFIX = "orchestrator-test"


class Engine:
    """The engine of this machine, and what the tests made on it."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.api = client.api
        self.prefix = f"{PREFIX}-{uuid.uuid4().hex[:8]}"
        self.images: list[str] = []

    def image(
        self,
        name: str,
        command: Sequence[str] = SERVE,
        files: Mapping[str, str | bytes] | None = None,
        changes: Sequence[str] = (),
        tag: str = "1",
    ) -> str:
        """Make an image with busybox, the model ``/www/cgi-bin/predict``, and the files. Return its reference."""
        content = {"www/cgi-bin/predict": PREDICT, "www/health": "ok", **(files or {})}
        reference = f"{self.prefix}-{name}:{tag}"
        words = ", ".join(f'"{word}"' for word in command)
        done = self.api.import_image_from_data(
            root_of(content), repository=reference.rpartition(":")[0], tag=tag,
            changes=[f"CMD [{words}]", "ENV PATH=/bin", "EXPOSE 8080", *changes],
        )  # fmt: skip
        assert '"error"' not in str(done), done
        self.images.append(reference)
        return reference

    def containers(self, **filters: Any) -> list[Any]:
        """Return the containers made from the tests' images, running or not."""
        found = self.client.containers.list(all=True, filters=filters or None, ignore_removed=True)
        return [container for container in found if self.prefix in container.attrs["Config"]["Image"]]

    def only(self) -> Any:
        (container,) = self.containers()
        return container

    def take_down(self) -> None:
        for container in self.containers():
            container.remove(force=True, v=True)
        for reference in self.images:
            try:
                self.client.images.remove(reference, force=True)
            except APIError:
                continue


def root_of(content: Mapping[str, str | bytes]) -> bytes:
    """Return a root file system as a tar file."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def add(name: str, data: bytes, mode: int = 0o644, **fields: Any) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))

        for folder in ("tmp", "bin", "etc", "www", "www/cgi-bin"):
            add(folder, b"", 0o1777 if folder == "tmp" else 0o755, type=tarfile.DIRTYPE)
        add("bin/busybox", busybox, 0o755)
        for applet in APPLETS:
            add(f"bin/{applet}", b"", type=tarfile.SYMTYPE, linkname="busybox")
        add("etc/passwd", b"root:x:0:0::/:/bin/sh\nmodel:x:1000:1000::/:/bin/sh\n")
        for name, data in content.items():
            add(name, data.encode() if isinstance(data, str) else data, 0o755)
    return buffer.getvalue()


def connect() -> Engine:
    """Use the engine of this machine; the test is skipped if there is none."""
    if shutil.which("busybox") is None:
        pytest.skip("busybox is not here: install busybox-static")
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    return Engine(client)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(true: Callable[[], Any], seconds: float = 20, what: str = "it") -> Any:
    """Return what the condition gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (result := true()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.02)
    return result


class Registry(NamedTuple):
    """A registry with a login. ``host`` is host and port."""

    host: str
    username: str
    password: str


REGISTRY = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/blobs}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}
"""


@contextmanager
def registry(folder: Path, username: str, password: str) -> Iterator[Registry]:
    """Run a registry of our own on a free port."""
    for program, package in (("docker-registry", "docker-registry"), ("htpasswd", "apache2-utils")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here: install {package}")
    subprocess.run(["htpasswd", "-Bbc", folder / "htpasswd", username, password], check=True, capture_output=True)
    port = free_port()
    (folder / "config.yml").write_text(REGISTRY.format(folder=folder, port=port))
    with subprocess.Popen(
        ["docker-registry", "serve", folder / "config.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/"), what="the registry's first answer")
            yield Registry(f"127.0.0.1:{port}", username, password)
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


# --- opening ------------------------------------------------------------------------------------------------------

OPTIONS: Mapping[str, Any] = {"endpoint": "/cgi-bin/predict", "stop_timeout": 0}


@asynccontextmanager
async def opened(image: str, folder: Path, name: str = "ml.score.default", **options: Any) -> AsyncIterator[Any]:
    """Open a model made from an image as the service would."""
    data = {**OPTIONS, "image": image, **options}
    async with open_model(DOCKER, data, folder=folder, name=name, models=[HTTP]) as model:
        yield model


def failure(image: str, folder: Path, **options: Any) -> Exception:
    """Return what opening a model made from an image raises."""

    async def main() -> Exception:
        try:
            async with opened(image, folder, **options):
                pytest.fail("the model was opened")
        except (SourceError, SourceUnavailable, ValueError) as error:
            return error

    return run(main())
