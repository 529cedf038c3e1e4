"""Reading an online store past the SDK: what the stores have in common."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from orchestrator_core.plugin_api import OrchestratorError, SourceError
from orchestrator_source_feast.lookup import View

__all__ = ["Found", "NoAnswer", "Read", "ReadMany", "Store", "age_limits", "oldest"]

Found: TypeAlias = tuple[Mapping[str, Any], bool]
"""What a view has for an entity: stored values by feature, and whether others had expired."""
Read: TypeAlias = Callable[[Sequence[bytes]], Awaitable[Sequence[Found]]]
"""Takes one entity key for each view and returns what each view has."""
ReadMany: TypeAlias = Callable[[Sequence[Sequence[bytes]]], Awaitable[Sequence[Sequence[Found] | OrchestratorError]]]
"""Does the same for many entities at once. An error in place of an answer is that entity's alone."""


class NoAnswer(SourceError):
    """The store did not answer in time: 504 for the client, as for everything that hangs."""

    status = 504
    title = "deadline passed"

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=True)


class Store(Protocol):
    """An online store whose layout is known."""

    def bind(self, views: Sequence[View], max_age_seconds: float | None) -> Read: ...

    def bind_many(self, views: Sequence[View], max_age_seconds: float | None) -> ReadMany: ...

    async def check_ready(self) -> None: ...

    def refresh(self) -> None:
        """Called from time to time: look whether the store is still the same one."""
        ...

    async def close(self) -> None: ...


def age_limits(views: Sequence[View], max_age_seconds: float | None) -> list[float | None]:
    """Return for each view the age in seconds at which its values count as missing."""
    return [
        min((age for age in (view.ttl_seconds, max_age_seconds) if age is not None), default=None) for view in views
    ]


def oldest(age_seconds: float) -> float:
    """Return the Unix time of the oldest value that is young enough."""
    return time.time() - age_seconds
