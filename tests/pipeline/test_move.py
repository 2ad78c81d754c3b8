"""Bodies go from the spool to the store; one that cannot is told of and holds up no other."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from uuid_utils.compat import uuid7

from roomtape.capture import control
from roomtape.capture.segments import Said, Segments
from roomtape.core.errors import Conflict, Unavailable
from roomtape.core.keys import meeting_prefix
from roomtape.core.lifecycle import ChunkState, Status
from roomtape.db import chunks, jobs, ledger
from roomtape.db.database import Database
from roomtape.db.rows import Chunk, Recording
from roomtape.media.runner import Runner
from roomtape.pipeline.advance import Bench
from roomtape.pipeline.steps import move
from roomtape.storage.failover import SpooledStore
from roomtape.storage.local import LocalStore
from roomtape.tapes.layouts import Layouts
from roomtape.tapes.whole import Ropes
from roomtape.worker import register

pytestmark = pytest.mark.anyio

HOST = "here"


class Remote(LocalStore):
    """A store that may be away."""

    away = False

    async def adopt(self, key: str, path: Path, *, size: int, sha256: str) -> None:
        if self.away:
            raise Unavailable(code="storage_error")
        await super().adopt(key, path, size=size, sha256=sha256)


@dataclass(slots=True)
class House:
    bench: Bench
    remote: Remote
    spool: LocalStore
    segments: Segments

    async def record(self, folder: Path, count: int) -> Recording:
        """A recording whose segments were taken while the store was away, and which is then completed."""
        database = self.bench.database
        async with database.transaction() as connection:
            meeting = await ledger.create_meeting(connection, "default", uuid7(), f"room-{uuid7()}", host_id="host")
            prefix = meeting_prefix("default", "host", meeting.id)
            recording = await ledger.create_recording(connection, "default", uuid7(), meeting.id, owner_id="host", prefix=prefix, source="segments")
        self.remote.away = True
        started_us = time.time_ns() // 1000
        for index, path in enumerate(sorted(folder.glob("0*"))[:count], 1):
            await self.segments.take(recording, Said(track_id="1", index=index, started_us=started_us + (index - 1) * 4_000_000), pieces(path), _nothing)
        self.remote.away = False
        async with database.transaction() as connection:
            return await control.complete(connection, self.bench.queue, recording, control.Closing())

    async def rows(self, recording: Recording) -> list[Chunk]:
        async with self.bench.database.transaction() as connection:
            return await chunks.chunks_of(connection, recording.id)

    async def now(self, recording: Recording) -> Recording:
        async with self.bench.database.transaction() as connection:
            return await ledger.lock_recording(connection, recording.id)

    async def work(self) -> None:
        """What a worker does until there is nothing to do."""
        await self.bench.queue.run_worker_async(wait=False, install_signal_handlers=False, listen_notify=False)


async def _nothing(*_: object) -> None:
    """Nobody's rights change here."""


async def pieces(path: Path) -> AsyncIterator[bytes]:
    yield path.read_bytes()


@pytest.fixture
async def house(database: Database, tmp_path: Path) -> AsyncIterator[House]:
    remote, spool = Remote(tmp_path / "store"), LocalStore(tmp_path / "spool")
    store = SpooledStore(remote, spool)
    now_us = lambda: time.time_ns() // 1000  # noqa: E731
    (tmp_path / "work").mkdir()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        queue = jobs.queue_app(database.conninfo)
        await stack.enter_async_context(jobs.opened(queue))
        runner = await stack.enter_async_context(Runner())
        bench = Bench(database, store, Layouts(database, wait_s=0, now_us=now_us), Ropes(), runner, queue, tmp_path / "work", HOST)
        register(bench)
        # Uploads go through a store of their own, as they do in a process of their own: what it knows of failures does not hold up the mover here.
        yield House(bench, remote, spool, Segments(database, SpooledStore(remote, spool), host=HOST, limit_bytes=1 << 30, reserve_bytes=0, now_us=now_us))


@pytest.mark.parametrize("how", ["gone", "rotten"])
@pytest.mark.parametrize("form", ["A-opus", "B-opus"])
async def test_a_lost_body_is_told_of_and_the_others_make_a_whole_recording(house: House, chromium: Path, form: str, how: str) -> None:
    recording = await house.record(chromium / form, 4)
    lost = (await house.rows(recording))[1]
    path = house.spool.path(lost.key)
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    await house.work()
    assert [row.state for row in await house.rows(recording)] == [ChunkState.DONE, ChunkState.FAILED, ChunkState.DONE, ChunkState.DONE]
    made = await house.now(recording)
    assert made.status is Status.COMPLETED, made.error
    assert made.error is None
    assert [(one["code"], "Segment 2 of track 1" in one["message"]) for one in made.warnings if one["code"] == "segment_lost"] == [("segment_lost", True)]
    assert made.size_bytes
    tape = await house.bench.layouts.tape(made)
    assert tape.layouts["1"].gaps, "the hole is told"


async def test_a_recording_whose_every_body_is_lost_says_so(house: House, chromium: Path) -> None:
    recording = await house.record(chromium / "A-opus", 2)
    for row in await house.rows(recording):
        house.spool.path(row.key).unlink()
    await house.work()
    made = await house.now(recording)
    assert made.status is Status.FAILED
    assert made.error is not None
    assert made.error["code"] == "segment_lost"


async def test_a_body_that_is_stuck_holds_up_no_other(house: House, chromium: Path) -> None:
    recording = await house.record(chromium / "A-opus", 3)
    first = (await house.rows(recording))[0]
    in_the_way = house.remote.path(first.key)
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_bytes(b"others")
    with pytest.raises(Conflict):
        await move.move_all(house.bench.database, house.bench.store, HOST)
    assert [row.state for row in await house.rows(recording)] == [ChunkState.QUEUED, ChunkState.DONE, ChunkState.DONE]
    in_the_way.unlink()
    await house.work()
    assert (await house.now(recording)).status is Status.COMPLETED
