"""Browser segments: each is whole, durable, indexed and in the ledger before it is acknowledged."""

import asyncio
import mmap
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from secrets import token_hex
from uuid import UUID

import structlog

from roomtape.core.errors import BadInput, Conflict, NotFound, RoomtapeError
from roomtape.core.keys import chunk_key
from roomtape.core.lifecycle import TAKING, ChunkState
from roomtape.core.model import ClockTrust, StoredIn
from roomtape.core.timeline import BELIEVED_US
from roomtape.db import chunks, ledger
from roomtape.db.database import Connection, Database
from roomtape.db.rows import Chunk, NewChunk, Recording, Track
from roomtape.storage.failover import SpooledStore
from roomtape.storage.intake import Upload
from roomtape.tapes.indexing import Indexed, begins, index_cut, index_head, mapped, off_loop, parse_waiting

log = structlog.get_logger()

Still = Callable[[Connection], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a client says of a segment. `started_us`: its first sample, on the client's clock; `clock_offset_us`: server minus client."""

    track_id: str
    index: int
    started_us: int | None = None
    duration_ms: float | None = None
    clock_offset_us: int | None = None
    sha256: str | None = None
    mime_type: str | None = None
    participant_id: str | None = None
    kind: str | None = None
    source: str | None = None


class Segments:
    """Takes segments of all recordings. `host` names this machine's spool; `now_us` is the server's clock."""

    def __init__(self, database: Database, store: SpooledStore, *, host: str, limit_bytes: int, reserve_bytes: int, now_us: Callable[[], int]) -> None:
        self._database = database
        self._store = store
        self._host = host
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._now_us = now_us

    async def take(self, recording: Recording, said: Said, body: AsyncIterable[bytes], still: Still) -> tuple[Chunk, bool]:
        """Takes one segment; returns its row and whether it is new. When this returns, kill -9 and power cuts lose nothing of it.

        `still` is asked again in the transaction that commits: rights may have been lost while the body came. It raises what it wants to be raised.
        Raises BadInput (`empty_segment`, `digest_differs`), TooLarge, StorageFull, Unavailable, Conflict (`segment_differs`, `recording_completed`).
        """
        upload = await self._store.intake.take(body, limit=self._limit_bytes, reserve=self._reserve_bytes)
        try:
            return await self._keep(recording, said, upload, still)
        finally:
            await asyncio.to_thread(upload.close)

    async def _keep(self, recording: Recording, said: Said, upload: Upload, still: Still) -> tuple[Chunk, bool]:
        if not upload.size:
            raise BadInput("The segment is empty.", code="empty_segment")
        if said.sha256 and said.sha256.lower() != upload.sha256:
            raise BadInput("The bytes that came do not have the sha256 that was stated; send the segment again.", code="digest_differs", sha256=upload.sha256)
        if (there := await self._there(recording, said, upload.sha256)) is not None:
            return there, False
        key = chunk_key(recording.prefix, recording.id, said.track_id, said.index, upload.sha256, token_hex(6))
        with mapped(upload.path) as data:  # the mapping outlives the file's name, which `keep` takes
            indexed = await self._index(recording, said, data)
            where = await self._store.keep(upload.path, key, size=upload.size, sha256=upload.sha256)
            new = NewChunk(
                recording_id=recording.id,
                track_id=said.track_id,
                index=said.index,
                size_bytes=upload.size,
                sha256=upload.sha256,
                key=key,
                mime_type=said.mime_type,
                state=ChunkState.DONE if where is StoredIn.PRIMARY else ChunkState.QUEUED,
                stored_in=where.value,
                spool_host=None if where is StoredIn.PRIMARY else self._host,
                clock_offset_us=said.clock_offset_us,
                duration_ms=None if said.duration_ms is None else round(said.duration_ms),
            )
        whole = False
        try:
            async with self._database.transaction() as connection:
                row, fresh = await self._write(connection, new, said, indexed, still)
                whole = True
        except RoomtapeError:
            if not whole:  # rolled back; of a commit that failed nobody knows how it ended
                await self._drop(new)
            raise
        if not fresh:  # the same segment came twice at once, and the other one was faster
            await self._drop(new)
        else:
            log.info("chunk.kept", recording=str(row.recording_id), track=row.track_id, index=row.index, size=row.size_bytes, where=row.stored_in)
            await self._parse_waiting(row)
        return row, fresh

    async def _drop(self, new: NewChunk) -> None:
        """Removes the object of an upload that no row will name; what is left of one that fails is collected later."""
        try:
            await self._store.drop_upload(new.key, where=StoredIn(new.stored_in))
        except RoomtapeError as wrong:
            log.warning("chunk.left", key=new.key, code=wrong.code)

    async def _index(self, recording: Recording, said: Said, data: mmap.mmap) -> Indexed | None:
        """A head at once, a byte cut when its predecessor is parsed; else it waits (None)."""
        if begins(said.index, bytes(data[:16])):
            return await off_loop(len(data), index_head, data)
        async with self._database.transaction() as connection:
            before = await chunks.get_chunk(connection, recording.id, said.track_id, said.index - 1)
        if before is None or not before.parsed:
            return None
        return await off_loop(len(data) + len(before.carry or b""), index_cut, data, before.carry)

    async def _parse_waiting(self, row: Chunk) -> None:
        """What waited behind this segment. The acknowledgement does not depend on it: what cannot be parsed now is parsed with the next segment, or at the end."""
        try:
            await parse_waiting(self._database, self._store, row.recording_id, row.track_id)
        except RoomtapeError as wrong:
            log.warning("chunk.waits", recording=str(row.recording_id), track=row.track_id, code=wrong.code)

    async def _there(self, recording: Recording, said: Said, digest: str) -> Chunk | None:
        """The same segment, taken before; refuses early what the ledger would refuse, before bytes are stored for nothing."""
        async with self._database.transaction() as connection:
            found = await chunks.get_chunk(connection, recording.id, said.track_id, said.index)
            now = await ledger.get_recording(connection, recording.tenant_id, recording.id)
        if found is not None and found.sha256 != digest:
            raise Conflict("Another segment has this index.", code="segment_differs", sha256=found.sha256)
        if found is None and now is None:
            raise NotFound
        if found is None and now is not None and (now.status not in TAKING or now.complete_requested_at is not None):
            raise Conflict("The recording is complete; nothing more is taken. Keep the bytes.", code="recording_completed", state=now.status.value)
        return found

    async def _write(self, connection: Connection, new: NewChunk, said: Said, indexed: Indexed | None, still: Still) -> tuple[Chunk, bool]:
        await chunks.lock_track(connection, new.recording_id, new.track_id)
        await ledger.lock_recording(connection, new.recording_id)  # before any row of a track, as complete-recording does: no deadlock
        await still(connection)
        track = await chunks.upsert_track(
            connection, new.recording_id, new.track_id, participant_id=said.participant_id, kind=said.kind, source=said.source, mime_type=said.mime_type
        )
        track = await self._judge_clock(connection, track, said)
        row, fresh = await chunks.commit_chunk(connection, _with(new, indexed, _stated(said, track)))
        if fresh:
            await self._note_origin(connection, row, track)
        if fresh and indexed is not None and indexed.carry is not None:
            await chunks.drop_carry(connection, row.recording_id, row.track_id, row.index - 1)
        return row, fresh

    async def _judge_clock(self, connection: Connection, track: Track, said: Said) -> Track:
        """A track's clock is judged by the first segment that says when it was: measured, believed, or known by the track's first arrival only.

        Of byte cuts only the one with the header says so, and it may come last.
        """
        if said.started_us is None or track.clock != ClockTrust.NONE:
            return track
        shift_us, trust = 0, ClockTrust.MEASURED
        if said.clock_offset_us is None:
            trust = ClockTrust.CLIENT
            ended_us = said.started_us + round((said.duration_ms or 0) * 1000)
            first = await chunks.first_arrival(connection, track.recording_id, track.id)
            late_us = (self._now_us() if first is None else round(first.timestamp() * 1e6)) - ended_us
            if abs(late_us) > BELIEVED_US:
                shift_us = late_us
                await _warn(
                    connection,
                    track.recording_id,
                    "clock_untrusted",
                    f"The clock of track {track.id} is {abs(late_us) / 1e6:.0f} s {'behind' if late_us > 0 else 'ahead'}: it is placed by when it came."
                    " Set the clock of that device, or send clockOffsetUs.",
                )
        await chunks.set_clock(connection, track.recording_id, track.id, trust.value, shift_us=shift_us)
        return replace(track, clock=trust.value, clock_shift_us=shift_us)

    async def _note_origin(self, connection: Connection, row: Chunk, track: Track) -> None:
        """The recording's zero while it runs: the first first sample that came. When it is closed the layout takes the earliest."""
        if row.index != 1:
            return
        recording = await ledger.lock_recording(connection, row.recording_id)
        if recording.origin_us is None:
            start_us = row.stated_us + track.clock_shift_us if row.stated_us is not None else self._now_us()
            began_us = max(round(recording.created_at.timestamp() * 1e6), min(self._now_us(), start_us))  # its first sample, as far as clocks agree
            began = datetime.fromtimestamp(began_us / 1e6, UTC)
            await ledger.set_fields(connection, row.recording_id, {"origin_us": start_us, "started_at": began})


def _stated(said: Said, track: Track) -> int | None:
    """The stated start on the server's clock, before a shift."""
    if said.started_us is None:
        return None
    return said.started_us + (said.clock_offset_us or 0 if track.clock == ClockTrust.MEASURED else 0)


def _with(new: NewChunk, indexed: Indexed | None, stated_us: int | None) -> NewChunk:
    if indexed is None:
        return replace(new, stated_us=stated_us)
    return replace(
        new,
        stated_us=stated_us,
        parsed=True,
        starts_file=indexed.starts_file,
        index_blob=indexed.blob,
        carry=indexed.carry,
        media_start_us=indexed.start_us,
        media_end_us=indexed.end_us,
        warning=indexed.warning,
    )


async def _warn(connection: Connection, recording_id: UUID, code: str, message: str) -> None:
    recording = await ledger.lock_recording(connection, recording_id)
    if not any(warning["message"] == message for warning in recording.warnings):
        await ledger.set_fields(connection, recording_id, {"warnings": [*recording.warnings, {"code": code, "message": message}]})
