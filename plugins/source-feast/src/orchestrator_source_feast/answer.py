"""What was found becomes the step's result, or the error that says what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from orchestrator_core.plugin_api import EntityNotFound, SourceError
from orchestrator_source_feast.lookup import View
from orchestrator_source_feast.stores import Found
from orchestrator_source_feast.values import Unreadable, uuid_text

__all__ = ["Answer", "Reader"]

Reader = Callable[[Any], Any]
"""Takes a stored value and returns JSON, or raises ``Unreadable``."""


@frozen(eq=False)
class Answer:
    """How the results of one operation look. ``entity`` tells, for a message, what was asked for."""

    operation: str
    views: tuple[tuple[View, tuple[tuple[str, str, Reader], ...]], ...]
    allow_missing: bool
    entity: Callable[[Sequence[Any], View], str]

    @classmethod
    def of(
        cls,
        operation: str,
        views: Sequence[View],
        read: Reader,
        *,
        allow_missing: bool,
        entity: Callable[[Sequence[Any], View], str],
    ) -> Answer:
        def reader(is_uuid: bool) -> Reader:
            return (lambda value: uuid_text(read(value))) if is_uuid else read

        planned = tuple(
            (view, tuple((each.name, each.field, reader(each.is_uuid)) for each in view.features)) for view in views
        )
        return cls(operation, planned, allow_missing, entity)

    def build(self, found: Sequence[Found], values: Sequence[Any]) -> dict[str, Any]:
        """Return the fields of all views. ``values`` are what the caller passed."""
        result: dict[str, Any] = {}
        name = ""
        try:
            for (view, features), (stored, expired) in zip(self.views, found):  # noqa: B905  # strict costs
                get = stored.get
                for name, field, read in features:
                    value = get(name)
                    if value is None:
                        if not self.allow_missing:
                            raise self._missing(view, name, stored, expired, values)
                        if field:
                            result[field] = None
                    elif field:
                        result[field] = read(value)
        except Unreadable as unreadable:
            raise SourceError(f"{self.operation}: feature '{name}' {unreadable}") from None
        return result

    def _missing(self, view: View, feature: str, stored: Any, expired: bool, values: Sequence[Any]) -> EntityNotFound:
        entity = self.entity(values, view)
        if expired:
            what = f"what is stored for {entity} in feature view '{view.name}' has expired"
        elif any(value is not None for value in stored.values()):
            what = f"nothing is stored for {entity} as feature '{view.name}:{feature}'"
        else:
            what = f"there is no {entity} in feature view '{view.name}' of the online store"
        return EntityNotFound(f"{self.operation}: {what}")
