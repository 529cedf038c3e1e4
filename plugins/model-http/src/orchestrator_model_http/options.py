"""What stands in YAML for a model of the kind ``http``."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import quote

from attrs import frozen

from orchestrator_core.plugin_api import Duration, OptionError, Size, TlsOptions, option, positive
from orchestrator_model_http.outputs import Take, split_take


def _http_url(_: Any, __: Any, url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise ValueError("expected a URL that starts with http:// or https://")


def _path(_: Any, __: Any, path: str | None) -> None:
    if path is not None and not path.startswith("/"):
        raise ValueError(f"expected a path that starts with /, got '{path}'")


def _unique(_: Any, __: Any, names: list[str] | None) -> None:
    if names is not None and not names:
        raise ValueError("expected at least one")
    if twice := sorted({name for name in names or () if (names or []).count(name) > 1}):
        raise ValueError(f"'{twice[0]}' is there twice")


def _takes(_: Any, __: Any, outputs: dict[str, Take] | None) -> None:
    if outputs is not None and not outputs:
        raise ValueError("expected at least one")
    for name, take in (outputs or {}).items():
        try:
            split_take(take)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


_ONLY_FOR = {
    "rows": ("json",),
    "model_name": ("v2",),
    "model_version": ("v2",),
    "features": ("v2",),
    "parameters": ("v2",),
    "outputs": ("mlflow", "v2"),
}
_NOT_GIVEN: tuple[Any, ...] = (None, "one", {})


@frozen
class HttpModelOptions:
    """A model server and how to speak to it. The source's ``base_url`` is used where the model has none."""

    base_url: str = option(help="Where the model server is, such as `http://127.0.0.1:9002`.", validator=_http_url)
    protocol: Literal["json", "mlflow", "v2"] = option(
        "json",
        help="How features and predictions are written: `json` posts the features as they are, `mlflow` speaks to "
        "`mlflow models serve`, `v2` is the Open Inference Protocol (KServe, MLServer, Triton).",
    )
    endpoint: str | None = option(
        None,
        help="The path that predictions are posted to. Default: `/predict`, with `mlflow` `/invocations`, with `v2` "
        "`/v2/models/<model_name>/infer`.",
        validator=_path,
    )
    rows: Literal["one", "list"] = option(
        "one",
        help="With `json`: `one`: each row is a request, and its answer the result. `list`: rows in, as many results "
        "out.",
    )
    model_name: str | None = option(
        None,
        help="With `v2`: the model's name on the server.",
    )
    model_version: str | None = option(
        None,
        help="With `v2`: the version to ask for. Default: the server's choice.",
    )
    features: list[str] | None = option(
        None,
        help="With `v2`: the features in the order of the columns, for a model with one tensor for all of them.",
        validator=_unique,
    )
    parameters: dict[str, Any] = option(
        factory=dict,
        help="With `v2`: sent as the request's `parameters`, such as `{content_type: pd}`.",
    )
    outputs: dict[str, Take] | None = option(
        None,
        help="With `mlflow` and `v2`: the result's fields, each a column of the prediction by its number from 0, or an "
        'output by name: `{score: 1}`, `{score: "probabilities[1]"}`. Default: the outputs by their names, or `value`.',
        validator=_takes,
    )
    health: str | None = option(
        None,
        help="A path that answers 2xx when the model is ready. Default: with `mlflow` `/ping`, with `v2` the model's "
        "`ready`, with `json` any answer to `GET /` will do.",
        validator=_path,
    )
    version: str = option(
        "", help="The model's version, for execution records. Default: what a `v2` server says, or the URL."
    )
    headers: dict[str, str] = option(factory=dict, help="Sent with every request, such as an Authorization.")
    idempotent: bool = option(
        True, help="A prediction may be asked for twice: sent again when a kept-alive connection turns out closed."
    )
    timeout: Duration = option(Duration(2.0), help="Longest time for one request, all in all.", validator=positive)
    connect_timeout: Duration = option(Duration(1.0), help="Longest time to connect.", validator=positive)
    max_connections: int = option(100, help="Most connections at a time; further requests wait.", validator=positive)
    max_response_bytes: Size = option(Size(10 * 2**20), help="Largest answer that is read.", validator=positive)
    tls: TlsOptions = option(TlsOptions(), help="Certificates; paths are relative to the configuration folder.")
    proxy: str | None = option(None, help="`http://user:password@host:port`; proxy environment variables are not read.")

    def __attrs_post_init__(self) -> None:
        for name, protocols in _ONLY_FOR.items():
            if getattr(self, name) not in _NOT_GIVEN and self.protocol not in protocols:
                raise OptionError(name, f"{name} is for protocol: {' or '.join(protocols)}, not {self.protocol}")
        if self.protocol == "v2" and not self.model_name:
            raise OptionError("protocol", "protocol: v2 needs model_name, the model's name on the server")

    @property
    def path(self) -> str:
        """Return the path that predictions are posted to."""
        if self.endpoint is not None:
            return self.endpoint
        return {"json": "/predict", "mlflow": "/invocations"}.get(self.protocol, f"{self.model_path}/infer")

    @property
    def model_path(self) -> str:
        """Return where a ``v2`` server has the model."""
        version = f"/versions/{quote(self.model_version, safe='')}" if self.model_version else ""
        return f"/v2/models/{quote(self.model_name or '', safe='')}{version}"

    @property
    def health_path(self) -> str | None:
        """Return the path that says whether the model is ready."""
        if self.health is not None:
            return self.health
        return {"json": None, "mlflow": "/ping"}.get(self.protocol, f"{self.model_path}/ready")
