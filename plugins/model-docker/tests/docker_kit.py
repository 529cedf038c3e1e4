"""Small images for a real engine, and a registry with a real login. All have names of their own, and are taken away."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
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
from orchestrator_core.testing import free_port, open_model, run
from orchestrator_core.testing.service import write_files

APPLETS = (
    "sh",
    "cat",
    "cut",
    "echo",
    "env",
    "head",
    "httpd",
    "id",
    "nc",
    "printf",
    "sed",
    "sleep",
    "tail",
    "touch",
    "tr",
    "yes",
)
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
        self.images: set[str] = set()

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
        done = self.api.import_image_from_data(
            root_of(content), repository=reference.rpartition(":")[0], tag=tag,
            changes=[f"CMD {json.dumps(list(command))}", "ENV PATH=/bin", "EXPOSE 8080", *changes],
        )  # fmt: skip
        assert '"error"' not in str(done), done
        self.images |= {reference, self.api.inspect_image(reference)["Id"]}  # one that is made again loses its name
        return reference

    def containers(self, **filters: Any) -> list[Any]:
        """Return the containers made from the tests' images, running or not."""
        found = self.client.containers.list(all=True, filters=filters or None, ignore_removed=True)
        return [
            container
            for container in found
            if self.prefix in container.attrs["Config"]["Image"] or container.attrs["Image"] in self.images
        ]

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
        _knock(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
        client = docker.from_env(timeout=60)
        client.ping()
    except (DockerException, OSError) as error:
        pytest.skip(f"no Docker engine answers: {error}")
    return Engine(client)


def _knock(address: str) -> None:
    """Raise what connecting raises: the SDK would leave its socket open then, and another test would fail for it."""
    scheme, _, path = address.partition("://")
    if scheme.endswith("unix"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"/{path.lstrip('/')}")


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


# --- serving ------------------------------------------------------------------------------------------------------

DOMAIN = """
endpoints:
  score:
    timeout: 30s
    data_sources:
      - name: score
        type: ml
        source_id: score
        operation: predict
        params: {features: {tenure: "$request.body.tenure"}}
  hello: {response_mapping: hello}
"""


def configuration(folder: Path, image: str, **options: Any) -> Path:
    """Write a configuration with the model ``score`` made from an image; return its folder."""
    model = {"type": "docker", "image": image, **OPTIONS, **options}
    files = {"integrations/models.yaml": json.dumps({"ml": {"sources": {"score": {"source": model}}}})}
    write_files(folder, {"config.yaml": "reload: {watch: false}\n", "domains/d.yaml": DOMAIN, **files})
    return folder


class Answer(NamedTuple):
    status: int
    json: Any
    headers: Mapping[str, str]


def _content(answer: Any) -> Any:
    body = answer.read()
    return json.loads(body or "null") if "json" in answer.headers["Content-Type"] else body.decode()


class Process:
    """``orchestrator serve`` in a process of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.log = (folder.parent / f"serve-{self.port}.log").open("w+")
        command = [sys.executable, "-m", "orchestrator_core", "serve", "--config", str(folder)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--admin-port", str(self.admin_port)],
            env={**os.environ, **environment}, stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def ask(self, path: str, body: Any = None, port: int = 0) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port or self.port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return Answer(answer.status, _content(answer), answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, _content(error), error.headers)

    def score(self) -> Answer:
        return self.ask("/orchestrator/d/score", {"tenure": 12})

    def admin(self, path: str, body: Any = None) -> Answer:
        return self.ask(path, body, self.admin_port)

    def model(self) -> dict[str, Any]:
        """Return what the admin listener says of the model."""
        (model,) = self.admin("/models").json["models"]
        return dict(model)

    def scores(self) -> bool:
        try:
            return self.score().status == 200
        except OSError:
            assert self.process.poll() is None, self.said()
            return False

    def ready(self, seconds: float = 30) -> Process:
        wait_until(self.scores, seconds, "a score")
        return self

    def said(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0, self.said()

    def end(self) -> None:
        if self.process.poll() is None:
            self.kill()
        self.log.close()


@contextmanager
def serving() -> Iterator[Callable[..., Process]]:
    """Start processes that end with the block."""
    processes: list[Process] = []

    def start(folder: Path, **environment: str) -> Process:
        processes.append(Process(folder, **environment))
        return processes[-1]

    try:
        yield start
    finally:
        for process in processes:
            process.end()


# --- an engine of our own, to stop and start ------------------------------------------------------------------------


class PrivateEngine:
    """A Docker engine beside that of the machine, with a bridge of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.id = f"ot{uuid.uuid4().hex[:8]}"
        self.host = f"unix://{folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "daemon.json").write_text("{}")
        third, fourth = uuid.uuid4().bytes[:2]
        for command in (
            f"link add {self.id} type bridge",
            f"addr add 10.{third}.{fourth}.1/24 dev {self.id}",
            f"link set {self.id} up",
        ):
            subprocess.run(["ip", *command.split()], check=True, capture_output=True)

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    "dockerd", f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec",
                    f"--host={self.host}", f"--pidfile={self.folder}/pid", f"--config-file={self.folder}/daemon.json",
                    f"--bridge={self.id}",
                    "--iptables=false", "--ip6tables=false", "--ip-masq=false",
                    f"--containerd-namespace={self.id}", f"--containerd-plugins-namespace={self.id}p",
                ],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_until(self.answers, 60, "the private engine's first answer")

    def client(self) -> Any:
        return docker.DockerClient(base_url=self.host, timeout=60, version="1.40")

    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:  # the SDK leaves its socket open when it cannot connect
            if probe.connect_ex(f"{self.folder}/docker.sock"):
                return False
        client = self.client()
        try:
            return bool(client.ping())
        finally:
            client.close()

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.send(number)
        assert self.process is not None
        self.process.wait(30)
        (self.folder / "pid").unlink(missing_ok=True)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.stop()
        subprocess.run(["ip", "link", "del", self.id], check=False, capture_output=True)
        for mounted in sorted(Path("/proc/mounts").read_text().splitlines(), reverse=True):
            if str(self.folder) in mounted:
                subprocess.run(["umount", "-l", mounted.split()[1]], check=False, capture_output=True)
        shutil.rmtree(self.folder / "data", ignore_errors=True)


