"""The options of a kind: their types and what is said of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import attrs
from attrs import Factory, field

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Options = TypeVar("Options")


class Duration(float):
    """Seconds. In YAML a number of seconds, or ``"250ms"``, ``"5s"``, ``"2m"``, ``"1h"``."""


class Size(int):
    """Bytes. In YAML a number of bytes, or ``"64KiB"``, ``"1MiB"``, ``"2GiB"``."""


def option(
    default: Any = attrs.NOTHING,
    *,
    help: str,  # the word that click and argparse use for the same thing
    factory: Callable[[], Any] | None = None,
    validator: Any = None,
    secret: bool = False,
) -> Any:
    """Return an attrs field for an options class, with the sentence that the reference page and the schema show.

    A validator that raises ``ValueError("…")`` is reported as a problem at the option's line. The value of a ``secret``
    option is not shown in representations, nor on pages, even where it is written out in the configuration.
    """
    default = Factory(factory) if factory else default
    located = validator and _located(validator)
    return field(default=default, validator=located, metadata={"help": help}, repr=_hidden if secret else True)


def _hidden(value: Any) -> str:
    return "None" if value is None else "'***'"


class OptionError(ValueError):
    """What a validator said of one option: ``option`` is its name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.option = name


def _located(validator: Callable[[Any, Any, Any], None]) -> Callable[[Any, Any, Any], None]:
    def validate(instance: Any, attribute: Any, value: Any) -> None:
        try:
            validator(instance, attribute, value)
        except (ValueError, TypeError) as error:
            raise OptionError(attribute.name, str(error)) from error

    return validate


__all__ = ["JSON", "Duration", "OptionError", "Options", "Size", "option"]
