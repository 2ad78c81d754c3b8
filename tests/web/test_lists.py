"""Lists cost what their page costs: as many queries for twelve rows as for one."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncCursor
from uuid_utils.compat import uuid7

from roomtape.core.lifecycle import Status
from roomtape.db import access, ledger
from roomtape.db.database import Database
from roomtape.testing.postgres import fresh_database
from roomtape.web.views import short_views

pytestmark = pytest.mark.anyio

TENANT = "default"


class Counted(AsyncCursor[Any]):
    """Cursors that count what is asked through them."""

    asked = 0

    async def execute(self, *query: Any, **more: Any) -> Any:
        Counted.asked += 1
        return await super().execute(*query, **more)


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    with fresh_database() as url:
        database = Database(url)
        await database.open()
        yield database
        await database.close()


async def meeting(database: Database, host: str) -> UUID:
    async with database.transaction() as connection:
        made = await ledger.create_meeting(connection, TENANT, uuid7(), f"room-{uuid7()}", host_id=host)
        await ledger.create_recording(connection, TENANT, uuid7(), made.id, owner_id=host, prefix="p/", source="segments")
        return made.id


async def test_a_page_of_twelve_recordings_asks_as_often_as_one_of_one(database: Database) -> None:
    asked = []
    for count in (1, 12):
        for _ in range(count):
            await meeting(database, "host")
        async with database.transaction() as connection:
            found = await access.list_recordings(connection, TENANT, ["user:host"], access.Wanted(), limit=50)
            connection.cursor_factory, Counted.asked = Counted, 0
            assert [view["meeting_id"] for view in await short_views(connection, found)] == [str(one.meeting_id) for one in found]
            connection.cursor_factory = AsyncCursor
        asked.append(Counted.asked)
    assert asked[0] == asked[1] < 5


async def test_the_newest_recording_and_the_people_of_many_meetings_come_at_once(database: Database) -> None:
    names = [await meeting(database, f"host-{number}") for number in range(3)]
    async with database.transaction() as connection:
        for name in names[:2]:
            running = await ledger.open_recording(connection, name)
            assert running is not None
            await ledger.move(connection, running.id, Status.STOPPED)
        first = await ledger.newest_recording(connection, names[0])
        assert first is not None
        await ledger.soft_delete(connection, first.id)
        newest = await ledger.newest_recordings(connection, names)
        assert newest == {name: one for name in names if (one := await ledger.newest_recording(connection, name))}
        assert set(newest) == set(names[1:])
        people = await ledger.participants_of(connection, *names)
        assert {(person.meeting_id, person.user_id) for person in people} == {(name, f"host-{number}") for number, name in enumerate(names)}


async def test_counting_meetings_reads_no_row_into_this_process(database: Database) -> None:
    names = [await meeting(database, "host") for _ in range(3)]
    async with database.transaction() as connection:
        assert await ledger.count_meetings(connection, TENANT) == len(names)
        assert await ledger.count_meetings(connection, TENANT, user_id="nobody") == 0
        await connection.execute("INSERT INTO meetings (id, room_code) SELECT gen_random_uuid(), 'r' || n FROM generate_series(1, 10100) AS n")
        assert await ledger.count_meetings(connection, TENANT) == 10_001
        cursors: list[int] = []

        class Fetched(AsyncCursor[Any]):
            async def fetchall(self) -> Any:
                found = await super().fetchall()
                cursors.append(len(found))
                return found

        connection.cursor_factory = Fetched
        await ledger.count_meetings(connection, TENANT)
        connection.cursor_factory = AsyncCursor
        assert sum(cursors) <= 1
