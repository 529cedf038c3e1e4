"""What can be wrong with sources and models that are opened, at the places where they are configured."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Container, Iterable
from typing import TypeAlias

from attrs import evolve

from orchestrator_core.blame import is_defect, why_unusable
from orchestrator_core.catalog import SourceSpec
from orchestrator_core.config.secrets import Redactor
from orchestrator_core.config.structure import Located
from orchestrator_core.errors import ConfigError, Problem, SourceUnavailable
from orchestrator_core.models import ModelSpec, Trouble, WarmUpFailed
from orchestrator_core.plugin_api import Inspection

PlaceKey: TypeAlias = tuple[str, tuple[str | int, ...]]
"""A file's name, and a path in it."""


def opening_problems(spec: SourceSpec, error: BaseException, operation: str = "") -> list[Problem]:
    """Return the problems of a source, or of one of its models, that could not be opened."""
    if isinstance(error, ConfigError):
        return list(error.problems)
    message = f"{spec.label} cannot be opened: {why_unusable(error)}"
    hint = ""
    if is_defect(error):
        where = traceback.extract_tb(error.__traceback__)[-1]
        model = spec.operations.get(operation)
        plugin = model.plugin if isinstance(model, ModelSpec) else spec.plugin
        hint = f"raised in {where.name}, line {where.lineno}: a defect of {plugin}"
    place = spec.places.get(operation)
    if place is None:
        return [_at(spec, "ORC601", message, hint)]
    at = ("path",) if "path" in place.data else ()
    return [place.problem("ORC601", message, *at, at_key=not at, hint=hint)]


def model_problems(spec: SourceSpec, trouble: Trouble, hint: str) -> list[Problem]:
    """Return the problems of a model that could not be had: warnings where the source is served without it.

    ``hint`` is what one can do about a backend that is only not there.
    """
    error, operation = trouble.error, trouble.operation
    place = spec.places.get(operation)
    if trouble.of_fallback:
        found = [_at(spec, "ORC601" if trouble.fatal else "ORC604", f"the fallback of {spec.label}: {error}")]
    elif isinstance(error, WarmUpFailed) and place is not None and error.index < len(place.data.get("warm_up") or ()):
        found = [place.problem("ORC601", f"{spec.label} cannot be opened: {error}", "warm_up", error.index)]
    elif isinstance(error, SourceUnavailable):
        named = spec.label in str(error)
        message = str(error) if named else f"{spec.label} cannot be reached: {error}"
        found = [_at(spec, "ORC604", message, hint)]
    else:
        found = opening_problems(spec, error, operation)
    return found if trouble.fatal else [problem.as_warning() for problem in found]


def inspection_problems(
    spec: SourceSpec,
    inspection: Inspection,
    unreachable: str,
    hint: str,
    *,
    unreachable_is_error: bool,
    shared: Container[PlaceKey] = (),
) -> Iterable[Problem]:
    """Return the problems of a source that is open: what it found, or why it could not be reached.

    ``hint`` is what one can do about a backend that is only not there. ``shared`` are the places of operations that
    several sources have: what one of them finds wrong there says which it is.
    """
    if unreachable:
        named = spec.label in unreachable
        message = unreachable if named else f"{spec.label} cannot be reached: {unreachable}"
        problem = _at(spec, "ORC604", message, hint)
        yield problem if unreachable_is_error else problem.as_warning()
    for finding in inspection.findings:
        place = spec.places.get(finding.operation) if finding.operation else spec.located
        if place is None:
            yield _at(spec, "ORC602", finding.message, finding.hint)
        else:
            message = f"{spec.label}: {finding.message}" if _place_key(place) in shared else finding.message
            yield place.problem("ORC602", message, *finding.at, near=finding.near, hint=finding.hint)


def shared_places(specs: Iterable[SourceSpec]) -> Container[PlaceKey]:
    """Return where operations stand that more than one of the sources has."""
    counts = Counter(_place_key(place) for spec in specs for place in spec.places.values())
    return {key for key, count in counts.items() if count > 1}


def _place_key(place: Located) -> PlaceKey:
    return place.document.name, place.path


def _at(spec: SourceSpec, code: str, message: str, hint: str = "") -> Problem:
    if spec.located is None:
        return Problem(code=code, message=message, hint=hint)
    return spec.located.problem(code, message, at_key=True, hint=hint)


def masked(problems: Iterable[Problem], redact: Redactor) -> list[Problem]:
    """Return the problems without the secrets that a backend's words, or an option's, may repeat: each once, sorted."""
    return sorted({evolve(problem, message=redact(problem.message), hint=redact(problem.hint)) for problem in problems})


__all__ = ["inspection_problems", "masked", "model_problems", "opening_problems", "shared_places"]
