"""All SQL about tracks and chunks: what is on the tape, in which order it was committed, and what is missing."""

from collections.abc import Collection
from dataclasses import fields
from datetime import datetime
from typing import Any
from uuid import UUID

from roomtape.core.errors import Conflict, NotFound
from roomtape.core.lifecycle import CHUNK_NEXT, TAKING, ChunkState, Status
from roomtape.db.database import Connection, found, many, one, scalar
from roomtape.db.ledger import lock_recording, move
from roomtape.db.outbox import write_event
from roomtape.db.rows import Chunk, Mend, NewChunk, Track

_BLOBS = ("index_blob", "carry")
_LIGHT = ", ".join(field.name for field in fields(Chunk) if field.name not in _BLOBS)
_NEW = tuple(field.name for field in fields(NewChunk))

_UPSERT_TRACK = """
    INSERT INTO tracks (recording_id, tenant_id, id, participant_id, kind, source, mime_type)
    SELECT id, tenant_id, %(track_id)s, %(participant_id)s, %(kind)s, %(source)s, %(mime_type)s FROM recordings WHERE id = %(recording_id)s
    ON CONFLICT (recording_id, id) DO UPDATE SET
        participant_id = coalesce(tracks.participant_id, excluded.participant_id), kind = coalesce(tracks.kind, excluded.kind),
        source = coalesce(tracks.source, excluded.source), mime_type = coalesce(tracks.mime_type, excluded.mime_type)
    RETURNING *
"""
_INSERT_CHUNK = f"""
    INSERT INTO chunks (tenant_id, commit_seq, {", ".join(_NEW)})
    SELECT tenant_id, nextval('commit_order'), {", ".join(f"%({name})s" for name in _NEW)} FROM recordings WHERE id = %(recording_id)s
    ON CONFLICT (recording_id, track_id, index) DO NOTHING RETURNING *
"""
_SET_PARSED = """
    UPDATE chunks SET parsed = true, commit_seq = nextval('commit_order'), index_blob = %(index_blob)s, carry = %(carry)s, starts_file = %(starts_file)s,
        media_start_us = %(media_start_us)s, media_end_us = %(media_end_us)s, warning = %(warning)s
    WHERE recording_id = %(recording_id)s AND track_id = %(track_id)s AND index = %(index)s RETURNING *
"""
_MISSING = """
    WITH present AS (
        SELECT index FROM chunks WHERE recording_id = %(recording_id)s AND track_id = %(track_id)s AND index BETWEEN 1 AND %(last)s
        UNION SELECT %(last)s::bigint + 1
    ), steps AS (SELECT index, lag(index, 1, 0) OVER (ORDER BY index) AS before FROM present WHERE index <= %(last)s::bigint + 1)
    SELECT before + 1, index - 1 FROM steps WHERE index > before + 1 ORDER BY 1
"""


async def lock_track(connection: Connection, recording_id: UUID, track_id: str) -> None:
    """Holds a track until the transaction ends, so that its cuts are parsed one after another. Take it before the recording's row, never after: no deadlock."""
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{recording_id}/{track_id}"])


async def upsert_track(
    connection: Connection,
    recording_id: UUID,
    track_id: str,
    *,
    participant_id: str | None = None,
    kind: str | None = None,
    source: str | None = None,
    mime_type: str | None = None,
) -> Track:
    """A track, made when missing; what it says already stays, what it lacks is filled. Whose it is, is the caller's check."""
    values = {"track_id": track_id, "participant_id": participant_id, "kind": kind, "source": source, "mime_type": mime_type}
    return found(await one(connection, Track, _UPSERT_TRACK, recording_id=recording_id, **values))


async def add_track(connection: Connection, recording_id: UUID, **what: Any) -> Track:
    """A track with a fresh id: "1" for the first one of a recording, then the next number that is free. Arguments as of upsert_track."""
    await lock_recording(connection, recording_id)
    taken = {track.id for track in await tracks_of(connection, recording_id)}
    number = len(taken) + 1
    while str(number) in taken:
        number += 1
    return await upsert_track(connection, recording_id, str(number), **what)


