"""What stands in YAML for the policies around a call: on a source, and on a step, where it wins."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from attrs import frozen

from orchestrator_core.bounds import at_least_one, not_negative, positive
from orchestrator_core.plugin_api import Duration, option


@frozen
class RetryOptions:
    """Trying again after a transient failure. ``retry: false`` switches it off."""

    attempts: int = option(3, help="Most attempts of one call, the first included.", validator=at_least_one)
    backoff: Duration = option(
        Duration(0.05),
        help="Longest pause before the second attempt; it doubles with each, jittered.",
        validator=positive,
    )
    max_backoff: Duration = option(Duration(1), help="Longest pause.", validator=positive)
    non_idempotent: bool = option(False, help="Try calls again that may have had their effect already, such as a POST.")


@frozen
class BreakerOptions:
    """Refusing calls of a source that fails. ``circuit_breaker: false`` switches it off."""

    failures: int = option(
        5, help="How many failures within the window open it: in a row, or half of the calls.", validator=at_least_one
    )
    window: Duration = option(Duration(10), help="How long a failure counts.", validator=positive)
    reset: Duration = option(
        Duration(5), help="How long it stays open; then one call is let through as a probe.", validator=positive
    )


@frozen
class ConcurrencyOptions:
    """How many calls are under way at once, and how many wait for their turn."""

    max: int = option(help="Most calls at once.", validator=at_least_one)
    queue: int = option(100, help="Most calls that wait; one more is refused.", validator=not_negative)


@frozen
class CacheOptions:
    """Keeping results. Concurrent calls for the same key share one."""

    ttl: Duration = option(help="How long a result is fresh.", validator=positive)
    key: str | tuple[str, ...] | None = option(
        None, help="What tells results apart: parameters, or an expression; default all parameters."
    )
    stale_while_revalidate: Duration = option(
        Duration(0), help="How long after that it is still given while a new one is fetched.", validator=not_negative
    )
    stale_if_error: Duration = option(
        Duration(0), help="How long after that it is still given when the source fails.", validator=not_negative
    )
    max_entries: int = option(
        10_000,
        help="Most results kept in memory, of 13 KiB on average, or 128 MiB if that is more; the oldest used go first.",
        validator=at_least_one,
    )


def _redis_url(instance: Any, attribute: Any, value: str) -> None:
    if not value.startswith(("redis://", "rediss://")):
        raise ValueError("expected redis://… or rediss://…")
    if "?" in value or "#" in value:
        raise ValueError("expected an address with nothing after it: options stand beside url")
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018  # it is read here to be refused here
    except ValueError:  # its text can hold a part of a password, taken for a port
        raise ValueError("its host or port cannot be read; percent-encode what is special in a password") from None
    database = parts.path.strip("/ ")
    if database and not database.isdecimal():  # redis would take another, such as the first
        raise ValueError("expected a database's number behind the host, such as redis://host:6379/0, or nothing")


@frozen
class SharedCacheOptions:
    """A Redis that all processes keep cached results in, each beside its own memory."""

    url: str = option(help="`redis://host:6379/0`, or `rediss://` for TLS.", validator=_redis_url)
    secret: str = option("", help="Signs what is kept, so that others with access to the Redis cannot change it.")
    prefix: str = option("orchestrator", help="What the names of all entries start with.")
    timeout: Duration = option(
        Duration(0.05), help="How long an answer may take; then a request does without.", validator=positive
    )
    max_connections: int = option(20, help="Most connections of one process.", validator=at_least_one)


Off: TypeAlias = Literal[False]
"""``false``, which switches a policy off."""


@frozen
class PolicyOptions:
    """What every source takes besides its kind's own options. A key that the kind has itself stays the kind's."""

    timeout: Duration | Off | None = option(
        None, help="Longest time for one attempt; default the request's own `timeout`.", validator=positive
    )
    retry: RetryOptions | bool | None = option(
        None, help="Trying again after a transient failure; on by default for calls that are idempotent."
    )
    circuit_breaker: BreakerOptions | bool | None = option(
        None, help="Refusing calls while the source fails; on by default."
    )
    concurrency: ConcurrencyOptions | Off | None = option(
        None, help="How many calls are under way at once; unlimited by default."
    )
    cache: CacheOptions | Off | None = option(None, help="Keeping results; off by default.")


@frozen
class DefaultPolicies:
    """The policies of every source that does not have its own."""

    timeout: Duration | Off | None = option(None, help="Longest time for one attempt.", validator=positive)
    retry: RetryOptions | bool | None = option(None, help="Trying again after a transient failure.")
    circuit_breaker: BreakerOptions | bool | None = option(None, help="Refusing calls while a source fails.")
    concurrency: ConcurrencyOptions | Off | None = option(
        None, help="How many calls of one source are under way at once."
    )
