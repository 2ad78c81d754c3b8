"""Byte cuts that waited behind a hole that stays: read on from the next cluster or fragment, so that the hole costs only itself."""

from roomtape.db import chunks, jobs
from roomtape.db.database import Database
from roomtape.db.jobs import Ticket
from roomtape.db.rows import Recording
from roomtape.storage.failover import SpooledStore
from roomtape.tapes.indexing import index_after_hole, off_loop, opened, parse_waiting, write_down


async def take_up(database: Database, store: SpooledStore, recording: Recording, ticket: Ticket) -> None:
    """Gives every waiting chunk an index, or the warning that it has none."""
    async with database.transaction() as connection:
        if not await jobs.still_mine(connection, ticket):
            return
        tracks = await chunks.tracks_of(connection, recording.id)
    for track in tracks:
        await _track(database, store, recording, track.id)


async def _track(database: Database, store: SpooledStore, recording: Recording, track_id: str) -> None:
    while True:
        await parse_waiting(database, store, recording.id, track_id)
        async with database.transaction() as connection:
            waiting = await chunks.first_unparsed(connection, recording.id, track_id)
            carry = await chunks.carry_before(connection, recording.id, track_id, waiting.index) if waiting else None
        if waiting is None:
            return
        async with opened(store, waiting) as data:
            indexed = await off_loop(len(data), index_after_hole, data, carry)
        await write_down(database, waiting, indexed)