async def tracks_of(connection: Connection, recording_id: UUID) -> list[Track]:
    """All tracks, in the order of making."""
    return await many(connection, Track, "SELECT * FROM tracks WHERE recording_id = %(id)s ORDER BY created_at, id", id=recording_id)


async def set_clock(connection: Connection, recording_id: UUID, track_id: str, clock: str, *, shift_us: int = 0) -> None:
    """Notes how the track stands on the recording's clock: measured, client or none; `shift_us` is added to what it states."""
    query = "UPDATE tracks SET clock = %s, clock_shift_us = %s WHERE recording_id = %s AND id = %s AND (clock, clock_shift_us) <> (%s, %s)"
    await connection.execute(query, [clock, shift_us, recording_id, track_id, clock, shift_us])


async def give_up(connection: Connection, recording_id: UUID, track_id: str, indices: list[int]) -> None:
    """The live edge waits for these segments no longer; what is listed after them stays so, even if they come."""
    query = "UPDATE tracks SET live_skips = live_skips || %s::integer[] WHERE recording_id = %s AND id = %s AND NOT live_skips @> %s::integer[]"
    await connection.execute(query, [indices, recording_id, track_id, indices])


async def close_track(connection: Connection, recording_id: UUID, track_id: str, last_index: int) -> Track:
    """Says which index is the last: what is missing before it never comes. Raises NotFound."""
    query = "UPDATE tracks SET closed_last_index = %(last)s WHERE recording_id = %(recording_id)s AND id = %(track_id)s RETURNING *"
    return found(await one(connection, Track, query, recording_id=recording_id, track_id=track_id, last=last_index))


async def commit_chunk(connection: Connection, new: NewChunk) -> tuple[Chunk, bool]:
    """Writes a chunk whose bytes are durable; returns it and whether it is new. The first media makes a pending recording `recording`.

    The same index with the same bytes gives the row that is there, also after complete-recording (an answer that was lost).
    Raises Conflict: `segment_differs` (other bytes; the first stay), `recording_completed` (nothing more is taken); NotFound.
    """
    held = await lock_recording(connection, new.recording_id)  # also what makes commit_seq rise in the order of commits
    there = await get_chunk(connection, new.recording_id, new.track_id, new.index)
    if there is not None:
        if there.sha256 != new.sha256:
            raise Conflict("Another segment has this index.", code="segment_differs", sha256=there.sha256)
        return there, False
    if held.deleted_at is not None:
        raise NotFound
    if held.status not in TAKING or held.complete_requested_at is not None:
        raise Conflict("The recording is complete; nothing more is taken. Keep the bytes.", code="recording_completed", state=str(held.status))
    made = found(await one(connection, Chunk, _INSERT_CHUNK, **{name: getattr(new, name) for name in _NEW}))
    query = "UPDATE recordings SET bytes = bytes + %s, last_byte_at = now(), started_at = coalesce(started_at, now()) WHERE id = %s"
    await connection.execute(query, [new.size_bytes, new.recording_id])
    if held.status is Status.PENDING:
        await move(connection, new.recording_id, Status.RECORDING, why="first media")
    data = {"track_id": new.track_id, "index": new.index, "size_bytes": new.size_bytes, "sha256": new.sha256, "state": str(new.state)}
    await write_event(connection, new.recording_id, "segment.committed", data)
    return made, True


