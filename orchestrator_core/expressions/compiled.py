"""Values of the configuration with expressions in them, as a plugin evaluates them: see :func:`compile_value`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from attrs import frozen

from orchestrator_core.expressions.emitter import compile_expression
from orchestrator_core.expressions.nodes import ExpressionSyntaxError, Literal
from orchestrator_core.expressions.parser import parse_value
from orchestrator_core.expressions.references import Reference, references
from orchestrator_core.expressions.values import JSON

__all__ = ["CompiledValue", "compile_value"]

_SHOWN: Final = 60


@frozen
class CompiledValue:
    """A value of the configuration, compiled once.

    ``evaluate`` takes the values of the roots, in their order, and returns the value. It raises
    :class:`MissingReference` and :class:`ExpressionError`. ``references`` are all that occur in it; without any it
    ``is_constant``.
    """

    evaluate: Callable[..., Any]
    references: tuple[Reference, ...]

    @property
    def is_constant(self) -> bool:
        return not self.references


def compile_value(value: Any, roots: Sequence[str]) -> CompiledValue:
    """Compile a value of a YAML file in which strings can be expressions on ``$root``, for each of the roots.

    Raises ``ValueError`` saying where in the value an expression is wrong, and how. A string that came from
    ``${env:…}`` or ``${file:…}`` stands for itself, whatever is in it.

    >>> compile_value({"region": "$params.region ?? 'eu'"}, ["params"]).evaluate({"region": "us"})
    {'region': 'us'}
    """
    return _compile(value, tuple(roots), ())


def _compile(value: Any, roots: tuple[str, ...], path: tuple[str | int, ...]) -> CompiledValue:
    if not _holds_secret(value):
        return _compile_plain(value, roots, path)
    # Secrets take no part in what is parsed and emitted: the text of an expression shows in tracebacks.
    if isinstance(value, dict):
        fields = {key: _compile(item, roots, (*path, key)) for key, item in value.items()}
        found = tuple(reference for part in fields.values() for reference in part.references)
        calls = [(key, part.evaluate) for key, part in fields.items()]
        return CompiledValue(lambda *given: {key: evaluate(*given) for key, evaluate in calls}, found)
    if isinstance(value, list):
        parts = [_compile(item, roots, (*path, index)) for index, item in enumerate(value)]
        found = tuple(reference for part in parts for reference in part.references)
        return CompiledValue(lambda *given: [part.evaluate(*given) for part in parts], found)
    return CompiledValue(lambda *_: value, ())


def _holds_secret(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_secret, value.values()))
    if isinstance(value, list):
        return any(map(_holds_secret, value))
    return isinstance(value, str) and type(value) is not str


def _compile_plain(value: JSON, roots: tuple[str, ...], path: tuple[str | int, ...]) -> CompiledValue:
    try:
        node = parse_value(value)
    except ExpressionSyntaxError as error:
        message = f"{error.message}, at character {error.offset + 1} of {_text(value, error.path)}"
        raise ValueError(_placed((*path, *error.path), message, error.hint)) from None
    found = references(node)
    for reference in found:
        if reference.root not in roots:
            known = " and ".join(f"${root}" for root in roots)
            raise ValueError(_placed((*path, *reference.where), f"there is no ${reference.root} here, only {known}"))
    if isinstance(node, Literal):
        constant = node.value
        return CompiledValue(lambda *_: constant, ())
    return CompiledValue(compile_expression(node, roots), found)


def _text(value: Any, path: tuple[str | int, ...]) -> str:
    for key in path:
        value = value[key]
    return f"'{value}'" if len(str(value)) <= _SHOWN else f"'{str(value)[: _SHOWN - 3]}...'"


def _placed(path: tuple[str | int, ...], message: str, hint: str = "") -> str:
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")
    return f"{where}{': ' if where else ''}{message}{f'; {hint}' if hint else ''}"
