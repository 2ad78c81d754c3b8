"""Every test of the database floor runs on a real PostgreSQL, in a fresh database."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from roomtape.db.database import Database
from roomtape.testing.postgres import fresh_database, open_folder


@pytest.fixture
def database_url() -> Iterator[str]:
    with fresh_database() as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path