async def set_parsed(
    connection: Connection,
    recording_id: UUID,
    track_id: str,
    index: int,
    *,
    index_blob: bytes | None,
    carry: bytes | None,
    starts_file: bool,
    media_start_us: int | None,
    media_end_us: int | None,
    warning: str | None = None,
) -> Chunk:
    """Gives a chunk its index; it moves to the end of the commit order, so that readers who went by see it now. Raises NotFound."""
    await lock_recording(connection, recording_id)
    values = {
        "index_blob": index_blob,
        "carry": carry,
        "starts_file": starts_file,
        "media_start_us": media_start_us,
        "media_end_us": media_end_us,
        "warning": warning,
    }
    return found(await one(connection, Chunk, _SET_PARSED, recording_id=recording_id, track_id=track_id, index=index, **values))


async def drop_carry(connection: Connection, recording_id: UUID, track_id: str, index: int) -> None:
    """Forgets what parsing the next cut needed, once it is parsed."""
    query = "UPDATE chunks SET carry = NULL WHERE recording_id = %s AND track_id = %s AND index = %s AND carry IS NOT NULL"
    await connection.execute(query, [recording_id, track_id, index])


async def get_chunk(connection: Connection, recording_id: UUID, track_id: str, index: int) -> Chunk | None:
    """One chunk with its index and carry."""
    query = "SELECT * FROM chunks WHERE recording_id = %(recording_id)s AND track_id = %(track_id)s AND index = %(index)s"
    return await one(connection, Chunk, query, recording_id=recording_id, track_id=track_id, index=index)


async def chunks_of(
    connection: Connection,
    recording_id: UUID,
    *,
    track_id: str | None = None,
    after_commit_seq: int | None = None,
    with_index: bool = False,
    limit: int = 1_000_000,
) -> list[Chunk]:
    """The chunks by track and index; with `after_commit_seq` only newer ones, in the order of commits. Indexes come only when asked for."""
    order = "track_id, index" if after_commit_seq is None else "commit_seq"
    query = f"""
        SELECT {"*" if with_index else _LIGHT} FROM chunks
        WHERE recording_id = %(recording_id)s AND (%(track_id)s::text IS NULL OR track_id = %(track_id)s) AND commit_seq > %(after)s
        ORDER BY {order} LIMIT %(limit)s
    """
    return await many(connection, Chunk, query, recording_id=recording_id, track_id=track_id, after=after_commit_seq or 0, limit=limit)


async def next_waiting(connection: Connection, recording_id: UUID, track_id: str) -> Chunk | None:
    """The first unparsed chunk whose predecessor is parsed and has left what it needs."""
    query = f"""
        SELECT {_LIGHT} FROM chunks waiting
        WHERE recording_id = %(recording_id)s AND track_id = %(track_id)s AND NOT parsed AND EXISTS (
            SELECT 1 FROM chunks b WHERE b.recording_id = waiting.recording_id AND b.track_id = waiting.track_id AND b.index = waiting.index - 1
              AND b.parsed AND b.carry IS NOT NULL)
        ORDER BY index LIMIT 1
    """
    return await one(connection, Chunk, query, recording_id=recording_id, track_id=track_id)


async def first_unparsed(connection: Connection, recording_id: UUID, track_id: str) -> Chunk | None:
    """The first chunk that waits, whatever for."""
    query = f"SELECT {_LIGHT} FROM chunks WHERE recording_id = %(recording_id)s AND track_id = %(track_id)s AND NOT parsed ORDER BY index LIMIT 1"
    return await one(connection, Chunk, query, recording_id=recording_id, track_id=track_id)


async def carry_before(connection: Connection, recording_id: UUID, track_id: str, index: int) -> bytes | None:
    """The newest carry of the file that a chunk before `index` belongs to; None: its file has none, or its header never came."""
    query = """
        SELECT carry FROM chunks WHERE recording_id = %(recording_id)s AND track_id = %(track_id)s AND index < %(index)s AND parsed
          AND (carry IS NOT NULL OR starts_file) ORDER BY index DESC LIMIT 1
    """
    carry: bytes | None = await scalar(connection, query, recording_id=recording_id, track_id=track_id, index=index)
    return carry


