"""The janitor removes what is nobody's and never what might be somebody's."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest
from structlog.testing import capture_logs
from uuid_utils.compat import uuid7

from roomtape.capture.segments import Said, Segments
from roomtape.core.errors import Conflict, Forbidden, StorageFull, Unavailable
from roomtape.core.keys import chunk_key, meeting_prefix
from roomtape.core.lifecycle import ChunkState, Status
from roomtape.core.ports import Store
from roomtape.db import chunks, ledger, leftovers
from roomtape.db.database import Connection, Database
from roomtape.db.rows import Chunk, NewChunk, Recording
from roomtape.db.schema import migrate
from roomtape.library.janitor import MARKS, Janitor
from roomtape.storage.failover import SpooledStore
from roomtape.storage.local import LocalStore
from roomtape.testing.postgres import fresh_database

pytestmark = pytest.mark.anyio

TENANT = "default"


async def a_recording(database: Database) -> Recording:
    async with database.transaction() as connection:
        meeting = await ledger.create_meeting(connection, TENANT, uuid7(), f"room-{uuid7()}", host_id="host")
        prefix = meeting_prefix(TENANT, "host", meeting.id)
        recording = await ledger.create_recording(connection, TENANT, uuid7(), meeting.id, owner_id="host", prefix=prefix, source="segments")
        await chunks.upsert_track(connection, recording.id, "1")
    return recording


def a_key(recording: Recording, index: int, body: bytes = b"media") -> str:
    return chunk_key(recording.prefix, recording.id, "1", index, sha256(body).hexdigest(), "0" * 12)


async def put(store: Store, key: str, body: bytes = b"media") -> str:
    async def pieces() -> AsyncIterator[bytes]:
        yield body

    await store.put(key, pieces(), size=len(body), sha256=sha256(body).hexdigest())
    return key


async def commit(database: Database, recording: Recording, index: int, *, spool: bool = False) -> NewChunk:
    """The row of a segment whose bytes are `media`."""
    chunk = NewChunk(
        recording_id=recording.id, track_id="1", index=index, size_bytes=5, sha256=sha256(b"media").hexdigest(), key=a_key(recording, index), parsed=True
    )
    if spool:
        chunk = replace(chunk, state=ChunkState.QUEUED, stored_in="spool", spool_host="here")
    async with database.transaction() as connection:
        await chunks.commit_chunk(connection, chunk)
    return chunk


async def keep(database: Database, store: SpooledStore, recording: Recording, count: int) -> list[str]:
    """Segments with their bytes and rows."""
    kept = [await put(store, a_key(recording, index)) for index in range(1, count + 1)]
    for index in range(1, count + 1):
        await commit(database, recording, index)
    return kept


async def there(store: Store) -> set[str]:
    return {stored.key async for stored in store.list("") if not stored.key.startswith(MARKS)}


def at_once(database: Database, store: SpooledStore) -> Janitor:
    return Janitor(database, store, trash_days=0, orphan_s=0)


async def test_an_orphan_goes_and_strangers_files_stay(database: Database, store: SpooledStore) -> None:
    recording = await a_recording(database)
    kept = await keep(database, store, recording, 3)
    orphan = await put(store, a_key(recording, 4))
    base = f"{recording.prefix}{recording.id}"
    strangers = [
        await put(store, key)
        for key in ("backup.tar", "holiday/photo.jpg", f"{base}/notes.txt", f"{base}/chunks/1/1-abc", f"{base}/chunks/1/{1:010d}-{0:031x}", f"{orphan}.bak")
    ]
    assert await at_once(database, store).collect_orphans() == 1
    assert await there(store) == {*kept, *strangers}


async def test_an_orphan_is_one_only_after_two_looks_that_are_apart(database: Database, store: SpooledStore) -> None:
    now = [0.0]
    janitor = Janitor(database, store, trash_days=0, orphan_s=60, now_s=lambda: now[0])
    recording = await a_recording(database)
    key = await put(store, a_key(recording, 1))
    assert await janitor.collect_orphans() == 0
    now[0] = 59
    assert await janitor.collect_orphans() == 0
    await commit(database, recording, 1)
    now[0] = 61
    assert await janitor.collect_orphans() == 0
    assert await there(store) == {key}, "its row has come meanwhile"


async def test_a_fresh_or_anothers_database_collects_nothing(database: Database, store: SpooledStore) -> None:
    kept = await keep(database, store, await a_recording(database), 52)
    assert await at_once(database, store).collect_orphans() == 0
    with fresh_database(migrated=False) as url:
        migrate(url)
        other = Database(url)
        await other.open()
        try:
            janitor = at_once(other, store)
            assert await janitor.collect_orphans() == 0
            async with other.transaction() as connection:
                await connection.execute("UPDATE installation SET id = %s", [await _name_of(database)])
            assert await janitor.collect_orphans() == 0, "even by the right name: an older copy of this database does not know these recordings"
        finally:
            await other.close()
    assert await there(store) == set(kept)


async def _name_of(database: Database) -> str:
    async with database.transaction() as connection:
        return str(await leftovers.installation(connection))


async def test_a_store_without_our_name_that_has_others_recordings_is_not_claimed(database: Database, store: SpooledStore) -> None:
    recording = await a_recording(database)
    orphan = await put(store, a_key(recording, 1))
    foreign = await put(store, chunk_key(recording.prefix, uuid7(), "1", 1, "0" * 64, "0" * 12))
    assert await at_once(database, store).collect_orphans() == 0
    assert await there(store) == {orphan, foreign}
    await store.delete(foreign)
    assert await at_once(database, store).collect_orphans() == 1
    assert {stored.key async for stored in store.list("")} == {MARKS + await _name_of(database)}


async def test_a_store_with_anothers_name_is_not_touched(database: Database, store: SpooledStore) -> None:
    recording = await a_recording(database)
    orphan = await put(store, a_key(recording, 1))
    mark = await put(store, MARKS + str(uuid7()))
    assert await at_once(database, store).collect_orphans() == 0
    await store.delete(mark)
    assert await at_once(database, store).collect_orphans() == 1
    assert orphan not in await there(store)


async def test_more_orphans_than_crashes_leave_are_not_removed(database: Database, store: SpooledStore) -> None:
    """Rows of known recordings are missing: a database that was restored from before they came."""
    recording = await a_recording(database)
    kept = await keep(database, store, recording, 10)
    lost = {await put(store, a_key(recording, index)) for index in range(11, 62)}
    assert await at_once(database, store).collect_orphans() == 0
    assert await there(store) == {*kept, *lost}
    await store.delete(lost.pop())
    assert await at_once(database, store).collect_orphans() == 50


async def test_copies_left_in_the_spool_go_and_bodies_that_wait_there_stay(database: Database, store: SpooledStore) -> None:
    assert store.spool is not None
    recording = await a_recording(database)
    left, waits, rowless = [await put(store.spool, a_key(recording, index)) for index in (1, 2, 3)]
    unknown = await put(store.spool, chunk_key(recording.prefix, uuid7(), "1", 1, "0" * 64, "0" * 12))
    await commit(database, recording, 1)
    await commit(database, recording, 2, spool=True)
    assert await at_once(database, store).collect_spool() == 2
    assert await there(store.spool) == {waits, unknown}
    assert left != rowless


async def trashed(database: Database, store: SpooledStore) -> Recording:
    """A recording of three segments in the trash."""
    recording = await a_recording(database)
    await keep(database, store, recording, 3)
    async with database.transaction() as connection:
        await ledger.move(connection, recording.id, Status.STOPPED)
        return await ledger.soft_delete(connection, recording.id)


class Halting(LocalStore):
    """A disk that is slow: after its first deletion it waits until it is told to go on."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def delete(self, key: str) -> None:
        await super().delete(key)
        self.reached.set()
        await self.go.wait()


