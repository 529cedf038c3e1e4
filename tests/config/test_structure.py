"""YAML data to options, strictly: nothing is converted that was not written so, and every problem is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.config.structure import Located, salvage, structure
from orchestrator_core.config.yaml import parse_document
from orchestrator_core.plugin_api import Duration, Size, option


def even(_: Any, __: Any, value: int) -> None:
    if value % 2:
        raise ValueError(f"expected an even number, got {value}")


@frozen
class Inner:
    """Options inside others."""

    wait: Duration = option(Duration(1), help="A time.")
    size: Size = option(Size(1), help="A size.")


@frozen
class Options:
    """One option of each kind."""

    text: str = option("", help="Text.")
    flag: bool = option(False, help="A flag.")
    count: int = option(0, help="A count.", validator=even)
    ratio: float = option(0.5, help="A ratio.")
    wait: Duration | None = option(None, help="A time.")
    size: Size = option(Size(0), help="A size.")
    level: Literal["low", "high", 3] = option("low", help="A level.")
    names: tuple[str, ...] = option((), help="Names.")
    numbers: list[int] = option(factory=list, help="Numbers.")
    headers: Mapping[str, str] = option(factory=dict, help="Headers.")
    inner: Inner = option(factory=Inner, help="More.")
    inners: tuple[Inner, ...] = option((), help="Several.")
    either: int | str | tuple[str, ...] | None = option(None, help="Either.")
    anything: Any = option(None, help="Anything.")


@frozen
class Needs:
    """Options that must be given."""

    name: str = option(help="A name.")
    port: int = option(help="A port.")


@frozen
class Even:
    """An option that must be given, and others that have to fit."""

    most: int = option(help="A number.", validator=even)
    rest: int = option(0, help="A number.", validator=even)
    off: Needs | Literal[False] | None = option(None, help="Options, or off.")
    on: Inner | bool = option(True, help="Options, or on or off.")


@frozen
class Whole:
    """Options that are looked at together."""

    least: int = option(help="A number.")
    most: int = option(0, help="A number.")

    @most.validator
    def _in_order(self, _: Any, value: int) -> None:
        if value < self.least:
            raise ValueError("expected most to be more than least")


def read(cls: Any, text: str) -> tuple[Any, list[str]]:
    document = parse_document(text, "f.yaml")
    assert not document.problems
    value, problems = structure(cls, Located(document, (), document.data))
    return value, [f"{problem.line}:{problem.column} {problem.code} {problem.message}" for problem in problems]


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("text: hello", "text", "hello"),
        ("text: '3'", "text", "3"),
        ("text: no", "text", "no"),
        ("flag: true", "flag", True),
        ("count: 4", "count", 4),
        ("ratio: 3", "ratio", 3.0),
        ("ratio: 0.25", "ratio", 0.25),
        ("wait: 2", "wait", 2.0),
        ("wait: 0", "wait", 0.0),
        ("wait: 0.5", "wait", 0.5),
        ("wait: 250ms", "wait", 0.25),
        ("wait: 700ms", "wait", 0.7),
        ("wait: 5s", "wait", 5.0),
        ("wait: 1.5s", "wait", 1.5),
        ("wait: 2m", "wait", 120.0),
        ("wait: 1h", "wait", 3600.0),
        ("wait: null", "wait", None),
        ("size: 0", "size", 0),
        ("size: 64KiB", "size", 65536),
        ("size: 1MiB", "size", 2**20),
        ("size: 1.5GiB", "size", 3 * 2**29),
        ("size: 1MB", "size", 10**6),
        ("size: 7B", "size", 7),
        ("level: high", "level", "high"),
        ("level: 3", "level", 3),
        ("names: [a, b]", "names", ("a", "b")),
        ("names: []", "names", ()),
        ("numbers: [1, 2]", "numbers", [1, 2]),
        ("headers: {a: b}", "headers", {"a": "b"}),
        ("inner: {wait: 1s}", "inner", Inner(Duration(1))),
        ("inner: null", "inner", Inner()),
        ("inners: [{}, {size: 1KiB}]", "inners", (Inner(), Inner(size=Size(1024)))),
        ("either: 3", "either", 3),
        ("either: '3'", "either", "3"),
        ("either: [x]", "either", ("x",)),
        ("anything: {a: [1, {b: null}]}", "anything", {"a": [1, {"b": None}]}),
    ],
)
def test_what_fits_is_taken_as_it_was_written(text: str, name: str, value: Any) -> None:
    options, problems = read(Options, text)
    assert problems == []
    assert getattr(options, name) == value
    if isinstance(value, bool | int | float | str) and name not in ("wait", "size"):
        assert type(getattr(options, name)) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("text: 3", "1:7 ORC202 expected a string, got an integer 3: put it in quotes"),
        ("text: 1.5", "1:7 ORC202 expected a string, got a number 1.5: put it in quotes"),
        ("text: true", "1:7 ORC202 expected a string, got a boolean true: put it in quotes"),
        ("text: null", "1:7 ORC202 expected a string, got null"),
        ("text: [a]", "1:7 ORC202 expected a string, got a list"),
        ("flag: yes", "1:7 ORC202 expected true or false, got a string 'yes': write true"),
        ("flag: 'false'", "1:7 ORC202 expected true or false, got a string 'false': write false"),
        ("flag: 1", "1:7 ORC202 expected true or false, got an integer 1"),
        ("count: '4'", "1:8 ORC202 expected an integer, got a string '4': write it without quotes"),
        ("count: 4.0", "1:8 ORC202 expected an integer, got a number 4.0"),
        ("count: true", "1:8 ORC202 expected an integer, got a boolean true"),
        ("count: 010", "1:8 ORC202 expected an integer, got a string '010': write it without quotes"),
        ("count: 3", "1:8 ORC204 expected an even number, got 3"),
        ("ratio: '0.5'", "1:8 ORC202 expected a number, got a string '0.5': write it without quotes"),
        ("ratio: false", "1:8 ORC202 expected a number, got a boolean false"),
        (
            "wait: 5 s",
            "1:7 ORC202 '5 s' is not a duration: write seconds, or a number with ms, s, m or h such as \"250ms\"",
        ),
        (
            "wait: 1e3s",
            "1:7 ORC202 '1e3s' is not a duration: write seconds, or a number with ms, s, m or h such as \"250ms\"",
        ),
        (
            "wait: -1s",
            "1:7 ORC202 '-1s' is not a duration: write seconds, or a number with ms, s, m or h such as \"250ms\"",
        ),
        ("wait: -1", "1:7 ORC202 a duration cannot be negative, got -1"),
        ("wait: true", "1:7 ORC202 expected a duration, got a boolean true"),
        ("wait: [1]", "1:7 ORC202 expected a duration, got a list"),
        ("size: 1.5", '1:7 ORC202 expected a size, such as 1024 (bytes) or "1MiB", got a number 1.5'),
        (
            "size: 1mb",
            "1:7 ORC202 '1mb' is not a size: write bytes, or a number with KiB, MiB or GiB such as \"1MiB\"",
        ),
        ("size: -1", "1:7 ORC202 a size cannot be negative, got -1"),
        ("level: hihg", "1:8 ORC202 expected one of low, high, 3, got 'hihg': did you mean 'high'?"),
        ("level: '3'", "1:8 ORC202 expected one of low, high, 3, got '3': did you mean '3'?"),
        ("names: abc", "1:8 ORC202 expected a list, got a string 'abc': write [abc]"),
        ("names: {a: b}", "1:8 ORC202 expected a list, got a mapping"),
        ("names: [a, 2]", "1:12 ORC202 expected a string, got an integer 2: put it in quotes"),
        ("headers: [a]", "1:10 ORC202 expected a mapping, got a list"),
        ("headers: {a: 1}", "1:14 ORC202 expected a string, got an integer 1: put it in quotes"),
        ("inner: 3", "1:8 ORC202 expected a mapping, got an integer 3"),
        ("inner: {wiat: 1}", "1:9 ORC201 unknown key 'wiat'"),
        ("inners: [{size: x}]", None),
        ("either: 1.5", "1:9 ORC202 expected an integer or a string or a list, got a number 1.5"),
        ("either: true", "1:9 ORC202 expected an integer or a string or a list, got a boolean true"),
        ("unknown: 1", "1:1 ORC201 unknown key 'unknown'"),
    ],
)
def test_what_does_not_fit_is_a_problem_at_its_place(text: str, problem: str | None) -> None:
    options, problems = read(Options, text)
    assert options is None
    if problem is None:
        problem = "1:17 ORC202 'x' is not a size: write bytes, or a number with KiB, MiB or GiB such as \"1MiB\""
    assert problems == [problem]


def test_every_problem_is_told_at_once_validators_included() -> None:
    _, problems = read(Options, "text: 1\ncount: 3\nflag: no\nnames: [1, b, 2]\ninner: {wait: x, zise: 1}\nnope: 1\n")
    assert sorted(problem.split(" ")[0] + " " + problem.split(" ")[1] for problem in problems) == [
        "1:7 ORC202",
        "2:8 ORC204",
        "3:7 ORC202",
        "4:15 ORC202",
        "4:9 ORC202",
        "5:15 ORC202",
        "5:18 ORC201",
        "6:1 ORC201",
    ]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("{}", ["1:1 ORC203 'name' is missing", "1:1 ORC203 'port' is missing"]),
        ("name: x", ["1:1 ORC203 'port' is missing"]),
        (
            "name: 1",
            ["1:1 ORC203 'port' is missing", "1:7 ORC202 expected a string, got an integer 1: put it in quotes"],
        ),
        ("name: x\nprot: 1", ["2:1 ORC201 unknown key 'prot'"]),
    ],
)
def test_what_must_be_given_and_is_not_is_told_once(text: str, problems: list[str]) -> None:
    _, told = read(Needs, text)
    assert sorted(told) == sorted(problems)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "most: 1\nrest: 3",
            ["1:7 ORC204 expected an even number, got 1", "2:7 ORC204 expected an even number, got 3"],
        ),
        (
            "most: x\nrest: 3",
            ["1:7 ORC202 expected an integer, got a string 'x'", "2:7 ORC204 expected an even number, got 3"],
        ),
        ("rest: 3", ["1:1 ORC203 'most' is missing", "1:7 ORC204 expected an even number, got 3"]),
        ("rest: x", ["1:1 ORC203 'most' is missing", "1:7 ORC202 expected an integer, got a string 'x'"]),
    ],
)
def test_validators_look_at_the_others_where_what_must_be_given_does_not_fit(text: str, problems: list[str]) -> None:
    assert sorted(read(Even, text)[1]) == sorted(problems)


def test_a_validator_of_several_options_waits_for_all_of_them() -> None:
    assert read(Whole, "least: x\nmost: 1")[1] == ["1:8 ORC202 expected an integer, got a string 'x'"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("off: 3", "expected a mapping such as {name: …} or false, got an integer 3"),
        ("off: 'off'", "expected a mapping such as {name: …} or false, got a string 'off': write false"),
        ("off: 'on'", "expected a mapping such as {name: …} or false, got a string 'on'"),
        ("on: yes", "expected a mapping such as {wait: …} or true or false, got a string 'yes': write true"),
        ("on: 2", "expected a mapping such as {wait: …} or true or false, got an integer 2"),
    ],
)
def test_what_is_either_options_or_a_switch_shows_how_to_write_both(text: str, message: str) -> None:
    (problem,) = read(Even, f"most: 2\n{text}")[1]
    assert problem.split(" ", 2)[2] == message


def test_a_truth_value_is_shown_as_it_is_written() -> None:
    assert read(Options, "level: true")[1] == ["1:8 ORC202 expected one of low, high, 3, got true"]


def test_what_is_left_of_a_value_can_be_salvaged() -> None:
    document = parse_document("text: fine\ncount: odd\n", "f.yaml")
    options, problems = salvage(Options, Located(document, (), document.data))
    assert len(problems) == 1
    assert (options.text, options.count) == ("fine", 0)
    document = parse_document("name: fine\nport: odd\n", "f.yaml")
    options, problems = salvage(Needs, Located(document, (), document.data))
    assert (options, len(problems)) == (None, 1)


NUMBERS = st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.sampled_from(["wait", "size", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
NAMES: Sequence[str] = [attribute.name for attribute in Options.__attrs_attrs__]  # type: ignore[attr-defined]


@given(st.dictionaries(st.sampled_from([*NAMES, "unknown"]), JSON, max_size=6))
@settings(max_examples=200, deadline=None)
def test_any_data_gives_a_value_or_problems_and_never_both_or_a_crash(data: dict[str, Any]) -> None:
    document = parse_document("", "f.yaml")
    options, problems = structure(Options, Located(document, (), data))
    assert (options is None) == bool(problems)
    for problem in problems:
        assert str(problem)
