"""Bodies that were kept in this machine's spool go to the store: put, checked, the row, and only then the spool's copy is dropped."""

import structlog

from roomtape.core.errors import Unavailable
from roomtape.core.lifecycle import ChunkState
from roomtape.core.model import StoredIn
from roomtape.db import chunks
from roomtape.db.database import Database
from roomtape.db.rows import Chunk, Recording
from roomtape.storage.failover import SpooledStore

log = structlog.get_logger()


async def move(database: Database, store: SpooledStore, recording: Recording, host: str) -> None:
    """Moves a recording's spooled chunks. Unavailable when the store fails, or when some are in another machine's spool."""
    async with database.transaction() as connection:
        rows = [row for row in await chunks.chunks_of(connection, recording.id) if row.stored_in == StoredIn.SPOOL]
    for row in rows:
        if row.spool_host == host:
            await move_one(database, store, row)
    if others := sorted({row.spool_host or "?" for row in rows if row.spool_host != host}):
        raise Unavailable(f"Segments wait in the spool of {', '.join(others)} until it can send them to the store.", code="spooled_elsewhere", retry_after_s=10)


async def move_one(database: Database, store: SpooledStore, row: Chunk) -> None:
    """One chunk; repeated after a crash at any line it ends the same."""
    async with database.transaction() as connection:
        await chunks.move_chunk(connection, row.recording_id, row.track_id, row.index, ChunkState.IN_PROGRESS)
    try:
        await store.move(row.key, size=row.size_bytes, sha256=row.sha256)
    except Unavailable:
        async with database.transaction() as connection:
            await chunks.move_chunk(connection, row.recording_id, row.track_id, row.index, ChunkState.QUEUED)
        raise
    async with database.transaction() as connection:
        await chunks.move_chunk(connection, row.recording_id, row.track_id, row.index, ChunkState.DONE, stored_in=StoredIn.PRIMARY.value)
    await store.drop(row.key)
    log.info("chunk.moved", recording=str(row.recording_id), track=row.track_id, index=row.index)


async def move_all(database: Database, store: SpooledStore, host: str) -> int:
    """Everything in this machine's spool, oldest first; returns how many were moved. Unavailable at the first that fails."""
    async with database.transaction() as connection:
        rows = await chunks.spooled_on(connection, host)
    for row in rows:
        await move_one(database, store, row)
    return len(rows)
