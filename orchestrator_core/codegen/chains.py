"""Which steps run one after the other, and who waits for whom: the shape of a plan's code."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define

from orchestrator_core.plan import PlannedStep


@define
class Chain:
    """Steps that run in a row. The first chain is the main line; every other is started after ``after``, or at once."""

    steps: list[PlannedStep]
    after: str | None = None


class Chains:
    """The chains of a plan, the main line first. ``awaited`` are the steps that need a future to be waited for."""

    def __init__(self, steps: Sequence[PlannedStep]) -> None:
        self.steps = {step.name: step for step in steps}
        self.all = _chains(steps)
        self.of = {step.name: chain for chain in self.all for step in chain.steps}
        self.awaited = self._cross_waits()

    @property
    def main(self) -> Chain:
        return self.all[0]

    @property
    def branches(self) -> list[Chain]:
        return self.all[1:]

    def by_task(self, name: str, waiter: Chain) -> bool:
        """Return whether the waiting chain started the task that ends with the step, and so can await that."""
        chain = self.of[name]
        started_by = self.of[chain.after] if chain.after else self.main
        return chain.steps[-1].name == name and started_by is waiter

    def done_when_started(self, chain: Chain) -> set[str]:
        """Return the steps that have ended for certain when a chain starts."""
        if chain.after is None:
            return set()
        done, pending = set(), [chain.after]
        while pending:
            name = pending.pop()
            if name not in done:
                done.add(name)
                before = self.of[name]
                position = [step.name for step in before.steps].index(name)
                pending += self.steps[name].waits_for
                pending += [before.steps[position - 1].name] if position else [before.after] if before.after else []
        return done

    def _cross_waits(self) -> set[str]:
        """Return the steps that another chain waits for and that need a future for it."""
        awaited = set()
        for chain in self.all:
            for step in chain.steps:
                for name in step.waits_for:
                    if self.of[name] is not chain and not self.by_task(name, chain):
                        awaited.add(name)
        for chain in self.branches:
            tail = chain.steps[-1].name
            if not self.by_task(tail, self.main):
                awaited.add(tail)
        return awaited


def _chains(steps: Sequence[PlannedStep]) -> list[Chain]:
    """Divide the steps into chains: each step goes on a chain whose last step it waits for, if there is one.

    Of the steps that wait for nothing, those that surely leave the process come first: their requests are on the way
    while others are answered on the spot, such as a read of SQLite on the event loop.
    """
    chains: list[Chain] = []
    position = {step.name: index for index, step in enumerate(steps)}
    for step in sorted(
        steps, key=lambda step: (bool(step.waits_for), not step.waits_for and step.spec.kind.in_process)
    ):
        on = next((chain for chain in chains if chain.steps[-1].name in step.waits_for), None)
        if on:
            on.steps.append(step)
        else:
            after = max(step.waits_for, key=position.__getitem__) if step.waits_for else None
            chains.append(Chain([step], after))
    return chains


__all__ = ["Chain", "Chains"]
