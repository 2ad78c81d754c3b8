"""Byte cuts that waited behind a hole that stays: read on from the next cluster or fragment, so that the hole costs only itself."""

from roomtape.db import chunks, jobs
from roomtape.db.database import Database
from roomtape.db.jobs import Ticket
from roomtape.db.rows import Recording
from roomtape.storage.failover import SpooledStore
from roomtape.tapes.indexing import index_after_hole, off_loop, read_whole, set_indexed
from roomtape.tapes.indexing import take_up as take_up_run


async def take_up(database: Database, store: SpooledStore, recording: Recording, ticket: Ticket) -> None:
    """Gives every waiting chunk an index, or the warning that it has none. Each track in a transaction of its own."""
    async with database.transaction() as connection:
        tracks = await chunks.tracks_of(connection, recording.id)
    for track in tracks:
        async with database.transaction() as connection:
            if not await jobs.still_mine(connection, ticket):
                return
            await chunks.lock_track(connection, recording.id, track.id)
            carry: bytes | None = None
            rows = await chunks.chunks_of(connection, recording.id, track_id=track.id)
            for row in rows:
                whole = await chunks.get_chunk(connection, recording.id, track.id, row.index)
                assert whole is not None
                if whole.parsed:
                    carry = whole.carry or (None if whole.starts_file else carry)
                    continue
                body = await read_whole(store, whole)
                indexed = await off_loop(len(body), index_after_hole, body, carry)
                await set_indexed(connection, whole, indexed)
                await take_up_run(connection, store, whole, indexed.carry)
