"""Counters of what a reload replaces or takes away: they go on where the new one begins at 0.

To Prometheus a counter that falls has begun anew, and all of its value is an increase. In the sum of several workers
that value holds what others have counted long ago.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Labels: TypeAlias = tuple[str, ...]
Series: TypeAlias = dict[Labels, float]


class Totals:
    """What each series of each family has come to. What is counted between two looks at it and replaced is lost."""

    def __init__(self) -> None:
        self._known: dict[str, dict[Labels, tuple[float, float]]] = {}
        """What those before have counted, and what the present one has."""

    def of(self, family: str, now: Mapping[Labels, float]) -> Series:
        """Return the series of a family by what is counted now; each look has to come after the one before."""
        known = self._known.setdefault(family, {})
        for labels in known.keys() | now.keys():
            before, last = known.get(labels, (0, 0))
            value = now.get(labels, 0)
            known[labels] = (before + last if value < last else before, value)
        return {labels: before + value for labels, (before, value) in known.items()}


__all__ = ["Labels", "Series", "Totals"]
