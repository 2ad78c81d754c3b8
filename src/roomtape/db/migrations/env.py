"""Runs migrations on the connection that db.schema hands over; Alembic looks for this file by name."""

from typing import Any

from alembic import context
from sqlalchemy import Connection


def _run(connection: Connection) -> None:
    context.configure(connection=connection, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


_attributes: dict[str, Any] = context.config.attributes
_run(_attributes["connection"])
