"""A model kind that does what its script says: opens slowly, fails, ends, falls ill, changes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from attrs import define, field, frozen

from orchestrator_core.plugin_api import Identity, ModelFacts, ModelKind, OpenContext, SourceError, hookimpl, option
from orchestrator_core.testing import RunningService


@frozen
class ScriptedOptions:
    """Options of the scripted model."""

    script: str = option(help="Whose script it follows.")
    factor: int = option(10, help="What each row is multiplied by.")


@define(eq=False)
class Script:
    """What the models of one name do. ``failures`` are raised by the next openings, one each.

    An opening waits for ``may_open``; one that is cancelled meanwhile takes ``gives_up_seconds`` to end.
    ``has_changed`` is None for one that never tells.
    """

    failures: list[BaseException] = field(factory=list)
    may_open: asyncio.Event | None = None
    gives_up_seconds: float = 0.0
    closes_seconds: float = 0.0
    ends_at_once: bool = False
    sick: Exception | None = None
    hangs: asyncio.Event | None = None
    silent: bool = False
    ended_for_all: list[str] = field(factory=list)
    unfit: Callable[[Mapping[str, Any]], Exception | None] = lambda row: None
    digest: str = "sha256:1"
    has_changed: bool | None = False
    output: str = "listening\n"
    opens: int = 0
    open_now: int = 0
    most_open: int = 0
    checks: int = 0
    rows: list[Mapping[str, Any]] = field(factory=list)
    models: list[Scripted] = field(factory=list)
    looks: int = 0
    log: Counter[str] = field(factory=Counter)

    @property
    def model(self) -> Scripted:
        return self.models[-1]


class Scripted:
    """An open model."""

    def __init__(self, script: Script, options: ScriptedOptions) -> None:
        self.script = script
        self.factor = options.factor
        self.digest = script.digest
        self.closed = False
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if script.ends_at_once:
            self.end("exit status 3\nTraceback: no such file: model.bin")

    def end(self, how: str) -> None:
        """End as a process does that is killed."""
        if not self._end.done():
            self._end.set_result(how)

    async def predict(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        if self.script.hangs is not None:
            await self.script.hangs.wait()
        for row in rows:
            if self.closed:
                raise RuntimeError("used after it was closed")
            if self._end.done() or self.script.sick:
                raise SourceError("the connection was refused", transient=True)
            if error := self.script.unfit(row):
                raise error
            self.script.rows.append(row)
        return [{"y": row["x"] * self.factor} for row in rows]

    def facts(self) -> ModelFacts:
        return ModelFacts(inputs=("x",), outputs=("y",))

    def identity(self) -> Identity:
        return Identity("scripted", version=str(self.script.models.index(self) + 1), digest=self.digest)

    async def ended(self) -> str:
        return await asyncio.shield(self._end)

    async def logs(self, lines: int) -> str:
        return "\n".join(self.script.output.splitlines()[-lines:]) + "\n"

    async def end_for_all(self, why: str) -> str:
        self.script.ended_for_all.append(why)
        self.script.silent = False
        return f"{why}; its last lines:\n{self.script.output}"

    async def check_ready(self) -> None:
        self.script.checks += 1
        if self.script.silent:
            await asyncio.Event().wait()
        if self._end.done():
            raise SourceError("the connection was refused", transient=True)
        if self.script.sick:
            raise self.script.sick

    async def changed(self) -> bool:
        if self.script.has_changed is None:
            await asyncio.Event().wait()
        return bool(self.script.has_changed)


@define
class Plugin:
    """The kind ``scripted``, and ``looked_at``, which can tell of itself without being opened."""

    scripts: dict[str, Script] = field(factory=dict)

    def __getitem__(self, name: str) -> Script:
        return self.scripts.setdefault(name, Script())

    @asynccontextmanager
    async def open(self, options: ScriptedOptions, context: OpenContext) -> AsyncIterator[Scripted]:
        script = self[options.script]
        script.opens += 1
        if script.may_open is not None:
            try:
                await script.may_open.wait()
            except asyncio.CancelledError:
                await asyncio.sleep(script.gives_up_seconds)
                raise
        if script.failures:
            raise script.failures.pop(0)
        model = Scripted(script, options)
        script.models.append(model)
        script.open_now += 1
        script.most_open = max(script.most_open, script.open_now)
        try:
            yield model
        finally:
            await asyncio.sleep(script.closes_seconds)
            model.closed = True
            script.open_now -= 1

    async def look(self, options: ScriptedOptions, context: OpenContext) -> ModelFacts | None:
        script = self[options.script]
        script.looks += 1
        if script.failures:
            raise script.failures.pop(0)
        return ModelFacts(inputs=("x",), outputs=("y",))

    @hookimpl
    def orchestrator_model_kinds(self) -> Iterable[ModelKind[Any]]:
        return [
            ModelKind("scripted", "Does what it is told.", ScriptedOptions, self.open),
            ModelKind("looked_at", "Can be looked at.", ScriptedOptions, self.open, look=self.look),
        ]


async def eventually(
    condition: Callable[[], Awaitable[Any]] | Callable[[], Any], what: str, *, within_seconds: float = 10
) -> None:
    """Wait until the condition holds; fail with what was waited for."""
    try:
        async with asyncio.timeout(within_seconds):
            while True:
                holds = condition()
                if asyncio.iscoroutine(holds):
                    holds = await holds
                if holds:
                    return
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {within_seconds:g} s: {what}") from None


async def model(shop: RunningService, id_: str = "m") -> dict[str, Any]:
    answer = await shop.admin("GET", f"/models/{id_}")
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json
    return found


async def state(shop: RunningService, expected: str, id_: str = "m", *, within_seconds: float = 10) -> dict[str, Any]:
    """Wait until the model is in a state, and return its page."""
    seen: list[str] = []

    async def is_so() -> bool:
        now = (await model(shop, id_))["state"]
        if seen[-1:] != [now]:
            seen.append(now)
        return bool(now == expected)

    try:
        await eventually(is_so, expected, within_seconds=within_seconds)
    except AssertionError as error:
        raise AssertionError(f"the model {id_} is never {expected}: {seen}") from error
    return await model(shop, id_)
