"""Alembic's way in: runs the migrations on the connection that `turnkeeper_migrations` opened."""

from alembic import context

from turnkeeper.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
