"""Fixtures every ring of tests shares."""

import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from roomtape.db.database import Database
from roomtape.testing.postgres import fresh_database

DATA = Path(__file__).parent / "data"
_HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (_HARD, _HARD))  # a thousand clients at once are a thousand files; a login shell gives 1024


@pytest.fixture
def anyio_backend() -> str:
    """All asynchronous tests run on asyncio, as production does."""
    return "asyncio"


@pytest.fixture
def chromium() -> Path:
    """Real recordings of Chromium's MediaRecorder with known content."""
    return DATA / "chromium"


@pytest.fixture
def database_url() -> Iterator[str]:
    """A fresh, migrated database on a real PostgreSQL."""
    with fresh_database() as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()
