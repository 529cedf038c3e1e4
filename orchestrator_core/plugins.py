"""Discovery of plugins: entry points and a folder of files to an immutable registry that knows who provides what."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from inspect import iscoroutinefunction
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

import attrs
import pluggy
from attrs import field, frozen

from orchestrator_core import hookspecs
from orchestrator_core.errors import Problem, did_you_mean
from orchestrator_core.plugin_api import (
    PROJECT,
    Execution,
    ModelKind,
    SourceKind,
    StoreKind,
    TelemetryKind,
    TransformerKind,
)

GROUP = "orchestrator.plugins"

STANDARD_TRANSFORMERS = (
    *("bucket", "cast", "compute", "default", "drop", "flatten", "jmespath", "map_values", "one_hot", "rename"),
    *("round", "scale", "select"),
)
KNOWN_DISTRIBUTIONS: Mapping[str, str] = {
    "source type 'database'": "orchestrator-api-source-database",
    "source type 'api'": "orchestrator-api-source-api",
    "source type 'feast'": "orchestrator-api-source-feast",
    "model type 'http'": "orchestrator-api-model-http",
    "model type 'artifact'": "orchestrator-api-model-artifact",
    "model type 'local_artifact'": "orchestrator-api-model-artifact",
    "model type 'docker'": "orchestrator-api-model-docker",
    "model type 'ecr'": "orchestrator-api-model-ecr",
    "tracking store 'sql'": "orchestrator-api-tracking-sql",
    "section 'telemetry'": "orchestrator-api-telemetry",
    **{f"transformer '{name}'": "orchestrator-api-transform-standard" for name in STANDARD_TRANSFORMERS},
}
"""What to install for a type that nothing installed provides."""

Kind = TypeVar("Kind")


@frozen
class Plugin:
    """A plugin and where it came from: a distribution with its version, or a file. ``error`` is its traceback."""

    name: str
    origin: str
    version: str = ""
    error: str = ""
    summary: str = ""

    def __str__(self) -> str:
        return f"{self.origin} {self.version}".strip()


@frozen
class Provided(Generic[Kind]):
    """A kind and the plugin that provides it."""

    kind: Kind
    plugin: Plugin


Observer = Callable[[Execution], None]


@frozen
class Registry:
    """All that the plugins provide. ``models`` has an entry for each alias as well."""

    sources: Mapping[str, Provided[SourceKind[Any]]] = field(factory=dict)
    models: Mapping[str, Provided[ModelKind[Any]]] = field(factory=dict)
    transformers: Mapping[str, Provided[TransformerKind[Any]]] = field(factory=dict)
    observers: tuple[Provided[Observer], ...] = ()
    telemetry: Provided[TelemetryKind[Any]] | None = None
    plugins: tuple[Plugin, ...] = ()
    problems: tuple[Problem, ...] = ()
    stores: Mapping[str, Provided[StoreKind[Any]]] = field(factory=dict)

    def missing(self, what: str, name: str, known: Iterable[str]) -> tuple[str, str, str]:
        """Return the code, message and hint for a type that is not there. ``what`` is such as ``source type``."""
        label = f"{what} '{name}'"
        distribution = KNOWN_DISTRIBUTIONS.get(label, "")
        installable = [entry.split("'")[1] for entry in KNOWN_DISTRIBUTIONS if entry.startswith(what)]
        for plugin in self.plugins:
            if plugin.error and (plugin.name == name or plugin.origin == distribution):
                reason = plugin.error.strip().splitlines()[-1]
                hint = "for the traceback: orchestrator plugins --format json"
                return "ORC403", f"`{name}`: {plugin} is installed but failed to import: {reason}", hint
        if distribution:
            return "ORC401", f"no installed plugin provides the {label}", f"install it: pip install {distribution}"
        hint = did_you_mean(name, [*known, *installable])
        if broken := [str(plugin) for plugin in self.plugins if plugin.error]:  # one of them may provide it
            hint += f"; {', '.join(broken)} failed to import: orchestrator plugins tells why"
        return "ORC401", f"no installed plugin provides the {label}", hint.removeprefix("; ")


def discover(
    plugins_dir: Path | None = None,
    builtins: Mapping[str, object] | None = None,
    given: Mapping[str, object] | None = None,
) -> Registry:
    """Load the built-in plugins, every entry point of the group, the files of a folder, and those given by name."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    plugins: dict[str, Plugin] = {}
    problems: list[Problem] = []
    for name, builtin in (builtins or {}).items():
        plugin = Plugin(name, "orchestrator-api-core", _core_version(), summary="built in")
        plugins[name] = _register(manager, plugin, lambda builtin=builtin: builtin)  # type: ignore[misc]
    for entry_point in sorted(metadata.entry_points(group=GROUP)):
        plugin = _of_entry_point(entry_point)
        plugins[_key(plugins, plugin)] = _register(manager, plugin, entry_point.load)
    for path in _files(plugins_dir, problems):
        plugin = Plugin(path.stem, str(path))
        plugins[_key(plugins, plugin)] = _register(manager, plugin, lambda path=path: _load_file(path))  # type: ignore[misc]
    for name, module in (given or {}).items():
        plugin = Plugin(name, f"the given plugin {name}")
        plugins[_key(plugins, plugin)] = _register(manager, plugin, lambda module=module: module)  # type: ignore[misc]
    return _collect(manager, plugins, problems)


