"""ECR made of its parts: moto answers the API, a real registry keeps the images, and faults come when a test asks."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from typing import Any

import pytest
from docker.errors import ImageNotFound
from docker_kit import HTTP, OPTIONS, Engine, Registry, connect, registry
from moto.server import ThreadedMotoServer
from orchestrator_model_ecr.plugin import ECR

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_core.testing import open_model, run

ACCOUNT = "123456789012"
REGION = "eu-west-1"
PASSWORD = f"{ACCOUNT}-auth-token"
"""The password in the login that moto gives."""

TARGET = "AmazonEC2ContainerRegistry_V20150921."


class Front(ThreadingHTTPServer):
    """A server before another one. It counts what is asked, and may answer in its place."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def instead(self, handler: _Handler, what: str) -> tuple[int, dict[str, str], bytes] | None:
        """Return the answer that is given without asking the server behind."""
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Front

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what = self.headers.get("X-Amz-Target", "").removeprefix(TARGET) or f"{self.command} {self.path}"
        self.server.asked.append(what)
        status, headers, content = self.server.instead(self, what) or self.forward(body)
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_POST = handle_any  # noqa: N815 - the names that the base class looks for

    def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
        request = urllib.request.Request(self.server.target + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    def log_message(self, *_: Any) -> None:
        return


class Api(Front):
    """ECR's API. ``errors`` are given for the calls to come, ``lives_seconds`` is how long a login is good for."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.errors: list[tuple[int, str, str]] = []
        self.lives_seconds = 12 * 3600.0
        self.passwords = [PASSWORD]

    def instead(self, handler: _Handler, what: str) -> tuple[int, dict[str, str], bytes] | None:
        if self.errors:
            status, code, message = self.errors.pop(0)
            content = {"__type": code, "message": message}
            return status, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(content).encode()
        if what == "GetAuthorizationToken":
            password = self.passwords.pop(0) if len(self.passwords) > 1 else self.passwords[0]
            login = {
                "authorizationToken": b64encode(f"AWS:{password}".encode()).decode(),
                "expiresAt": time() + self.lives_seconds,
                "proxyEndpoint": f"https://{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com",
            }
            return (
                200,
                {"Content-Type": "application/x-amz-json-1.1"},
                json.dumps({"authorizationData": [login]}).encode(),
            )
        return None

    def count(self, what: str) -> int:
        return self.asked.count(what)


class Gate(Front):
    """The registry. ``answers`` are given in its place for the manifests that are asked for next."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.answers: list[int] = []

    def instead(self, handler: _Handler, what: str) -> tuple[int, dict[str, str], bytes] | None:
        if self.answers and "/manifests/" in what:
            status = self.answers.pop(0)
            code = "DENIED" if status == 403 else "UNKNOWN"
            content = {"errors": [{"code": code, "message": "Your Authorization Token has expired."}]}
            return status, {"Content-Type": "application/json"}, json.dumps(content).encode()
        return None


@contextmanager
def in_front(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Ecr:
    """One repository, with what a user of it does. ``options`` are those of a model in it."""

    def __init__(self, api: Api, gate: Gate, registry: Registry, engine: Engine, repository: str) -> None:
        self.api, self.gate, self.registry, self.engine, self.repository = api, gate, registry, engine, repository
        self.host = f"127.0.0.1:{gate.server_address[1]}"
        self.options = {
            "repository": repository,
            "region": REGION,
            "registry_id": ACCOUNT,
            "registry": self.host,
            "endpoint_url": api.url,
        }
        self.pushed: set[str] = set()

    def client(self) -> Any:
        import boto3

        return boto3.client("ecr", region_name=REGION, endpoint_url=self.api.target)

    def create(self) -> None:
        self.client().create_repository(repositoryName=self.repository)

    def push(self, image: str, tag: str) -> str:
        """Push an image under a tag, to the registry and to what the API tells. Return its digest; keep nothing."""
        engine, name = self.engine, f"{self.registry.host}/{self.repository}"
        engine.api.tag(image, name, tag)
        login = {"username": "AWS", "password": PASSWORD}
        for line in engine.api.push(name, tag, auth_config=login, stream=True, decode=True):
            assert "error" not in line, line
        known = engine.api.inspect_image(f"{name}:{tag}")["RepoDigests"]
        digest = next(each.partition("@")[2] for each in known if each.startswith(f"{name}@"))
        engine.api.remove_image(f"{name}:{tag}")
        self.client().put_image(
            repositoryName=self.repository, imageManifest=json.dumps({"layers": [], "digest": digest}), imageTag=tag,
            imageManifestMediaType="application/vnd.docker.distribution.manifest.v2+json", imageDigest=digest,
        )  # fmt: skip
        return digest

    def here(self) -> list[str]:
        """Return the names under which the engine has images of the repository."""
        found = []
        for image in self.engine.api.images():
            names = [*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())]
            found += [name.partition("/")[2] for name in names if name.startswith(f"{self.host}/{self.repository}")]
        return sorted(found)

    def forget(self) -> None:
        """Take the images of the repository off the engine."""
        for image in self.engine.api.images():
            for name in [*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())]:
                if f"/{self.repository}" in name:
                    with suppress(ImageNotFound):  # the digest goes with the last tag
                        self.engine.api.remove_image(name, force=True)

    @asynccontextmanager
    async def opened(self, folder: Path, **options: Any) -> AsyncIterator[Any]:
        data = {**OPTIONS, **self.options, **options}
        async with open_model(ECR, data, folder=folder, name="ml.score.default", models=[HTTP]) as model:
            yield model

    def failure(self, folder: Path, **options: Any) -> Exception:
        """Return what opening the model raises."""

        async def main() -> Exception:
            try:
                async with self.opened(folder, **options):
                    pytest.fail("the model was opened")
            except (SourceError, SourceUnavailable, ValueError) as error:
                return error

        return run(main())


@contextmanager
def running_moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def repository(
    engine: Engine, private: Registry, moto: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ecr]:
    """Give a repository that nobody else has; it leaves no image and has to leave no container behind."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(folder / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "aws-credentials"),
        "ORCHESTRATOR_RUNTIME_DIR": str(folder / "run"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("orchestrator_model_ecr.aws.LOGINS._known", {})
    with in_front(Api(moto)) as api, in_front(Gate(f"http://{private.host}")) as gate:
        made = Ecr(api, gate, private, engine, f"models/{engine.prefix}-{uuid.uuid4().hex[:6]}")
        yield made
        left = engine.containers()
        for container in left:
            container.remove(force=True, v=True)
        made.forget()
    assert [f"{container.name} ({container.status})" for container in left] == []


@contextmanager
def made_ecr(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ecr]:
    """Make all that a repository needs, for one test."""
    engine = connect()
    try:
        with (
            registry(folder, "AWS", PASSWORD) as private,
            running_moto() as moto,
            repository(engine, private, moto, folder, monkeypatch) as ecr,
        ):
            ecr.create()
            yield ecr
    finally:
        engine.take_down()
        engine.client.close()
