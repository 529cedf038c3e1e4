"""What holds for every transformer, and the corners that the page leaves out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import jmespath
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orchestrator_transform_standard.plugin import TRANSFORMERS

from orchestrator_core.plugin_api import SourceError

Build = Callable[[str, Any], Callable[[Any], Any]]

# Options with the fields a, b and c, of which the strategies below make rows.
OPTIONS: list[tuple[str, Any]] = [
    ("rename", {"a": "b", "b": "a"}),
    ("select", ["c", "a"]),
    ("select", {"fields": ["c", "x"], "on_missing": "allow"}),
    ("drop", ["b"]),
    ("drop", {"fields": ["b", "x"], "on_missing": "allow"}),
    *[("cast", {"a": type_, "b": "string"}) for type_ in ("integer", "number", "string", "boolean", "date")],
    ("default", {"a": 0, "x": ["one", {"two": 2}]}),
    ("scale", {"a": {"min": -1, "max": 3}, "b": {"mean": 1e-9, "std": 1e-300}, "c": {"factor": 1e300, "offset": 1}}),
    ("bucket", {"a": {"edges": [-1, 0.5, 1e9], "into": "x"}, "b": {"edges": [0], "labels": ["low", True]}}),
    ("one_hot", {"a": {"values": ["x", 1, True], "unknown": "ignore"}}),
    ("one_hot", {"a": {"values": ["x", 1, True], "drop_original": False}}),
    ("map_values", {"a": {"values": {"x": 1, "0": None, "true": [1]}, "default": {"other": True}}}),
    ("flatten", {}),
    ("flatten", {"separator": "."}),
    ("compute", {"x": "$value.a / $value.b", "a": "$value.c ?? 0"}),
    ("round", 1),
    ("round", -20),
    ("round", {"a": 2, "b": 0}),
    ("jmespath", "{s: sum(a), n: to_number(b), first: c[0].d || a}"),
    ("jmespath", {"expression": "[a, b.c, c[*].d, ceil(a), avg(c)]", "on_missing": "allow"}),
]

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers
texts = st.sampled_from(["", "x", "1", "-2.5", "1e400", "9" * 30, "true", "2024-02-29", "$a"]) | st.text(max_size=5)
values = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd_."), inner, max_size=3),
    max_leaves=6,
)
likely = st.integers(-3, 3) | st.floats(-1e9, 1e9) | texts
rows = st.fixed_dictionaries({}, optional=dict.fromkeys(("a", "b", "c", "a_b", "x"), likely | values))
everything = values | rows | st.lists(rows | st.none(), max_size=3)

by_options = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda part: part if type(part) is str else "")


def outcome(transform: Callable[[Any], Any], value: Any) -> str:
    """Return the result as text, which tells true from 1, or the message of the error."""
    try:
        return json.dumps(transform(value), allow_nan=False)
    except SourceError as error:
        return str(error)


@by_options
@given(value=everything)
def test_it_gives_json_or_says_what_is_wrong_and_leaves_its_argument_alone(
    built: Build, name: str, options: Any, value: Any
) -> None:
    before = deepcopy(value)
    transform = built(name, options)
    text = outcome(transform, value)
    if not text.startswith(f"{name}: "):
        orjson.dumps(transform(value))  # its integers fit in 64 bits
    assert json.dumps(value) == json.dumps(before)


@pytest.mark.parametrize(
    ("name", "options"), [part for part in OPTIONS if part[0] != "jmespath" and type(part[1]) is not int]
)
@given(several=st.lists(rows, max_size=4))
def test_a_list_is_transformed_row_by_row(built: Build, name: str, options: Any, several: list[Any]) -> None:
    transform = built(name, options)
    singly = [outcome(transform, row) for row in several]
    failed = [number for number, text in enumerate(singly) if text.startswith(f"{name}: ")]
    if failed:
        expected = singly[failed[0]].replace(f"{name}: ", f"{name}: row {failed[0]}: ", 1)
    else:
        expected = f"[{', '.join(singly)}]"
    assert outcome(transform, several) == expected


@pytest.mark.parametrize("name", [kind.name for kind in TRANSFORMERS])
def test_null_stays_null(built: Build, name: str) -> None:
    options = next(options for known, options in OPTIONS if known == name)
    assert built(name, options)(None) is None
    if name != "jmespath":
        assert built(name, options)([None]) == [None]


# --- round trips -------------------------------------------------------------------------------------------------


@given(row=st.dictionaries(st.text(max_size=3), values, max_size=5))
def test_renaming_there_and_back_changes_nothing(built: Build, row: dict[str, Any]) -> None:
    names = {field: f"new {number}" for number, field in enumerate(row)}
    if names and not set(names.values()) & row.keys():
        there = built("rename", names)(row)
        assert list(there) == list(names.values())
        assert built("rename", {new: old for old, new in names.items()})(there) == row


@given(number=numbers)
def test_a_number_survives_being_a_string(built: Build, number: float) -> None:
    text = built("cast", {"a": "string"})({"a": number})
    assert json.dumps(built("cast", {"a": "number"})(text)) == json.dumps({"a": number})


@given(number=st.floats(-1e6, 1e6), low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6))
def test_scaling_there_and_back_changes_nothing(built: Build, number: float, low: float, width: float) -> None:
    scaled = built("scale", {"a": {"min": low, "max": low + width}})({"a": number})
    back = built("scale", {"a": {"factor": low + width - low, "offset": low}})(scaled)["a"]
    assert math.isclose(back, number, rel_tol=1e-6, abs_tol=1e-3)


@given(value=st.floats(allow_nan=False, allow_infinity=False), edges=st.sets(st.floats(-1e9, 1e9), min_size=1))
def test_a_bucket_is_the_number_of_edges_at_or_below(built: Build, value: float, edges: set[float]) -> None:
    ordered = sorted(edges)
    assert built("bucket", {"a": {"edges": ordered}})({"a": value}) == {"a": sum(edge <= value for edge in ordered)}


@given(row=st.dictionaries(st.sampled_from("abc"), st.recursive(
    st.integers() | st.lists(st.integers()), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
)))  # fmt: skip
def test_what_was_flattened_can_be_put_together_again(built: Build, row: dict[str, Any]) -> None:
    again: dict[str, Any] = {}
    for name, value in built("flatten", {"separator": "/"})(row).items():
        *path, last = name.split("/")
        target = again
        for part in path:
            target = target.setdefault(part, {})
        target[last] = value
    assert again == row


@given(value=st.sampled_from(["x", 1, True, 0.5, "1"]))
def test_exactly_one_of_the_categories_is_hot(built: Build, value: Any) -> None:
    row = built("one_hot", {"a": {"values": ["x", 1, True, 0.5], "unknown": "ignore"}})({"a": value})
    assert sum(row.values()) == (0 if value == "1" else 1)
    assert row[f"a_{json.dumps(value).strip(chr(34))}"] == (0 if value == "1" else 1)


# --- corners -----------------------------------------------------------------------------------------------------


def fails(transform: Callable[[Any], Any], value: Any) -> str:
    with pytest.raises(SourceError) as caught:
        transform(value)
    return str(caught.value)


def test_a_message_lists_the_first_fields_cut_short_and_no_values(built: Build) -> None:
    row = {"long" * 20: "secret", **{f"f{number}": "secret" for number in range(9)}}
    assert fails(built("select", ["a"]), row) == (
        "select: field 'a' is missing (it has: f0, f1, f2, f3, f4, f5, f6, f7, and 2 more)"
    )
    assert fails(built("drop", ["a"]), {"long" * 20: "secret"}) == (
        "drop: field 'a' is missing (it has: longlonglonglonglonglonglonglonglongl...)"
    )
    assert fails(built("rename", {"a": "b"}), {}) == "rename: field 'a' is missing (it has: nothing)"


@pytest.mark.parametrize("value", ["secret", 271828, 2.71828, {"k": "secret"}])
@pytest.mark.parametrize(("name", "options"), [part for part in OPTIONS if part[0] not in ("compute", "jmespath")])
def test_no_message_shows_a_value(built: Build, name: str, options: Any, value: Any) -> None:
    text = outcome(built(name, options), [{"a": value, "b": [value], "c": value, "a_b": value, "k": value}, value])
    assert not text.startswith(f"{name}: ") or not any(part in text for part in ("secret", "71828"))


def test_a_swap_renames_both_fields_at_once(built: Build) -> None:
    assert built("rename", {"a": "b", "b": "a"})({"a": 1, "b": 2}) == {"b": 1, "a": 2}


def test_a_boolean_is_no_number_and_one_is_not_true(built: Build) -> None:
    hot = built("one_hot", {"a": {"values": [1, True]}})
    assert hot([{"a": 1}, {"a": 1.0}, {"a": True}]) == [{"a_1": 1, "a_true": 0}] * 2 + [{"a_1": 0, "a_true": 1}]
    assert fails(built("map_values", {"a": {"values": {"1": "one"}}}), {"a": True}) == (
        "map_values: field 'a': got a boolean that is none of the keys (1), and there is no default"
    )
    assert fails(built("bucket", {"a": {"edges": [0]}}), {"a": True}) == (
        "bucket: field 'a': expected a number, got a boolean"
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bucket", {"a": {"edges": [580, 670], "labels": ["poor", "fair", "good"]}}),
        ("cast", {"a": "integer"}),
        ("cast", {"a": "number"}),
        ("cast", {"a": "string"}),
        ("scale", {"a": {"factor": 1}}),
        ("round", {"a": 2}),
        ("round", 2),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_falls_into_no_range(built: Build, name: str, options: Any, value: float) -> None:
    """No JSON holds one, but a source of somebody's own may return it: a NaN must not become a good credit score."""
    with pytest.raises(SourceError, match=rf"^{name}: field 'a': the (number|result) is not (finite|a finite number)$"):
        built(name, options)({"a": value})


