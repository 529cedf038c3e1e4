"""The values that went through an execution, a line for each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator_core.cli.timeline import natural_width, plain
from orchestrator_core.documents import truncated_values

LONGEST = 120
"""Characters of a value that are shown."""
NARROWEST_VALUE = 20


def draw_captured(captured: Mapping[str, Any], to: Console) -> None:
    """Draw the request, each call's parameters and result or error, and the answer; and say what is not whole."""
    rows, before = [], ""
    for whose, part, value in _lines(captured):
        colour = "red" if part == "error" else ""
        names = Text(whose if whose != before else "", style="bold"), Text(part, style="bright_black")
        rows.append((*names, Text(value, style=colour)))
        before = whose
    if natural_width(_table([row[:-1] for row in rows], 2), to) + NARROWEST_VALUE <= to.width:
        to.print(_table(rows, 3))
    else:  # a value would have no room beside them
        for row in rows:
            to.print(Text("  ").join(row), soft_wrap=True)
    for path, size in truncated_values(captured):
        said = f"{plain(path)} is not whole: it had {size:,} bytes, more than tracking.max_payload_size"
        to.print(Text(said, style="yellow"), soft_wrap=True)


def _table(rows: Iterable[Sequence[Text]], columns: int) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for number in range(columns):
        table.add_column(no_wrap=number < 2, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


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
