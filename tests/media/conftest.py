"""A whole Roomtape for the tests of what media go through; it is as impatient with missing segments as a test is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .studio import Studio, opened


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with opened(tmp_path_factory.mktemp("media"), ROOMTAPE_LIVE_WAIT_S="1") as studio:
        yield studio


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")
