"""What went through an execution, where a cached answer is from, and the configurations that answered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    json = sa.Text().with_variant(sa.JSON(), "postgresql")
    op.drop_index("orchestrator_executions_status", "orchestrator_executions")
    op.drop_index("orchestrator_executions_started_at", "orchestrator_executions")
    not_ok = sa.text("status <> 'ok'")
    op.create_index(
        "orchestrator_executions_status",
        "orchestrator_executions",
        ["status", "id"],
        sqlite_where=not_ok,
        postgresql_where=not_ok,
    )
    op.add_column("orchestrator_executions", sa.Column("cache", sa.Text, nullable=False, server_default=""))
    op.add_column("orchestrator_executions", sa.Column("cached_from", sa.Text, nullable=False, server_default=""))
    op.add_column("orchestrator_executions", sa.Column("captured", json))
    op.create_table(
        "orchestrator_generations",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("served_at", sa.Float(53), nullable=False),
        sa.Column("files", json, nullable=False),
        sa.Column("texts", json, nullable=False),
    )
