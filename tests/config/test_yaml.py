"""YAML as the configuration takes it: 1.2, strict, with the place of everything."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator_core.config.yaml import LONGEST_FILE, MAX_DEPTH, load_document, parse_document


def told(text: str) -> list[str]:
    return [str(problem) for problem in parse_document(text, "f.yaml").problems]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("NO", "NO"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("12:30:45", "12:30:45"),
        ("010", "010"),
        ("0o10", "0o10"),
        ("0x1F", "0x1F"),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("2024-01-31", "2024-01-31"),
        ("=", "="),
        ("1.2.3", "1.2.3"),
        ("-", None),
        ("nan", "nan"),
        ("inf", "inf"),
        ("tRue", "tRue"),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-0", 0),
        ("+7", 7),
        ("-12", -12),
        ("12345678901234567890", 12345678901234567890),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("1E-3", 0.001),
        ("-0.0", -0.0),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'null'", "null"),
        ('"\\u00e9"', "é"),
        ("${env:X}", "${env:X}"),
    ],
)
def test_a_plain_scalar_is_what_yaml_1_2_says(written: str, value: Any) -> None:
    document = parse_document(f"key: {written}\n" if written != "-" else "key:\n", "f.yaml")
    assert not document.problems
    assert document.data == {"key": value}
    assert type(document.data["key"]) is type(value)


def test_keys_are_always_text() -> None:
    assert parse_document("{1: a, true: b, null: c, 1.5: d, on: e, '': f}", "f.yaml").data == {
        "1": "a", "true": "b", "null": "c", "1.5": "d", "on": "e", "": "f",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        pytest.param(
            "a: 1\nb: 2\na: 3\n",
            ["f.yaml:3:1: ORC106 duplicate key 'a'\n    3 | a: 3\n      | ^\n      = first defined at line 1"],
            id="duplicate key",
        ),
        pytest.param(
            "a:\n  x: {b: 1, c: 2, b: 3}\n",
            [
                (
                    "f.yaml:2:19: ORC106 duplicate key 'b'\n    2 |   x: {b: 1, c: 2, b: 3}\n"
                    "      |                   ^\n      = first defined at line 2"
                )
            ],
            id="duplicate key in a flow mapping",
        ),
        pytest.param(
            "a: !!int 3\n",
            [
                (
                    "f.yaml:1:4: ORC104 the tag !!int is not allowed\n    1 | a: !!int 3\n"
                    "      |    ^^^^^^^\n      = write the value without a tag"
                )
            ],
            id="tag",
        ),
        pytest.param(
            "a: !!python/object/apply:os.system [ls]\n",
            [
                (
                    "f.yaml:1:4: ORC104 the tag !!python/object/apply:os.system is not allowed\n"
                    "    1 | a: !!python/object/apply:os.system [ls]\n"
                    "      |    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n      = write the value without a tag"
                )
            ],
            id="python tag",
        ),
        pytest.param(
            "a: &x {b: 1}\nc:\n  <<: *x\n",
            [
                (
                    "f.yaml:3:3: ORC105 merge keys are not supported\n    3 |   <<: *x\n      |   ^^\n"
                    "      = repeat the keys: YAML 1.2 has no '<<'"
                )
            ],
            id="merge key",
        ),
        pytest.param(
            "? [a, b]\n: 1\n",
            ["f.yaml:1:3: ORC108 a key must be a plain word\n    1 | ? [a, b]\n      |   ^"],
            id="list as key",
        ),
        pytest.param(
            "a: *nobody\n",
            [
                (
                    "f.yaml:1:4: ORC110 the alias *nobody stands inside its own anchor or before it\n"
                    "    1 | a: *nobody\n      |    ^^^^^^^"
                )
            ],
            id="alias without anchor",
        ),
        pytest.param(
            "a: &x [1, *x]\n",
            [
                (
                    "f.yaml:1:11: ORC110 the alias *x stands inside its own anchor or before it\n"
                    "    1 | a: &x [1, *x]\n      |           ^^"
                )
            ],
            id="alias of itself",
        ),
        pytest.param(
            "a: 1\n---\nb: 2\n",
            [
                (
                    "f.yaml:2:1: ORC103 a second document in one file\n    2 | ---\n      | ^^^\n"
                    "      = one file holds one document"
                )
            ],
            id="second document",
        ),
        pytest.param(
            "a: 1e400\n",
            [
                (
                    "f.yaml:1:4: ORC107 1e400 is too large for a number\n    1 | a: 1e400\n      |    ^^^^^\n"
                    "      = quote it if it is text"
                )
            ],
            id="too large",
        ),
        pytest.param(
            "a: .nan\nb: -.inf\n",
            [
                (
                    "f.yaml:1:4: ORC107 .nan is not a number that JSON can hold\n    1 | a: .nan\n      |    ^^^^\n"
                    "      = quote it if it is text"
                ),
                (
                    "f.yaml:2:4: ORC107 -.inf is not a number that JSON can hold\n    2 | b: -.inf\n      |    ^^^^^\n"
                    "      = quote it if it is text"
                ),
            ],
            id="not finite",
        ),
        pytest.param(
            "a:\n\tb: 1\n",
            [
                (
                    "f.yaml:2:1: ORC102 not valid YAML: found character that cannot start any token\n    2 | \tb: 1\n"
                    "      | ^\n      = indent with spaces: YAML does not allow tabs there"
                )
            ],
            id="tab",
        ),
        pytest.param(
            "a: 'x\n",
            [
                (
                    "f.yaml:1:4: ORC102 not valid YAML: found unexpected end of stream\n    1 | a: 'x\n"
                    "      |    ^\n      = while scanning a quoted scalar"
                )
            ],
            id="open quote",
        ),
        pytest.param(
            f"a: {'9' * 41}\n",
            [
                (
                    "f.yaml:1:4: ORC107 an integer of 41 digits is too large for a number\n"
                    f"    1 | a: {'9' * 41}\n      |    {'^' * 41}\n      = quote it if it is text"
                )
            ],
            id="a number of many digits, which would else become text",
        ),
    ],
)
def test_what_is_not_taken_is_a_problem_at_its_place(text: str, problems: list[str]) -> None:
    assert told(text) == problems


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("a: fraud: a check\n", (1, 9), "quote a text that has ': ' in it"),
        ("- name a\n  type: b\n", (2, 7), "the line above lacks ': ' behind its key, or this line is indented too far"),
        ("- name:a\n  type: b\n", (2, 7), "the line above lacks ': ' behind its key, or this line is indented too far"),
        ("a: %x\n", (1, 4), "quote a text that starts with %"),
        ("a: @x\n", (1, 4), "quote a text that starts with @"),
        ("a: `x`\n", (1, 4), "quote a text that starts with `"),
        ("a: {{ $b.c }}\n", (1, 5), "quote a text that starts with {{"),
        ("a: {{$b.c}}, or not\n", (1, 5), "quote a text that starts with {{"),
        ("a: {b: ${env:C}}\n", (1, 9), "quote a text that has ${…} in it"),
    ],
)  # fmt: skip
def test_a_text_that_yaml_takes_for_something_else_is_told_to_be_quoted(
    text: str, place: tuple[int, int], hint: str
) -> None:
    problem = parse_document(text, "f.yaml").problems[0]
    assert ((problem.line, problem.column), problem.hint) == (place, hint), str(problem)


def test_every_problem_of_a_file_is_found_at_once() -> None:
    document = parse_document("a: !x 1\na: 2\nb: .inf\n<<: {}\n", "f.yaml")
    assert [(problem.line, problem.code) for problem in document.problems] == [
        (1, "ORC104"), (2, "ORC106"), (3, "ORC107"), (4, "ORC105"),
    ]  # fmt: skip


def test_a_duplicate_key_keeps_the_first_value_and_its_place() -> None:
    document = parse_document("a: {x: 1}\na: {y: 2}\n", "f.yaml")
    assert document.data == {"a": {"x": 1}}
    assert document.values[("a", "x")].line == 1


def test_an_alias_is_a_copy_and_not_the_same_object() -> None:
    data = parse_document("a: &x {k: [1]}\nb: *x\n", "f.yaml").data
    assert data == {"a": {"k": [1]}, "b": {"k": [1]}}
    assert data["a"]["k"] is not data["b"]["k"]


def test_aliases_that_multiply_are_refused_in_no_time() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    document = parse_document("\n".join(lines), "f.yaml")
    (problem,) = document.problems
    assert (problem.code, problem.message) == ("ORC111", "aliases multiply to more than 10,000 values")
    assert problem.line == 4


@pytest.mark.parametrize(
    "nest", [lambda depth: "[" * depth + "]" * depth, lambda depth: "{a: " * depth + "1" + "}" * depth]
)
def test_depth_is_bounded(nest: Any) -> None:
    assert parse_document(nest(MAX_DEPTH), "f.yaml").problems == ()
    for depth in (MAX_DEPTH + 1, 100_000):
        (problem,) = parse_document(nest(depth), "f.yaml").problems
        assert (problem.code, problem.message) == ("ORC109", f"nested deeper than {MAX_DEPTH} levels")


def test_a_control_character_is_named_with_its_line() -> None:
    assert told("a: 1\nb: x\x07y\n") == [
        "f.yaml:2:1: ORC102 character U+0007 is not allowed in YAML\n    2 | b: x\x07y\n      | ^"
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_taken(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb:\r\n  c: 2\r\n")
    document = load_document(tmp_path / "f.yaml", "f.yaml")
    assert (document.data, document.problems) == ({"a": 1, "b": {"c": 2}}, ())
    mark = document.values[("b", "c")]
    assert (mark.line, mark.column, mark.end_column) == (3, 6, 7)


def test_a_file_that_is_not_utf_8_is_told_the_line_and_the_byte(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    document = load_document(tmp_path / "f.yaml", "domains/f.yaml")
    assert document.data is None
    assert [str(problem) for problem in document.problems] == ["domains/f.yaml:2:1: ORC101 not UTF-8: byte 0xe9"]


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    document = load_document(tmp_path, "f.yaml")
    assert [str(problem) for problem in document.problems] == ["f.yaml: ORC101 cannot read: Is a directory"]


def test_what_might_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "huge.yaml").touch()
    os.truncate(tmp_path / "huge.yaml", LONGEST_FILE + 1)  # which takes no room
    told = [str(load_document(tmp_path / name, name).problems[0]) for name in ("pipe.yaml", "huge.yaml")]
    assert told == [
        "pipe.yaml: ORC101 cannot read: it is a pipe, a socket or a device, and not a file",
        "huge.yaml: ORC101 cannot read: it has more than 16 MiB",
    ]


def test_every_key_and_value_has_its_place() -> None:
    document = parse_document("a:\n  - x: 1\n    'y z': [p, q]\nb: |\n  text\n", "f.yaml")
    places = {path: (mark.line, mark.column, mark.end_column) for path, mark in document.values.items()}
    assert places[("a", 0, "x")] == (2, 8, 9)
    assert places[("a", 0, "y z", 1)] == (3, 16, 17)
    assert places[("b",)][:2] == (4, 4)
    assert document.keys[("a", 0, "y z")].column == 5
    assert str(document.problem("ORC000", "here", ("a", 0, "y z"), at_key=True)) == (
        "f.yaml:3:5: ORC000 here\n    3 |     'y z': [p, q]\n      |     ^^^^^"
    )
    assert str(document.problem("ORC000", "here", ("a", 0, "missing", "deeper"))) == (
        "f.yaml:2:5: ORC000 here\n    2 |   - x: 1\n      |     ^"
    )


def test_a_tab_before_the_caret_keeps_the_caret_in_its_column() -> None:
    document = parse_document("a:\tvalue\n", "f.yaml")
    assert str(document.problem("ORC000", "here", ("a",))) == (
        "f.yaml:1:4: ORC000 here\n    1 | a:\tvalue\n      |   \t^^^^^"
    )


# --- properties ---------------------------------------------------------------------------------------------------

YAML_WORDS = st.sampled_from(
    ["a", ":", ": ", "- ", "\n", "  ", "{", "}", "[", "]", ",", "&x ", "*x", "!t ", "<<", "|", ">", "'", '"', "#",
     "---", "...", "?", "%", "@", "`", "\t", "1", "1e999", ".nan", "null", "~", "é", "\u2028", "\x00", "\ud800", "\r",
     "\x85", "\ufeff"]
)  # fmt: skip


@given(st.text() | st.lists(YAML_WORDS, max_size=40).map("".join))
@settings(max_examples=400, deadline=None)
def test_no_text_crashes_the_parser_and_problems_stand_inside_the_text(text: str) -> None:
    document = parse_document(text, "f.yaml")
    lines = len(text.splitlines()) + 2
    for problem in document.problems:
        assert str(problem)
        assert 1 <= problem.line <= lines
        assert problem.column >= 1
    json.dumps(document.data, allow_nan=False)


NUMBERS = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def identical(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return (
            isinstance(right, dict) and left.keys() == right.keys() and all(identical(left[k], right[k]) for k in left)
        )
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(identical, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    return type(left) is type(right) and bool(left == right)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_what_json_can_hold_comes_back_from_json_text(value: Any) -> None:
    """YAML 1.2 takes JSON as it is."""
    text = json.dumps(value)
    document = parse_document(text, "f.yaml")
    assert document.problems == ()
    assert identical(document.data, value), text


class QuotingDumper(yaml.SafeDumper):
    """PyYAML writes what YAML 1.1 takes for a string without quotes, such as 0E0, which YAML 1.2 takes for a number."""


QuotingDumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


@given(VALUES)
@example("0E0")
@settings(max_examples=200, deadline=None)
def test_what_json_can_hold_comes_back_from_a_yaml_dump(value: Any) -> None:
    text = yaml.dump(value, Dumper=QuotingDumper)
    document = parse_document(text, "f.yaml")
    assert document.problems == ()
    assert identical(document.data, value), text


def test_a_password_in_a_url_is_not_shown_under_the_caret() -> None:
    document = parse_document('a: {url: "postgresql://shop:hunter22@db.internal/x", port: 1}\n', "d.yaml")
    problem = document.problem("ORC000", "wrong", ("a", "port"))
    assert problem.source_line == 'a: {url: "postgresql://shop:********@db.internal/x", port: 1}'
    assert problem.column == document.text.index("port: ") + len("port: ") + 1