async def spooled(connection: Connection, recordings: Collection[UUID]) -> set[UUID]:
    """Which of these recordings have bytes that still wait in a spool."""
    query = "SELECT DISTINCT recording_id FROM chunks WHERE recording_id = ANY(%s) AND stored_in = 'spool'"
    return {name for (name,) in await (await connection.execute(query, [list(recordings)])).fetchall()}


async def count_waiting(connection: Connection, recording_id: UUID) -> int:
    """How many bodies of a recording are still on their way to the store (Chunk.waits)."""
    query = "SELECT count(*) FROM chunks WHERE recording_id = %(id)s AND state IN ('queued', 'in_progress')"
    return int(await scalar(connection, query, id=recording_id))


async def move_chunk(connection: Connection, recording_id: UUID, track_id: str, index: int, target: ChunkState, *, stored_in: str | None = None) -> bool:
    """Moves a chunk's state where the table allows it; False when it was not in a state to be moved."""
    query = """
        UPDATE chunks SET state = %(target)s, stored_in = coalesce(%(stored_in)s, stored_in)
        WHERE recording_id = %(recording_id)s AND track_id = %(track_id)s AND index = %(index)s AND state = ANY(%(sources)s) RETURNING true
    """
    sources = [str(state) for state, nexts in CHUNK_NEXT.items() if target in nexts]
    return bool(
        await scalar(connection, query, recording_id=recording_id, track_id=track_id, index=index, target=str(target), stored_in=stored_in, sources=sources)
    )


async def spooled_on(connection: Connection, host: str, *, limit: int = 100) -> list[Chunk]:
    """Chunks of all tenants whose bytes lie in this machine's spool, the oldest first."""
    query = f"SELECT {_LIGHT} FROM chunks WHERE stored_in = 'spool' AND spool_host = %(host)s AND state IN ('queued', 'in_progress') ORDER BY commit_seq LIMIT %(limit)s"
    return await many(connection, Chunk, query, host=host, limit=limit)


async def missing_indices(connection: Connection, recording_id: UUID, track_id: str, last: int) -> list[tuple[int, int]]:
    """The holes of a track up to `last` as (from, to), both included."""
    cursor = await connection.execute(_MISSING, {"recording_id": recording_id, "track_id": track_id, "last": last})
    return [(start, stop) for start, stop in await cursor.fetchall()]


async def last_index(connection: Connection, recording_id: UUID, track_id: str) -> int:
    """The highest index that is there, 0 for none."""
    query = "SELECT coalesce(max(index), 0) FROM chunks WHERE recording_id = %(recording_id)s AND track_id = %(track_id)s"
    return int(await scalar(connection, query, recording_id=recording_id, track_id=track_id))


async def first_arrival(connection: Connection, recording_id: UUID, track_id: str) -> datetime | None:
    """When the first of a track's segments came; None while there is none."""
    found: datetime | None = await scalar(
        connection,
        "SELECT min(arrived_at) FROM chunks WHERE recording_id = %(recording_id)s AND track_id = %(track_id)s",
        recording_id=recording_id,
        track_id=track_id,
    )
    return found


async def put_mend(connection: Connection, recording_id: UUID, mend: Mend) -> None:
    """Keeps a mend; one is there already: that one stays."""
    query = """
        INSERT INTO mends (recording_id, tenant_id, track_id, index, offset_us, blob)
        SELECT id, tenant_id, %s, %s, %s, %s FROM recordings WHERE id = %s ON CONFLICT DO NOTHING
    """
    await connection.execute(query, [mend.track_id, mend.index, mend.offset_us, mend.blob, recording_id])


async def mends_of(connection: Connection, recording_id: UUID) -> list[Mend]:
    """All mends, by track, index and offset."""
    return await many(connection, Mend, "SELECT * FROM mends WHERE recording_id = %(id)s ORDER BY track_id, index, offset_us", id=recording_id)
