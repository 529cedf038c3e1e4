"""Bringing the schema of a database up to date, by one of all the processes that start at once."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from orchestrator_tracking_sql.schema import HEAD, VERSION_TABLE

FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x6F726368_65787473  # any number that nobody else locks


def migrate(connection: Connection) -> None:
    """Make or change the tables, in the transaction that is under way, unless they are as they should be.

    Raises ``ValueError`` for a schema of a later version of this plugin.
    """
    if version(connection) == HEAD:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        if version(connection) == HEAD:  # another process was first
            return
    _upgrade(connection)


def version(connection: Connection) -> str | None:
    """Return the revision of the schema, or None where there is none yet."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _upgrade(connection: Connection) -> None:
    # Alembic takes long to import, and is needed once in the life of a database.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    now = version(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if now is not None and now not in known:
        raise ValueError(
            f"its tables have the schema {now}, which is later than this version of orchestrator-api-tracking-sql knows"
            f" ({HEAD}): install a later version, or give another database"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


__all__ = ["migrate", "version"]