@pytest.mark.parametrize(("name", "options"), [("cast", {"a": "integer"}), ("bucket", {"a": {"edges": [0]}})])
def test_an_integer_beyond_64_bits_is_refused(built: Build, name: str, options: Any) -> None:
    with pytest.raises(SourceError, match=rf"^{name}: field 'a': the number does not fit in a 64-bit integer$"):
        built(name, options)({"a": 2**64})


def test_null_can_be_the_default_of_a_mapping(built: Build) -> None:
    assert built("map_values", {"a": {"values": {"x": 1}, "default": None}})({"a": "y"}) == {"a": None}


@pytest.mark.parametrize("text", ["1_000", " 1", "\uff11", "0x10", "nan", "inf", "1.", ".5", "", "--1"])
def test_what_only_python_reads_as_a_number_is_none(built: Build, text: str) -> None:
    assert fails(built("cast", {"a": "number"}), {"a": text}) == (
        "cast: field 'a': expected the string of a number, got another string"
    )


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        ("integer", "99999999999999999999", "the number does not fit in a 64-bit integer"),
        ("integer", 1e30, "the number does not fit in a 64-bit integer"),
        ("number", "1e999", "the number is not finite"),
        ("date", 1e20, "expected an ISO 8601 string or seconds since 1970, got a number out of range"),
        ("date", "yesterday", "expected an ISO 8601 string or seconds since 1970, got another string"),
        ("date", True, "expected an ISO 8601 string or seconds since 1970, got a boolean"),
        ("boolean", "yes", "expected a boolean, 0, 1, 'true' or 'false', got another string"),
    ],
)
def test_a_cast_that_cannot_be_exact_says_why(built: Build, type_: str, value: Any, message: str) -> None:
    assert fails(built("cast", {"a": type_}), {"a": value}) == f"cast: field 'a': {message}"


