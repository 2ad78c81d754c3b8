"""What the tests of the database floor need beside a database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from roomtape.testing.postgres import open_folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as path:
        yield path
