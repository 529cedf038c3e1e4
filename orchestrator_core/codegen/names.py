"""Names in the generated module: a Python variable for each step, which reads as the step is called."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence

_RESERVED = {
    *("request", "run", "steps", "started", "error", "branches", "clock", "MISSING", "OK", "SKIPPED", "LOOKUP"),
    *("Branches", "timeout", "future", "located", "BaseException", "ends_task"),
    # A step `each` has `each_list`, as the plan has of a step `list`.
    *("call", "convert", "default", "each", "transform"),
}
_NOT_A_WORD = re.compile(r"\W", re.ASCII)
# The shapes of the names that are made from a step's variable; no variable of a step may have one of them.
_DERIVED_START = re.compile(r"_|(call|convert|default|each|transform)(_|\Z)|response")
_DERIVED_END = re.compile(r"_(params|condition|wanted|ready|task|branch|list|each|given|[0-9]+)\Z")


def identifier(text: str) -> str:
    name = _NOT_A_WORD.sub("_", text)
    return f"_{name}" if name[:1].isdigit() else name


def variables(names: Sequence[str]) -> dict[str, str]:
    """Return a Python variable for each step: its own name wherever that is free."""
    taken = {*_RESERVED, *names}
    chosen = {}
    for name in names:
        variable = name
        taken -= {name} - _RESERVED
        if _DERIVED_START.match(variable):
            variable = f"step_{variable.lstrip('_')}"
        while keyword.iskeyword(variable) or variable in taken or _DERIVED_END.search(variable):
            variable += "_"
        taken.add(variable)
        chosen[name] = variable
    return chosen


__all__ = ["identifier", "variables"]
