"""Ids sort by their bytes on PostgreSQL, whatever the language of the database: Danish has "aa" after "z"."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("orchestrator_executions", "id", type_=sa.Text(collation="C"), existing_nullable=False)
