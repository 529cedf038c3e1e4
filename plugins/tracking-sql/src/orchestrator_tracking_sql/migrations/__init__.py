"""The changes of the schema, one after the other, as Alembic runs them."""
