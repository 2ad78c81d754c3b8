"""A store on the disk for the library's rooms."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roomtape.storage.failover import SpooledStore
from roomtape.storage.local import LocalStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SpooledStore]:
    opened = SpooledStore(LocalStore(tmp_path / "store"), LocalStore(tmp_path / "spool"))
    yield opened
    await opened.close()
