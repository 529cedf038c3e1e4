"""The order of an endpoint's steps: each after those that it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from orchestrator_core.config.model import Step
from orchestrator_core.expressions import Reference
from orchestrator_core.plan.model import PlannedStep
from orchestrator_core.plan.reading import Reading


def in_order(reading: Reading, planned: Sequence[PlannedStep], steps: Sequence[Step]) -> tuple[PlannedStep, ...]:
    """Return the steps in an order that respects what they wait for, else as they are written."""
    by_name = {step.name: step for step in planned}
    waits = _edges(reading, steps)
    for name, names in waits.items():
        if name in names:
            located = next(step.located for step in steps if step.config.name == name)
            reading.report(located, "ORC507", f"the step '{name}' refers to itself", "name")
            waits[name] = names - {name}
    sorter = TopologicalSorter({name: sorted(names, key=list(waits).index) for name, names in waits.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = error.args[1]
        first = min(range(len(cycle) - 1), key=lambda index: list(waits).index(cycle[index]))
        turned = [*cycle[first:-1], *cycle[:first], cycle[first]]
        located = next(step.located for step in steps if step.config.name == turned[0])
        message = f"steps wait for each other: {' -> '.join(reversed(turned))}"
        reading.report(located, "ORC507", message, "name")
        return ()
    ordered: list[PlannedStep] = []
    position = {name: index for index, name in enumerate(waits)}
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=position.__getitem__)
        ordered += [by_name[name] for name in ready if name in by_name]
        sorter.done(*ready)
    return tuple(ordered)


def _edges(reading: Reading, steps: Sequence[Step]) -> dict[str, set[str]]:
    names = {step.config.name for step in steps}
    waits: dict[str, set[str]] = {
        step.config.name: {name for name in step.config.depends_on if name in names} for step in steps
    }
    for reference, located, _ in reading.references:
        for step in steps:
            if step.located is located and (name := step_of(reference)) in names:
                waits[step.config.name].add(name)
    return waits


def step_of(reference: Reference) -> str:
    """Return the step that a reference waits for, or the root that is none."""
    if reference.root == "execution" and reference.path[:1] == ("models",) and len(reference.path) > 1:
        return str(reference.path[1])
    return reference.root


__all__ = ["in_order", "step_of"]