def _core_version() -> str:
    from orchestrator_core import __version__

    return __version__


def _of_entry_point(entry_point: metadata.EntryPoint) -> Plugin:
    distribution = entry_point.dist
    if distribution is None:
        return Plugin(entry_point.name, entry_point.value)
    told = distribution.metadata  # parsed anew each time it is asked for, also for a name or a version
    summary = told["Summary"] if "Summary" in told else ""  # noqa: SIM401  # typeshed's has no get for Python 3.11
    return Plugin(entry_point.name, told["Name"], told["Version"], summary=summary)


def _key(plugins: Mapping[str, Plugin], plugin: Plugin) -> str:
    return plugin.name if plugin.name not in plugins else f"{plugin.origin}:{plugin.name}"


def _register(manager: pluggy.PluginManager, plugin: Plugin, load: Callable[[], object]) -> Plugin:
    name = plugin.name if not manager.has_plugin(plugin.name) else f"{plugin.origin}:{plugin.name}"
    try:
        manager.register(load(), name)
        manager.check_pending()
    except (Exception, SystemExit):  # a plugin may fail in any way; it must not take the others with it
        if manager.has_plugin(name):
            manager.unregister(name=name)
        return Plugin(plugin.name, plugin.origin, plugin.version, traceback.format_exc(), plugin.summary)
    return plugin


def _files(folder: Path | None, problems: list[Problem]) -> list[Path]:
    if folder is None:
        return []
    if not folder.is_dir():
        problems.append(Problem(code="ORC404", message=f"there is no plugins folder at {folder}"))
        return []
    return sorted(path for path in folder.glob("*.py") if not path.name.startswith(("_", ".")))


def _load_file(path: Path) -> ModuleType:
    name = f"orchestrator_plugins_dir.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # attrs resolves annotations through it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _collect(manager: pluggy.PluginManager, plugins: dict[str, Plugin], problems: list[Problem]) -> Registry:
    sources: dict[str, Provided[SourceKind[Any]]] = {}
    models: dict[str, Provided[ModelKind[Any]]] = {}
    transformers: dict[str, Provided[TransformerKind[Any]]] = {}
    for plugin, kind in _answers(manager, plugins, "orchestrator_source_kinds"):
        _add(sources, "source type", kind.name, Provided(kind, plugin), problems)
    for plugin, kind in _answers(manager, plugins, "orchestrator_model_kinds"):
        for alias in (kind.name, *kind.aliases):
            _add(models, "model type", alias, Provided(kind, plugin), problems)
    for plugin, kind in _answers(manager, plugins, "orchestrator_transformers"):
        _add(transformers, "transformer", kind.name, Provided(kind, plugin), problems)
    stores: dict[str, Provided[StoreKind[Any]]] = {}
    for plugin, kind in _answers(manager, plugins, "orchestrator_execution_stores"):
        _add(stores, "tracking store", kind.name, Provided(kind, plugin), problems)
    observers = tuple(_observers(manager, plugins))
    telemetry: dict[str, Provided[TelemetryKind[Any]]] = {}
    for plugin, kind in _answers(manager, plugins, "orchestrator_telemetry"):
        _add(telemetry, "section", "telemetry", Provided(kind, plugin), problems)
    return Registry(
        sources,
        models,
        transformers,
        observers,
        telemetry.get("telemetry"),
        tuple(plugins.values()),
        tuple(problems),
        stores,
    )


