"""What tells the results of calls apart."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.policies.keys import choose, document_of, key_of, key_of_one

ALIKE_IN_PYTHON: list[Any] = [1, 1.0, True, "1", 0, False, None, "", "null", [], {}, [1], [1.0], [True], {"a": 1}]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def test_values_that_python_takes_for_equal_are_told_apart() -> None:
    for one, other in combinations(ALIKE_IN_PYTHON, 2):
        assert key_of_one([one]) != key_of_one([other]), (one, other)
        assert key_of([one, "x"]) != key_of([other, "x"]), (one, other)
        assert document_of(key_of_one([one])) != document_of(key_of_one([other])), (one, other)


@given(st.lists(json_values, min_size=1, max_size=3))
def test_a_key_is_the_same_each_time_and_can_be_written(values: list[Any]) -> None:
    key = key_of(values)
    assert key == key_of([*values])
    assert hash(key) == hash(key_of([*values]))
    assert key is not None
    if not any("\\ud800" <= char <= "\\udfff" for char in repr(values)):
        assert isinstance(document_of(key), bytes)


def test_the_order_of_keys_in_an_object_makes_no_difference() -> None:
    assert key_of_one([{"a": 1, "b": [2, {"c": 3, "d": 4}]}]) == key_of_one([{"b": [2, {"d": 4, "c": 3}], "a": 1}])


def test_what_json_cannot_tell_apart_has_no_key() -> None:
    for value in [[math.nan], [math.inf], {"a": [-math.inf]}, [object()], [2**70]]:
        assert key_of_one([value]) is None, value
    assert key_of_one([[None]]) is not None
    assert key_of_one([["null"]]) is not None


def test_some_parameters_are_chosen_in_the_order_they_are_named() -> None:
    choice = choose(["a", "b", "c"], ["c", "a"])
    assert choice is not None
    assert choice([1, 2, 3]) == [3, 1]
    assert choose(["a", "b"], ["a", "b"]) is None