def nested(levels: int) -> Any:
    value: Any = 1.25
    for _ in range(levels):
        value = [value]
    return value


def test_a_value_nested_too_deep_is_no_crash(built: Build) -> None:
    deep, same = nested(5000), nested(5000)
    too_deep = "the value is nested more than 200 levels deep"
    assert fails(built("round", 1), {"a": deep}) == f"round: field 'a': {too_deep}"
    assert fails(built("jmespath", "[to_number('1'), a]"), {"a": deep}) == f"jmespath: {too_deep}"
    assert fails(built("jmespath", "a == b"), {"a": deep, "b": same}) == "jmespath: the value is nested too deep"


def test_objects_are_flattened_however_deep(built: Build) -> None:
    deep: Any = {}
    for _ in range(2000):
        deep = {"a": deep}
    assert built("flatten", {})(deep) == {"_".join("a" * 2000): {}}


def test_a_default_does_not_replace_what_counts_as_nothing(built: Build) -> None:
    row = {"a": 0, "b": "", "c": False, "d": []}
    assert built("default", dict.fromkeys("abcd", 9))(row) == row


@pytest.mark.parametrize(
    ("expression", "value", "message"),
    [
        ("a.b", {"a": None}, "field 'b' is missing: null has no fields"),
        ("{b: b}", [1], "field 'b' is missing: a list has no fields"),
        ("a.{b: b}", {"a": None}, "fields are missing: null has no fields"),
        ("a[1]", {"a": [1]}, "element 1 is missing: the list has 1"),
        ("a[0]", {"a": "text"}, "element 0 is missing: a string has no elements"),
        ("a[*].b", {"a": [{"b": 1}, {}]}, "field 'b' is missing (it has: nothing)"),
        ("a[*].b", {"a": {"b": 1}}, "expected a list before [*], got an object"),
        ("a[?b].c", {"a": None}, "expected a list before [?], got null"),
        ("a[]", {"a": 1}, "expected a list before [], got a number"),
        ("a[1:]", {"a": "text"}, "expected a list before [:], got a string"),
        ("a.*", {"a": [1]}, "expected an object before *, got a list"),
        ("a < b", {"a": 1, "b": "x"}, "a comparison takes two numbers or two strings"),
        ("length(a)", {"a": 1}, "length takes string or array or object, got a number"),
        ("max(a)", {"a": []}, "max finds nothing to return; say what to take instead with ||"),
        ("to_number(a)", {"a": "x"}, "to_number finds nothing to return; say what to take instead with ||"),
        ("to_number(a)", {"a": "nan"}, "the number is not finite"),
        ("sum(a)", {"a": [1e308, 1e308]}, "the number is not finite"),
        ("contains(a, b)", {"a": "x", "b": 1}, "contains was given values it cannot work on"),
        ("sort_by(a, &b)", {"a": [{"b": 1}, {"c": 1}]}, "field 'b' is missing (it has: c)"),
        ("a && b", {}, "field 'a' is missing (it has: nothing)"),
        ("a || b", {"c": 1}, "field 'b' is missing (it has: c)"),
    ],
)
def test_a_query_that_finds_nothing_says_what_it_looked_for(
    built: Build, expression: str, value: Any, message: str
) -> None:
    assert fails(built("jmespath", expression), value) == f"jmespath: {message}"


@pytest.mark.parametrize(
    ("expression", "value", "result"),
    [
        ("a", {"a": None}, None),
        ("a[*].b", {"a": [{"b": None}, {"b": 1}]}, [1]),
        ("a[?b > `1`].c", {"a": [{}, {"b": 2, "c": 3}, {"b": "x"}]}, [3]),
        ("not_null(a, b.c, d)", {"d": 1}, 1),
        ("a.b.c || d", {"d": 1}, 1),
        ("!(a.b)", {}, True),
        ("max_by(a, &b).c", {"a": [{"b": 1, "c": "x"}, {"b": 2, "c": "y"}]}, "y"),
        ("max(a) || `0`", {"a": []}, 0),
    ],
)
def test_a_query_may_ask_whether_something_is_there(built: Build, expression: str, value: Any, result: Any) -> None:
    assert built("jmespath", expression)(value) == result


@given(value=everything)
def test_with_allow_a_query_is_jmespath(built: Build, value: Any) -> None:
    expression = "{a: a.b, b: [a, c[0]], c: c[?d].e | [0], d: a || b, e: *.d, f: a[].b}"
    if value is not None:
        found = built("jmespath", {"expression": expression, "on_missing": "allow"})(value)
        assert found == jmespath.search(expression, value)
