"""What may be written under ``api:``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from attrs import Attribute, frozen

from orchestrator_core.plugin_api import (
    Duration,
    EgressOptions,
    Size,
    TlsOptions,
    compile_value,
    did_you_mean,
    option,
)
from orchestrator_source_api.path import parse_path

__all__ = ["PARAMS", "RESPONSE", "ApiOptions", "AuthOptions", "BasicOptions", "OAuth2Options", "OperationOptions"]

Method: TypeAlias = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
Scalar: TypeAlias = "str | int | float | bool"

PARAMS = ("params",)
RESPONSE = ("response",)
_RESPONSE_PARTS = ("body", "status", "headers")
_EXPRESSION = re.compile(r"\$(params|response|request)\b|\{\{")


def _is_url(_: object, attribute: Attribute[str], value: str) -> None:
    # The value is not repeated, nor an error that quotes a part of it: it may hold a password.
    try:
        parts = urlsplit(value)
        unusable = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    except ValueError:
        raise ValueError(
            f"{attribute.name} is not a URL: its host or port cannot be read; percent-encode what is special in a "
            "password"
        ) from None
    if unusable:
        raise ValueError(f"{attribute.name} must start with http://host or https://host")
    if parts.fragment or (parts.query and attribute.name == "base_url"):
        raise ValueError(
            f"{attribute.name} must not have a query or a fragment; write query: {{name: value}} beside it"
        )


def _is_constant(_: object, attribute: Attribute[object], values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if type(value) is str and _EXPRESSION.search(value):
            where = attribute.name
            raise ValueError(
                f"{name}: expressions cannot stand in a source's {where}; write it in an operation's {where}"
            )


def _is_path(_: object, __: object, value: str | None) -> None:
    if value is not None:
        parse_path(value)


def _is_fixed_path(_: object, __: object, value: str | None) -> None:
    if value is not None and parse_path(value).names:
        raise ValueError("a health path has no {placeholders}")


def _positive(_: object, attribute: Attribute[float], value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"{attribute.name} must be more than 0")


def _not_negative(_: object, attribute: Attribute[float], value: float) -> None:
    if value < 0:
        raise ValueError(f"{attribute.name} must be 0 or more")


def _can_be_held(options: ApiOptions, __: object, egress: EgressOptions) -> None:
    if options.proxy is not None and not egress.allow_private:
        raise ValueError("allow_private: false cannot be held behind a proxy, which resolves names itself")


def _is_one_kind(options: ApiOptions, __: object, auth: AuthOptions) -> None:
    given = [name for name in ("basic", "bearer", "oauth2") if getattr(auth, name) is not None]
    if len(given) > 1:
        raise ValueError(f"auth has {' and '.join(given)}; give one of them")
    if given and any(name.lower() == "authorization" for name in options.headers):
        raise ValueError(f"auth.{given[0]} and the header Authorization are both given; remove one")
    if given and urlsplit(options.base_url).username is not None:
        raise ValueError(f"auth.{given[0]} and credentials in base_url are both given; remove one")
    if auth.basic is not None and ":" in auth.basic.username:
        raise ValueError("auth.basic.username has a ':', which would end it")


@frozen
class BasicOptions:
    """A user and a password, sent with every request."""

    username: str = option(help="The user's name.")
    password: str = option(help='The password, such as `"${env:PARTNER_PASSWORD}"`.', secret=True)


@frozen
class OAuth2Options:
    """OAuth 2.0 client credentials (RFC 6749, section 4.4): a token is fetched, kept, and renewed before it expires."""

    token_url: str = option(
        help="Where tokens are issued, such as `https://login.example.com/token`.", validator=_is_url
    )
    client_id: str = option(help="The client's identifier.")
    client_secret: str = option(help='The client\'s secret, such as `"${env:PARTNER_SECRET}"`.', secret=True)
    scope: str = option("", help="The scopes to ask for, separated by spaces.")
    params: dict[str, str] = option(
        factory=dict, help="Further parameters of the token request, such as `{audience: https://api.example.com}`."
    )
    client_auth: Literal["basic", "body"] = option(
        "basic", help="How the client proves itself: by Basic authorization, or with id and secret in the body."
    )
    timeout: Duration = option(Duration(5.0), help="Longest time to fetch a token.", validator=_positive)
    tls: TlsOptions | None = option(
        None, help="Certificates for the token server. Default: the source's `tls`, without its `server_name`."
    )


@frozen
class AuthOptions:
    """How requests are authorized: one of three ways."""

    basic: BasicOptions | None = option(None, help="A user and a password.")
    bearer: str | None = option(None, help='A fixed token, such as `"${env:PARTNER_TOKEN}"`.', secret=True)
    oauth2: OAuth2Options | None = option(None, help="OAuth 2.0 client credentials.")


@frozen
class ApiOptions:
    """One partner API: ``api.sources.<source_id>``."""

    base_url: str = option(
        help="Where the API is, such as `https://api.example.com/v1`; every operation's path is appended to it.",
        validator=_is_url,
    )
    headers: dict[str, str] = option(
        factory=dict,
        help='Sent with every request, such as `{X-Api-Key: "${env:PARTNER_KEY}"}`.',
        validator=_is_constant,
    )
    query: dict[str, Scalar] = option(
        factory=dict, help="Query parameters of every request, such as `{version: 3}`.", validator=_is_constant
    )
    auth: AuthOptions = option(
        AuthOptions(), help="How requests are authorized: `basic`, `bearer` or `oauth2`.", validator=_is_one_kind
    )
    timeout: Duration = option(
        Duration(5.0),
        help="Longest time for one call, from waiting for a connection to the answer's last byte.",
        validator=_positive,
    )
    connect_timeout: Duration = option(
        Duration(2.0), help="Longest time to connect: name resolution, TCP, proxy and TLS.", validator=_positive
    )
    max_connections: int = option(
        100, help="Most connections at a time; further calls wait for one.", validator=_positive
    )
    keepalive: Duration = option(
        Duration(15.0), help="How long an unused connection is kept open.", validator=_not_negative
    )
    max_response_bytes: Size = option(
        Size(10 * 2**20), help="Largest body that is read, as sent and decompressed.", validator=_positive
    )
    follow_redirects: int = option(
        0,
        help="How many redirects of one call are followed. They are followed on the same scheme, host and port only.",
        validator=_not_negative,
    )
    tls: TlsOptions = option(TlsOptions(), help="Certificates; file names are relative to the configuration folder.")
    proxy: str | None = option(
        None, help="`http://user:password@host:port`; the environment's proxy variables are not read."
    )
    egress: EgressOptions = option(EgressOptions(), help="Which addresses may be connected to.", validator=_can_be_held)
    health: str | None = option(
        None,
        help="A path that answers 2xx when the API can be used. Without one the source always counts as ready.",
        validator=_is_fixed_path,
    )


def _compiles(roots: tuple[str, ...]) -> Callable[[object, object, Any], None]:
    def check(_: object, __: object, value: Any) -> None:
        if value is not None:
            compile_value(value, roots)

    return check


def _is_flat(operation: OperationOptions, attribute: Attribute[object], value: Mapping[str, Any] | None) -> None:
    if value is None:
        return
    for name, item in value.items():
        if isinstance(item, dict):
            raise ValueError(f"{name}: expected a value or a list of values, not a mapping")
        if attribute.name == "headers" and name.lower() == "host" and compile_value(item, PARAMS).references:
            raise ValueError("Host: which host is asked cannot depend on a parameter")
    compile_value(value, PARAMS)
    if attribute.name == "form" and operation.body is not None:
        raise ValueError("body and form are both given; an operation sends one of them")


def _is_result(_: object, __: object, value: Any) -> None:
    for reference in compile_value(value, RESPONSE).references:
        part, *rest = reference.path or ("body",)
        if part not in _RESPONSE_PARTS:
            raise ValueError(f"$response has no '{part}'; {did_you_mean(str(part), _RESPONSE_PARTS)}")
        if part == "headers" and rest and str(rest[0]) != str(rest[0]).lower():
            raise ValueError(f"header names are in lower case here: write $response.headers['{str(rest[0]).lower()}']")


def _are_statuses(_: object, __: object, value: tuple[int, ...] | None) -> None:
    for status in value or ():
        if not 200 <= status <= 599:
            raise ValueError(f"{status} is not the status of an answer; expected 200 to 599")
    if value is not None and not value:
        raise ValueError("expected_status is empty; leave it out for any 2xx")


@frozen
class OperationOptions:
    """One call of the API: ``operations.<name>`` of a source or of the section.

    In ``query``, ``headers``, ``body`` and ``form`` strings can be expressions on the step's parameters, ``$params``.
    """

    path: str = option(
        help="Appended to `base_url`. `{name}` stands for a parameter, which is percent-encoded into its segment.",
        validator=_is_path,
    )
    method: Method = option("GET", help="The HTTP method.")
    query: dict[str, Any] | None = option(
        None,
        help="Query parameters, such as `{region: \"$params.region ?? 'eu'\"}`. One that is null is left out, "
        "a list is repeated.",
        validator=_is_flat,
    )
    headers: dict[str, Any] = option(
        factory=dict, help="Headers of this operation. One that is null is left out.", validator=_is_flat
    )
    body: Any = option(
        None,
        help='The JSON body: any value, such as `{applicant: "$params.applicant_id"}`.',
        validator=_compiles(PARAMS),
    )
    form: dict[str, Any] | None = option(
        None,
        help="The fields of a form body (`application/x-www-form-urlencoded`), instead of `body`.",
        validator=_is_flat,
    )
    result: Any = option(
        "$response.body",
        help="What the step gets: an expression on `$response.body`, `$response.status` and `$response.headers`, or a "
        'mapping with expressions such as `{score: "$response.body.data.score"}`, whose names `check` then knows.',
        validator=_is_result,
    )
    expected_status: tuple[int, ...] | None = option(
        None, help="The statuses that are a result. Default: any 2xx.", validator=_are_statuses
    )
    on_missing: Literal["error", "allow", "fail"] = option(
        "error",
        help="What a 404 means: the entity does not exist (`error`, answers 404), the result is null (`allow`), or the "
        "call failed (`fail`, answers 502).",
    )
    timeout: Duration | None = option(None, help="The source's `timeout`, for this operation.", validator=_positive)
    idempotent: bool | None = option(
        None,
        help="Whether the request may be sent again: when a kept-alive connection turns out to be closed, and by the "
        "policy `retry`. Default: true for all methods but POST and PATCH.",
    )
