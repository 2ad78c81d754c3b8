"""The library's rooms on a real PostgreSQL and a store on the disk."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from roomtape.db.database import Database
from roomtape.storage.failover import SpooledStore
from roomtape.storage.local import LocalStore
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


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SpooledStore]:
    opened = SpooledStore(LocalStore(tmp_path / "store"), LocalStore(tmp_path / "spool"))
    yield opened
    await opened.close()
