"""A house for the pipeline: a store that may be away, a spool, and a worker that runs until there is nothing to do."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from uuid_utils.compat import uuid7

from roomtape.capture import control
from roomtape.capture.segments import Said, Segments
from roomtape.core.errors import Unavailable
from roomtape.core.keys import meeting_prefix
from roomtape.db import chunks, jobs, ledger
from roomtape.db.database import Database
from roomtape.db.rows import Chunk, Recording
from roomtape.media.runner import Runner
from roomtape.pipeline.advance import Bench
from roomtape.storage.failover import SpooledStore
from roomtape.storage.local import LocalStore
from roomtape.tapes.layouts import Layouts
from roomtape.tapes.whole import Ropes
from roomtape.worker import register

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
