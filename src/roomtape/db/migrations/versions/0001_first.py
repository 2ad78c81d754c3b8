"""The first schema: meetings, recordings, tracks, chunks, events, people and the queue."""

from pathlib import Path

from alembic import op

from roomtape.core.lifecycle import CHUNK_NEXT, NEXT

revision = "0001"
down_revision = None


def upgrade() -> None:
    cursor = op.get_bind().connection.cursor()
    cursor.execute(Path(__file__).with_suffix(".sql").read_text())
    for table, column, steps in (("recordings", "status", NEXT), ("chunks", "state", CHUNK_NEXT)):
        allowed = ", ".join(f"'{source}>{target}'" for source, targets in steps.items() for target in sorted(targets))
        cursor.execute(f"""
            CREATE FUNCTION {table}_{column}_moves() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF OLD.{column} || '>' || NEW.{column} NOT IN ({allowed}) THEN
                    RAISE EXCEPTION '{table}.{column}: % does not become %', OLD.{column}, NEW.{column}
                        USING ERRCODE = 'check_violation', CONSTRAINT = '{table}_{column}_moves';
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER {table}_{column}_moves BEFORE UPDATE OF {column} ON {table}
                FOR EACH ROW WHEN (OLD.{column} IS DISTINCT FROM NEW.{column}) EXECUTE FUNCTION {table}_{column}_moves();
        """)
