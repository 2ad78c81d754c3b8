"""The recorder on a real PostgreSQL."""

from collections.abc import AsyncIterator, Iterator

import pytest

from roomtape.db.database import Database
from roomtape.testing.postgres import fresh_database


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
