"""The stores that a contract is run on: a folder on this disk, and a real S3 server."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from roomtape.core.ports import Store
from roomtape.storage.store import open_store
from roomtape.testing.s3 import S3Server, s3_server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> str:
    name = f"bucket-{uuid4().hex[:12]}"
    s3.make_bucket(name)
    return name


@pytest.fixture(params=["disk", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "disk":
        opened = open_store(f"file://{tmp_path}/store")
    else:
        server: S3Server = request.getfixturevalue("s3")
        opened = open_store(server.url(request.getfixturevalue("bucket"), "some/prefix"), **server.credentials)
    yield opened
    await opened.close()


@pytest.fixture
def everything(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder below which the store of this test keeps all it has."""
    if "s3" in request.fixturenames and "bucket" in request.fixturenames:
        server: S3Server = request.getfixturevalue("s3")
        return server.objects / str(request.getfixturevalue("bucket"))
    return tmp_path / "store"
