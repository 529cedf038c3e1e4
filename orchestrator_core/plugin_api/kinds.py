"""What the hooks answer with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic

import attrs
from attrs import field, frozen

from orchestrator_core.http_client import HttpClient
from orchestrator_core.plugin_api.abilities import ModelFacts
from orchestrator_core.plugin_api.calls import Model, OperationFacts, Source
from orchestrator_core.plugin_api.options import JSON, Options


@frozen
class OpenContext:
    """What a kind is given when it is opened.

    ``name`` is the source's or the model's name, for messages and labels: ``database.default``, or
    ``database.default (shop)`` where a domain has one of its own.
    ``operations`` holds the declared operations by name, as instances of the kind's ``operation`` class.
    ``config_dir`` is where relative paths start; use :meth:`path`. ``http`` is the one outbound client.

    ``failed_starts`` is how many times a model could not be opened, or ended, since somebody last asked for it, and
    ``max_starts`` how many of that may be failed starts. They are for kinds that share what they start with other
    processes, and therefore count the starts of all.

    ``kept`` is for a kind to note what a start of a model by itself is to begin with, such as the image that it was
    made from: what is noted by an opening that came to be in use is there at the next one, until the model is loaded
    anew because somebody asks for it, by a request, by hand or by a reload. A worker that is started in the place of
    one that has ended finds it too, if it is JSON.
    """

    name: str
    config_dir: Path
    http: HttpClient
    operations: Mapping[str, Any] = field(factory=dict)
    failed_starts: int = 0
    max_starts: int = 5
    kept: dict[str, JSON] = field(factory=dict, eq=False, repr=False)
    _open_model: Callable[[str, Mapping[str, Any]], AbstractAsyncContextManager[Model]] | None = field(
        default=None, alias="open_model", repr=False
    )

    def path(self, path: str) -> Path:
        """Return the path, taken relative to the configuration folder unless it is absolute."""
        return (self.config_dir / path).resolve()

    def named(self, name: str) -> OpenContext:
        """Return the same context under the name of a part of the source."""
        return attrs.evolve(self, name=name, operations={})

    def open_model(self, kind: str, options: Mapping[str, Any]) -> AbstractAsyncContextManager[Model]:
        """Open a model of another kind, such as ``http`` for a server this kind has started.

        ``options`` is what would stand in YAML. Raises :class:`ConfigError` when they do not fit the kind.
        """
        if self._open_model is None:
            raise RuntimeError(f"{self.name}: this context opens no other kinds")
        return self._open_model(kind, options)


@frozen
class SourceKind(Generic[Options]):
    """A type of source, as ``type:`` in a step and the section of that name in the configuration.

    ``options`` is the attrs class of ``<name>.sources.<source_id>`` (without ``operations``), ``operation`` that of
    one entry of ``operations``. Without an ``operation`` class the operations need not be declared: any name is
    passed to ``fetch``. With one, an undeclared operation is a problem unless ``undeclared_operations`` is true.
    ``facts`` tells, from the options alone and without touching the backend, what each operation takes.
    ``in_process`` says that a call may be answered without a pause of the event loop, as from memory or a local file:
    steps that wait for something else are then begun before it. ``idempotent`` says that a second call of any of its
    operations does no harm; where that differs, ``facts`` say so of each.
    """

    name: str
    summary: str
    options: type[Options]
    open: Callable[[Options, OpenContext], AbstractAsyncContextManager[Source]]
    operation: type[Any] | None = None
    undeclared_operations: bool = False
    facts: Callable[[Options, Mapping[str, Any]], Mapping[str, OperationFacts]] | None = None
    in_process: bool = False
    idempotent: bool = False


@frozen
class ModelKind(Generic[Options]):
    """A way to bring a model, as ``type:`` of a model in ``ml.sources``. ``aliases`` are other names for it.

    ``open`` loads or starts the model, and leaves when it is ready to be called. It raises ``ValueError`` or
    :class:`SourceError` when that can never succeed as configured (a wrong digest, no such image), and
    :class:`SourceUnavailable` when it may later: the core then tries again, with growing pauses. Say ``started=True``
    when something was started and ended, which is done a few times only, and ``started=False`` while there is nothing
    to start it with, such as an engine that is down, which is waited for.

    ``look`` tells what is known of the model without starting anything, for ``orchestrator check``; it raises as
    ``open`` does. A kind without it is opened and closed for that.

    ``idempotent`` says that asking such a model twice does no harm, and ``in_process``, of a model's options, that it
    is scored inside this process: see :class:`OperationFacts`. ``limits_load``, of the options too, says that ``open``
    and ``look`` end by limits of its own, such as that of a pull. Any other load that hangs is cancelled after the
    model's ``load_timeout``.
    """

    name: str
    summary: str
    options: type[Options]
    open: Callable[[Options, OpenContext], AbstractAsyncContextManager[Model]]
    aliases: tuple[str, ...] = ()
    look: Callable[[Options, OpenContext], Awaitable[ModelFacts | None]] | None = None
    idempotent: bool = False
    in_process: Callable[[Options], bool] | None = None
    limits_load: Callable[[Options], bool] | None = None


@frozen
class TransformerKind(Generic[Options]):
    """A pure function on a JSON value, named in a ``transform:`` list as ``name`` or ``{name: options}``.

    ``build`` is called once at load and returns the function that runs for each value. The function must not
    change its argument. It raises :class:`SourceError` for a value it cannot work on, naming the field.
    ``options`` is an attrs class, or any type that YAML data can be checked against, such as ``dict[str, str]``.
    """

    name: str
    summary: str
    options: Any
    build: Callable[[Options], Callable[[JSON], JSON]]


__all__ = ["ModelKind", "OpenContext", "SourceKind", "TransformerKind"]
