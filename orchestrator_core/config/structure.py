"""YAML data to frozen attrs values, strictly, with every problem at its place.

cattrs does the work. Its lenient conversions (3 to "3", "abc" to a list of letters) are replaced by hooks which
accept only what was written, and its nested exception groups become problems with a line and a column.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
from attrs import field, frozen
from cattrs.errors import (
    AttributeValidationNote,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
    StructureHandlerNotFoundError,
)
from cattrs.gen import make_dict_structure_fn

from orchestrator_core.config.secrets import Secret
from orchestrator_core.config.yaml import DataPath, Document
from orchestrator_core.errors import Problem, did_you_mean
from orchestrator_core.plugin_api import Duration, OptionError, Size

T = TypeVar("T")

MISSING = "ORC203"
UNKNOWN_KEY = "ORC201"
LONGEST_SHOWN = 40

_DID_YOU_MEAN = re.compile(r"did you mean '(.+)'\?\Z")
_A_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?\Z")
_DEFECT = "a defect of the plugin whose options these are"
_BOOLEAN_HINTS = {
    **dict.fromkeys(("yes", "Yes", "on", "On", "true"), ": write true"),
    **dict.fromkeys(("no", "No", "off", "Off", "false"), ": write false"),
}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(B|KiB|MiB|GiB|KB|MB|GB)\Z")
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@frozen
class Located:
    """A part of a document: its data, with secrets resolved, and the path at which it stands."""

    document: Document
    path: DataPath
    data: Any = field(repr=False)

    def __getitem__(self, key: str | int) -> Located:
        return Located(self.document, (*self.path, key), self.data[key])

    def problem(self, code: str, message: str, *sub: str | int, **place: Any) -> Problem:
        return self.document.problem(code, message, (*self.path, *sub), **place)


def option_problem(located: Located, message: str, error: ValueError) -> Problem:
    """Return the problem of options that are fit one by one, at the option that the error names if it names one."""
    if isinstance(error, OptionError) and isinstance(located.data, dict) and error.option in located.data:
        return located.problem("ORC204", message, error.option)
    return located.problem("ORC204", message)


class _Unfit(ValueError):
    """A value of the wrong type: what was expected."""


def kind_of(value: Any) -> str:
    """Return the JSON word for a value's type, with its article."""
    if value is None:
        return "null"
    for types_, word in (
        (bool, "a boolean"),
        (int, "an integer"),
        (float, "a number"),
        (str, "a string"),
        (Mapping, "a mapping"),
        (list | tuple, "a list"),
    ):
        if isinstance(value, types_):
            return word
    return type(value).__name__


def structure(cls: type[T] | Any, located: Located) -> tuple[T | None, list[Problem]]:
    """Return the value of the class, or None and the problems of the data."""
    value, problems = salvage(cls, located)
    return (None if problems else value), problems


def salvage(cls: type[T] | Any, located: Located) -> tuple[T | None, list[Problem]]:
    """Like :func:`structure`, but return what is left of the value without the keys that have problems.

    It is None where the class cannot do without them. cattrs runs validators only when all keys are fit, so the
    keys found unfit are left out and the rest is tried again: all problems are found at once.
    """
    problems: list[Problem] = []
    meant: set[DataPath] = set()
    rest = located
    while True:
        try:
            return _converter.structure(rest.data, cls), problems
        except Exception as error:  # cattrs wraps every error of a hook or a validator in its own group
            found = list(_findings(error, rest, ()))
            if not found:
                raise
        meant |= {(*sub[:-1], word) for sub, problem in found if (word := _meant(problem))}
        problems += [
            problem
            for sub, problem in found
            if problem not in problems
            and (problem.code != MISSING or (sub not in meant and not _has(located.data, sub)))
        ]
        pruned = rest.data
        for sub, _ in found:
            pruned = _without(pruned, sub)
        if pruned == rest.data:
            return None, problems
        rest = Located(located.document, located.path, pruned)


