"""An Idempotency-Key remembers when it first came: ids that follow from it carry that time."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.get_bind().connection.cursor().execute("""
        ALTER TABLE idempotency
            ADD COLUMN first_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            ADD COLUMN released boolean NOT NULL DEFAULT false
    """)
