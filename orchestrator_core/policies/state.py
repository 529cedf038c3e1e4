"""What the policies of one source remember: one breaker, one retry budget, one queue, the cached results."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

__all__ = ["SourceState"]


class SourceState:
    """The state of one source's policies, for all plans that call it: of an ``ml`` source, of one model.

    It is made when the source is opened and survives reloads that leave the source alone. ``identity`` names the
    source's configuration, such as a hash of it: results that are cached outside this process are kept under it, so
    that another configuration never reads them. ``shared`` is the cache outside, if there is one.

    A step that overrides a policy has a part of its own beside the source's (see :func:`make_guard`); what
    :meth:`describe` tells is the sum.
    """

    def __init__(
        self, label: str, *, identity: str = "", shared: Any = None, clock: Callable[[], float] = monotonic
    ) -> None:
        self.label = label
        self.identity = identity
        self.shared = shared
        self.clock = clock

    def describe(self) -> dict[str, Any]:
        """Return plain JSON data, with a key for each policy that is on::

            {
                "circuit_breaker": {"state", "failures", "opened", "retry_after_seconds"},
                "retry": {"calls", "retries", "refused_by_budget"},
                "concurrency": {"max", "running", "waiting", "refused"},
                "cache": {"entries", "hits", "misses", "stale", "shared", "errors"},
            }

        ``state`` is ``closed``, ``open`` or ``half_open``. Counts are totals since the source was opened, but for
        ``failures`` (those that count now), ``running``, ``waiting`` and ``entries``.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """End the refreshing of cached results that is under way. The state can still be used, but starts no more."""
        raise NotImplementedError
