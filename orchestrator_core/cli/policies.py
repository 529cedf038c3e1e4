"""The policies of a step in words, each with the reason why it applies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator_core.applied import NOT_CONFIGURED, Applied, Policy
from orchestrator_core.policies.options import BreakerOptions, CacheOptions, ConcurrencyOptions, RetryOptions

POLICY_WIDTH = len("circuit breaker")


def policies_in_words(policies: Applied, folder: Path, cache_key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each policy's name and what it does, or why it is off. What nobody has asked for is left out."""
    if not policies.any and len({policy.why for _, policy in policies}) == 1:
        return  # a step that calls nothing
    for name, policy in policies:
        if policy.why != NOT_CONFIGURED:
            yield name.replace("_", " "), _in_words(policy, folder, cache_key)


def _in_words(policy: Policy, folder: Path, cache_key: str) -> str:
    at = ", then ".join(f"{(folder / place.file).as_posix()}:{place.line}" for place in policy.places)
    if policy.options is None:
        return f"{policy.why}: {at}" if at else policy.why
    return f"{_options_in_words(policy.options, cache_key)}: {at or policy.why}"


def _options_in_words(options: Any, cache_key: str) -> str:
    match options:
        case RetryOptions():
            return _attempts_in_words(options)
        case BreakerOptions():
            window, reset = seconds(options.window), seconds(options.reset)
            if options.failures == 1:  # which is in a row, whenever it was
                return f"1 failure opens it, a probe after {reset}"
            return f"{options.failures} failures within {window} open it, a probe after {reset}"
        case ConcurrencyOptions():
            calls = "1 call" if options.max == 1 else f"{options.max} calls"
            return f"{calls} at once, {options.queue} may wait"
        case CacheOptions():
            names = (options.key,) if isinstance(options.key, str) else options.key
            by = cache_key or ("all parameters" if names is None else ", ".join(names) or "nothing: one for all calls")
            return cache_in_words(options, f"by {by}")
        case _:
            return f"{seconds(options)} for an attempt"


def _attempts_in_words(options: RetryOptions) -> str:
    if options.attempts == 1:
        return "1 attempt"
    pauses = seconds(options.max_backoff)
    if options.backoff < options.max_backoff:  # which no pause is longer than
        pauses = f"{seconds(options.backoff)} to {pauses}"
    effects = ", whatever it does" if options.non_idempotent else ""
    return f"{options.attempts} attempts, pauses of at most {pauses}{effects}"


def cache_in_words(options: CacheOptions, by: str) -> str:
    text = f"for {seconds(options.ttl)}, {by}"
    if options.stale_while_revalidate:
        text += f", {seconds(options.stale_while_revalidate)} longer while it is renewed"
    if options.stale_if_error:
        text += f", {seconds(options.stale_if_error)} longer when that fails"
    return text


def seconds(value: float) -> str:
    for unit, factor in (("h", 3600), ("min", 60)):
        if value >= 2 * factor and value % factor == 0:
            return f"{value / factor:g} {unit}"
    return f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms"