def _meant(problem: Problem) -> str:
    """Return the key that a misspelt one was meant to be: it is not missing as well."""
    match = _DID_YOU_MEAN.match(problem.hint) if problem.code == UNKNOWN_KEY else None
    return match[1] if match else ""


def _has(data: Any, path: DataPath) -> bool:
    for part in path:
        if not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True


def _without(data: Any, path: DataPath) -> Any:
    """Return the data without the key at the path, or without the first list on the way to it."""
    if not path or not isinstance(data, dict) or path[0] not in data:
        return data
    key = path[0]
    if len(path) > 1 and isinstance(path[1], str) and isinstance(data[key], dict):
        return {**data, key: _without(data[key], path[1:])}
    return {name: item for name, item in data.items() if name != key}


# --- from cattrs' exceptions to problems ---------------------------------------------------------------------------

_Found = tuple[DataPath, Problem]


def _findings(error: BaseException, located: Located, sub: DataPath) -> Iterator[_Found]:
    """Yield each problem with its path below the located data."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _findings(inner, located, (*sub, *_step(inner)))
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [attribute.name for attribute in attrs.fields(error.cl) if attribute.init]
        for key in sorted(error.extra_fields):
            hint = did_you_mean(key, known)
            yield (*sub, key), located.problem(UNKNOWN_KEY, f"unknown key '{key}'", *sub, key, at_key=True, hint=hint)
    elif isinstance(error, OptionError):
        yield (*sub, error.option), located.problem("ORC204", str(error), *sub, error.option)
    elif isinstance(error, _Unfit):
        yield sub, located.problem("ORC202", str(error), *sub)
    elif isinstance(error, KeyError) and sub:
        yield sub, located.problem(MISSING, f"'{sub[-1]}' is missing", *sub[:-1], at_key=True)
    elif isinstance(error, ValueError | TypeError):
        yield sub, located.problem("ORC204", str(error), *sub)
    elif isinstance(error, StructureHandlerNotFoundError):
        message = f"no option can be of the type {getattr(error.type_, '__qualname__', error.type_)}"
        yield sub, located.problem("ORC601", message, *sub, hint=_DEFECT)
    elif isinstance(error, NameError):  # in an annotation
        yield sub, located.problem("ORC601", f"the options cannot be read: {error}", *sub, hint=_DEFECT)


def _step(error: BaseException) -> DataPath:
    """Return the key or index that cattrs noted on an error."""
    step: DataPath = ()
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, IterableValidationNote):
            step = (*step, note.index)
        elif isinstance(note, AttributeValidationNote):
            step = (*step, note.name)
    return step


# --- strict hooks ----------------------------------------------------------------------------------------------------


def _expected(what: str, value: Any, hint: str = "") -> _Unfit:
    shown = f" {value!r}" if isinstance(value, int | float | str) and len(str(value)) <= LONGEST_SHOWN else ""
    shown = {" True": " true", " False": " false"}.get(shown, shown)
    if isinstance(value, Secret):
        shown, hint = "", ": what a placeholder stands for is text"
    return _Unfit(f"expected {what}, got {kind_of(value)}{shown}{hint}")


def _string(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise _expected("a string", value, ": put it in quotes" if isinstance(value, int | float) else "")
    return value


def _unquoted(value: Any) -> str:
    is_number = isinstance(value, str) and not isinstance(value, Secret) and _A_NUMBER.match(value)
    return ": write it without quotes" if is_number else ""


def _boolean(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise _expected("true or false", value, _BOOLEAN_HINTS.get(value, "") if isinstance(value, str) else "")
    return value


def _integer(value: Any, _: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _expected("an integer", value, _unquoted(value))
    return value


def _number(value: Any, _: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _expected("a number", value, _unquoted(value))
    return float(value)


def _duration(value: Any, _: Any) -> Duration:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < 0:
            raise _Unfit(f"a duration cannot be negative, got {value}")
        return Duration(value)
    if isinstance(value, str) and (match := _DURATION.match(value)):
        number, unit = float(match[1]), match[2]
        return Duration(number / 1000 if unit == "ms" else number * _SECONDS[unit])  # 700 * 0.001 is not 0.7
    if isinstance(value, str):
        raise _Unfit(f"'{value}' is not a duration: write seconds, or a number with ms, s, m or h such as \"250ms\"")
    raise _expected('a duration, such as 2 (seconds) or "250ms"', value)


def _size(value: Any, _: Any) -> Size:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise _Unfit(f"a size cannot be negative, got {value}")
        return Size(value)
    if isinstance(value, str) and (match := _SIZE.match(value)):
        return Size(float(match[1]) * _BYTES[match[2]])
    if isinstance(value, str):
        raise _Unfit(f"'{value}' is not a size: write bytes, or a number with KiB, MiB or GiB such as \"1MiB\"")
    raise _expected('a size, such as 1024 (bytes) or "1MiB"', value)


def _literal(value: Any, cls: Any) -> Any:
    allowed = get_args(cls)
    for option in allowed:
        if option == value and (type(option) is type(value) or isinstance(value, Secret)):
            return option
    shown = f"{value!r}" if isinstance(value, str | int | float) else kind_of(value)
    shown = shown.lower() if isinstance(value, bool) else shown
    words = [_yaml_word(option) for option in allowed]
    hint = did_you_mean(str(value), words)
    suffix = f": {hint}" if hint.startswith("did you mean") else ""
    raise _Unfit(f"expected one of {', '.join(words)}, got {shown}{suffix}")


def _yaml_word(option: Any) -> str:
    return str(option).lower() if isinstance(option, bool) else str(option)


def _is_literal(cls: Any) -> bool:
    origin: object = get_origin(cls)
    return origin is Literal


def _is_union(cls: Any) -> bool:
    return get_origin(cls) in (Union, types.UnionType)


def _fits(cls: Any, value: Any) -> bool:
    """Return whether a value's JSON type is the one that an arm of a union takes."""
    origin = get_origin(cls) or cls
    if cls is Any:
        return True
    if cls is type(None):
        return value is None
    if origin is Literal and isinstance(value, bool):
        return any(option is value for option in get_args(cls))
    if origin is Literal:
        return any(type(option) is type(value) for option in get_args(cls))
    if cls in (Duration, Size):
        return isinstance(value, int | float | str) and not isinstance(value, bool)
    if cls is bool:
        return isinstance(value, bool)
    if cls is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if cls is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if cls is str:
        return isinstance(value, str)
    if attrs.has(origin) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return isinstance(value, Mapping)
    return isinstance(value, list)


