"""The recorder looks at all that runs, each by itself: one that cannot be read hides no other."""

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from uuid_utils.compat import uuid7

from roomtape.capture.segments import Said, Segments
from roomtape.core.keys import meeting_prefix
from roomtape.core.lifecycle import Health, Status
from roomtape.db import ledger, outbox
from roomtape.db.database import Database
from roomtape.db.rows import Recording
from roomtape.media.runner import Runner
from roomtape.recorder import Watch
from roomtape.storage.failover import SpooledStore
from roomtape.storage.local import LocalStore
from roomtape.tapes.layouts import Layouts

pytestmark = pytest.mark.anyio


class Counted(LocalStore):
    """A store that counts its reads; `steal`: with each, another recorder takes what is being looked at."""

    def __init__(self, root: Path, database: Database) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()
        self.steal = False
        self._database = database

    async def read(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        self.reads[key] += 1
        if self.steal:
            async with self._database.transaction() as connection:
                await connection.execute("UPDATE leases SET holder = 'another', fence = nextval('lease_fence')")
        async for piece in super().read(key, start, stop):
            yield piece


@dataclass(slots=True)
class Studio:
    database: Database
    store: Counted
    watch: Watch
    segments: Segments

    async def record(self, folder: Path, count: int = 2, *, max_duration_s: float | None = None) -> Recording:
        """A recording that runs, with the segments of a folder."""
        async with self.database.transaction() as connection:
            meeting = await ledger.create_meeting(connection, "default", uuid7(), f"room-{uuid7()}", host_id="host")
            prefix = meeting_prefix("default", "host", meeting.id)
            wishes = {"max_duration_s": max_duration_s}
            recording = await ledger.create_recording(
                connection, "default", uuid7(), meeting.id, owner_id="host", prefix=prefix, source="segments", wishes=wishes
            )
        started_us = time.time_ns() // 1000 - 4_000_000 * count
        for index, path in enumerate(sorted(folder.glob("0*"))[:count], 1):
            await self.segments.take(recording, Said(track_id="1", index=index, started_us=started_us + (index - 1) * 4_000_000), pieces(path), nothing)
        return recording

    async def now(self, recording: Recording) -> Recording:
        async with self.database.transaction() as connection:
            return await ledger.lock_recording(connection, recording.id)


async def pieces(path: Path) -> AsyncIterator[bytes]:
    yield path.read_bytes()


async def nothing(*_: object) -> None:
    """Nobody's rights change here."""


@pytest.fixture
async def studio(database: Database, tmp_path: Path) -> AsyncIterator[Studio]:
    disk = Counted(tmp_path / "store", database)
    store = SpooledStore(disk)
    (tmp_path / "work").mkdir()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        runner = await stack.enter_async_context(Runner())
        layouts = Layouts(database, wait_s=0, now_us=now_us)
        watch = Watch(database, store, layouts, runner, tmp_path / "work")
        yield Studio(database, disk, watch, Segments(database, store, host="", limit_bytes=1 << 30, reserve_bytes=0, now_us=now_us))


def now_us() -> int:
    return time.time_ns() // 1000


async def test_a_recording_that_cannot_be_looked_at_hides_no_other(studio: Studio, chromium: Path) -> None:
    broken = await studio.record(chromium / "B-vp8")
    good = await studio.record(chromium / "B-vp8")
    async with studio.database.transaction() as connection:
        await connection.execute("UPDATE chunks SET index_blob = 'no index' WHERE recording_id = %s", [broken.id])
    await studio.watch.look()
    assert (await studio.now(good)).health is not Health.STARTING
    assert (await studio.now(broken)).health is Health.STARTING


async def test_a_segment_is_read_once_for_its_pictures_and_once_for_its_sound(studio: Studio, chromium: Path) -> None:
    await studio.record(chromium / "B-vp8", 2)
    await studio.watch.look()
    assert len(studio.store.reads) == 2
    assert max(studio.store.reads.values()) <= 2


async def test_what_nothing_was_sent_to_hides_nothing_that_runs(studio: Studio, chromium: Path) -> None:
    async with studio.database.transaction() as connection:
        await connection.execute("INSERT INTO meetings (id, room_code) SELECT gen_random_uuid(), 'pending-' || n FROM generate_series(1, 1001) AS n")
        await connection.execute(
            "INSERT INTO recordings (id, meeting_id, owner_id, prefix, source) SELECT gen_random_uuid(), id, 'host', 'host/' || id || '/', 'segments' FROM meetings"
        )
    running = await studio.record(chromium / "B-opus")
    await studio.watch.look()
    assert (await studio.now(running)).health is not Health.STARTING


async def test_a_capture_whose_time_is_up_is_stopped_as_by_a_person(studio: Studio, chromium: Path) -> None:
    recording = await studio.record(chromium / "B-opus", max_duration_s=0.001)
    await studio.watch.look()
    assert (await studio.now(recording)).status is Status.STOPPED
    async with studio.database.transaction() as connection:
        events = await outbox.events_of(connection, recording.id)
    assert [(event.type, event.data.get("why")) for event in events[-2:]] == [("recording.stopped", "max_duration_s"), ("recording.playable", None)]


async def test_a_recorder_whose_lease_was_taken_over_changes_nothing(studio: Studio, chromium: Path) -> None:
    recording = await studio.record(chromium / "B-vp8")
    studio.store.steal = True
    await studio.watch.look()
    assert (await studio.now(recording)).health is Health.STARTING
