"""What numbers an option takes: validators for ``option(validator=…)``."""

from __future__ import annotations

from typing import Any

__all__ = ["at_least_one", "not_negative", "positive"]

_MOST = 2**63 - 1


def positive(instance: Any, attribute: Any, value: float | None) -> None:
    """Raise ``ValueError`` unless the number is more than 0; ``None`` and ``False``, which stand for none, pass."""
    if value is not None and value is not False and value <= 0:
        raise ValueError(f"expected more than 0, got {value:g}")


def not_negative(instance: Any, attribute: Any, value: float) -> None:
    """Raise ``ValueError`` for a number below 0, and for an integer that no page can show."""
    if value < 0:
        raise ValueError(f"expected 0 or more, got {value:g}")
    _is_written(value)


def at_least_one(instance: Any, attribute: Any, value: int) -> None:
    """Raise ``ValueError`` for a number below 1, and for one that no page can show."""
    if value < 1:
        raise ValueError(f"expected at least 1, got {value}")
    _is_written(value)


def _is_written(value: float) -> None:
    if isinstance(value, int) and value > _MOST:
        raise ValueError(f"expected at most {_MOST}, got {value}")
