"""Whatever happens to a model in whatever order: one at a time is open, every call is answered, and it comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.errors import SourceError, SourceUnavailable
from orchestrator_core.http_client import HttpClient
from orchestrator_core.models import CommonOptions, HealthOptions, ModelSpec, RestartOptions, Slot, Supervisor
from orchestrator_core.models.slot import History
from orchestrator_core.plugin_api import Duration, Identity, ModelKind, OpenContext
from orchestrator_core.testing import run as run_coroutine
from tests.service.scripted_models import Plugin, ScriptedOptions, eventually

Event = Literal[
    *("call", "calls", "end", "sick", "well", "hold", "let go", "fail", "be unavailable", "engine down"),
    *("load", "unload", "restart", "turn", "wait"),
]
EVENTS: tuple[str, ...] = Event.__args__  # type: ignore[attr-defined]


@frozen
class Setting:
    """How the model is configured."""

    preload: bool
    unload_after: Duration | None
    max_starts: int


SETTINGS = st.builds(Setting, st.booleans(), st.sampled_from([None, Duration(0.004)]), st.integers(1, 3))


def supervisor(plugin: Plugin, setting: Setting, http: HttpClient) -> Supervisor:
    common = CommonOptions(
        preload=setting.preload,
        unload_after=setting.unload_after,
        warm_up=[{"x": 0}],
        health_check=HealthOptions(interval=Duration(0.001), timeout=Duration(1), failures=1),
        restart=RestartOptions(setting.max_starts, Duration(0.001), Duration(0.002), Duration(0.01)),
    )
    kind: ModelKind[Any] = ModelKind("scripted", "Scripted.", ScriptedOptions, plugin.open)
    spec = ModelSpec("default", kind, ScriptedOptions("m"), common)
    return Supervisor(spec, "ml.m", OpenContext("m", Path("/"), http))


@given(SETTINGS, st.lists(st.sampled_from(EVENTS), max_size=30), st.sampled_from(["uvloop", "asyncio"]))
@settings(max_examples=80, deadline=None)
def test_in_whatever_order_things_happen_to_a_model(setting: Setting, events: list[str], loop: Any) -> None:
    async def main() -> None:
        plugin = Plugin()
        script = plugin["m"]
        calls: list[asyncio.Task[Any]] = []

        async def call() -> Any:
            model.slot.requests += 1
            return await model.slot.predict_one({"x": 1})

        def happen(event: str) -> None:
            match event:
                case "call":
                    calls.append(asyncio.create_task(call()))
                case "calls":
                    calls.extend(asyncio.create_task(call()) for _ in range(5))
                case "end" if script.models:
                    script.model.end("killed")
                case "sick":
                    script.sick = SourceError("ill")
                case "well":
                    script.sick = None
                case "hold":
                    script.may_open = asyncio.Event()
                case "let go" if script.may_open is not None:
                    script.may_open.set()
                    script.may_open = None
                case "fail":
                    script.failures.append(SourceError("as configured, never"))
                case "be unavailable":
                    script.failures.append(SourceUnavailable("it ended", started=True))
                case "engine down":
                    script.failures.append(SourceUnavailable("no engine", started=False))
                case "load":
                    model.load()
                case "unload":
                    model.unload()
                case "restart":
                    model.restart()

        async with HttpClient() as http:
            model = supervisor(plugin, setting, http)
            model.start(load=setting.preload)
            for event in events:
                happen(event)
                if event in ("turn", "wait"):
                    await asyncio.sleep(0 if event == "turn" else 0.003)
                assert script.open_now <= 1
            if script.may_open is not None:
                script.may_open.set()
            script.may_open, script.sick, script.failures = None, None, []
            model.restart()
            answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
            # An illness may be over before anybody looks: then the call failed, and not the model.
            fair = (SourceUnavailable, SourceError) if "sick" in events else SourceUnavailable
            wrong = [answer for answer in answers if answer != {"y": 10} and not isinstance(answer, fair)]
            assert wrong == []
            await eventually(lambda: answered(model.slot), "it answers again")
            assert script.most_open <= 1
            assert model.slot.starts >= script.opens  # a start can be called off before it opens anything
            before_closing = asyncio.create_task(call())
            await model.close()
            (last,) = await asyncio.gather(before_closing, return_exceptions=True)
            assert last == {"y": 10} or isinstance(last, SourceUnavailable)
            assert (script.open_now, model.slot.state) == (0, "stopped")
            (after,) = await asyncio.gather(call(), return_exceptions=True)
            assert isinstance(after, SourceUnavailable)

    run_coroutine(main(), loop=loop)


async def answered(slot: Slot) -> bool:
    slot.requests += 1
    try:
        return bool(await slot.predict_one({"x": 1}) == {"y": 10})
    except SourceUnavailable:
        return False


ONE, TWO = Identity("one"), Identity("two")


def test_the_history_tells_who_answered_then() -> None:
    history = History()
    assert history.during(0, 1e18) is None
    history._entries.extend([(10.0, ONE), (20.0, None), (30.0, TWO)])
    assert history.during(5, 6) is None  # before there was anybody
    assert history.during(5, 11) is ONE  # it waited for the load
    assert history.during(12, 13) is ONE
    assert history.during(12, 35) is ONE  # whoever was there when it was asked
    assert history.during(21, 22) is None  # it was refused
    assert history.during(21, 31) is TWO
    assert history.during(31, 32) is TWO
