"""What the Python source of an expression calls: :func:`namespace` gives these functions their names there.

Nothing here raises ``KeyError``, ``TypeError`` or ``IndexError`` except where a docstring says so: in the optimistic
form these three mean that a reference found nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from orchestrator_core.errors import ExpressionError, MissingReference
from orchestrator_core.expressions.functions import FUNCTIONS
from orchestrator_core.expressions.nodes import reference_text
from orchestrator_core.expressions.values import JSON, MISSING, NUMBERS, Missing, equal, in_range, kind

__all__ = ["TEMPORARY", "Request", "namespace"]

TEMPORARY: Final = "_v"
"""The variable that emitted source assigns to in between."""

_SHOWN_FIELDS: Final = 10
_SHOWN_LENGTH: Final = 40


class Request(Protocol):
    """What an expression sees of a request. ``headers`` finds its keys whatever their case."""

    @property
    def path_params(self) -> Mapping[str, JSON]: ...
    @property
    def query_params(self) -> Mapping[str, JSON]: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> JSON | Missing: ...


def namespace() -> dict[str, object]:
    """The names that emitted source needs among its globals. All start with an underscore."""
    return dict(_NAMES)


# --- references -------------------------------------------------------------------------------------------------


def at(value: Any, index: int) -> Any:
    """The element of a list. Raises ``TypeError`` for what is no list, since the letters of a string are no
    elements, and ``IndexError``."""
    if type(value) is list:
        return value[index]
    raise TypeError(kind(value))


def maybe(value: Any, key: str | int) -> Any:
    """``value[key]``, or None if that is missing: what ``??`` and ``||`` need to know of a reference."""
    if type(value) is dict:
        return value.get(key)
    return value[key] if _has_element(value, key) else None


def maybe_path(value: Any, *path: str | int) -> Any:
    """:func:`maybe`, for several steps."""
    for key in path:
        value = value.get(key) if type(value) is dict else maybe(value, key)
    return value


def present(value: Any, reference: str) -> Any:
    """The value. Raises :class:`MissingReference` if it is MISSING."""
    if value is MISSING:
        raise MissingReference(reference, f"{reference} is missing: {_why_missing(reference)}")
    return value


def resolve(value: Any, root: str, path: tuple[str | int, ...], start: int = 0) -> Any:
    """Follow ``path[start:]`` from the value that ``$root`` and ``path[:start]`` gave.

    Raises :class:`MissingReference` with the whole reference, how far it got and what is there instead.
    """
    for position in range(start, len(path)):
        key = path[position]
        if (type(value) is dict and key in value) or _has_element(value, key):
            value = value[key]
        else:
            reached, whole = reference_text(root, path[:position]), reference_text(root, path)
            raise MissingReference(whole, f"{whole} is missing: {_why(reached, value, key)}")
    return present(value, reference_text(root, path)) if value is MISSING else value


def member(value: Any, key: str | int, reference: str, target: str) -> Any:
    """``value[key]`` with a constant key; ``reference`` is its text, ``target`` that of the value.

    Raises :class:`MissingReference`.
    """
    if (type(value) is dict and key in value) or _has_element(value, key):
        return value[key]
    raise MissingReference(reference, f"{reference} is missing: {_why(target, value, key)}")


def item(value: Any, key: Any, reference: str, target: str) -> Any:
    """:func:`member` with a computed key. Raises :class:`ExpressionError` for one that can be none."""
    if type(key) is not str and type(key) is not int:
        raise ExpressionError(f"the key in {reference} must be a string or an integer, got {kind(key)}")
    if (type(value) is dict and key in value) or _has_element(value, key):
        return value[key]
    # The key is not shown, since it is data.
    raise MissingReference(reference, f"{reference} is missing: {_why(target, value, key, shown='of that name')}")


def _has_element(value: Any, key: object) -> bool:
    return type(value) is list and type(key) is int and -len(value) <= key < len(value)


def request_value(request: Request, name: str) -> Any:
    """``$request.name``: a path parameter, else a query parameter, else a field of the body. Raises ``KeyError``."""
    if name in request.path_params:
        return request.path_params[name]
    if name in request.query_params:
        return request.query_params[name]
    body = request.body
    if type(body) is dict:
        return body[name]
    raise KeyError(name)


def request_maybe(request: Request, name: str) -> Any:
    """:func:`request_value`, or None if there is none."""
    try:
        return request_value(request, name)
    except KeyError:
        return None


def request_resolve(request: Request, path: tuple[str | int, ...]) -> Any:
    """``$request`` followed by the path. Raises :class:`MissingReference`."""
    part = str(path[0])
    if part == "body":
        return resolve(request.body, "request", path, 1)
    if part not in _REQUEST_PARTS:
        try:
            value = request_value(request, part)
        except KeyError:
            why = f"the request has no path parameter, query parameter or field of the body named '{part}'"
            raise _request_missing(path, why) from None
        return resolve(value, "request", path, 1)
    mapping: Mapping[Any, Any] = getattr(request, part)
    name = path[1]
    if name not in mapping:
        names = "" if part == "headers" else f" (it has: {_some(mapping)})"
        raise _request_missing(path, f"the request has no {_REQUEST_PARTS[part]} '{name}'{names}")
    return resolve(mapping[name], "request", path, 2)


def request_object(request: Request) -> JSON:
    """``$request`` itself; without ``body`` if the request has none."""
    whole: dict[str, Any] = {
        "path_params": dict(request.path_params),
        "query_params": dict(request.query_params),
        "headers": lower_case(request.headers),
    }
    if request.body is not MISSING:
        whole["body"] = request.body
    return whole


def lower_case(headers: Mapping[str, str]) -> JSON:
    """``$request.headers``: names in lower case, since a plain object does not ignore case.

    Of a header that came several times it has the first, as ``$request.headers.x`` is.
    """
    names: dict[str, JSON] = {}
    for name, value in headers.items():
        names.setdefault(name.lower(), value)
    return names


def plain(mapping: Mapping[str, JSON]) -> JSON:
    """``$request.path_params`` and ``$request.query_params`` as objects."""
    return dict(mapping)


def attempt(evaluate: Callable[[], Any]) -> Any:
    """The value of an expression in its optimistic form, or None if a reference in it finds nothing."""
    try:
        return evaluate()
    except (MissingReference, LookupError, TypeError):
        return None


def attempt_exact(evaluate: Callable[[], Any]) -> Any:
    """:func:`attempt` for the exact form."""
    try:
        return evaluate()
    except MissingReference:
        return None


_REQUEST_PARTS: Final = {
    "path_params": "path parameter",
    "query_params": "query parameter",
    "headers": "header",
}


def _request_missing(path: tuple[str | int, ...], why: str) -> MissingReference:
    text = reference_text("request", path)
    return MissingReference(text, f"{text} is missing: {why}")


def _why_missing(reference: str) -> str:
    return "the request has no body" if reference == "$request.body" else f"the step '{reference[1:]}' was skipped"


def _why(reached: str, value: Any, key: str | int, *, shown: str = "") -> str:
    """Why ``value[key]`` is missing."""
    if value is MISSING:
        return _why_missing(reached)
    if type(value) is dict:
        return f"{reached} has no field {shown or repr(key)} (it has: {_some(value)})"
    if type(value) is list and type(key) is int:
        return f"{reached} has {len(value)} element{'' if len(value) == 1 else 's'}"
    return f"{reached} is {kind(value)}"


def _some(names: Iterable[object]) -> str:
    """The first names in alphabetical order, each cut short: a client can choose them."""
    ordered = sorted(map(str, names))
    shown = [name if len(name) <= _SHOWN_LENGTH else f"{name[: _SHOWN_LENGTH - 3]}..." for name in ordered]
    if len(shown) > _SHOWN_FIELDS:
        shown[_SHOWN_FIELDS:] = [f"and {len(ordered) - _SHOWN_FIELDS} more"]
    return ", ".join(shown) or "nothing"


# --- operators --------------------------------------------------------------------------------------------------


def _arithmetic(symbol: str, operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    what = f"'{symbol}'"

    def apply(left: Any, right: Any) -> Any:
        if type(left) not in NUMBERS or type(right) not in NUMBERS:
            raise ExpressionError(f"{what} takes two numbers, got {kind(left)} and {kind(right)}")
        try:
            return in_range(operation(left, right), what)
        except ZeroDivisionError:
            raise ExpressionError(f"{what} by zero") from None
        except OverflowError:
            raise ExpressionError(f"the result of {what} is not a finite number") from None

    return apply


def _ordering(symbol: str, operation: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def apply(left: Any, right: Any) -> bool:
        one, other = type(left), type(right)
        if (one in NUMBERS and other in NUMBERS) or (one is str and other is str):
            return operation(left, right)
        raise ExpressionError(
            f"'{symbol}' compares two numbers or two strings, got {kind(left)} and {kind(right)}",
        )

    return apply


_add_numbers = _arithmetic("+", operator.add)
_subtract = _arithmetic("-", operator.sub)


def add(left: Any, right: Any) -> Any:
    one = type(left)
    if one is type(right) and (one is str or one is list):
        return left + right
    if one in NUMBERS and type(right) in NUMBERS:
        return _add_numbers(left, right)
    raise ExpressionError(
        f"'+' takes two numbers, two strings or two lists, got {kind(left)} and {kind(right)}",
    )


_BINARY: Final = {
    "+": add,
    "-": _subtract,
    "*": _arithmetic("*", operator.mul),
    "/": _arithmetic("/", operator.truediv),
    "%": _arithmetic("%", operator.mod),
}


def chain(operators: str, result: Any, *operands: Any) -> Any:
    """``a + b - c`` from the left: source nested as deep as a chain is long would be too deep for Python's parser."""
    for symbol, operand in zip(operators, operands, strict=True):
        result = _BINARY[symbol](result, operand)
    return result


