"""What stands in YAML for a model of the kind ``http``."""

from __future__ import annotations

from typing import Any, Literal

from attrs import frozen

from orchestrator_core.plugin_api import Duration, Size, TlsOptions, option


def _http_url(_: Any, __: Any, url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise ValueError("expected a URL that starts with http:// or https://")


def _path(_: Any, __: Any, path: str | None) -> None:
    if path is not None and not path.startswith("/"):
        raise ValueError(f"expected a path that starts with /, got '{path}'")


def _positive(_: Any, __: Any, value: float) -> None:
    if value <= 0:
        raise ValueError("expected more than 0")


@frozen
class HttpModelOptions:
    """A model server and how to speak to it. The source's ``base_url`` is used where the model has none."""

    base_url: str = option(help="Where the model server is, such as `http://127.0.0.1:9002`.", validator=_http_url)
    endpoint: str = option("/predict", help="The path that predictions are posted to.", validator=_path)
    protocol: Literal["json"] = option(
        "json", help="How features and predictions are written: `json` posts the features."
    )
    rows: Literal["one", "list"] = option(
        "one", help="`one`: each row is a request, and its answer the result. `list`: rows in, as many results out."
    )
    health: str | None = option(
        None,
        help="A path that answers 2xx when the model is ready. Default: any answer to `GET /` will do.",
        validator=_path,
    )
    version: str = option("", help="The model's version, for execution records. Default: the URL.")
    headers: dict[str, str] = option(factory=dict, help="Sent with every request, such as an Authorization.")
    idempotent: bool = option(
        True, help="A prediction may be asked for twice: sent again when a kept-alive connection turns out closed."
    )
    timeout: Duration = option(Duration(2.0), help="Longest time for one request, all in all.", validator=_positive)
    connect_timeout: Duration = option(Duration(1.0), help="Longest time to connect.", validator=_positive)
    max_connections: int = option(100, help="Most connections at a time; further requests wait.", validator=_positive)
    max_response_bytes: Size = option(Size(10 * 2**20), help="Largest answer that is read.", validator=_positive)
    tls: TlsOptions = option(TlsOptions(), help="Certificates; paths are relative to the configuration folder.")
    proxy: str | None = option(None, help="`http://user:password@host:port`; proxy environment variables are not read.")
