"""One running Roomtape for all tests of the web; each test makes its own people and meetings."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from roomtape.testing.postgres import fresh_database

from .ear import Ear, listening
from .house import SECRET, House, Taken, begin, completed, fill, name, segments, serving


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with fresh_database() as database_url, serving(tmp_path_factory.mktemp("house"), database_url, ROOMTAPE_JWT_KEY=SECRET) as running:
        yield running


@pytest.fixture(scope="session")
def admin(house: House) -> Iterator[httpx2.Client]:
    with house.client(house.key("admin")) as client:
        yield client


@pytest.fixture(scope="session")
def quiet(house: House) -> Iterator[tuple[Ear, Ear]]:
    """Two who may hear nothing, one of them with a key that is revoked. Opened early and looked at late: what they wait for takes 15 s."""
    gone = house.fresh_key("user", name("gone"))
    with listening(house, house.key("user", name("quiet"))) as hears, listening(house, gone["key"]) as revoked:
        house.revoke(gone["id"])
        yield hears, revoked


@pytest.fixture
def host(house: House) -> Iterator[httpx2.Client]:
    """A user with a key; its id is `host.headers["x-test-user"]`."""
    user = name("host")
    with house.client(house.key("user", user)) as client:
        client.headers["x-test-user"] = user
        yield client


@pytest.fixture
def running(admin: httpx2.Client) -> Taken:
    """A recording with three segments, still running."""
    taken = begin(admin, name("host"), title="A meeting")
    fill(admin, taken, segments()[:3])
    return taken


@pytest.fixture(scope="session")
def finished(admin: httpx2.Client) -> Taken:
    """A completed recording of VP9 and Opus. Tests only look at it."""
    taken = begin(admin, name("host"), title="Done")
    fill(admin, taken, segments("B-vp9")[:3])
    assert completed(admin, taken)["status"] == "completed"
    return taken


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