def _word(cls: Any) -> str:
    """Return what an arm of a union takes, in words."""
    origin = get_origin(cls) or cls
    if origin is Literal:
        return " or ".join("false" if option is False else f"'{option}'" for option in get_args(cls))
    named = {
        type(None): "null",
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        Duration: "a duration",
        Size: "a size",
    }
    if origin in named:
        return named[origin]
    if attrs.has(origin):
        return _mapping_word(origin)
    return "a mapping" if isinstance(origin, type) and issubclass(origin, Mapping) else "a list"


def _mapping_word(cls: Any) -> str:
    """Return what an options class takes, with its first option to show how: one that must be given, if any must."""
    names = [attribute.name for attribute in attrs.fields(cls) if attribute.init]
    return f"a mapping such as {{{names[0]}: …}}" if names else "a mapping"


def _union(value: Any, cls: Any) -> Any:
    arms = get_args(cls)
    for arm in arms:
        if _fits(arm, value):
            return value if arm in (Any, type(None)) else _converter.structure(value, arm)
    words = [_word(arm) for arm in arms if arm is not type(None)]
    hint = _BOOLEAN_HINTS.get(value, "") if isinstance(value, str) else ""
    takes_it = any(_fits(arm, hint.endswith("true")) for arm in arms)
    raise _expected(" or ".join(words), value, hint if takes_it else "")


