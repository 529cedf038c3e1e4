"""The tables as they are now. The folder ``migrations`` brings any older schema here."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, Index, Integer, MetaData, Table, Text, text

HEAD = "0004"
"""The newest revision in ``migrations/versions``."""

VERSION_TABLE = "orchestrator_tracking_version"

_Json = Text().with_variant(JSON(), "postgresql")  # not JSONB, which cannot hold every JSON string

_Id = Text().with_variant(Text(collation="C"), "postgresql")  # by their bytes, as everybody else sorts them

_NOT_OK = text("status <> 'ok'")

metadata = MetaData()

executions = Table(
    "orchestrator_executions",
    metadata,
    # An id of its own keeps SQLite's table in the order of insertion; new rows go to its end.
    Column("row_id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("id", _Id, nullable=False),
    Column("domain", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("generation", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("http_status", Integer, nullable=False),
    Column("started_at", Float(53), nullable=False),
    Column("duration_seconds", Float(53), nullable=False),
    Column("engine_seconds", Float(53), nullable=False),
    Column("trace_id", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("cache", Text, nullable=False, server_default=""),
    Column("cached_from", Text, nullable=False, server_default=""),
    Column("degraded", _Json, nullable=False),
    Column("models", _Json, nullable=False),
    Column("steps", _Json, nullable=False),
    Column("captured", _Json),
    Index("orchestrator_executions_id", "id", unique=True),
    Index("orchestrator_executions_endpoint", "domain", "endpoint", "id"),
    # Of what is out of the ordinary only, so that what is ordinary costs nothing.
    Index("orchestrator_executions_status", "status", "id", sqlite_where=_NOT_OK, postgresql_where=_NOT_OK),
)

generations = Table(
    "orchestrator_generations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("served_at", Float(53), nullable=False),
    Column("last_served_at", Float(53)),
    Column("files", _Json, nullable=False),
    Column("texts", _Json, nullable=False),
)

__all__ = ["HEAD", "VERSION_TABLE", "executions", "generations", "metadata"]
