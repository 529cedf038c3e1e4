"""Models in an MLflow tracking store or registry: from a URI to a version and its files.

``models:/<name>/<version>``, ``models:/<name>@<alias>``, ``models:/<name>/latest``, ``models:/<model id>`` and
``runs:/<run id>/<path>``. MLflow is imported here only, and this runs in a worker process of its own: importing it
takes seconds and more memory than most models.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import frozen

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_model_artifact.packages import needs

CONNECT_SECONDS = 5.0
_URI = re.compile(r"(models|runs):/")
_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_UNREACHABLE = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


@frozen
class Stores:
    """Where runs and registered models are: URIs, or None for MLflow's own default."""

    tracking: str | None
    registry: str | None

    @property
    def shown(self) -> str:
        """Return what messages call the store that is asked, without a password."""
        uri = self.registry or self.tracking or ""
        return re.sub(r"//[^/@]*@", "//", uri)


@frozen
class Found:
    """Which version a URI means now, and where its files are."""

    version: str
    artifacts: str


def is_store_uri(path: str) -> bool:
    return bool(_URI.match(path))


def is_movable(uri: str) -> bool:
    """Return whether the URI may mean another version tomorrow."""
    return "@" in uri or uri.rstrip("/").endswith("/latest")


def stores_of(tracking_uri: str | None, registry_uri: str | None, config_dir: Path) -> Stores:
    """Return the stores with paths made absolute. Raises :class:`SourceError` when none is named anywhere."""
    tracking = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    registry = registry_uri or (None if tracking_uri else os.environ.get("MLFLOW_REGISTRY_URI"))
    if not tracking and not registry:
        raise SourceError(
            "a model of a registry or a run needs tracking_uri, such as http://127.0.0.1:5000 or sqlite:///mlflow.db,"
            " or the environment variable MLFLOW_TRACKING_URI"
        )
    absolute = [_absolute(uri, config_dir) if uri else None for uri in (tracking, registry)]
    return Stores(absolute[0] or absolute[1], absolute[1])


def find(uri: str, stores: Stores) -> Found:
    """Ask the stores which version the URI means.

    Raises :class:`SourceError` when there is none, :class:`SourceUnavailable` when the stores cannot be reached.
    """
    for store in filter(None, {stores.tracking, stores.registry}):
        _check_reachable(store)
    client = _client(stores)
    with _explained(uri, stores):
        if uri.startswith("runs:/"):
            return _of_run(uri, client)
        return _of_registry(uri, client, stores)


def fetch(uri: str, found: Found, stores: Stores, into: str) -> Path:
    """Copy the version's files into a folder of ours, and return the path of the copy."""
    _client(stores)
    from mlflow.artifacts import download_artifacts

    with _explained(uri, stores):
        fetched = download_artifacts(artifact_uri=found.artifacts, dst_path=into, tracking_uri=stores.tracking)
    path = Path(str(fetched)).resolve()
    if not (path / "MLmodel").is_file():
        raise SourceError(f"{uri}: what lies there is no MLflow model: it has no file 'MLmodel'")
    # MLflow's own note of where it fetched from: the digest is to be that of the model as it was logged.
    (path / "registered_model_meta").unlink(missing_ok=True)
    return path


def _of_run(uri: str, client: Any) -> Found:
    run_id, _, path = uri.removeprefix("runs:/").strip("/").partition("/")
    if not path:
        raise SourceError(f"'{uri}' names no model: write runs:/<run id>/<path of the model in the run>")
    client.get_run(run_id)
    return Found(f"{run_id}/{path}", f"runs:/{run_id}/{path}")


