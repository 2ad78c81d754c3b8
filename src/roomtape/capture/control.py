"""Starting, stopping and completing recordings of browser segments: orders of people, answered from the ledger."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from procrastinate import App

from roomtape.core.errors import BadInput, Conflict
from roomtape.core.keys import meeting_prefix
from roomtape.core.lifecycle import OPEN, Status
from roomtape.core.model import Source
from roomtape.db import chunks, jobs, ledger
from roomtape.db.database import Connection
from roomtape.db.rows import Meeting, Recording, Track


@dataclass(frozen=True, slots=True)
class Closing:
    """What complete-recording says. `last`: the last index per track; `track`: close only this one."""

    track: str | None = None
    last_index: int | None = None
    last: Mapping[str, int] = field(default_factory=dict)
    allow_gaps: bool = False


async def make_meeting(connection: Connection, tenant: str, meeting_id: UUID, room_code: str | None, *, host_id: str | None, **more: Any) -> Meeting:
    """A new meeting; without a room code it gets one of its own."""
    return await ledger.create_meeting(connection, tenant, meeting_id, room_code or f"room-{meeting_id.hex[-12:]}", host_id=host_id, **more)


async def start(
    connection: Connection, meeting: Meeting, recording_id: UUID, *, owner_id: str, source: str | None, default: Source, wishes: Mapping[str, Any]
) -> Recording:
    """A new recording, `pending` until its first media; the one with this id, if it is there. Conflict: already_recording, source_not_configured."""
    wanted = Source(source or meeting.source or default)
    if wanted is not Source.SEGMENTS:
        raise Conflict(f"This version does not record from {wanted.value} yet, only browser segments.", code="source_not_configured", source=wanted.value)
    prefix = meeting_prefix(meeting.tenant_id, owner_id, meeting.id)
    kept = {name: value for name, value in wishes.items() if value is not None}
    return await ledger.create_recording(
        connection, meeting.tenant_id, recording_id, meeting.id, owner_id=owner_id, prefix=prefix, source=wanted.value, wishes=kept
    )


async def join(connection: Connection, recording: Recording, track_id: str | None, **what: Any) -> Track:
    """The track of a session: a reload sends its old id, without one it is a fresh one."""
    if track_id is not None:
        return await chunks.upsert_track(connection, recording.id, track_id, **what)
    return await chunks.add_track(connection, recording.id, **what)


async def stop(connection: Connection, recording: Recording, *, by: str | None) -> Recording:
    """What is there plays at once; segments captured before are taken until complete-recording."""
    return await ledger.stop(connection, recording.id, by=by)


async def complete(connection: Connection, queue: App, recording: Recording, closing: Closing) -> Recording:
    """Closes a track, or all of them; when every track is closed the recording is processed.

    Repeating gives the same answer. Conflict `segments_missing` with `missing` unless gaps are allowed.
    """
    held = await ledger.lock_recording(connection, recording.id)
    if held.status not in OPEN and held.status is not Status.STOPPED:
        return held
    tracks = {track.id: track for track in await chunks.tracks_of(connection, held.id)}
    if closing.track is not None and closing.track not in tracks:
        raise BadInput(f"This recording has no track {closing.track}.", code="unknown_track")
    if unknown := set(closing.last) - set(tracks):
        raise BadInput(f"This recording has no track {min(unknown)}.", code="unknown_track")
    named = [closing.track] if closing.track is not None else [name for name in tracks if tracks[name].closed_last_index is None or name in closing.last]
    if closing.last_index is not None and closing.track is None and len(tracks) > 1:
        raise BadInput(
            f"This recording has the tracks {', '.join(tracks)}: say of which one `lastSegmentIndex` is, by `trackId` or by `lastSegmentIndexes`.",
            code="track_wanted",
        )
    await _close(connection, held.id, named, closing)
    left = [track.id for track in await chunks.tracks_of(connection, held.id) if track.closed_last_index is None]
    if left:
        return held
    if held.status in OPEN:
        held = await stop(connection, held, by=None)
    job = await jobs.ask(queue, connection, held.id)
    return await ledger.move(connection, held.id, Status.PROCESSING, fields={"job_id": str(job)})


async def _close(connection: Connection, recording_id: UUID, named: list[str], closing: Closing) -> None:
    missing: list[dict[str, Any]] = []
    for track in named:
        there = await chunks.last_index(connection, recording_id, track)
        stated = closing.last.get(track, closing.last_index if len(named) == 1 else None)
        last = max(there, stated) if stated is not None else there
        holes = await chunks.missing_indices(connection, recording_id, track, last)
        missing += [{"trackId": track, "from": first, "to": end} for first, end in holes]
        await chunks.close_track(connection, recording_id, track, last)
    if missing and not closing.allow_gaps:
        raise Conflict("Segments are missing: send them, or say `allowGaps`.", code="segments_missing", missing=missing)
