"""New fields from expressions: ``compute``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from orchestrator_core.plugin_api import ExpressionError, MissingReference, OptionError, compile_value
from orchestrator_transform_standard.rows import Row, Transform, Unfit, on_rows, some_fields

ROOT: Final = "value"
_mentions_root: Final = re.compile(rf"\${ROOT}\b").search


def compute(options: dict[str, Any]) -> Transform:
    some_fields(options)
    computed = []
    for field, value in options.items():
        try:
            computed.append((field, compile_value(value, [ROOT]).evaluate))
        except ValueError as error:
            raise OptionError(field, f"{field}: {error}") from error
        if text := next(_mistaken(value), None):
            message = f"'{text}' is a text; an expression starts with $, inside a text it is written {{{{ ${ROOT}… }}}}"
            raise OptionError(field, f"{field}: {message}")

    def apply(row: Row) -> Row:
        done = row.copy()
        for field, evaluate in computed:
            try:
                done[field] = evaluate(row)
            except (MissingReference, ExpressionError) as error:
                raise Unfit(f"field '{field}': {error}") from error
        return done

    return on_rows("compute", apply)


def _mistaken(value: Any) -> Iterator[str]:
    """Yield texts that were probably meant to be expressions, such as ``len($value.orders)``."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _mistaken(item)
    elif isinstance(value, list):
        for item in value:
            yield from _mistaken(item)
    elif isinstance(value, str) and not value.startswith("$") and "{{" not in value and _mentions_root(value):
        yield value