def _observers(manager: pluggy.PluginManager, plugins: dict[str, Plugin]) -> Iterator[Provided[Observer]]:
    for implementation in manager.hook.orchestrator_execution_finished.get_hookimpls():
        name = implementation.plugin_name
        if iscoroutinefunction(implementation.function):  # nobody would await what it returns
            error = "TypeError: orchestrator_execution_finished is a coroutine function: hooks are synchronous"
            plugins[name] = attrs.evolve(plugins[name], error=error)
        else:
            yield Provided(_observer(implementation), plugins[name])


def _observer(implementation: pluggy.HookImpl) -> Observer:
    """Return the plugin's function, called with the arguments that it accepts, as pluggy does."""
    function: Callable[..., object] = implementation.function
    takes_execution = "execution" in implementation.argnames

    def observe(execution: Execution) -> None:
        function(execution) if takes_execution else function()

    return observe


def _answers(manager: pluggy.PluginManager, plugins: dict[str, Plugin], hook: str) -> Iterator[tuple[Plugin, Any]]:
    """Call each plugin's hook by itself, so that one that fails does not silence the others."""
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        name = implementation.plugin_name
        plugin = plugins[name]
        try:
            kinds = _kinds(hook, implementation.function())
        except (Exception, SystemExit):  # recorded with its traceback, as a failed import is
            error = traceback.format_exc()
            plugins[name] = Plugin(plugin.name, plugin.origin, plugin.version, error, plugin.summary)
            continue
        for kind in kinds:
            yield plugins[name], kind


_KINDS: dict[str, type[Any]] = {
    "orchestrator_source_kinds": SourceKind,
    "orchestrator_model_kinds": ModelKind,
    "orchestrator_transformers": TransformerKind,
    "orchestrator_execution_stores": StoreKind,
    "orchestrator_telemetry": TelemetryKind,
}


def _kinds(hook: str, answer: Any) -> list[Any]:
    """Return what a hook has answered. Raises ``TypeError`` where that is no list of kinds."""
    expected = _KINDS[hook]
    if not isinstance(answer, Iterable):
        raise TypeError(f"{hook} returned {type(answer).__name__}, expected a list of {expected.__name__}")
    kinds = list(answer)
    for kind in kinds:
        if not isinstance(kind, expected):
            raise TypeError(f"{hook} returned {type(kind).__name__} in its list, expected {expected.__name__}")
        names = (kind.name, *kind.aliases) if isinstance(kind, ModelKind) else (kind.name,)
        if unfit := [name for name in names if not isinstance(name, str) or not name]:
            raise TypeError(f"{hook} returned a {expected.__name__} named {unfit[0]!r}, expected a text")
        options = kind.options
        if expected is not TransformerKind and not isinstance(options, type):
            raise TypeError(f"the options of '{kind.name}' are {type(options).__name__}(…), expected the class itself")
        if expected is not TransformerKind and not attrs.has(options) and options.__module__ != "builtins":
            raise TypeError(f"the options of '{kind.name}' are no attrs class: is {options.__name__} marked @frozen?")
    return kinds


def _add(into: dict[str, Any], what: str, name: str, provided: Provided[Any], problems: list[Problem]) -> None:
    other = into.get(name)
    if other is None:
        into[name] = provided
        return
    message = f"two plugins provide the {what} '{name}': {other.plugin} and {provided.plugin}"
    problems.append(Problem(code="ORC402", message=message, hint="uninstall one of them"))