async def test_what_is_being_purged_can_neither_be_restored_nor_held_and_goes_on_after_a_kill(database: Database, tmp_path: Path) -> None:
    disk = Halting(tmp_path / "slow")
    store = SpooledStore(disk)
    recording = await trashed(database, store)
    purge = asyncio.create_task(Janitor(database, store, trash_days=0).sweep())
    await asyncio.wait_for(disk.reached.wait(), 30)
    for late in (ledger.restore, _hold):
        with pytest.raises(Conflict) as refused:
            async with database.transaction() as connection:
                await late(connection, recording.id)
        assert refused.value.code == "purging"
    purge.cancel()
    await asyncio.gather(purge, return_exceptions=True)
    disk.go.set()
    assert await Janitor(database, store, trash_days=7).sweep() == 1, "what was begun is ended, whatever the setting says now"
    assert await there(store) == set()
    async with database.transaction() as connection:
        assert await ledger.find_recording(connection, recording.id) is None
    late_key = await put(store, a_key(recording, 4))
    assert await at_once(database, store).collect_orphans() == 1, "a late object of a purged recording is nobody's"
    assert late_key not in await there(store)
    await store.close()


async def _hold(connection: Connection, recording_id: UUID) -> None:
    await ledger.set_fields(connection, recording_id, {"legal_hold": True})


