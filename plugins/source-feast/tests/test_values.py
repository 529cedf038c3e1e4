"""Values of Feast as JSON, where they could not be written into an answer."""

from __future__ import annotations

import pytest
from feast.protos.feast.types.Value_pb2 import Value
from orchestrator_source_feast.values import Unreadable, from_message


@pytest.mark.parametrize("text", ["[" * 201 + "]" * 201, "[" * 5000 + "]" * 5000, "9" * 5000])
def test_json_that_no_answer_could_hold_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable, match=r"^holds JSON that cannot be used: "):
        from_message(Value(json_val=text))


def test_json_nested_as_deep_as_may_be_is_read() -> None:
    assert from_message(Value(json_val="[" * 200 + "]" * 200)) is not None