def _of_registry(uri: str, client: Any, stores: Stores) -> Found:
    name = unquote(uri.removeprefix("models:/").strip("/"))
    if re.fullmatch(r"m-[0-9a-f]{32}", name):
        model = client.get_logged_model(name)
        return Found(name, str(model.artifact_location))
    at, slash = name.rpartition("@"), name.rpartition("/")
    if at[0] and "/" not in at[2]:
        version = client.get_model_version_by_alias(at[0], at[2])
    elif slash[0] and slash[2].isdigit():
        version = client.get_model_version(slash[0], slash[2])
    elif slash[0] and slash[2] == "latest":
        client.get_registered_model(slash[0])
        versions = client.search_model_versions(f"name = '{slash[0]}'")
        if not versions:
            raise SourceError(f"{uri}: the registered model '{slash[0]}' has no version yet")
        version = max(versions, key=lambda each: int(each.version))
    else:
        raise SourceError(
            f"'{uri}' names no version: write models:/<name>/<number>, models:/<name>@<alias> or models:/<name>/latest"
        )
    if version.status != "READY":
        raise SourceUnavailable(
            f"{uri}: version {version.version} is not ready in {stores.shown}: {version.status}", started=False
        )
    return Found(
        f"{version.name}/{version.version}", client.get_model_version_download_uri(version.name, version.version)
    )


def _client(stores: Stores) -> Any:
    # One try: whoever asked tries again, with growing pauses, and does not wait for it. Stores of files are only read.
    os.environ.update(MLFLOW_HTTP_REQUEST_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_TIMEOUT="30")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with needs("mlflow", "a model of an MLflow registry or run"):
        import mlflow

        mlflow.set_tracking_uri(str(stores.tracking))
        mlflow.set_registry_uri(str(stores.registry or stores.tracking))
        return mlflow.MlflowClient()


@contextmanager
def _explained(uri: str, stores: Stores) -> Iterator[None]:
    """Turn MLflow's errors into ours."""
    from mlflow.exceptions import MlflowException

    try:
        with needs("mlflow", f"the MLflow store {stores.shown}"):
            yield
    except MlflowException as error:
        reason = str(error).strip().splitlines()[0]
        if error.error_code in _UNREACHABLE:
            raise SourceUnavailable(
                f"{uri}: {stores.shown} did not answer as it should: {reason}", started=False
            ) from error
        raise SourceError(f"{uri}: {stores.shown} has no such model: {reason}") from error
    except OSError as error:
        raise SourceUnavailable(f"{uri}: its files cannot be fetched: {error}", started=False) from error
    except (SourceError, SourceUnavailable):
        raise
    except Exception as error:  # a database's driver or a cloud's client can raise anything
        reason = (str(error).strip().splitlines() or [""])[0]
        raise SourceUnavailable(
            f"{uri}: {stores.shown} failed: {type(error).__name__}: {reason}", started=False
        ) from error


def _absolute(uri: str, config_dir: Path) -> str:
    if (at := re.match(r"(sqlite(?:\+\w+)?:///)(?!/)(.*)", uri)) and ":memory:" not in uri:
        return f"{at[1]}{(config_dir / at[2]).resolve()}"
    if at := re.match(r"file:(?!//)(.*)", uri):
        return (config_dir / at[1]).resolve().as_uri()
    return uri if "://" in uri or uri == "databricks" else (config_dir / uri).resolve().as_uri()


def _check_reachable(uri: str) -> None:
    """Say at once what MLflow would find out after minutes, or answer by making an empty store."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:  # its text can hold a part of a password, taken for a port
        raise SourceError(
            "the MLflow store's address is not a URL: its host or port cannot be read; percent-encode what is special "
            "in a password"
        ) from None
    scheme = parts.scheme.partition("+")[0]
    if scheme in ("sqlite", "file"):
        path = Path(unquote(parts.path)[1:] if scheme == "sqlite" else unquote(parts.path))
        if not path.exists():
            raise SourceError(f"the MLflow store {uri} does not exist: looked for {path}")
    elif uri.count("@") > 1:  # the end of a password would be in every message
        raise SourceError(
            "the MLflow store's address has more than one @; write %40 for each but the one before the host"
        )
    elif scheme in _DEFAULT_PORTS and parts.hostname:
        address = (parts.hostname, port or _DEFAULT_PORTS[scheme])
        try:
            socket.create_connection(address, CONNECT_SECONDS).close()
        except OSError as error:
            shown = Stores(uri, None).shown
            raise SourceUnavailable(
                f"the MLflow server {shown} cannot be reached: {error.strerror or error}", started=False
            ) from error
