"""Chunks: unique by (recording, track, index), idempotent by digest, in the order of commits."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roomtape.core.errors import Conflict, NotFound
from roomtape.core.lifecycle import ChunkState, Status
from roomtape.db import chunks, ledger, outbox
from roomtape.db.database import Database
from roomtape.db.rows import Chunk, Mend

from .tape import TENANT, a_chunk, a_recording

pytestmark = pytest.mark.anyio


async def test_three_equal_uploads_at_once_make_one_row(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)

    async def upload() -> tuple[Chunk, bool]:
        async with database.transaction() as connection:
            return await chunks.commit_chunk(connection, a_chunk(recording.id, 1))

    answers = await asyncio.gather(*(upload() for _ in range(3)))
    assert sorted(new for _, new in answers) == [False, False, True]
    assert len({chunk.commit_seq for chunk, _ in answers}) == 1
    async with database.transaction() as connection:
        after = await ledger.get_recording(connection, TENANT, recording.id)
        events = await outbox.events_of(connection, recording.id)
    assert after is not None
    assert (after.bytes, after.status) == (5, Status.RECORDING)
    assert [event.type for event in events] == ["recording.started", "segment.committed"]


async def test_other_bytes_are_refused_before_and_after_complete_and_the_first_stay(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        first, _ = await chunks.commit_chunk(connection, a_chunk(recording.id, 1, b"first"))
        for target in (None, Status.STOPPED, Status.PROCESSING):
            if target:
                await ledger.move(connection, recording.id, target)
            with pytest.raises(Conflict) as differs:
                await chunks.commit_chunk(connection, a_chunk(recording.id, 1, b"other"))
            assert differs.value.code == "segment_differs"
            assert await chunks.commit_chunk(connection, a_chunk(recording.id, 1, b"first")) == (first, False)
        with pytest.raises(Conflict) as closed:
            await chunks.commit_chunk(connection, a_chunk(recording.id, 2))
        assert closed.value.code == "recording_completed"
        assert await chunks.get_chunk(connection, recording.id, "1", 1) == first


async def test_a_stopped_recording_still_takes_what_was_captured_before(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        await ledger.move(connection, recording.id, Status.STOPPED)
        _, new = await chunks.commit_chunk(connection, a_chunk(recording.id, 1))
        assert new
        after = await ledger.get_recording(connection, TENANT, recording.id)
        assert after is not None
        assert after.status is Status.STOPPED


async def test_a_reader_by_commit_order_never_misses_a_chunk(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
    seen: list[int] = []
    after = 0

    async def upload(index: int) -> None:
        async with database.transaction() as connection:
            await chunks.commit_chunk(connection, a_chunk(recording.id, index))

    async def read() -> None:
        nonlocal after
        while len(seen) < 60:
            async with database.transaction() as connection:
                for chunk in await chunks.chunks_of(connection, recording.id, after_commit_seq=after):
                    seen.append(chunk.index)
                    after = chunk.commit_seq

    await asyncio.wait_for(asyncio.gather(read(), *(upload(index) for index in range(60, 0, -1))), 30)
    assert sorted(seen) == list(range(1, 61))


async def test_an_index_parsed_later_shows_up_again_at_the_end_of_the_order(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        for index in (1, 3, 2):
            await chunks.commit_chunk(connection, replace(a_chunk(recording.id, index, parsed=index == 1), carry=b"carry" if index == 1 else None))
        last = max(chunk.commit_seq for chunk in await chunks.chunks_of(connection, recording.id))
        await chunks.lock_track(connection, recording.id, "1")
        waiting = await chunks.next_waiting(connection, recording.id, "1")
        assert waiting is not None
        assert waiting.index == 2
        await chunks.set_parsed(connection, recording.id, "1", 2, index_blob=b"index", carry=None, starts_file=False, media_start_us=0, media_end_us=9)
        [again] = await chunks.chunks_of(connection, recording.id, after_commit_seq=last, with_index=True)
        assert (again.index, again.parsed, again.index_blob, again.media_end_us) == (2, True, b"index", 9)
        [light] = await chunks.chunks_of(connection, recording.id, after_commit_seq=last)
        assert light.index_blob is None


async def test_chunks_behind_a_hole_wait(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        for index in (1, 2, 4, 5):
            await chunks.commit_chunk(connection, replace(a_chunk(recording.id, index, parsed=index <= 2), carry=b"carry" if index == 2 else None))
        assert await chunks.next_waiting(connection, recording.id, "1") is None
        first = await chunks.first_unparsed(connection, recording.id, "1")
        assert first is not None
        assert first.index == 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(present=st.sets(st.integers(1, 12), max_size=12), last=st.integers(0, 12))
async def test_missing_indices_are_exactly_the_holes(database: Database, present: set[int], last: int) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        for index in present:
            await chunks.commit_chunk(connection, a_chunk(recording.id, index))
        await chunks.close_track(connection, recording.id, "1", last)
        missing = await chunks.missing_indices(connection, recording.id, "1", last)
    covered = [index for start, stop in missing for index in range(start, stop + 1)]
    assert covered == [index for index in range(1, last + 1) if index not in present]
    assert all(stop + 1 < start for (_, stop), (start, _) in pairwise(missing)), "holes that touch are one"


async def test_missing_of_a_track_that_sent_nothing_is_all_up_to_the_largest_index(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        assert await chunks.missing_indices(connection, recording.id, "1", 2_147_483_647) == [(1, 2_147_483_647)]


async def test_the_first_track_is_1_and_fresh_ones_are_free_numbers(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        await connection.execute("DELETE FROM tracks")

    async def join() -> str:
        async with database.transaction() as connection:
            return (await chunks.add_track(connection, recording.id, participant_id="p")).id

    assert await join() == "1"
    async with database.transaction() as connection:
        await chunks.upsert_track(connection, recording.id, "3", mime_type="video/webm")
        again = await chunks.upsert_track(connection, recording.id, "3", participant_id="bob", mime_type="other")
        assert (again.participant_id, again.mime_type) == ("bob", "video/webm")
    assert sorted(await asyncio.gather(*(join() for _ in range(5)))) == ["4", "5", "6", "7", "8"]
    async with database.transaction() as connection:
        with pytest.raises(NotFound):
            await chunks.close_track(connection, recording.id, "no", 1)


async def test_a_spooled_chunk_moves_to_the_store_by_the_table_of_states(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        new = a_chunk(recording.id, 1)
        spooled = type(new)(**{name: getattr(new, name) for name in new.__slots__} | {"state": ChunkState.QUEUED, "stored_in": "spool", "spool_host": "a"})
        await chunks.commit_chunk(connection, spooled)
        assert [chunk.index for chunk in await chunks.spooled_on(connection, "a")] == [1]
        assert await chunks.move_chunk(connection, recording.id, "1", 1, ChunkState.DONE) is False
        assert await chunks.move_chunk(connection, recording.id, "1", 1, ChunkState.IN_PROGRESS) is True
        assert await chunks.move_chunk(connection, recording.id, "1", 1, ChunkState.DONE, stored_in="primary") is True
        assert await chunks.spooled_on(connection, "a") == []


async def test_the_first_mend_of_a_place_stays(database: Database) -> None:
    async with database.transaction() as connection:
        recording = await a_recording(connection)
        await chunks.commit_chunk(connection, a_chunk(recording.id, 1))
        for blob in (b"first", b"second"):
            await chunks.put_mend(connection, recording.id, Mend("1", 1, 500, blob))
        assert await chunks.mends_of(connection, recording.id) == [Mend("1", 1, 500, b"first")]


async def test_bodies_on_their_way_to_the_store_are_counted(database: Database) -> None:
    async with database.transaction() as connection:
        recording, other = await a_recording(connection), await a_recording(connection)
        for index, state in enumerate(ChunkState, 1):
            await chunks.commit_chunk(connection, replace(a_chunk(recording.id, index), state=state))
        waiting = [chunk for chunk in await chunks.chunks_of(connection, recording.id) if chunk.waits]
        assert await chunks.count_waiting(connection, recording.id) == len(waiting) == 2
        assert await chunks.count_waiting(connection, other.id) == 0
