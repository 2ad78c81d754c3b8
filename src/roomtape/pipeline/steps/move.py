"""Bodies that were kept in this machine's spool go to the store: put, checked, the row, and only then the spool's copy is dropped."""

from collections.abc import Sequence

import structlog

from roomtape.core.errors import BadInput, Conflict, NotFound, StorageFull, Unavailable
from roomtape.core.lifecycle import ChunkState
from roomtape.core.model import StoredIn
from roomtape.db import chunks, ledger
from roomtape.db.database import Database
from roomtape.db.rows import Chunk, Recording
from roomtape.storage.failover import SpooledStore

log = structlog.get_logger()

LOST = "lost"


async def move(database: Database, store: SpooledStore, recording: Recording, host: str) -> None:
    """Moves a recording's spooled chunks. Unavailable when the store fails, or when some are in another machine's spool; Conflict where the store has other bytes."""
    async with database.transaction() as connection:
        rows = [row for row in await chunks.chunks_of(connection, recording.id) if row.waits]
    await _move_each(database, store, [row for row in rows if row.spool_host == host])
    if others := sorted({row.spool_host or "?" for row in rows if row.spool_host != host}):
        raise Unavailable(f"Segments wait in the spool of {', '.join(others)} until it can send them to the store.", code="spooled_elsewhere", retry_after_s=10)


async def move_one(database: Database, store: SpooledStore, row: Chunk) -> None:
    """One chunk; repeated after a crash at any line it ends the same. What is in neither place, or has rotted, is given up: nobody else has it.

    Unavailable, StorageFull: the store fails. Conflict: it has other bytes under this key.
    """
    async with database.transaction() as connection:
        await chunks.move_chunk(connection, row.recording_id, row.track_id, row.index, ChunkState.IN_PROGRESS)
    try:
        await store.move(row.key, size=row.size_bytes, sha256=row.sha256)
    except (NotFound, BadInput) as wrong:
        await _give_up(database, row, wrong.code)
        return
    except (Unavailable, StorageFull, Conflict):
        async with database.transaction() as connection:
            await chunks.move_chunk(connection, row.recording_id, row.track_id, row.index, ChunkState.QUEUED)
        raise
    async with database.transaction() as connection:
        await chunks.move_chunk(connection, row.recording_id, row.track_id, row.index, ChunkState.DONE, stored_in=StoredIn.PRIMARY.value)
    await store.drop(row.key)
    log.info("chunk.moved", recording=str(row.recording_id), track=row.track_id, index=row.index)


async def move_all(database: Database, store: SpooledStore, host: str) -> int:
    """Everything in this machine's spool, oldest first; returns how many were looked at. Unavailable, StorageFull: the store fails."""
    async with database.transaction() as connection:
        rows = await chunks.spooled_on(connection, host)
    await _move_each(database, store, rows)
    return len(rows)


async def _move_each(database: Database, store: SpooledStore, rows: Sequence[Chunk]) -> None:
    """One after another; a store that fails ends it, one segment that cannot be moved holds up no other."""
    stuck: Conflict | None = None
    for row in rows:
        try:
            await move_one(database, store, row)
        except Conflict as wrong:
            log.error("chunk.stuck", recording=str(row.recording_id), track=row.track_id, index=row.index, code=wrong.code)  # noqa: TRY400  (which one it is says all)
            stuck = wrong
    if stuck is not None:
        raise stuck


async def _give_up(database: Database, row: Chunk, why: str) -> None:
    """A segment's bytes are lost: it plays nothing any more, the recording says which, and an operator is told."""
    async with database.transaction() as connection:
        recording = await ledger.lock_recording(connection, row.recording_id)
        if not await chunks.move_chunk(connection, row.recording_id, row.track_id, row.index, ChunkState.FAILED):
            return  # another process has just moved it
        whole = await chunks.get_chunk(connection, row.recording_id, row.track_id, row.index)
        assert whole is not None
        await chunks.set_parsed(
            connection,
            row.recording_id,
            row.track_id,
            row.index,
            index_blob=None,
            carry=whole.carry,  # cuts that come after it are still read by it
            starts_file=whole.starts_file,
            media_start_us=None,
            media_end_us=None,
            warning=LOST,
        )
        warning = {"code": "segment_lost", "message": f"Segment {row.index} of track {row.track_id} was taken and is lost: it is a hole in the recording."}
        await ledger.set_fields(connection, row.recording_id, {"warnings": [*recording.warnings, warning]})
    log.error("chunk.lost", recording=str(row.recording_id), track=row.track_id, index=row.index, key=row.key, host=row.spool_host, why=why)
