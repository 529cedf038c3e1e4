"""The store of executions that a configuration asks for, checked against the kind of its type."""

from __future__ import annotations

from typing import Any

from attrs import evolve, field, frozen

from orchestrator_core.blame import why_unusable
from orchestrator_core.config.model import Configuration
from orchestrator_core.config.structure import Located, option_problem, structure
from orchestrator_core.errors import OFFLINE_HINT, Problem, SourceUnavailable
from orchestrator_core.plugin_api import AddsRuns, StoreContext, StoreKind, StoreNotMade
from orchestrator_core.plugins import Plugin, Registry


@frozen
class StoreSpec:
    """A store as it is configured, with the place of ``tracking.store``."""

    kind: StoreKind[Any]
    plugin: Plugin
    options: Any
    located: Located = field(eq=False, repr=False)


def find_store(configuration: Configuration, registry: Registry) -> tuple[StoreSpec | None, list[Problem]]:
    """Return the store of ``tracking.store``, if there is one, and what is wrong with it."""
    tracking, settings = configuration.app.tracking, configuration.app_located
    if tracking.store is None or settings is None:
        if tracking.mode == "durable" and settings is not None:
            message, hint = "durable executions need a store", "give tracking.store, such as store: {type: sql}"
            return None, [settings.problem("ORC203", message, "tracking", "mode", hint=hint)]
        return None, []
    located = settings["tracking"]["store"]
    name = located.data.get("type")
    if not isinstance(name, str):
        hint = f"one of: {', '.join(sorted(registry.stores))}" if registry.stores else ""
        if name is None:
            return None, [located.problem("ORC203", "'type' is missing", at_key=True, hint=hint)]
        return None, [located.problem("ORC202", "expected the name of a store", "type", hint=hint)]
    provided = registry.stores.get(name)
    if provided is None:
        code, message, hint = registry.missing("tracking store", name, registry.stores)
        return None, [located.problem(code, message, "type", hint=hint)]
    rest = {key: value for key, value in located.data.items() if key != "type"}
    options, problems = structure(provided.kind.options, Located(located.document, located.path, rest))
    if options is None:
        return None, problems
    spec = StoreSpec(provided.kind, provided.plugin, options, located)
    if provided.kind.check is not None:
        try:
            provided.kind.check(options, StoreContext(configuration.folder, tracking.mode == "durable"))
        except ValueError as error:
            return None, [option_problem(located, str(error), error)]
        except Exception as error:  # a defect of the plugin's: the rest of the configuration is told of all the same
            return None, [evolve(unusable_store(spec, error), hint=f"a defect of {spec.plugin}")]
    return spec, problems


async def look_at_store(spec: StoreSpec, configuration: Configuration) -> list[Problem]:
    """Return what is wrong with a store as it is now. Nothing in it is changed, and it need not be made yet."""
    durable = configuration.app.tracking.mode == "durable"
    try:
        async with spec.kind.open(spec.options, StoreContext(configuration.folder, durable, existing=True)) as store:
            check_opened(store)
            return []
    except StoreNotMade:
        return []
    except SourceUnavailable as error:
        return [spec.located.problem("ORC604", f"the tracking store cannot be reached: {error}", hint=OFFLINE_HINT)]
    except Exception as error:
        return [unusable_store(spec, error)]


def check_opened(store: object) -> None:
    """Raise ``ValueError`` for what is no store: each execution and each page would fail on it."""
    adds = () if isinstance(store, AddsRuns) else ("add",)
    for method in ("find", "get", "prune", "add_generation", "get_generation", *adds):
        if not callable(getattr(store, method, None)):
            raise ValueError(f"what was opened has no {method}: it is a {type(store).__name__}")


def unusable_store(spec: StoreSpec, error: Exception) -> Problem:
    """Return the problem of a store that can never be used as it is."""
    return spec.located.problem("ORC601", f"the tracking store cannot be used: {why_unusable(error)}")


__all__ = ["StoreSpec", "check_opened", "find_store", "look_at_store", "unusable_store"]
