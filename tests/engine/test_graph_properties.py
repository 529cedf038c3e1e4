"""Random graphs of steps: the generated code does what a plain interpreter of the rules says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.errors import SourceError
from orchestrator_core.testing import run
from tests.engine.lab import Lab, planned, ran, step

ABSENT = object()
"""The result of a step that was skipped."""


@frozen
class Node:
    """A step of a random graph. ``refers`` are the steps in its params, ``after`` those in ``depends_on``."""

    name: str
    refers: tuple[str, ...]
    after: tuple[str, ...]
    asks: str | None
    condition: bool | None
    fails: bool
    required: bool
    default: Any
    turns: int

    @property
    def waits_for(self) -> set[str]:
        return {*self.refers, *self.after, *([self.asks] if self.asks else [])}

    @property
    def optional(self) -> bool:
        return not self.required or self.default is not ABSENT

    def yaml(self) -> dict[str, Any]:
        entry = step(self.name, params={name: f"${name} ?? 'none'" for name in self.refers})
        if self.after:
            entry["depends_on"] = list(self.after)
        if self.asks:
            entry["condition"] = f"${self.asks} ?? false"
        elif self.condition is not None:
            entry["condition"] = self.condition
        if not self.required:
            entry["required"] = False
        if self.default is not ABSENT:
            entry["default"] = self.default
        return entry


@st.composite
def graphs(draw: Callable[[Any], Any], *, failing: bool = True) -> list[Node]:
    """A list of steps in any written order, each of which waits only for some that come before it by name."""
    nodes: list[Node] = []
    for index in range(draw(st.integers(1, 7))):
        before = [node.name for node in nodes]
        some = st.lists(st.sampled_from(before), unique=True, max_size=3) if before else st.just([])
        asks = draw(st.none() | st.sampled_from(before)) if before else None
        nodes.append(
            Node(
                name=f"s{index}",
                refers=tuple(draw(some)),
                after=tuple(draw(some)),
                asks=asks if draw(st.integers(0, 3)) == 0 else None,
                condition=draw(st.sampled_from([None, None, None, True, False])),
                fails=failing and draw(st.integers(0, 4)) == 0,
                required=draw(st.booleans()),
                default=draw(st.sampled_from([ABSENT, ABSENT, None, 0, {"d": index}])),
                turns=draw(st.integers(0, 3)),
            )
        )
    return draw(st.permutations(nodes))


@frozen
class Expected:
    """What the rules say: values and statuses; steps that may have failed the request, or none."""

    values: dict[str, Any]
    statuses: dict[str, str]
    culprits: set[str]


def interpret(nodes: list[Node]) -> Expected:
    """Run the rules one step after the other, as if nothing were concurrent and nothing were cancelled."""
    values: dict[str, Any] = {}
    statuses: dict[str, str] = {}
    culprits: set[str] = set()
    unreached: set[str] = set()
    for node in sorted(nodes, key=lambda node: node.name):
        if node.waits_for & (unreached | culprits):
            unreached.add(node.name)
            continue
        asked = values.get(node.asks, ABSENT) if node.asks else node.condition is not False
        if asked is ABSENT or asked is None or asked is False:
            values[node.name], statuses[node.name] = ABSENT, "skipped"
        elif not node.fails:
            given = {name: values[name] for name in node.refers}
            seen = {name: "none" if value in (ABSENT, None) else value for name, value in given.items()}
            values[node.name], statuses[node.name] = {"of": node.name, "seen": seen}, "ok"
        elif node.optional:
            values[node.name] = None if node.default is ABSENT else node.default
            statuses[node.name] = "default"
        else:
            culprits.add(node.name)
            statuses[node.name] = "failed"
    return Expected(values, statuses, culprits)


def behaviours(nodes: list[Node]) -> dict[str, Any]:
    def behave(node: Node) -> Any:
        async def behaviour(params: Any) -> Any:
            for _ in range(node.turns):
                await asyncio.sleep(0)
            if node.fails:
                raise SourceError(f"{node.name} broke")
            return {"of": node.name, "seen": dict(params)}

        return behaviour

    return {node.name: behave(node) for node in nodes}


def answer(nodes: list[Node]) -> dict[str, str]:
    return {node.name: f"${node.name} ?? 'none'" for node in nodes}


@given(graphs(), st.sampled_from(["uvloop", "asyncio"]))
@settings(max_examples=150, deadline=None)
def test_the_outcome_is_what_the_rules_say(nodes: list[Node], loop: Any) -> None:
    expected = interpret(nodes)

    async def main() -> None:
        lab = Lab(behaviours(nodes))
        async with planned(lab, *[node.yaml() for node in nodes], response_mapping=answer(nodes)) as ready:
            got = await ran(ready)
        if not expected.culprits:
            assert got.error is None, got.error
            shown = {name: "none" if value in (ABSENT, None) else value for name, value in expected.values.items()}
            assert got.result == shown
            assert got.statuses == expected.statuses
            degraded = {name for name, status in expected.statuses.items() if status == "default"}
            assert set(got.run.degraded_steps) == degraded
        else:
            assert isinstance(got.error, SourceError), got.error
            assert str(got.error) in {f"{name} broke" for name in expected.culprits}
            assert got.run.failed_step in expected.culprits
            for name, status in got.statuses.items():
                assert status in (expected.statuses.get(name), "cancelled"), name
        check_order(nodes, lab.events)
        assert not lab.running

    run(main(), loop=loop)


def check_order(nodes: list[Node], events: list[tuple[str, str]]) -> None:
    """Every step starts once, after the end of all it waits for that ran."""
    place = {event: index for index, event in enumerate(events)}
    assert len(place) == len(events)
    for node in nodes:
        if ("start", node.name) in place:
            for other in node.waits_for:
                assert place.get(("end", other), -1) < place["start", node.name], (other, node.name)


@given(graphs(failing=False), st.randoms(use_true_random=False))
@settings(max_examples=75, deadline=None)
def test_every_step_runs_the_moment_all_it_waits_for_has_ended(nodes: list[Node], order: random.Random) -> None:
    """Steps end one at a time, in a random order; in between, exactly those that can run are running."""
    statuses = interpret(nodes).statuses
    called = {name for name, status in statuses.items() if status == "ok"}

    async def main() -> None:
        gates = {name: asyncio.Event() for name in called}

        def behave(node: Node) -> Any:
            async def behaviour(params: Any) -> Any:
                await gates[node.name].wait()
                return {"of": node.name, "seen": dict(params)}

            return behaviour

        lab = Lab({node.name: behave(node) for node in nodes})
        async with planned(lab, *[node.yaml() for node in nodes], response_mapping=answer(nodes)) as ready:
            running = asyncio.create_task(ran(ready))
            ended: set[str] = set()
            while True:
                for _ in range(6 * len(nodes) + 6):
                    await asyncio.sleep(0)
                settled = ended | closure(nodes, statuses, ended)
                able = {n.name for n in nodes if n.name in called and n.waits_for <= settled} - ended
                assert lab.running == able
                if not able:
                    break
                name = order.choice(sorted(able))
                gates[name].set()
                ended.add(name)
            got = await running
        assert got.error is None
        assert got.statuses == statuses

    run(main())


def closure(nodes: list[Node], statuses: dict[str, str], ended: set[str]) -> set[str]:
    """Return the skipped steps that have been decided, given the steps that have ended."""
    decided: set[str] = set()
    for node in sorted(nodes, key=lambda node: node.name):
        if statuses[node.name] == "skipped" and node.waits_for <= ended | decided:
            decided.add(node.name)
    return decided


@given(graphs(failing=False))
@settings(max_examples=75, deadline=None)
def test_a_graph_of_n_lines_creates_n_minus_1_tasks(nodes: list[Node]) -> None:
    """As many tasks as there are chains beside the first: never one per step."""

    async def main() -> None:
        async with planned(Lab(), *[node.yaml() for node in nodes], response_mapping=answer(nodes)) as ready:
            created: list[str] = []
            loop = asyncio.get_running_loop()

            def factory(loop: Any, coro: Any, **more: Any) -> Any:
                created.append(coro.__qualname__)
                return asyncio.Task(coro, loop=loop, **more)

            loop.set_task_factory(factory)
            await ran(ready)
            loop.set_task_factory(None)
            roots = [node for node in nodes if not node.waits_for]
            assert len(created) >= len(roots) - 1
            assert len(created) <= len(nodes) - 1
            followers = {name for node in nodes for name in node.waits_for}
            ends = [node for node in nodes if node.name not in followers]
            if all(len(node.waits_for) <= 1 for node in nodes):
                assert len(created) == len(ends) - 1

    run(main())