@pytest.mark.parametrize("rescue", ["restore", "hold"])
async def test_a_recording_rescued_before_its_purge_begins_loses_nothing(database: Database, store: SpooledStore, rescue: str) -> None:
    """The rescue is committed between the janitor's list and its first step: the row is held by another transaction meanwhile."""
    recording = await trashed(database, store)
    before = await there(store)
    async with database.transaction() as connection:
        await (ledger.restore(connection, recording.id) if rescue == "restore" else _hold(connection, recording.id))
        sweep = asyncio.create_task(at_once(database, store).sweep())
        await _until_somebody_waits(database)
    assert await sweep == 0
    assert await there(store) == before


class Keeping(LocalStore):
    """A store that does not let go of some objects."""

    kept = ""

    async def delete(self, key: str) -> None:
        if self.kept and self.kept in key:
            raise Unavailable(code="storage_auth")
        await super().delete(key)


async def test_a_purge_that_fails_is_said_and_keeps_no_other_from_going(database: Database, tmp_path: Path) -> None:
    disk = Keeping(tmp_path / "keeping")
    store = SpooledStore(disk)
    first, second = await trashed(database, store), await trashed(database, store)
    disk.kept = str(first.id)
    with capture_logs() as said:
        assert await at_once(database, store).sweep() == 1
    failed = {"event": "purge.failed", "log_level": "warning", "recording": str(first.id), "code": "storage_auth"}
    assert [one for one in said if one["log_level"] == "warning"] == [failed]
    async with database.transaction() as connection:
        assert await ledger.find_recording(connection, second.id) is None
    disk.kept = ""
    assert await at_once(database, store).sweep() == 1, "it is tried again"
    await store.close()


async def _until_somebody_waits(database: Database) -> None:
    async with asyncio.timeout(30):
        while True:
            async with database.transaction() as connection:
                query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                if (await (await connection.execute(query)).fetchone()) != (0,):
                    return
            await asyncio.sleep(0.02)


class Slow(LocalStore):
    """Something happens between the janitor's last look and its deed."""

    def __init__(self, root: Path, meanwhile: Callable[[], Awaitable[object]]) -> None:
        super().__init__(root)
        self._meanwhile = meanwhile

    async def delete(self, key: str) -> None:
        await self._meanwhile()
        await super().delete(key)


async def test_a_segment_that_comes_again_while_its_orphan_goes_is_not_lost(database: Database, tmp_path: Path) -> None:
    async def again() -> None:
        acknowledged.append((await segments.take(recording, Said(track_id="1", index=1), body(), still))[0])

    async def body() -> AsyncIterator[bytes]:
        yield b"media"

    async def still(_: Connection) -> None:
        """The right stands."""

    acknowledged: list[Chunk] = []
    recording = await a_recording(database)
    store = SpooledStore(Slow(tmp_path / "store", again))
    segments = Segments(database, store, host="", limit_bytes=1 << 20, reserve_bytes=0, now_us=lambda: 0)
    await put(store, a_key(recording, 1))  # killed between the object and the row
    assert await at_once(database, store).collect_orphans() == 1
    assert await there(store) == {acknowledged[0].key}
    assert (await store.head(acknowledged[0].key)).size == 5
    await store.close()


async def test_of_equal_segments_that_come_at_once_one_object_is_left_and_a_refused_one_leaves_none(database: Database, store: SpooledStore) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"media"

    async def still(_: Connection) -> None:
        """The right stands."""

    async def lost(_: Connection) -> None:
        raise Forbidden

    recording = await a_recording(database)
    segments = Segments(database, store, host="here", limit_bytes=1 << 20, reserve_bytes=0, now_us=lambda: 0)
    taken = await asyncio.gather(*(segments.take(recording, Said(track_id="1", index=1), body(), still) for _ in range(8)))
    with pytest.raises(Forbidden):
        await segments.take(recording, Said(track_id="1", index=2), body(), lost)
    assert sorted(fresh for _, fresh in taken) == [False] * 7 + [True]
    assert await there(store) == {row.key for row, _ in taken}


async def test_what_a_failing_database_refuses_leaves_no_object(database: Database, store: SpooledStore) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"media"

    async def still(connection: Connection) -> None:
        await connection.execute("DO $$ BEGIN RAISE EXCEPTION SQLSTATE '53100'; END $$")  # as a full disk does, before the commit

    recording = await a_recording(database)
    segments = Segments(database, store, host="here", limit_bytes=1 << 20, reserve_bytes=0, now_us=lambda: 0)
    for _ in range(3):
        with pytest.raises(StorageFull):
            await segments.take(recording, Said(track_id="1", index=1), body(), still)
    assert await there(store) == set()
