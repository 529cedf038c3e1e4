"""Which fields there are and what they are called: ``rename select drop default flatten``."""

from __future__ import annotations

from typing import Any, Literal

from attrs import frozen

from orchestrator_core.plugin_api import option
from orchestrator_transform_standard.rows import (
    Row,
    Transform,
    Unfit,
    constant,
    first_twice,
    missing,
    on_rows,
    some_fields,
)


@frozen
class FieldsOptions:
    """The long form of a list of fields."""

    fields: tuple[str, ...] = option(help="The names of the fields.")
    on_missing: Literal["error", "allow"] = option(
        "error", help="What a field that is not there is: an `error`, or nothing to mind (`allow`)."
    )


def _not_empty(_instance: object, _attribute: object, separator: str) -> None:
    if not separator:
        raise ValueError("a separator has at least one character")


@frozen
class FlattenOptions:
    """How the names of nested fields are joined."""

    separator: str = option("_", help="What stands between the names.", validator=_not_empty)


def rename(options: dict[str, str]) -> Transform:
    some_fields(options)
    names = dict(options)
    if twice := first_twice(names.values()):
        raise ValueError(f"two fields would be named '{twice}'")

    def apply(row: Row) -> Row:
        if not names.keys() <= row.keys():
            raise missing(next(old for old in names if old not in row), row)
        done = {names.get(field, field): value for field, value in row.items()}
        if len(done) != len(row):
            old, new = next((old, new) for old, new in names.items() if new in row and new not in names)
            raise Unfit(f"field '{old}' cannot be renamed to '{new}', which is there already")
        return done

    return on_rows("rename", apply)


def select(options: tuple[str, ...] | FieldsOptions) -> Transform:
    fields, lenient = _fields(options)

    def apply(row: Row) -> Row:
        try:
            return {field: row[field] for field in fields}
        except KeyError as error:
            raise missing(error.args[0], row) from None

    def apply_leniently(row: Row) -> Row:
        return {field: row[field] for field in fields if field in row}

    return on_rows("select", apply_leniently if lenient else apply)


def drop(options: tuple[str, ...] | FieldsOptions) -> Transform:
    fields, lenient = _fields(options)
    dropped = frozenset(fields)

    def apply(row: Row) -> Row:
        done = {field: value for field, value in row.items() if field not in dropped}
        if len(done) + len(dropped) != len(row) and not lenient:
            raise missing(next(field for field in fields if field not in row), row)
        return done

    return on_rows("drop", apply)


def _fields(options: tuple[str, ...] | FieldsOptions) -> tuple[tuple[str, ...], bool]:
    fields, on_missing = (
        (options.fields, options.on_missing) if isinstance(options, FieldsOptions) else (options, "error")
    )
    some_fields(fields)
    return fields, on_missing == "allow"


def default(options: dict[str, Any]) -> Transform:
    some_fields(options)
    defaults = [
        (field, constant(value, field, f'write compute: {{{field}: "$value.{field} ?? …"}}'))
        for field, value in options.items()
    ]

    def apply(row: Row) -> Row:
        done = row.copy()
        for field, value in defaults:
            if done.get(field) is None:
                done[field] = value
        return done

    return on_rows("default", apply)


def flatten(options: FlattenOptions) -> Transform:
    separator = options.separator

    def apply(row: Row) -> Row:
        done: Row = {}
        pending = [("", iter(row.items()))]  # a loop, not recursion: a backend chooses how deep its answer is nested
        while pending:
            prefix, items = pending[-1]
            for field, value in items:
                name = prefix + field
                if type(value) is dict and value:
                    pending.append((name + separator, iter(value.items())))
                    break
                if name in done:
                    raise Unfit(f"two fields would be named '{name}'")
                done[name] = value
            else:
                pending.pop()
        return done

    return on_rows("flatten", apply)
