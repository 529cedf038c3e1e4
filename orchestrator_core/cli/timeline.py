"""An execution as a timeline: a bar for each step, to the scale of the whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from orchestrator_core.plugin_api import Execution, ExecutionStatus, StepRecord, StepStatus

BAR_WIDTH, NARROWEST_BAR = 40, 10
WIDEST = 10_000
_NARROWEST = 1 / BAR_WIDTH / 4
STEP_COLOURS: dict[StepStatus, str] = {
    "ok": "green",
    "cached": "cyan",
    "default": "yellow",
    "skipped": "bright_black",
    "failed": "red",
    "cancelled": "magenta",
}
_CACHES = {"hit": "from the cache", "stale": "stale, from the cache", "shared": "shared with another request"}
_BREAKERS = {"open": "breaker open", "half_open": "probe of the breaker"}
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (ord("\n"), ord("\t"))
} | {
    # What ends a line, or has all that follows on it shown from right to left.
    code: f"\\u{code:04x}"
    for code in (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}
COLOURS: dict[ExecutionStatus, str] = {"ok": "green", "degraded": "yellow", "failed": "red", "cancelled": "magenta"}


class _Bar(Bar):
    """A bar, of ``#`` where the encoding is not UTF-8: of rich's, only question marks would be left there."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not options.ascii_only:
            yield from super().__rich_console__(console, options)
            return
        width = min(self.width or options.max_width, options.max_width)
        begin = min(int(self.begin / self.size * width), width - 1)
        end = max(round(self.end / self.size * width), begin + 1)
        yield Segment(f"{' ' * begin}{'#' * (end - begin)}".ljust(width), console.get_style(self.style))
        yield Segment.line()


def console(file: IO[str]) -> Console:
    """Return a console as wide as the terminal; what is not written to one is plain, and wide enough for any table."""
    width = None if file.isatty() else 200
    return Console(file=file, width=width, highlight=False, no_color=bool(os.environ.get("NO_COLOR")) or None)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.2f} ms"


def plain(text: str) -> str:
    """Return what a source said as text that steers no terminal, whatever was in it."""
    return text.translate(_CONTROLS)


def natural_width(table: Table, to: Console) -> int:
    """Return how wide a table is that need not save space."""
    return Measurement.get(to, to.options.update(max_width=WIDEST), table).maximum


def draw(execution: Execution, to: Console) -> None:
    """Draw an execution's steps as bars, with what they raised below."""
    head = Text(f"{execution.id}  {execution.domain}.{execution.endpoint}  ")
    head.append(execution.status, style=COLOURS[execution.status])
    head.append(f"  {execution.http_status}  {milliseconds(execution.duration_seconds)}")
    if execution.cache:
        head.append(f"  {_CACHES.get(execution.cache, execution.cache)}, of {execution.cached_from}", style="cyan")
    head.append(f"  (engine {milliseconds(execution.engine_seconds)})")
    to.print(head, soft_wrap=True)
    bars = _bars(execution)
    if (over := natural_width(bars, to) - to.width) > 0:
        bars.columns[-1].width = max(NARROWEST_BAR, BAR_WIDTH - over)
        bars.width = natural_width(bars, to)
    to.print(bars, crop=False)
    for step in execution.steps:
        if step.error:
            to.print(Text(f"{step.name}: {plain(step.error)}", style=STEP_COLOURS[step.status]), soft_wrap=True)
        for line in _failed_attempts(step):
            to.print(Text(f"{step.name}: {line}", style="red"), soft_wrap=True)
    if execution.error and all(step.error != execution.error for step in execution.steps):
        to.print(Text(plain(execution.error), style="red"), soft_wrap=True)
    for model in execution.models:
        identity = " ".join(filter(None, (model.name, model.version, model.digest)))
        to.print(Text(f"model {plain(identity)}"), soft_wrap=True)


def _bars(execution: Execution) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(width=BAR_WIDTH)
    for step in execution.steps:
        colour = STEP_COLOURS[step.status]
        status = f"{step.status}{''.join(f' ({said})' for said in _said(step))}"
        began = step.status != "skipped" and (step.attempts or step.cache or step.duration_seconds)
        duration = milliseconds(step.duration_seconds) if began else ""
        bar = _bar(step, execution.duration_seconds, colour) if began else Text("")
        table.add_row(step.name, Text(status, style=colour), duration, bar)
    return table


def _said(step: StepRecord) -> Iterator[str]:
    """Yield what is out of the ordinary about how a step went, in words."""
    if step.attempts > 1:
        yield f"{step.attempts} attempts"
    if step.items is not None:
        failed = f"{step.items_failed} of " if step.items_failed else ""
        yield f"{failed}{step.items} item{'' if step.items == 1 else 's'}"
    if step.cache:
        yield _CACHES.get(step.cache, step.cache)
    if step.breaker:
        yield _BREAKERS.get(step.breaker, step.breaker)
    if step.waited_seconds:
        yield f"waited {milliseconds(step.waited_seconds)}"


def _failed_attempts(step: StepRecord) -> Iterator[str]:
    """Yield a line for each attempt that failed."""
    for attempt in step.failed_attempts:
        began, took = milliseconds(attempt.start_seconds), milliseconds(attempt.duration_seconds)
        yield f"attempt at {began} failed after {took}: {plain(attempt.error)}"
    if step.failed_attempts_left_out:
        plural = "" if step.failed_attempts_left_out == 1 else "s"
        yield f"{step.failed_attempts_left_out} more attempt{plural} failed"


def _bar(step: StepRecord, whole: float, colour: str) -> _Bar:
    """Return the step's bar, wide enough to be seen."""
    shortest = whole * _NARROWEST
    begin = min(step.start_seconds, whole - shortest)
    end = max(step.start_seconds + step.duration_seconds, begin + shortest)
    return _Bar(size=whole or 1, begin=begin, end=end, width=BAR_WIDTH, color=colour)
