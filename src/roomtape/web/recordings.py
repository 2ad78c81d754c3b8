"""Recordings: /api/v1/recordings, but for their media (web/media.py)."""

import asyncio
import base64
import binascii
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response

from roomtape.capture import control
from roomtape.core.access import Standing, Subject, Verb
from roomtape.core.errors import BadInput, Conflict, NotFound, NotSignedIn
from roomtape.core.rope import Rope, Span
from roomtape.db import access, chunks, ledger, outbox
from roomtape.db.database import Connection
from roomtape.db.rows import Recording
from roomtape.library import catalog
from roomtape.library.doorkeeper import acting_for, meeting_for, recording_for, subjects_of
from roomtape.web import shapes
from roomtape.web.idempotency import Named, Naming
from roomtape.web.identity import Asker
from roomtape.web.meetings import made_by, started
from roomtape.web.ropes import RopeResponse
from roomtape.web.route import Route, of
from roomtape.web.schemas import MeetingAsked, RecordingPatch, StartByRoom
from roomtape.web.services import Of, Services
from roomtape.web.views import Limit, Statuses, View, counted, link, link_offsets, short_views, statuses, whole

router = APIRouter(prefix="/recordings", tags=["recordings"], route_class=Route)


@router.post("/start", status_code=201, responses=shapes.says(shapes.Recording, 201))
async def start_recording_by_room(asked: StartByRoom, services: Of, subject: Asker, naming: Named) -> View:
    """Starts a recording by room; the room is made if the caller may."""
    room = asked.room_code or asked.room_id
    if room is None:
        raise BadInput("Name the room: room_code or roomId.", code="room_wanted")
    subject = acting_for(subject, asked.user_id)
    async with services.database.transaction() as connection:
        if await ledger.find_meeting(connection, subject.tenant, room) is None:
            await _make(connection, subject, MeetingAsked(room_code=room, title=asked.title, host_id=asked.user_id), naming)
        meeting = await meeting_for(connection, subject, room, Verb.RECORD)
        made = await started(connection, services, subject, meeting, asked, naming)
    return await whole(services, subject, made.id)


async def _make(connection: Connection, subject: Subject, room: MeetingAsked, naming: Naming) -> None:
    try:
        await made_by(connection, subject, room, naming)
    except Conflict as raced:  # two ask for a new room at once
        if raced.code != "room_code_taken":
            raise


@router.post("/{recording_id}/stop", status_code=202, responses=shapes.says(shapes.Recording, 202))
async def stop_recording(recording_id: UUID, services: Of, subject: Asker) -> View:
    """Stops a recording; what is there plays at once."""
    async with services.database.transaction() as connection:
        recording, _ = await recording_for(connection, subject, recording_id, Verb.RECORD)
        await control.stop(connection, recording, by=subject.user_id)
    return await whole(services, subject, recording_id)


