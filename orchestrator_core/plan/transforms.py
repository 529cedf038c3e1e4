"""Transforms: entries of a file to functions of a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator_core.config.model import StepConfig, StepTransforms
from orchestrator_core.config.structure import Located, option_problem, structure
from orchestrator_core.config.yaml import DataPath
from orchestrator_core.errors import InvalidParam, SourceError, did_you_mean
from orchestrator_core.plan.model import Transform
from orchestrator_core.plan.reading import Reading
from orchestrator_core.plugin_api import JSON
from orchestrator_core.plugins import Registry


def transforms_of_step(
    reading: Reading, registry: Registry, config: StepConfig, located: Located
) -> tuple[tuple[Transform, ...], Mapping[str, Transform]]:
    """Return what the result passes through, and for each converted parameter what its value does."""
    long_form = isinstance(config.transform, StepTransforms)
    result_at: DataPath = ("transform", "result") if long_form else ("transform",)
    conversions = {}
    for name, entries in config.transforms.params.items():
        if name not in config.params:
            hint = did_you_mean(name, config.params)
            message = f"the step passes no parameter '{name}'"
            reading.report(located, "ORC407", message, "transform", "params", name, at_key=True, hint=hint)
        elif built := transforms_of(reading, registry, entries, located, "transform", "params", name):
            conversions[name] = _conversion(name, built)
    return transforms_of(reading, registry, config.transforms.result, located, *result_at), conversions


def transforms_of(
    reading: Reading, registry: Registry, entries: Sequence[Any], located: Located, *key: str | int
) -> tuple[Transform, ...]:
    """Return the transforms; one with a problem holds its place, so that nothing is concluded from its absence."""
    return tuple(
        _transform(reading, registry, entry, located, *key, index) or _unreadable_transform
        for index, entry in enumerate(entries)
    )


def _transform(reading: Reading, registry: Registry, entry: Any, located: Located, *at: str | int) -> Transform | None:
    if isinstance(entry, str):
        options: Any = {}
        name = entry
        place = Located(located.document, (*located.path, *at), options)
    elif isinstance(entry, dict) and len(entry) == 1:
        name, options = next(iter(entry.items()))
        place = Located(located.document, (*located.path, *at, name), options)
    else:
        message = "a transform is a name, or one name with its options: {name: options}"
        reading.report(located, "ORC202", message, *at)
        return None
    provided = registry.transformers.get(name)
    if provided is None:
        code, message, hint = registry.missing("transformer", name, registry.transformers)
        reading.problems.append(place.problem(code, message, at_key=not isinstance(entry, str), hint=hint))
        return None
    value, problems = structure(provided.kind.options, place)
    reading.problems += problems
    if problems:
        return None
    try:
        built = provided.kind.build(value)
        if not callable(built):
            raise TypeError(f"build returned {type(built).__name__}, expected a function of a value")
        return built
    except ValueError as error:
        reading.problems.append(option_problem(place, f"{name}: {error}", error))
    except Exception as error:
        message = f"{name}: cannot be built: {type(error).__name__}: {error}"
        reading.problems.append(place.problem("ORC204", message, hint=f"a defect of {provided.plugin}"))
    return None


def _unreadable_transform(value: JSON) -> JSON:
    return value


def _conversion(param: str, transforms: Sequence[Transform]) -> Transform:
    """Return the transforms of a parameter as one function, whose failure names the parameter."""

    def convert(value: JSON) -> JSON:
        try:
            for transform in transforms:
                value = transform(value)
        except SourceError as error:
            raise InvalidParam(param, str(error)) from error
        return value

    return convert


__all__ = ["transforms_of", "transforms_of_step"]
