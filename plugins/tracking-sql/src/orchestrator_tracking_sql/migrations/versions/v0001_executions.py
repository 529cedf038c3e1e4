"""Executions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    json = sa.Text().with_variant(sa.JSON(), "postgresql")
    row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "orchestrator_executions",
        sa.Column("row_id", row_id, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("domain", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("generation", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("http_status", sa.Integer, nullable=False),
        sa.Column("started_at", sa.Float(53), nullable=False),
        sa.Column("duration_seconds", sa.Float(53), nullable=False),
        sa.Column("engine_seconds", sa.Float(53), nullable=False),
        sa.Column("trace_id", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("degraded", json, nullable=False),
        sa.Column("models", json, nullable=False),
        sa.Column("steps", json, nullable=False),
    )
    op.create_index("orchestrator_executions_id", "orchestrator_executions", ["id"], unique=True)
    op.create_index("orchestrator_executions_endpoint", "orchestrator_executions", ["domain", "endpoint", "id"])
    op.create_index("orchestrator_executions_status", "orchestrator_executions", ["status", "id"])
    op.create_index("orchestrator_executions_started_at", "orchestrator_executions", ["started_at"])