@router.get("", responses=shapes.says(shapes.RecordingsPage))
async def list_recordings(
    request: Request,
    response: Response,
    services: Of,
    subject: Asker,
    room_code: str | None = None,
    room_id: str | None = None,
    status: Statuses = None,
    q: Annotated[str, Query(max_length=200)] = "",
    limit: Limit = 50,
    offset: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> View:
    """What the caller may see, the newest first: by `cursor`, or by `offset` with a total."""
    if subject.standing is Standing.ANONYMOUS:
        raise NotSignedIn
    if offset is not None and cursor is not None:
        raise BadInput("Page by `cursor` or by `offset`, not by both.", code="bad_cursor")
    states = statuses(status)
    async with services.database.transaction() as connection:
        rooms = [await ledger.find_meeting(connection, subject.tenant, room) for room in (room_id, room_code) if room is not None]
    known = [room.id for room in rooms if room is not None]
    if len(known) < len(rooms) or len(set(known)) > 1:
        return {"recordings": [], **({} if offset is None else {"total": 0}), "next_cursor": None}
    wanted = access.Wanted(meeting_id=known[0] if known else None, statuses=states, q=q)
    view = await page_of(services, subject, wanted, limit=limit, offset=offset, cursor=cursor)
    if offset is not None:
        link_offsets(request, response, offset=offset, limit=limit, total=view.get("total", view.get("total_at_least", 0) + 1))
    elif view["next_cursor"]:
        link(request, response, next={"cursor": view["next_cursor"]})
    return view


async def page_of(services: Services, subject: Subject, wanted: access.Wanted, *, limit: int, offset: int | None = None, cursor: str | None = None) -> View:
    """One page of what the subject may see, with a total where an offset is asked for."""
    names = subjects_of(subject)
    async with services.database.transaction() as connection:
        found = await access.list_recordings(
            connection, subject.tenant, names, wanted, limit=limit + 1, offset=offset or 0, before=_cursor(cursor) if cursor else None
        )
        total = {} if offset is None else counted(await access.count_recordings(connection, subject.tenant, names, wanted))
        views = await short_views(connection, found[:limit])
    more = found[limit - 1] if len(found) > limit else None
    return {"recordings": views, **total, "next_cursor": _to_cursor(more) if more else None}


def _to_cursor(last: Recording) -> str:
    return base64.urlsafe_b64encode(f"{last.created_at.isoformat()} {last.id}".encode()).decode().rstrip("=")


def _cursor(text: str) -> tuple[datetime, UUID]:
    try:
        moment, _, name = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().partition(" ")
        return datetime.fromisoformat(moment), UUID(name)
    except (ValueError, binascii.Error) as wrong:
        raise BadInput("This cursor is not one of ours: take `next_cursor` as it is.", code="bad_cursor") from wrong


@router.get("/{recording_id}", responses=shapes.says(shapes.Recording))
async def get_recording(recording_id: UUID, services: Of, subject: Asker) -> View:
    """Everything about a recording."""
    return await whole(services, subject, recording_id)


@router.get("/{recording_id}/status", responses=shapes.says(shapes.RecordingStatus))
async def get_recording_status(recording_id: UUID, services: Of, subject: Asker) -> View:
    """Where a recording stands, in short."""
    async with services.database.transaction() as connection:
        recording, _ = await recording_for(connection, subject, recording_id, Verb.VIEW)
        waiting = await chunks.count_waiting(connection, recording.id)
    return catalog.status_view(recording, waiting)


@router.patch("/{recording_id}", responses=shapes.says(shapes.Recording))
async def patch_recording(recording_id: UUID, asked: RecordingPatch, services: Of, subject: Asker) -> View:
    """Changes title, description, visibility, expires_at or legal_hold."""
    said = {name: getattr(asked, name) for name in asked.model_fields_set}
    said = {name: value for name, value in said.items() if value is not None or name == "expires_at"}
    async with services.database.transaction() as connection:
        verb = Verb.DELETE if said.keys() & {"legal_hold", "visibility", "expires_at"} else Verb.EDIT
        recording, _ = await recording_for(connection, subject, recording_id, verb)
        if said:
            await ledger.set_fields(connection, recording.id, said)
    return await whole(services, subject, recording_id)


@router.delete("/{recording_id}", responses=shapes.says(shapes.Recording))
async def delete_recording(recording_id: UUID, services: Of, subject: Asker) -> View:
    """Puts a recording into the trash; it is gone for good after ROOMTAPE_TRASH_DAYS."""
    async with services.database.transaction() as connection:
        recording, _ = await recording_for(connection, subject, recording_id, Verb.DELETE, deleted=True)
        await ledger.soft_delete(connection, recording.id, by=subject.user_id)
    return await whole(services, subject, recording_id, deleted=True)


@router.post("/{recording_id}/restore", responses=shapes.says(shapes.Recording))
async def restore_recording(recording_id: UUID, services: Of, subject: Asker) -> View:
    """Takes a recording out of the trash."""
    async with services.database.transaction() as connection:
        recording, _ = await recording_for(connection, subject, recording_id, Verb.DELETE, deleted=True)
        await ledger.restore(connection, recording.id)
    return await whole(services, subject, recording_id)


@router.get("/{recording_id}/participants", responses=shapes.says(shapes.People))
async def list_recording_participants(recording_id: UUID, services: Of, subject: Asker) -> View:
    """Who was in the meeting."""
    async with services.database.transaction() as connection:
        _, meeting = await recording_for(connection, subject, recording_id, Verb.VIEW)
        return {"participants": [catalog.person_view(person) for person in await ledger.participants_of(connection, meeting.id)]}


@router.get("/{recording_id}/tracks", responses=shapes.says(shapes.Tracks))
async def list_tracks(recording_id: UUID, services: Of, subject: Asker) -> View:
    """The tracks, measured."""
    async with services.database.transaction() as connection:
        recording, _ = await recording_for(connection, subject, recording_id, Verb.VIEW)
    tape = await services.layouts.tape(recording)
    return {"tracks": [catalog.track_view(track, tape.layouts[track.id]) for track in tape.tracks], "gaps": catalog.gaps_view(tape)}


@router.get("/{recording_id}/timeline", responses=shapes.says(shapes.Timeline))
async def get_timeline(recording_id: UUID, services: Of, subject: Asker) -> View:
    """What happened to a recording, in order."""
    async with services.database.transaction() as connection:
        recording, _ = await recording_for(connection, subject, recording_id, Verb.VIEW)
        events = await outbox.events_of(connection, recording.id, limit=1_000_000)
    tape = await services.layouts.tape(recording)
    return {"events": [catalog.event_view(event) for event in events], "gaps": catalog.gaps_view(tape)}


@router.get("/{recording_id}/segments", responses=shapes.says(shapes.Segments))
async def list_segments(recording_id: UUID, services: Of, subject: Asker, track_id: str | None = None) -> View:
    """Every segment that was taken."""
    async with services.database.transaction() as connection:
        recording, _ = await recording_for(connection, subject, recording_id, Verb.VIEW)
        found = await chunks.chunks_of(connection, recording.id, track_id=track_id)
    tape = await services.layouts.tape(recording)
    return {"segments": await asyncio.to_thread(catalog.segments_view, found, tape.layouts)}


@router.get("/{recording_id}/segments/{index}", response_class=Response, responses=of("application/octet-stream"))
async def get_segment(recording_id: UUID, index: int, services: Of, subject: Asker, track_id: str = "1") -> RopeResponse:
    """The very bytes that were taken."""
    async with services.database.transaction() as connection:
        recording, _ = await recording_for(connection, subject, recording_id, Verb.VIEW_ORIGINALS)
        chunk = await chunks.get_chunk(connection, recording.id, track_id, index) if 0 < index < 1 << 31 else None
    if chunk is None:
        raise NotFound
    if chunk.lost:
        raise NotFound("The bytes of this segment were taken and are lost.", code="segment_lost")
    headers = {
        "content-disposition": f'attachment; filename="segment-{index}"',
        "x-content-type-options": "nosniff",
        "cache-control": "private, no-store",
    }
    rope = Rope.of([Span(chunk.key, 0, chunk.size_bytes)])
    return RopeResponse(rope, services.store, media_type="application/octet-stream", etag=chunk.sha256, headers=headers)
