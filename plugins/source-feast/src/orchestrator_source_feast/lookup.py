"""What an operation asks for, resolved once against the registry: feature views, join keys, inputs, fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

__all__ = ["Feature", "Flaw", "Lookup", "OnDemand", "Unresolved", "View", "Wanted", "duplicates"]


@frozen
class Wanted:
    """Features by reference, or those of a feature service. ``full_names`` is Feast's ``full_feature_names``."""

    references: tuple[str, ...] = ()
    service: str = ""
    full_names: bool = False


@frozen
class Feature:
    """A stored feature; ``field`` is its name in the result, empty where it is only read for an on-demand feature."""

    name: str
    field: str
    is_uuid: bool = False


@frozen
class View:
    """A feature view and the features to read of it.

    ``name`` is the one in references and ``table`` the one in the store. ``types`` are the value types of the
    ``join_keys``. ``count`` is how many features the view has. ``direct`` says that the layout is known to be exact.
    """

    name: str
    table: str
    features: tuple[Feature, ...]
    join_keys: tuple[str, ...]
    types: tuple[str, ...]
    ttl_seconds: float | None
    count: int
    direct: bool


@frozen
class OnDemand:
    """An on-demand feature view: features and their fields, computed by the SDK from ``sources`` and request inputs.

    ``view`` is its name in the registry, ``name`` the one that a feature service may give it.
    """

    name: str
    view: str
    features: tuple[Feature, ...]
    sources: tuple[str, ...]


@frozen
class Lookup:
    """All that there is to know before the first request. Equal lookups read the same in the same way.

    ``join_keys`` and ``inputs``, those of a request to on-demand views, have the names of their value types.
    """

    wanted: Wanted
    fields: tuple[str, ...]
    views: tuple[View, ...]
    on_demand: tuple[OnDemand, ...]
    join_keys: Mapping[str, str]
    inputs: Mapping[str, str]

    @property
    def direct(self) -> bool:
        return all(view.direct for view in self.views)


@frozen
class Flaw:
    """What is wrong with a reference; ``index`` is its place in the list, None for a feature service."""

    message: str
    index: int | None
    near: str = ""
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class Unresolved(Exception):
    """The registry does not have what is asked for."""

    def __init__(self, flaws: Iterable[Flaw]) -> None:
        self.flaws = tuple(flaws)
        super().__init__("; ".join(map(str, self.flaws)))


def duplicates(references: Sequence[str], fields: Sequence[str]) -> list[Flaw]:
    """Two features of the same name, of which one would be lost."""
    first: dict[str, int] = {}
    flaws = []
    for index, (reference, field) in enumerate(zip(references, fields, strict=True)):
        at = first.setdefault(field, index)
        if at == index:
            continue
        if references[at] == reference:
            flaws.append(Flaw(f"'{reference}' is asked for twice", index, reference))
        else:
            message = f"'{references[at]}' and '{reference}' are both named '{field}'"
            flaws.append(Flaw(message, index, reference, "set full_feature_names: true"))
    return flaws