@contextmanager
def private_engine() -> Iterator[PrivateEngine]:
    """Run an engine of our own; its folder has a short name, because sockets need one."""
    if shutil.which("dockerd") is None or shutil.which("ip") is None or os.getuid() != 0:
        pytest.skip("a Docker engine of the test's own needs dockerd, ip and root")
    with tempfile.TemporaryDirectory(prefix="engine-", ignore_cleanup_errors=True) as folder:
        engine = PrivateEngine(Path(folder))
        try:
            engine.start()
            yield engine
        finally:
            engine.end()


# --- a model server in Python ---------------------------------------------------------------------------------------

SERVER = Path(__file__).parent / "model_server.py"
FEATURES = ("credit_score", "annual_income", "debt")


def credit_model() -> Any:
    """Train a scikit-learn model; the same one each time."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(7)
    columns = random.integers(300, 850, 300), random.normal(60_000, 15_000, 300), random.normal(1e4, 4e3, 300)
    rows = np.column_stack(columns)
    bad = rows[:, 2] / rows[:, 1] > rows[:, 0] / 4_000
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, bad)


def python_image(engine: Engine, model: Any, changes: Sequence[str] = ()) -> str:
    """Make the image of a model server in Python. Its Python is this machine's, see below."""
    import joblib

    buffer = io.BytesIO()
    joblib.dump((FEATURES, model), buffer)
    files = {"model/server.py": SERVER.read_bytes(), "model/credit.joblib": buffer.getvalue()}
    command = [sys.executable, "/model/server.py", "8080", "/model/credit.joblib"]
    return engine.image("sklearn", command, files, ["ENV OMP_NUM_THREADS=1", *changes])


def python_options() -> dict[str, Any]:
    """Return the options for a container with this machine's Python in it, read-only."""
    folders = {sys.base_prefix, sys.prefix, "/usr", "/lib", *(["/lib64"] if Path("/lib64").exists() else [])}
    within = {folder for folder in folders if not any(folder.startswith(f"{other}/") for other in folders)}
    return {
        "volumes": [f"{folder}:{folder}:ro" for folder in sorted(within)],
        "user": f"{os.getuid()}:{os.getgid()}",
        "endpoint": "/predict",
        "rows": "list",
        "readiness": {"path": "/health"},
        "timeout": 10,
    }
