"""Long lists on an event loop that others wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

from orchestrator_core.plugin_api import JSON, OrchestratorError

__all__ = ["Answers", "CallMany", "again", "in_turns", "one_by_one", "shared_out"]

Answers: TypeAlias = "Sequence[JSON | OrchestratorError]"
CallMany: TypeAlias = Callable[[Sequence[Sequence[Any]]], Awaitable[Answers]]
"""What ``PreparesMany.prepare_many`` returns."""
K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")
TURN_SECONDS = 0.0003


def again(error: OrchestratorError) -> OrchestratorError:
    """Return the error anew, to be raised once more: one that is raised twice gathers tracebacks."""
    new = type(error).__new__(type(error), *error.args)
    new.__dict__.update(error.__dict__)
    return new


async def in_turns(items: Iterable[T], do: Callable[[T], R]) -> list[R]:
    """Return what ``do`` makes of each item; the loop gets a turn before a third of a millisecond is over."""
    done: list[R] = []
    until = perf_counter() + TURN_SECONDS
    for item in items:
        done.append(do(item))
        if perf_counter() > until:
            await asyncio.sleep(0)
            until = perf_counter() + TURN_SECONDS
    return done


async def one_by_one(call: Callable[..., Awaitable[JSON]], items: Sequence[Sequence[Any]], most: int) -> Answers:
    """Make a call for each item, ``most`` at a time, and return each answer or error in its place."""
    answers: list[JSON | OrchestratorError] = [None] * len(items)
    waiting = iter(enumerate(items))

    async def work() -> None:
        for index, values in waiting:
            try:
                answers[index] = await call(*values)
            except OrchestratorError as error:
                answers[index] = error

    async with asyncio.TaskGroup() as workers:
        for _ in range(min(most, len(items))):
            workers.create_task(work())
    return answers


def shared_out(
    group_of: Callable[[Sequence[Any]], K], of_same: Callable[[K, Sequence[Sequence[Any]]], Awaitable[Answers]]
) -> CallMany:
    """Return what asks for the items of each group at once; an item whose group cannot be told has that error."""

    async def many(items: Sequence[Sequence[Any]]) -> Answers:
        answers: list[JSON | OrchestratorError] = [None] * len(items)
        groups: dict[K, list[int]] = {}
        for index, values in enumerate(items):
            try:
                groups.setdefault(group_of(values), []).append(index)
            except OrchestratorError as error:
                answers[index] = error

        async def ask(group: K, places: Sequence[int]) -> None:
            found: Answers
            try:
                found = await of_same(group, [items[place] for place in places])
            except OrchestratorError as error:
                if len(places) == len(items):
                    raise
                found = [again(error) for _ in places]
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer

        if len(groups) == 1:
            await ask(*next(iter(groups.items())))
        else:
            async with asyncio.TaskGroup() as asking:
                for group, places in groups.items():
                    asking.create_task(ask(group, places))
        return answers

    return many
