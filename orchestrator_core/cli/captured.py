"""The values that went through an execution, a line for each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator_core.cli.timeline import plain
from orchestrator_core.documents import truncated_values

LONGEST = 120
"""Characters of a value that are shown."""


def draw_captured(captured: Mapping[str, Any], to: Console) -> None:
    """Draw the request, each call's parameters and result or error, and the answer; and say what is not whole."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True, style="bright_black")
    table.add_column(overflow="fold")
    before = ""
    for whose, part, value in _lines(captured):
        table.add_row(whose if whose != before else "", part, Text(value, style="red" if part == "error" else ""))
        before = whose
    to.print(table)
    for path, size in truncated_values(captured):
        said = f"{plain(path)} is not whole: it had {size:,} bytes, more than tracking.max_payload_size"
        to.print(Text(said, style="yellow"), soft_wrap=True)


def _lines(captured: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    request = captured.get("request")
    if isinstance(request, dict):
        for part in ("path_params", "query_params", "headers", "body"):
            if request.get(part) not in (None, {}):
                yield "request", part, _shown(request[part])
    for name, step in captured.get("steps", {}).items():
        for call in step["calls"] if isinstance(step, dict) else ():
            for part in ("params", "result", "error"):
                if isinstance(call, dict) and part in call:
                    yield name, part, _shown(call[part])
    if "answer" in captured:
        yield "answer", "", _shown(captured["answer"])


def _shown(value: Any) -> str:
    text = plain(json.dumps(value, ensure_ascii=False))
    if len(text) <= LONGEST:
        return text
    what = "all that is kept" if '"$truncated"' in text else "all"
    return f"{text[:LONGEST]}… {len(text)} characters; --format json has {what}"
