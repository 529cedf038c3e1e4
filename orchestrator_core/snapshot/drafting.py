"""A configuration, compiled and not yet open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import frozen

from orchestrator_core.applied import defaults_of
from orchestrator_core.catalog import Catalog, build_catalog
from orchestrator_core.config.model import Configuration
from orchestrator_core.errors import Problem
from orchestrator_core.facts import check_facts
from orchestrator_core.plan import Compiled, Plan, PlannedStep, compile_plan
from orchestrator_core.plugin_api import CallInspection
from orchestrator_core.plugins import Registry
from orchestrator_core.redaction import check_redacted
from orchestrator_core.snapshot.problems import masked
from orchestrator_core.stores import StoreSpec, find_store
from orchestrator_core.telemetry import ConfiguredTelemetry, configure_telemetry

UNRESOLVED = ("ORC301", "ORC302", "ORC303")
"""What a placeholder stands for is not known."""
PlanKey = tuple[str, str]


@frozen
class Draft:
    """A configuration compiled and not yet open: what can be known without touching a backend.

    ``plans`` are those that nothing is wrong with, ``endpoints`` all of them.
    """

    configuration: Configuration
    registry: Registry
    catalog: Catalog
    endpoints: tuple[Compiled, ...]
    plans: Mapping[PlanKey, Plan]
    problems: tuple[Problem, ...]
    store: StoreSpec | None = None
    telemetry: ConfiguredTelemetry | None = None

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]


def draft(configuration: Configuration, registry: Registry) -> Draft:
    """Compile every endpoint. Pure computation: safe to run in a thread."""
    catalog = build_catalog(configuration, registry)
    store, unfit_store = find_store(configuration, registry)
    telemetry, unfit_telemetry = configure_telemetry(configuration, registry)
    problems = [*configuration.problems, *registry.problems, *catalog.problems, *unfit_store, *unfit_telemetry]
    problems += check_redacted(configuration)
    defaults = defaults_of(configuration)
    endpoints: list[Compiled] = []
    plans: dict[PlanKey, Plan] = {}
    for endpoint in configuration.endpoints:
        compiled = compile_plan(endpoint, catalog, registry, incomplete=configuration.incomplete, defaults=defaults)
        unfit = check_facts(compiled, _declared_facts)
        problems += [*compiled.problems, *unfit]
        endpoints.append(compiled)
        if compiled.plan and not unfit:
            plans[endpoint.domain, endpoint.name] = compiled.plan
    found = tuple(masked(_without_consequences(problems), configuration.redactor))
    return Draft(configuration, registry, catalog, tuple(endpoints), plans, found, store, telemetry)


def _without_consequences(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems without those of values that are unfit because a placeholder in them stands for nothing."""
    unresolved = {(problem.file, problem.path) for problem in problems if problem.code in UNRESOLVED}
    return [
        problem for problem in problems if problem.code in UNRESOLVED or (problem.file, problem.path) not in unresolved
    ]


def _declared_facts(step: PlannedStep) -> CallInspection:
    return CallInspection(step.spec.facts.get(step.operation))


__all__ = ["Draft", "PlanKey", "draft"]
