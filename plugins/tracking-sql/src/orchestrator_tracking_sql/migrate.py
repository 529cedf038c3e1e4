"""Bringing the schema of a database up to date, by one of all the processes that start at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError

from orchestrator_core.plugin_api import SourceUnavailable, StoreNotMade
from orchestrator_tracking_sql.schema import HEAD, VERSION_TABLE
from orchestrator_tracking_sql.silence import UNBOUNDED

FOLDER = Path(__file__).parent / "migrations"
LOCK_NOT_AVAILABLE = "55P03"
LOCK = 0x6F726368_65787473  # any number that nobody else locks


def migrate(connection: Connection) -> None:
    """Make or change the tables, in the transaction that is under way, unless they are as they should be.

    Raises ``ValueError`` for a schema of a later version of this plugin.
    """
    if version(connection) == HEAD:
        return
    if connection.dialect.name == "postgresql":
        _wait_for_others(connection)
        if version(connection) == HEAD:  # another process was first
            return
    _upgrade(connection)


def _wait_for_others(connection: Connection) -> None:
    try:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        raise SourceUnavailable("another process makes its tables, or brings them up to date") from error


def check(connection: Connection) -> None:
    """See that the tables are there, as this version of the plugin knows them.

    Raises :class:`StoreNotMade` where the service makes or updates them, ``ValueError`` for those of a later version.
    """
    now = version(connection)
    if now is None:
        raise StoreNotMade("there are no tables of executions in it: the service makes them when it starts")
    if now == HEAD:
        return
    if now in _known(_config()):
        raise StoreNotMade(
            f"its tables have the schema {now}, which is earlier than the one that this version of"
            f" orchestrator-api-tracking-sql reads ({HEAD}): start the service, which brings them up to date"
        )
    raise ValueError(_later(now))


def version(connection: Connection) -> str | None:
    """Return the revision of the schema, or None where there is none yet."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _upgrade(connection: Connection) -> None:
    from alembic import command

    now, config = version(connection), _config()
    if now is not None and now not in _known(config):
        raise ValueError(_later(now))
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))  # an index of a large table takes its time
    config.attributes["connection"] = connection
    connection.info[UNBOUNDED] = True
    try:
        command.upgrade(config, "head")
    finally:
        connection.info.pop(UNBOUNDED, None)


# Alembic takes long to import, and is needed once in the life of a database.
def _config() -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _known(config: Any) -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}


def _later(revision: str) -> str:
    return (
        f"its tables have the schema {revision}, which is later than this version of orchestrator-api-tracking-sql"
        f" knows ({HEAD}): install a later version, or give another database"
    )


__all__ = ["LOCK", "check", "migrate", "version"]
