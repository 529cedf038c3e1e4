"""What Alembic runs: the migrations, in the transaction of the connection that it is given."""

from alembic import context

from orchestrator_tracking_sql.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=False,  # the transaction is the caller's
)
context.run_migrations()
