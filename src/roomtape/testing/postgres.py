"""A real PostgreSQL for tests: the embedded one, once per process, and a fresh migrated database for each test in milliseconds."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql

from roomtape.db.embedded import EmbeddedPostgres
from roomtape.db.schema import migrate

_TEMPLATE = "template_roomtape"
_numbers = count(1)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that other users may pass through, as PostgreSQL's user has to when tests run as root; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="roomtape-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@cache
def shared_postgres() -> EmbeddedPostgres:
    """The server of this test process, with a migrated template; it ends with the process. First called from the main thread."""
    folder = Path(tempfile.mkdtemp(prefix="roomtape-test-"))
    folder.chmod(0o711)
    server = EmbeddedPostgres(folder / "pg")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.stop)  # runs before the line above
    server.start()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_TEMPLATE)))
    migrate(server.url(_TEMPLATE))
    return server


@contextmanager
def fresh_database(*, migrated: bool = True) -> Iterator[str]:
    """The URL of a database of its own on the shared server; dropped at the end, whoever is still connected."""
    server = shared_postgres()
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        template = _TEMPLATE if migrated else "template0"
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield server.url(name)
    finally:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
