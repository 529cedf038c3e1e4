"""What stands in YAML for a model of the kind ``artifact``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from attrs import fields_dict, frozen

from orchestrator_core.plugin_api import Duration, option, positive

Take: TypeAlias = Literal["value", "label", "probability", "probabilities", "list"]

_SHA256 = re.compile(r"(sha256:)?[0-9a-fA-F]{64}\Z")


def _rising(_: Any, __: Any, tiers: Mapping[str, float] | None) -> None:
    if tiers is None:
        return
    if not tiers:
        raise ValueError("tiers: expected at least one, such as {low: 0.2, high: 1.0}")
    for (low, low_bound), (high, high_bound) in pairwise(tiers.items()):
        if high_bound <= low_bound:
            raise ValueError(f"tiers: '{high}' ({high_bound:g}) must reach higher than '{low}' ({low_bound:g})")


@frozen
class Output:
    """One field of the result, in its long form. The short form is the value of ``take`` alone."""

    take: Take | None = option(None, help="What of the prediction: value, label, probability, probabilities or list.")
    label: str | bool | int | float | None = option(
        None, help="With `take: probability`: of which class. Default: the second of two."
    )
    output: str | None = option(None, help="Instead of `take`: an output of the ONNX model by name.")
    index: int | None = option(None, help="With `output`: which of its columns, from 0.")
    tiers: dict[str, float] | None = option(
        None,
        validator=_rising,
        help="Turns the number into a word: each tier reaches up to and including its bound, the last has no bound.",
    )

    def __attrs_post_init__(self) -> None:
        if self.take and self.output:
            raise ValueError("take and output exclude each other")
        if self.index is not None and not self.output:
            raise ValueError("index needs output")
        if self.label is not None and self.take not in (None, "probability"):
            raise ValueError("label needs take: probability")
        if not (self.take or self.output or self.tiers or self.label is not None):
            raise ValueError("expected one of take, output, tiers")
        if self.tiers and self.take in ("label", "probabilities", "list"):
            raise ValueError(f"tiers needs a number: take: {self.take} is none")


def _not_empty(_: Any, __: Any, value: Mapping[str, Any] | list[str] | None) -> None:
    if value is not None and not value:
        raise ValueError("expected at least one")


def _unique(_: Any, __: Any, names: list[str] | None) -> None:
    if names is None:
        return
    if not names:
        raise ValueError("expected at least one")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"'{twice[0]}' is there twice")


def _hex(_: Any, __: Any, value: str | None) -> None:
    if value is not None and not _SHA256.match(value):
        raise ValueError("expected 64 hexadecimal digits")


def _port(_: Any, __: Any, value: int | None) -> None:
    if value is not None and not 0 < value < 65536:
        raise ValueError(f"expected a port between 1 and 65535, got {value}")


def _url_path(_: Any, __: Any, value: str | None) -> None:
    if value is not None and not value.startswith("/"):
        raise ValueError(f"expected a path that starts with /, got '{value}'")


def _command(_: Any, __: Any, value: str | list[str] | None) -> None:
    if value is None:
        return
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"startup_command cannot be split as a shell would: {str(error).lower()}") from None
    if not words or not words[0]:
        raise ValueError("startup_command is empty")


def _names(_: Any, __: Any, value: Mapping[str, str]) -> None:
    if wrong := next((name for name in value if not name or "=" in name or "\0" in name), None):
        raise ValueError(f"'{wrong}' cannot name an environment variable")


@frozen
class Readiness:
    """How a model server is found to be ready."""

    path: str | None = option(
        None, validator=_url_path, help="A path that answers 2xx when it is. Default: any answer to `GET /` will do."
    )
    timeout: Duration = option(Duration(60.0), validator=positive, help="Longest time to become ready.")
    interval: Duration = option(Duration(0.2), validator=positive, help="Time between two tries.")


@frozen
class ArtifactOptions:
    """A model that lies in a file, a folder or an MLflow store and is scored inside the service, or a model server."""

    path: str | None = option(
        None,
        help="The model: an MLflow model folder, an `.onnx`, `.skops`, `.joblib` or `.pkl` file, or an MLflow URI"
        " such as `models:/credit_risk@champion`. Relative to the configuration folder.",
    )
    format: Literal["auto", "mlflow", "onnx", "skops", "joblib", "pickle"] = option(
        "auto", help="What lies at `path`; `auto` looks at its name and its content."
    )
    flavor: Literal["auto", "onnx", "sklearn", "xgboost", "lightgbm", "pyfunc"] = option(
        "auto", help="Which flavor of an MLflow model is used; `auto` takes the first that it has of these, in order."
    )
    tracking_uri: str | None = option(
        None, help="For an MLflow URI: the tracking store. Default: the environment variable MLFLOW_TRACKING_URI."
    )
    registry_uri: str | None = option(None, help="The model registry, where it is not the tracking store's.")
    model_root: str | None = option(
        None,
        help="The folder that the model must lie in, symlinks resolved. Default: the configuration folder's parent.",
    )
    trust: bool = option(
        False,
        help="Allow formats that run code when loaded: pickle, joblib, cloudpickle, pyfunc, code that comes with the"
        " model, skops with types it does not know.",
    )
    trusted_types: list[str] | None = option(
        None,
        validator=_unique,
        help="For skops: types that may be loaded besides those that skops knows to be harmless.",
    )
    sha256: str | None = option(
        None, validator=_hex, help="Load only this content: the SHA-256 of the file, or of the folder's listing."
    )
    features: list[str] | None = option(
        None, validator=_unique, help="Feature names in the model's order, where the model does not say them itself."
    )
    nulls: Literal["error", "nan"] = option(
        "error", help="A feature that is null: an error that names it, or NaN for a model that knows what that means."
    )
    outputs: dict[str, Take | Output] | None = option(
        None,
        validator=_not_empty,
        help="The result's fields: for each, `value`, `label`, `probability`, `probabilities`, `list` or a mapping.",
    )
    accelerate: Literal["none", "onnx"] = option(
        "none", help="`onnx`: convert the model at load and prove that it predicts the same within `tolerance`."
    )
    tolerance: float = option(
        1e-5, validator=positive, help="How far accelerated numbers may be off: |a-b| <= tolerance * max(1, |b|)."
    )
    run_in: Literal["auto", "loop", "thread", "process"] = option(
        "auto", help="Where predictions run; `auto` measures the model when it is loaded."
    )
    workers: int | None = option(
        None, validator=positive, help="How many threads or processes. Default: the usable CPUs, at most 4."
    )
    startup_command: str | list[str] | None = option(
        None,
        validator=_command,
        help="Start this model server and send it the features. No shell: a list, or a string split as a shell would."
        " `{port}` and `{path}` in it are replaced.",
    )
    port: int | None = option(
        None, validator=_port, help="The port that the server listens on. Default: any free one, as `{port}` and PORT."
    )
    environment: dict[str, str] = option(
        factory=dict, validator=_names, help="Environment variables of the server, besides the service's own."
    )
    working_dir: str | None = option(
        None, help="The folder that the server is started in. Default: the configuration folder."
    )
    readiness: Readiness = option(factory=Readiness, help="How the server is found to be ready.")
    startup_delay: Duration = option(
        Duration(0.0), help="A server may take at least this long to become ready: lifts the readiness timeout."
    )
    stop_timeout: Duration = option(
        Duration(10.0), validator=positive, help="How long the server has after SIGTERM before it gets SIGKILL."
    )
    endpoint: str | None = option(None, validator=_url_path, help="The server's path for predictions.")
    protocol: str | None = option(None, help="How the server is spoken to, as for a model of the type http.")
    timeout: Duration = option(Duration(2.0), validator=positive, help="Longest time for one request to the server.")
    version: str | None = option(None, help="The version of the server's model, for execution records.")
    http: dict[str, Any] = option(
        factory=dict, help="Any other option of a model of the type http, such as `rows`, `headers` or `health`."
    )

    def __attrs_post_init__(self) -> None:
        if self.startup_command is None:
            if self.path is None:
                raise ValueError("expected path, or startup_command")
            if given := self._given(_OF_SERVERS):
                raise ValueError(f"{given} needs startup_command: it is for a model server")
        elif given := self._given(_OF_FILES):
            raise ValueError(f"{given} is for a model that is loaded, and startup_command starts a server")

    def _given(self, names: Sequence[str]) -> str | None:
        """Return the first of the options that has another value than its default."""
        attributes = fields_dict(type(self))
        return next((name for name in names if getattr(self, name) != _default(attributes[name].default)), None)


def _default(default: Any) -> Any:
    return default.factory() if type(default).__name__ == "Factory" else default


_OF_SERVERS = (
    *("port", "environment", "working_dir", "readiness", "startup_delay", "stop_timeout"),
    *("endpoint", "protocol", "timeout", "version", "http"),
)
_OF_FILES = (
    *("format", "flavor", "tracking_uri", "registry_uri", "trust", "trusted_types"),
    *("features", "nulls", "outputs", "accelerate", "run_in", "workers"),
)
