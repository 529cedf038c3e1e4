"""When each configuration was last known to serve: it goes with the last execution that it answered."""

from __future__ import annotations

from time import time

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("orchestrator_generations", sa.Column("last_served_at", sa.Float(53)))
    # Of those that are there nobody knows: none goes before what was answered until now.
    op.execute(sa.text("UPDATE orchestrator_generations SET last_served_at = :now").bindparams(now=time()))
