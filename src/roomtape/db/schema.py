"""Brings a database to the schema of this code, at every start: no step for a person to forget."""

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from procrastinate.schema import SchemaManager
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from roomtape.core.errors import Refused, Unavailable

_LOCK = 0x726F6F6D  # any number, the same in every Roomtape
_OLDEST = 15  # what our SQL was written for; older ones are out of care
_WAIT_S = 120


def migrate(conninfo: str) -> None:
    """Applies what is missing, each migration in one transaction, under a lock: two starting at once are fine, and so is a kill in the middle.

    Refused: PostgreSQL is too old, or the database was written by a newer Roomtape. Unavailable: it cannot be reached.
    """
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo, connect_timeout=5, application_name="roomtape-migrate"), poolclass=NullPool
    )
    try:
        with psycopg.connect(conninfo, connect_timeout=5, autocommit=True, application_name="roomtape-migrate") as guard:
            if guard.info.server_version < _OLDEST * 10000:
                found = guard.info.server_version // 10000
                raise Refused(
                    f"Roomtape needs PostgreSQL {_OLDEST} or newer, ROOMTAPE_DATABASE_URL leads to {found}: name a newer one.", code="database_version"
                )
            guard.execute(f"SET lock_timeout = '{_WAIT_S}s'")
            guard.execute("SELECT pg_advisory_lock(%s)", [_LOCK])  # given back when the connection ends, however that happens
            with engine.connect() as connection:
                _upgrade(connection)
            _upgrade_queue(guard)
    except psycopg.errors.InsufficientPrivilege as exc:
        raise Refused(
            f"The user of ROOMTAPE_DATABASE_URL may not make tables ({exc.diag.message_primary}): grant CREATE on the database and its schema."
        ) from exc
    except psycopg.OperationalError as exc:
        raise Unavailable(f"The database cannot be reached: {exc}".strip(), retry_after_s=2) from exc
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    unknown = set(MigrationContext.configure(connection).get_current_heads()) - known
    if unknown:
        raise Refused(
            f"The database was written by a newer Roomtape (its schema is {', '.join(sorted(unknown))}): start that one, or restore a backup made before the upgrade.",
            code="database_newer",
        )
    connection.rollback()  # the look above opened a transaction, in which Alembic would not commit
    command.upgrade(config, "head")
    connection.commit()


def _upgrade_queue(connection: psycopg.Connection) -> None:
    """Procrastinate brings a whole schema for a fresh database and numbered steps for an older one; a table says which steps are done."""
    steps = {path.name: path for path in Path(SchemaManager.get_migrations_path()).glob("*.sql")}
    done = {name for (name,) in connection.execute("SELECT name FROM queue_migrations").fetchall()}
    if not done:
        with connection.transaction():
            connection.execute(SchemaManager.get_schema())
            for name in steps:
                connection.execute("INSERT INTO queue_migrations (name) VALUES (%s)", [name])
        return
    for name in sorted(set(steps) - done):
        with connection.transaction():  # one each: a value added to an enumeration may be used by the next step only
            connection.execute(steps[name].read_bytes())
            connection.execute("INSERT INTO queue_migrations (name) VALUES (%s)", [name])
