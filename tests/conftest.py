"""Fixtures every ring of tests shares."""

from pathlib import Path

import pytest

DATA = Path(__file__).parent / "data"


@pytest.fixture
def anyio_backend() -> str:
    """All asynchronous tests run on asyncio, as production does."""
    return "asyncio"


@pytest.fixture
def chromium() -> Path:
    """Real recordings of Chromium's MediaRecorder with known content."""
    return DATA / "chromium"