def choose(symbol: str, *operands: Callable[[], Any]) -> Any:
    """A long chain of one of ``?? || &&``."""
    *first, last = operands
    for operand in first:
        value = operand() if symbol == "&&" else attempt(operand)
        usable = value is not None and (value is not False or symbol == "??")
        if usable == (symbol != "&&"):
            return value
    return last()


def negate(value: Any) -> Any:
    if type(value) not in NUMBERS:
        raise ExpressionError(f"'-' takes a number, got {kind(value)}")
    return in_range(-value, "'-'")


def not_equal(left: Any, right: Any) -> bool:
    return not equal(left, right)


def contains(element: Any, container: Any) -> bool:
    """``element in container``: an element of a list, a field of an object, a part of a string."""
    if type(container) is list:
        return any(equal(element, other) for other in container)
    if type(container) is not str and type(container) is not dict:
        raise ExpressionError(f"'in' looks into a list, an object or a string, got {kind(container)}")
    if type(element) is not str:
        raise ExpressionError(f"'in' looks for a string in {kind(container)}, got {kind(element)}")
    return element in container


_NAMES: Final[dict[str, object]] = {
    "_MISSING": MISSING,
    "_at": at,
    "_maybe": maybe,
    "_maybe_path": maybe_path,
    "_present": present,
    "_resolve": resolve,
    "_member": member,
    "_item": item,
    "_request_value": request_value,
    "_request_maybe": request_maybe,
    "_request_resolve": request_resolve,
    "_request_object": request_object,
    "_lower_case": lower_case,
    "_plain": plain,
    "_attempt": attempt,
    "_attempt_exact": attempt_exact,
    "_add": add,
    "_subtract": _subtract,
    "_multiply": _BINARY["*"],
    "_divide": _BINARY["/"],
    "_modulo": _BINARY["%"],
    "_chain": chain,
    "_choose": choose,
    "_negate": negate,
    "_equal": equal,
    "_not_equal": not_equal,
    "_less": _ordering("<", operator.lt),
    "_less_or_equal": _ordering("<=", operator.le),
    "_greater": _ordering(">", operator.gt),
    "_greater_or_equal": _ordering(">=", operator.ge),
    "_contains": contains,
    **{f"_{name}": function.call for name, function in FUNCTIONS.items()},
}
