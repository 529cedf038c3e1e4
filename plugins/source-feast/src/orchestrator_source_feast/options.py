"""What may be written under ``feast:``. Nothing here imports Feast, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from attrs import Attribute, field, frozen

from orchestrator_core.plugin_api import Duration, Size, TlsOptions, option

__all__ = ["FeastOptions", "OnMissing", "OperationOptions", "split_reference"]

OnMissing: TypeAlias = Literal["error", "allow"]


def split_reference(reference: str) -> tuple[str, str]:
    """Return feature view and feature, or raise ``ValueError``."""
    view, colon, feature = reference.partition(":")
    if not (view and colon and feature) or ":" in feature:
        raise ValueError(f"'{reference}' is not a feature reference; expected feature_view:feature")
    return view, feature


def _are_references(_: object, __: Attribute[Any], references: Sequence[str]) -> None:
    for reference in references:
        split_reference(reference)


def _positive(_: object, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"{attribute.name} must be more than 0, not {value:g}")


def _is_url(_: object, __: Attribute[Any], url: str | None) -> None:
    if url is not None and not url.startswith(("http://", "https://")):
        raise ValueError("expected a URL that starts with http:// or https://")


def _one_way(options: FeastOptions, _: Attribute[Any], server_url: str | None) -> None:
    _is_url(options, _, server_url)
    if (options.repo_path is None) == (server_url is None):
        raise ValueError("give either repo_path, for the SDK in this process, or server_url, for a feature server")


def _features_or_service(operation: OperationOptions, _: Attribute[Any], service: str | None) -> None:
    if service and operation.features:
        raise ValueError("give either features or feature_service, not both")


def _secret(value: object) -> str:
    return "<hidden>" if value else repr(value)


@frozen
class FeastOptions:
    """One feature store: ``feast.sources.<source_id>``."""

    repo_path: str | None = option(
        None,
        help="Folder with `feature_store.yaml`, relative to the configuration folder: the store is read in process.",
    )
    server_url: str | None = option(
        None, help="Where a Feast feature server is, instead of `repo_path`.", validator=_one_way
    )
    entity_key: str | None = option(
        None,
        help="Join key that `params.entity_id` fills. Default: the only join key of the features asked for. Other join "
        "keys and request-time inputs are parameters of their own names.",
    )
    on_missing: OnMissing = option(
        "error",
        help="When an entity or a feature of it is not in the online store, or has expired: answer 404 (`error`), or "
        "go on with null (`allow`).",
    )
    full_feature_names: bool = option(False, help="Name fields `feature_view__feature` instead of `feature`.")
    max_age: Duration | None = option(
        None,
        help="Values older than this count as missing, besides those older than their feature view's `ttl`. A feature "
        "server does not tell the ttl: set it here.",
        validator=_positive,
    )
    timeout: Duration = option(Duration(2.0), help="Longest time for one read of the store.", validator=_positive)
    connect_timeout: Duration = option(
        Duration(2.0),
        help="Longest time to connect to the store, the server or a registry in a database.",
        validator=_positive,
    )
    pool_size: int = option(
        5, help="Connections to the online store at most, or threads where Feast's SDK reads it.", validator=_positive
    )
    pool_timeout: Duration = option(
        Duration(5.0),
        help="How long a request waits for a free connection or thread before it is answered 503.",
        validator=_positive,
    )
    registry_refresh: Duration | None = option(
        None,
        help="How often the registry is read anew, in the background. Default: `cache_ttl_seconds` of the registry in "
        "`feature_store.yaml`, or one minute.",
        validator=_positive,
    )
    direct_reads: bool = option(
        True, help="`false` lets Feast's SDK make every read, in threads, also where the store could be read directly."
    )
    headers: dict[str, str] = field(
        factory=dict,
        repr=_secret,
        metadata={"help": "Sent to the feature server with every request, such as an Authorization."},
    )
    max_response_bytes: Size = option(
        Size(10 * 2**20), help="Largest answer of a feature server that is read.", validator=_positive
    )
    tls: TlsOptions = option(
        TlsOptions(), help="Certificates for the feature server; paths are relative to the configuration folder."
    )
    proxy: str | None = field(
        default=None,
        repr=_secret,
        metadata={"help": "`http://user:password@host:port` on the way to the feature server."},
    )


@frozen
class OperationOptions:
    """A set of features: ``feast.sources.<source_id>.operations.<name>``.

    A step's ``feature_refs`` parameter replaces the operation's features.
    """

    features: tuple[str, ...] = option((), help="References `feature_view:feature`.", validator=_are_references)
    feature_service: str | None = option(
        None, help="A feature service of the registry, instead of `features`.", validator=_features_or_service
    )
    entity_key: str | None = option(None, help="The source's `entity_key`, for this operation.")
    on_missing: OnMissing | None = option(None, help="The source's `on_missing`, for this operation.")
    full_feature_names: bool | None = option(None, help="The source's `full_feature_names`, for this operation.")
    max_age: Duration | None = option(None, help="The source's `max_age`, for this operation.", validator=_positive)
