"""Layouts over a real ledger: what a process keeps between looks tells the same as a process that has just begun."""

from hashlib import sha256
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from uuid_utils.compat import uuid7

from roomtape.core.lifecycle import ChunkState, Status
from roomtape.db import chunks, ledger
from roomtape.db.database import Connection, Database
from roomtape.db.rows import NewChunk, Recording
from roomtape.media.index import index_head, pack
from roomtape.tapes.layouts import Layouts, Tape

pytestmark = pytest.mark.anyio

DATA = Path(__file__).parents[1] / "data" / "chromium" / "B-vp9"
NOW_US = 1_795_247_000_000_000
PITCH_US = 4_000_000


def layouts(database: Database, *, wait_s: float = 60) -> Layouts:
    return Layouts(database, wait_s=wait_s, now_us=lambda: NOW_US)


async def begin(database: Database, *tracks: str) -> Recording:
    async with database.transaction() as connection:
        meeting = await ledger.create_meeting(connection, "default", uuid7(), f"room-{uuid7()}", host_id="host")
        recording = await ledger.create_recording(connection, "default", uuid7(), meeting.id, owner_id="owner", prefix="p/", source="segments", wishes={})
        for track in tracks:
            await chunks.upsert_track(connection, recording.id, track)
    return recording


async def commit(connection: Connection, recording: UUID, index: int, *, track: str = "1") -> None:
    body = sorted(DATA.glob("0*"))[index % 3].read_bytes()
    digest = sha256(body + bytes([index])).hexdigest()
    new = NewChunk(
        recording_id=recording,
        track_id=track,
        index=index,
        size_bytes=len(body),
        sha256=digest,
        key=f"k/{track}/{index}",
        state=ChunkState.DONE,
        stated_us=NOW_US + (index - 1) * PITCH_US,
        parsed=True,
        starts_file=True,
        index_blob=pack(index_head(body)[0]),
    )
    await chunks.commit_chunk(connection, new)


async def end(database: Database, recording: UUID) -> Recording:
    async with database.transaction() as connection:
        for status in (Status.STOPPED, Status.PROCESSING, Status.COMPLETED):
            await ledger.move(connection, recording, status)
        found = await ledger.find_recording(connection, recording)
    assert found is not None
    return found


def assert_same(one: Tape, two: Tape) -> None:
    assert one.marks == two.marks
    assert one.facts == two.facts
    for name, layout in one.layouts.items():
        other = two.layouts[name]
        assert (layout.windows, layout.gaps, layout.spans, layout.maps) == (other.windows, other.gaps, other.spans, other.maps)
        for a, b in zip(layout.placement.lanes, other.placement.lanes, strict=True):
            assert np.array_equal(a.rows, b.rows)


async def test_a_process_that_watched_sees_what_one_that_has_just_begun_sees(database: Database) -> None:
    recording, watching = await begin(database, "1", "2"), layouts(database)
    for index in range(1, 8):
        async with database.transaction() as connection:
            await commit(connection, recording.id, index)
            if index == 2:
                await commit(connection, recording.id, 1, track="2")
        tape = await watching.tape(recording)
        assert len(tape.taken["1"]) == index
        assert_same(tape, await layouts(database).tape(recording))
    ended = await end(database, recording.id)
    assert_same(await watching.tape(ended), await layouts(database).tape(ended))


async def test_segments_of_a_track_that_appears_later_are_seen(database: Database) -> None:
    recording, watching = await begin(database, "1"), layouts(database)
    async with database.transaction() as connection:
        await commit(connection, recording.id, 1)
    assert set((await watching.tape(recording)).layouts) == {"1"}
    async with database.transaction() as connection:
        await chunks.upsert_track(connection, recording.id, "2")
        await commit(connection, recording.id, 1, track="2")
    tape = await watching.tape(recording)
    assert tape.layouts["2"].playable
    assert tape.layouts["2"].windows == (await layouts(database).tape(recording)).layouts["2"].windows


async def test_a_completed_recording_is_answered_without_the_database(database: Database) -> None:
    recording, watching = await begin(database, "1"), layouts(database)
    async with database.transaction() as connection:
        await commit(connection, recording.id, 1)
    ended = await end(database, recording.id)
    tape = await watching.tape(ended)
    await database.close()
    again = await watching.tape(ended)
    assert again.layouts["1"] is tape.layouts["1"]
    assert again.marks == tape.marks


async def test_what_was_noted_is_looked_at_without_anybody_asking(database: Database) -> None:
    recording, watching = await begin(database, "1"), layouts(database, wait_s=0)
    async with database.transaction() as connection:
        await commit(connection, recording.id, 1)
        await commit(connection, recording.id, 3)
    watching.note(recording)
    await watching.warm()
    assert await _given_up(database, recording.id) == [2]
    async with database.transaction() as connection:
        listed = await ledger.get_recording(connection, recording.tenant_id, recording.id)
    assert listed is not None
    assert listed.duration_us


async def _given_up(database: Database, recording: UUID) -> list[int]:
    async with database.transaction() as connection:
        return list((await chunks.tracks_of(connection, recording))[0].live_skips)


async def test_what_is_kept_is_bounded_by_its_bytes(database: Database) -> None:
    kept = Layouts(database, wait_s=60, now_us=lambda: NOW_US, most_bytes=60_000)
    recordings = [await begin(database, "1") for _ in range(4)]
    for recording in recordings:
        async with database.transaction() as connection:
            for index in range(1, 4):
                await commit(connection, recording.id, index)
        await kept.tape(recording)
    sizes = [reel.held for reel in kept._reels.values()]
    assert recordings[-1].id in kept._reels
    assert all(size > 10_000 for size in sizes)
    assert sum(sizes[:-1]) <= 60_000, "the newest stays in any case"
    assert len(sizes) < 4
