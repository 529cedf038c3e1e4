"""References, held against what there is to refer to: steps, the request, the item, the execution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import evolve

from orchestrator_core.config.model import UNSET, Step, StepConfig
from orchestrator_core.config.structure import Located
from orchestrator_core.config.yaml import DataPath
from orchestrator_core.errors import did_you_mean
from orchestrator_core.expressions import Reference
from orchestrator_core.plan.model import ITEM_ROOTS, REQUEST_PARTS
from orchestrator_core.plan.reading import Reading, place_of, runs_for_each
from orchestrator_core.plan.route import PARAMETER

_SHORT_PARTS = {"path": "path_params", "params": "path_params", "query": "query_params"}


def check_references(reading: Reading, names: set[str], steps: Mapping[str, Step]) -> None:
    """Report each reference that finds, or may find, nothing. ``names`` are those of all steps, readable or not."""
    for reference, located, path in reading.references:
        place = place_of(reference)
        if reference.root == "execution":
            _execution_reference(reading, reference, located, path, place, steps)
            continue
        if reference.root in ITEM_ROOTS:
            _item(reading, reference, located, path, place)
            continue
        if reference.root == "request":
            _request_reference(reading, reference, located, path, place)
        elif reference.root not in names:
            of_item = ITEM_ROOTS if path[:1] == ("params",) and runs_for_each(located) else ()
            hint = did_you_mean(reference.root, [*names, "request", "execution", *of_item])
            message = f"there is no step '{reference.root}'"
            reading.report(located, "ORC502", message, *path, hint=hint, **place)
        elif (step := steps.get(reference.root)) and not reference.guarded:
            _presence(reading, reference, step.config, located, path, place)


def _execution_reference(
    reading: Reading,
    reference: Reference,
    located: Located,
    path: DataPath,
    place: dict[str, Any],
    steps: Mapping[str, Step],
) -> None:
    """Hold ``$execution.models.<step>`` against the steps: the step has to call a model, and to be sure to."""
    if reference.path[:1] != ("models",):
        return
    models = {name for name, step in steps.items() if step.config.type == "ml"}
    if len(reference.path) == 1:
        if path[:1] != ("response_mapping",):
            hint = f"name the step: {reference.text}.{min(models, default='step')}"
            message = f"{reference.text} is complete in the response_mapping only"
            reading.report(located, "ORC503", message, *path, hint=hint, **place)
        return
    name = str(reference.path[1])
    step = steps.get(name)
    if step is None:
        if name not in reading.endpoint.unreadable_names:
            reading.report(
                located, "ORC502", f"there is no step '{name}'", *path, hint=did_you_mean(name, models), **place
            )
    elif step.config.type != "ml":
        message = f"the step '{name}' calls no model"
        reading.report(located, "ORC503", message, *path, hint=did_you_mean(name, models), **place)
    elif not reference.guarded:
        without_default = evolve(
            step.config, default=UNSET, required=step.config.default is UNSET and step.config.required
        )
        _presence(reading, reference, without_default, located, path, place)


def _item(reading: Reading, reference: Reference, located: Located, path: DataPath, place: dict[str, Any]) -> None:
    """Report ``$item`` and ``$index`` where there is no item, and fields of a number."""
    if not runs_for_each(located) or path[:1] not in (("params",), ("cache",)):
        message = f"{reference.text} is known only in the params of a step with for_each"
        hint = "give the step for_each: the list to run over"
        if path[:1] == ("for_each",):
            hint = "for_each is the list that the items come from"
        elif path[:1] == ("condition",):
            hint = "the condition is of the step as a whole, and decided before there are items"
        elif path[:1] != ("params",):
            hint = "refer to the results: $step is a list, with one result for each item, and $step[0] the first"
        reading.report(located, "ORC509", message, *path, hint=hint, **place)
    elif reference.root == "index" and reference.path:
        message = f"{reference.text} finds nothing: $index is the number of the item, counted from 0"
        reading.report(located, "ORC509", message, *path, hint="did you mean $item?", **place)


def _request_reference(
    reading: Reading, reference: Reference, located: Located, path: DataPath, place: dict[str, Any]
) -> None:
    if not reference.path:
        return
    part = reference.path[0]
    declared = (reading.endpoint.config.input_schema or {}).get("properties") or {}
    if part not in REQUEST_PARTS and len(reference.path) > 1 and part not in declared:
        hint = did_you_mean(_SHORT_PARTS.get(str(part), str(part)), REQUEST_PARTS)
        if hint.startswith("did you mean"):
            message = f"there is no part '{part}' of a request"
            reading.report(located, "ORC503", message, *path, hint=hint, **place)
    template = reading.endpoint.config.path
    if part == "path_params" and len(reference.path) > 1 and template is not None:
        names = PARAMETER.findall(template)
        if str(reference.path[1]) not in names and not reference.guarded:
            message = f"the path {template} has no parameter '{reference.path[1]}'"
            hint = did_you_mean(str(reference.path[1]), names)
            reading.report(located, "ORC503", message, *path, hint=hint, **place)


def _presence(
    reading: Reading, reference: Reference, step: StepConfig, located: Located, path: DataPath, place: dict[str, Any]
) -> None:
    """Report a reference to what may not be there and that nothing falls back from."""
    # A step that runs for each item gives a list, in which an item that failed has its default.
    inside = reference.path if step.for_each is None else reference.path[1:]
    each = step.for_each is not None
    if step.condition is not True:
        reason = f"the step '{step.name}' has a condition, and may be skipped"
    elif each and not inside:
        return
    elif not step.required and step.default is UNSET:
        reason = f"the step '{step.name}' is not required, and may fail{' for an item' if each else ''}"
    elif step.default is not UNSET and not _reaches(step.default, inside):
        reason = f"the default of the step '{step.name}' has no {reference.text}"
    else:
        return
    hint = f"give a fallback: {reference.text} ?? …"
    reading.report(located, "ORC504", f"{reference.text} may be missing: {reason}", *path, hint=hint, **place)


def _reaches(value: Any, path: Iterable[str | int]) -> bool:
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


__all__ = ["check_references"]
