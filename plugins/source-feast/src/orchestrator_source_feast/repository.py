"""A feature repository opened in this process: Feast's SDK, its registry, and the store read directly where it can be.

Loaded after Feast. Everything here that asks the SDK runs in a thread.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from threading import Lock
from time import sleep
from traceback import walk_tb
from typing import Any

from feast import FeatureStore
from feast.errors import FeastError
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.passthrough_provider import PassthroughProvider
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.repo_config import RepoConfig, load_repo_config
from feast.utils import get_default_yaml_file_path
from sqlalchemy.engine import make_url

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_source_feast.lookup import Lookup, View, Wanted
from orchestrator_source_feast.options import FeastOptions
from orchestrator_source_feast.registry import Registered, resolve
from orchestrator_source_feast.stores import Found, Store, age_limits, oldest
from orchestrator_source_feast.threads import Threads

__all__ = ["Repository"]

DEFAULT_REFRESH_SECONDS = 60.0
READS, SECONDS_BETWEEN_READS = 20, 0.05


class Repository:
    """The SDK's feature store with what is in its registry. Its methods are synchronous, for a thread."""

    def __init__(self, name: str, path: Path, connect_seconds: float) -> None:
        self._name = name
        self._config = _config(path)
        self.refresh_seconds = float(self._config.registry.cache_ttl_seconds or DEFAULT_REFRESH_SECONDS)
        # In this mode and without a lifetime no registry of Feast's is read anew inside a request; `refresh` does it.
        self._config.registry.cache_mode = "thread"
        self._config.registry.cache_ttl_seconds = 0
        _check_registry_file(path, self._config)
        try:
            _limit_connecting(self._config.registry, connect_seconds)
            self._sdk: Any = FeatureStore(repo_path=str(path), config=self._config)
            self.registered = Registered.read(self._sdk)
        except Exception as error:  # anything from a missing file to a driver's own errors
            raise SourceUnavailable(f"cannot read the registry: {_reason(error)}") from error
        _let_go(self._sdk)
        self._seen = _fingerprint(self._sdk)
        self._connected = False
        self._first = Lock()
        self._calls = 0
        self._counting = Lock()

    @property
    def project(self) -> str:
        return str(self._sdk.project)

    @property
    def join_keys(self) -> frozenset[str]:
        return frozenset(self.registered.join_keys.values())

    def resolve(self, wanted: Wanted) -> Lookup:
        """Raise ``Unresolved`` with all that the registry does not have."""
        return resolve(self.registered, wanted)

    def refresh(self) -> bool:
        """Read the registry anew; tell whether anything may have changed."""
        seen = _fingerprint(self._sdk)
        if seen is not None and seen == self._seen:
            return False
        for _ in range(READS):
            before = _fingerprint(self._sdk)
            self._sdk.refresh_registry()
            registered = Registered.read(self._sdk)
            if before == _fingerprint(self._sdk) and (registered.views or not self.registered.views):
                self.registered, self._seen = registered, before
                return True
            sleep(SECONDS_BETWEEN_READS)  # Feast writes a registry file in place: this was a part of one
        raise SourceUnavailable("it is empty, or written all the time")

    def open_store(self, options: FeastOptions, threads: Threads) -> Store | None:
        """Return the online store for direct reads, or None where only the SDK reads it exactly. Needs the loop."""
        try:
            provider = self._sdk._get_provider()
            online_store = provider.online_store
        except Exception as error:  # a store whose extra is not installed, a class of the user's own
            raise SourceError(f"cannot open the online store: {_reason(error)}") from error
        if (
            not options.direct_reads
            or type(provider).get_online_features is not PassthroughProvider.get_online_features
        ):
            return None
        kind = type(online_store)
        where = f"{kind.__module__}.{kind.__qualname__}"
        opener = OPENERS.get(where)
        return opener(self, options, threads) if opener else None

    def read(
        self, lookup: Lookup, entities: Sequence[Mapping[str, Any]], max_age_seconds: float | None
    ) -> list[list[Found]]:
        """Read the stored features of entities through the SDK, in one call: as the direct reads do, for any store."""
        if not lookup.views:
            return [[] for _ in entities]
        if lookup.wanted.service and not lookup.on_demand:
            features: Any = self.registered.services[lookup.wanted.service]
        else:
            features = [f"{view.name}:{feature.name}" for view in lookup.views for feature in view.features]
        answer = self._ask(features, entities)
        limits = age_limits(lookup.views, max_age_seconds)
        views = list(zip(lookup.views, limits, strict=True))
        return [[_found(view, answer, row, limit) for view, limit in views] for row in range(len(entities))]

    def compute(self, lookup: Lookup, names: Sequence[str], row: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
        """Compute the on-demand feature views of these names; return values by view and feature."""
        computed = {}
        for each in lookup.on_demand:
            if each.name not in names:
                continue
            if each.name == each.view:
                # By short names, one view at a time: with full ones the SDK loses the results of views in Python mode.
                prefix, full_names = "", False
                features: Any = [f"{each.view}:{feature.name}" for feature in each.features]
            else:
                features, full_names = self.registered.services[lookup.wanted.service], lookup.wanted.full_names
                prefix = f"{each.name}__" if full_names else ""
            answer = self._ask(features, [row], full_names=full_names)
            for feature in each.features:
                vector = answer.get(f"{prefix}{feature.name}")
                if vector is None:
                    message = f"the on-demand feature view '{each.name}' did not return '{feature.name}'"
                    raise SourceError(f"feast '{self._name}': {message}")
                computed[each.name, feature.name] = vector.values[0]
        return computed

    def _ask(self, features: Any, rows: Sequence[Mapping[str, Any]], *, full_names: bool = True) -> dict[str, Any]:
        """Return Feast's vectors by feature name."""
        if self._connected:
            return self._ask_sdk(features, rows, full_names)
        with self._first:  # stores make their clients when first used, without a lock
            vectors = self._ask_sdk(features, rows, full_names)
            self._connected = True
        return vectors

    def _ask_sdk(self, features: Any, rows: Sequence[Mapping[str, Any]], full_names: bool) -> dict[str, Any]:
        with self._counting:
            self._calls += 1
        broken = False
        try:
            response = self._sdk.get_online_features(
                features=features,
                entity_rows={key: [row[key] for row in rows] for key in rows[0]} or {DUMMY_ENTITY_ID: [""] * len(rows)},
                full_feature_names=full_names,
            )
        except Exception as error:  # stores raise their drivers' errors, on-demand views whatever the user's code does
            broken = not isinstance(error, FeastError) and not _is_of_a_transformation(error)
            raise SourceError(f"feast '{self._name}': {_reason(error)}") from error
        finally:
            with self._counting:
                self._calls -= 1
                if broken:
                    self._forget_connections()
        proto = response.proto
        return dict(zip(proto.metadata.feature_names.val, proto.results, strict=True))

    def _forget_connections(self) -> None:
        """Stores keep a connection that has failed: let them make a new one.

        One that another thread is in the middle of using must not be closed under it: with SQLite that would end the
        process. It is closed when that thread has let go of it.
        """
        self._connected = False
        _let_go_of(self._sdk._get_provider().online_store, close=self._calls == 0)

    def close(self) -> None:
        with self._counting:
            self._forget_connections()
        _let_go_of(getattr(self._sdk, "_registry", None), close=True)


def _config(path: Path) -> RepoConfig:
    if not path.is_dir():
        raise SourceError(f"there is no folder {path}")
    try:
        return load_repo_config(path, get_default_yaml_file_path(path))
    except FileNotFoundError:
        raise SourceError(f"there is no feature_store.yaml in {path}") from None
    except Exception as error:  # YAML's, pydantic's and Feast's own
        raise SourceError(f"cannot read feature_store.yaml: {_reason(error)}") from error


def _check_registry_file(path: Path, config: RepoConfig) -> None:
    """The SDK would make an empty registry where there is none."""
    registry = config.registry
    if registry.registry_type != "file" or registry.registry_store_type or "://" in registry.path:
        return
    file = path / registry.path
    if not file.exists():
        raise SourceUnavailable(f"there is no registry {file}; run `feast apply` in {path}")


CONNECT_TIMEOUT = "connect_timeout"
TAKE_CONNECT_TIMEOUT = frozenset(("psycopg", "psycopg2", "pymysql", "mysqldb", "mariadbconnector"))


def _limit_connecting(registry: Any, seconds: float) -> None:
    """Have a registry in a database that does not answer fail soon: drivers wait for minutes."""
    if registry.registry_type != "sql":
        return
    urls = [make_url(path) for path in (registry.path, registry.read_path) if path]
    if any(url.get_driver_name() not in TAKE_CONNECT_TIMEOUT or CONNECT_TIMEOUT in url.query for url in urls):
        return
    given = registry.sqlalchemy_config_kwargs
    arguments = {CONNECT_TIMEOUT: ceil(seconds), **given.get("connect_args", {})}
    registry.sqlalchemy_config_kwargs = {**given, "connect_args": arguments}


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


TRANSFORMATIONS = ("feast.on_demand_feature_view", "feast.transformation.")


def _is_of_a_transformation(error: Exception) -> bool:
    """Whether an on-demand feature view raised it: its user's code, which has nothing to do with the store."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(str(frame.f_globals.get("__name__")).startswith(TRANSFORMATIONS) for frame in frames)


def _let_go(sdk: FeatureStore) -> None:
    """Take back what caching registries register to run at exit, which would keep them alive."""
    handler = getattr(sdk.registry, "_exit_handler", None)
    if handler is not None:
        atexit.unregister(handler)


def _fingerprint(sdk: FeatureStore) -> tuple[float, int] | None:
    """What tells a changed registry file without reading it; None for a registry that is no local file."""
    file = getattr(sdk.registry, "_file_path", None)
    if file is None:
        return None
    with suppress(OSError):
        stat = file.stat()
        return stat.st_mtime, stat.st_size
    return None


CLIENTS = ("_client", "_conn", "_conn_pool", "_glide_client", "engine", "read_engine", "write_engine")


def _let_go_of(holder: Any, *, close: bool) -> None:
    """Close, or only forget, what an online store or a registry holds open, of which few have a method."""
    for name in CLIENTS:
        client = getattr(holder, name, None)
        end = getattr(client, "close", None) or getattr(client, "dispose", None)
        if end is not None and not close:
            if name.startswith("_"):
                setattr(holder, name, None)
        elif end is not None:
            with suppress(Exception):  # a connection that is broken already
                end()
            if name.startswith("_"):
                setattr(holder, name, None)


def _found(view: View, answer: Mapping[str, Any], row: int, limit: float | None) -> Found:
    """Sort out what is there: a store may call a missing entity's features present, with null and no timestamp."""
    values: dict[str, Any] = {}
    expired = False
    least = None if limit is None else oldest(limit)
    for feature in view.features:
        vector = answer[f"{view.name}__{feature.name}"]
        status, stamp = vector.statuses[row], vector.event_timestamps[row]
        seconds = stamp.seconds + stamp.nanos / 1e9
        if status == FieldStatus.OUTSIDE_MAX_AGE:
            expired = True
        elif status in (FieldStatus.PRESENT, FieldStatus.NULL_VALUE) and seconds:
            if least is not None and seconds < least:
                expired = True
            else:
                values[feature.name] = vector.values[row]
    return values, expired


def _sqlite(repository: Repository, options: FeastOptions, threads: Threads) -> Store:
    from feast.infra.online_stores.sqlite import SqliteOnlineStore

    from orchestrator_source_feast.sqlite import SqliteStore

    file = Path(SqliteOnlineStore._get_db_path(repository._config))
    return SqliteStore(file, repository._name, repository.project, threads, options.timeout)


def _redis(repository: Repository, options: FeastOptions, threads: Threads) -> Store | None:
    from orchestrator_source_feast.redis import RedisStore, address

    config = repository._config.online_store
    where = address(config.connection_string) if config.redis_type.value == "redis" else None
    if where is None:
        return None
    return RedisStore(
        where,
        repository._name,
        repository.project,
        seconds=options.timeout,
        connect_seconds=options.connect_timeout,
    )


def _postgresql(repository: Repository, options: FeastOptions, threads: Threads) -> Store | None:
    if "," in repository._config.online_store.host or find_spec("asyncpg") is None:
        return None
    from orchestrator_source_feast.postgresql import PostgreSQLStore

    return PostgreSQLStore(
        repository._config.online_store,
        repository._name,
        repository.project,
        size=options.pool_size,
        wait_seconds=options.pool_timeout,
        seconds=options.timeout,
        connect_seconds=options.connect_timeout,
    )


OPENERS = {
    "feast.infra.online_stores.sqlite.SqliteOnlineStore": _sqlite,
    "feast.infra.online_stores.redis.RedisOnlineStore": _redis,
    "feast.infra.online_stores.postgres_online_store.postgres.PostgreSQLOnlineStore": _postgresql,
}