def _sequence_factory(cls: Any) -> Callable[[Any, Any], Any]:
    arguments = get_args(cls)
    item_type = arguments[0] if arguments else Any
    container = get_origin(cls) or cls
    build = container if container in (list, tuple, set, frozenset) else tuple

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list):
            raise _expected("a list", value, f": write [{value}]" if type(value) is str else "")
        return build(_items(enumerate(value), item_type, cls))

    return hook


def _mapping_factory(cls: Any) -> Callable[[Any, Any], Any]:
    arguments = get_args(cls)
    value_type = arguments[1] if arguments else Any

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise _expected("a mapping", value)
        return dict(zip(value, _items(value.items(), value_type, cls), strict=True))

    return hook


def _items(items: Iterable[tuple[int | str, Any]], item_type: Any, cls: Any) -> list[Any]:
    """Structure each value; what is wrong with any of them is raised together, with its index or key."""
    done, errors = [], []
    for index, item in items:
        try:
            done.append(item if item_type is Any else _converter.structure(item, item_type))
        except Exception as error:  # collected, and raised together below
            note = f"structuring {cls} @ {index!r}"
            error.__notes__ = [*getattr(error, "__notes__", ()), IterableValidationNote(note, index, item_type)]
            errors.append(error)
    if errors:
        raise IterableValidationError(f"while structuring {cls}", errors, cls)
    return done


def _class_factory(cls: Any) -> Callable[[Any, Any], Any]:
    inner = make_dict_structure_fn(
        cls, _converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, _cattrs_use_alias=False
    )

    def hook(value: Any, _: Any) -> Any:
        if value is None and all(attribute.default is not attrs.NOTHING for attribute in attrs.fields(cls)):
            value = {}
        if not isinstance(value, dict):
            raise _expected("a mapping", value)
        try:
            return inner(value, cls)
        except ClassValidationError as error:
            raise ClassValidationError(
                error.message, [*error.exceptions, *_unfit_others(error, cls, value)], cls
            ) from None

    return hook


def _unfit_others(error: ClassValidationError, cls: Any, value: Mapping[str, Any]) -> Iterator[OptionError]:
    """Yield what validators say of the other options where one that has to be there is missing or unfit.

    Without that one there is no value, on which attrs would run them.
    """
    failed = {name for inner in error.exceptions for name in _step(inner)}
    failed |= {inner.option for inner in error.exceptions if isinstance(inner, OptionError)}
    fields = [each for each in attrs.fields(attrs.resolve_types(cls)) if each.init]
    if not any(each.name in failed and each.default is attrs.NOTHING for each in fields):
        return
    for each in fields:
        if each.validator is not None and each.name in value and each.name not in failed:
            try:
                each.validator(None, each, _converter.structure(value[each.name], each.type))
            except OptionError as found:
                yield found
            except Exception:  # a validator that looks at the other options, of which there are none
                continue


def _is_sequence(cls: Any) -> bool:
    origin = get_origin(cls) or cls
    return isinstance(origin, type) and issubclass(origin, Sequence | set | frozenset) and not issubclass(origin, str)


def _is_mapping(cls: Any) -> bool:
    origin = get_origin(cls) or cls
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=True, forbid_extra_keys=True)
    converter.register_structure_hook_factory(_is_mapping, _mapping_factory)
    converter.register_structure_hook_factory(_is_sequence, _sequence_factory)
    converter.register_structure_hook_factory(attrs.has, _class_factory)
    converter.register_structure_hook_func(_is_union, _union)
    converter.register_structure_hook_func(_is_literal, _literal)
    for cls, hook in (
        (str, _string),
        (bool, _boolean),
        (int, _integer),
        (float, _number),
        (Duration, _duration),
        (Size, _size),
    ):
        converter.register_structure_hook(cls, hook)
    return converter


_converter = _make_converter()
