"""Settings that are read when the service starts: a reload that changes one says that it waits for the next start."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from orchestrator_core.config.model import AdminOptions, AppConfig, Configuration, ServerOptions
from orchestrator_core.errors import Problem

FOLLOWED = ("limit", "body_timeout", "docs", "worker_timeout")
"""What of ``server`` a reload changes."""

_AT_START: Sequence[tuple[str, ...]] = (
    *(("server", option.name) for option in attrs.fields(ServerOptions) if option.name not in FOLLOWED),
    *(("admin", option.name) for option in attrs.fields(AdminOptions)),
    ("tracking", "store"),
    ("tracking", "mode"),
    ("reload", "watch"),
    ("logging", "level"),
    ("logging", "format"),
    ("telemetry",),
    ("plugins_dir",),
)


def waiting_for_a_start(started: AppConfig, now: Configuration) -> tuple[Problem, ...]:
    """Return a warning for each setting that is another one than the service was started with."""
    return tuple(_waits(now, path) for path in _AT_START if _value(started, path) != _value(now.app, path))


def _value(app: AppConfig, path: Sequence[str]) -> object:
    value: object = app
    for name in path:
        value = getattr(value, name)
    return value


def _waits(now: Configuration, path: Sequence[str]) -> Problem:
    message = f"{'.'.join(path)} is read at the start only: it changes when the service is started again"
    if now.app_located is None:
        return Problem("config.yaml", code="ORC209", message=message).as_warning()
    return now.app_located.problem("ORC209", message, *path, at_key=True).as_warning()


__all__ = ["waiting_for_a_start"]
