"""Meetings and their people: /api/v1/meetings."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Body, Path, Request, Response
from pydantic import BeforeValidator

from roomtape.capture import control
from roomtape.core.access import Role, Standing, Subject, Verb, authorise, may
from roomtape.core.errors import Conflict, Forbidden, NotFound, NotSignedIn
from roomtape.core.lifecycle import TAKING, Status
from roomtape.db import access, ledger
from roomtape.db.database import Connection
from roomtape.db.rows import Meeting, Recording
from roomtape.library import catalog
from roomtape.library.doorkeeper import acting_for, facts_of, meeting_for, named_user, recording_for, subjects_of
from roomtape.web import shapes
from roomtape.web.idempotency import Named, Naming
from roomtape.web.identity import Asker
from roomtape.web.route import Route
from roomtape.web.schemas import MeetingAsked, ParticipantAsked, RecordingAsked, kept
from roomtape.web.services import Of, Services
from roomtape.web.views import Limit, Offset, Statuses, View, counted, link_offsets, short_views, statuses, whole

router = APIRouter(prefix="/meetings", tags=["meetings"], route_class=Route)

Free = Annotated[View, Body(), BeforeValidator(kept)]
UserId = Annotated[str, Path(min_length=1, max_length=200)]

WISHES = (
    "title", "description", "layout", "audio_only", "format", "video_codec", "audio_codec", "bitrate", "max_duration_s", "strategy", "compose", "options",
)  # fmt: skip


async def view_of(connection: Connection, meeting: Meeting) -> View:
    """A meeting with its people and its newest recording."""
    people = await ledger.participants_of(connection, meeting.id)
    return catalog.meeting_view(meeting, people, await ledger.newest_recording(connection, meeting.id))


async def made_by(connection: Connection, subject: Subject, asked: MeetingAsked, naming: Naming) -> Meeting:
    """A meeting, if the subject may make it: a token makes only a room that it names with the role HOST."""
    asked_host = asked.host_id or asked.user_id
    subject = acting_for(subject, asked_host)
    authorise(subject, Verb.CREATE_MEETING)
    if subject.by_token and subject.meetings.get(asked.room_code or "") is not Role.HOST and subject.standing is not Standing.ADMIN:
        raise Forbidden("This token makes only rooms that it names with the role HOST.", code="room_not_named")
    more = {"title": asked.title or "", "source": asked.source.value if asked.source else None, "metadata": asked.metadata}
    try:
        return await control.make_meeting(connection, subject.tenant, naming.id_of("meeting"), asked.room_code, host_id=asked_host or subject.user_id, **more)
    except Conflict as taken:
        there = await ledger.find_meeting(connection, subject.tenant, asked.room_code or "")
        if there is None or may(subject, Verb.SEE_MEETING, await facts_of(connection, subject, there)):
            raise
        raise Conflict(taken.message, code="room_code_taken") from taken  # a stranger hears no id


@router.post("", status_code=201, responses=shapes.says(shapes.Meeting, 201))
async def create_meeting(asked: MeetingAsked, services: Of, subject: Asker, naming: Named) -> View:
    """Makes a meeting; the host (else the user who asks) becomes its HOST."""
    async with services.database.transaction() as connection:
        return await view_of(connection, await made_by(connection, subject, asked, naming))


@router.get("", responses=shapes.says(shapes.Meetings))
async def list_meetings(request: Request, response: Response, services: Of, subject: Asker, limit: Limit = 50, offset: Offset = 0) -> View:
    """The meetings one hosts or takes part in; an admin sees all."""
    if subject.standing is Standing.ANONYMOUS:
        raise NotSignedIn
    user = None if subject.standing is Standing.ADMIN else named_user(subject, None)
    async with services.database.transaction() as connection:
        found = await ledger.list_meetings(connection, subject.tenant, user_id=user, limit=limit, offset=offset)
        total = await ledger.count_meetings(connection, subject.tenant, user_id=user)
        ids = [meeting.id for meeting in found]
        people, newest = await ledger.participants_of(connection, *ids), await ledger.newest_recordings(connection, ids)
    views = [catalog.meeting_view(meeting, [one for one in people if one.meeting_id == meeting.id], newest.get(meeting.id)) for meeting in found]
    link_offsets(request, response, offset=offset, limit=limit, total=total)
    return {"meetings": views, **counted(total), "limit": limit, "offset": offset}


@router.get("/{meeting_id}", responses=shapes.says(shapes.Meeting))
async def get_meeting(meeting_id: str, services: Of, subject: Asker) -> View:
    """A meeting by its id or room code."""
    async with services.database.transaction() as connection:
        return await view_of(connection, await meeting_for(connection, subject, meeting_id, Verb.SEE_MEETING))


@router.put("/{meeting_id}/metadata", responses=shapes.says(shapes.Meeting))
async def put_metadata(meeting_id: str, metadata: Free, services: Of, subject: Asker) -> View:
    """Replaces the meeting's free metadata."""
    async with services.database.transaction() as connection:
        meeting = await meeting_for(connection, subject, meeting_id, Verb.EDIT_MEETING)
        return await view_of(connection, await ledger.set_metadata(connection, meeting.tenant_id, meeting.id, metadata))


@router.put("/{meeting_id}/participants/{user_id:path}", responses=shapes.says(shapes.Person))
async def put_participant(meeting_id: str, user_id: UserId, asked: ParticipantAsked, services: Of, subject: Asker) -> View:
    """Joins or updates a participant."""
    async with services.database.transaction() as connection:
        meeting = await meeting_for(connection, subject, meeting_id, Verb.PUT_PARTICIPANT)
        return catalog.person_view(await ledger.put_participant(connection, meeting.id, user_id, full_name=asked.full_name, role=asked.role.value))


@router.delete("/{meeting_id}/participants/{user_id:path}", responses=shapes.says(shapes.Person))
async def remove_participant(meeting_id: str, user_id: UserId, services: Of, subject: Asker) -> View:
    """The participant left."""
    async with services.database.transaction() as connection:
        meeting = await meeting_for(connection, subject, meeting_id, Verb.PUT_PARTICIPANT)
        return catalog.person_view(await ledger.leave_participant(connection, meeting.id, user_id))


@router.post("/{meeting_id}/recording/start", status_code=201, responses=shapes.says(shapes.Recording, 201))
async def start_meeting_recording(meeting_id: str, services: Of, subject: Asker, naming: Named, asked: RecordingAsked | None = None) -> View:
    """Starts a recording of the meeting."""
    asked = asked or RecordingAsked()
    subject = acting_for(subject, asked.user_id)
    async with services.database.transaction() as connection:
        meeting = await meeting_for(connection, subject, meeting_id, Verb.RECORD)
        made = await started(connection, services, subject, meeting, asked, naming)
    return await whole(services, subject, made.id)


async def started(connection: Connection, services: Services, subject: Subject, meeting: Meeting, asked: RecordingAsked, naming: Naming) -> Recording:
    """A new recording of the meeting."""
    owner = asked.user_id or meeting.host_id or named_user(subject, None)
    wishes = {name: getattr(asked, name) for name in WISHES}
    source = asked.source.value if asked.source else None
    return await control.start(connection, meeting, naming.id_of("recording"), owner_id=owner, source=source, default=services.settings.source, wishes=wishes)


async def _newest(connection: Connection, subject: Subject, meeting_id: str) -> Recording:
    """The recording that orders to a meeting mean: the newest, even when it is in the trash, so that repeating reaches no other."""
    meeting = await meeting_for(connection, subject, meeting_id, Verb.RECORD)
    newest = await ledger.open_recording(connection, meeting.id) or await ledger.newest_recording(connection, meeting.id, deleted=True)
    if newest is None:
        raise NotFound("This meeting has no recording.")
    return newest


async def _moved(meeting_id: str, services: Services, subject: Subject, target: Status) -> View:
    async with services.database.transaction() as connection:
        newest = await _newest(connection, subject, meeting_id)
        if target is Status.STOPPED:
            await control.stop(connection, newest, by=subject.user_id)
        else:
            await ledger.move(connection, newest.id, target, by=subject.user_id)
    return await whole(services, subject, newest.id, deleted=True)


@router.post("/{meeting_id}/recording/stop", responses=shapes.says(shapes.Recording))
async def stop_meeting_recording(meeting_id: str, services: Of, subject: Asker) -> View:
    """Stops the recording; again: the same answer."""
    return await _moved(meeting_id, services, subject, Status.STOPPED)


@router.post("/{meeting_id}/recording/pause", responses=shapes.says(shapes.Recording))
async def pause_meeting_recording(meeting_id: str, services: Of, subject: Asker) -> View:
    """Pauses the recording."""
    return await _moved(meeting_id, services, subject, Status.PAUSED)


@router.post("/{meeting_id}/recording/resume", responses=shapes.says(shapes.Recording))
async def resume_meeting_recording(meeting_id: str, services: Of, subject: Asker) -> View:
    """Resumes a paused recording."""
    return await _moved(meeting_id, services, subject, Status.RECORDING)


@router.post("/{meeting_id}/recording/discard", responses=shapes.says(shapes.Recording))
async def discard_meeting_recording(meeting_id: str, services: Of, subject: Asker) -> View:
    """Stops the recording and puts it into the trash; one that complete-recording has closed needs the right to delete it."""
    async with services.database.transaction() as connection:
        newest = await _newest(connection, subject, meeting_id)
        held = await ledger.lock_recording(connection, newest.id)  # else it may be finished between the look and the deed
        if held.status not in TAKING:
            await recording_for(connection, subject, held.id, Verb.DELETE, deleted=True)
        await control.stop(connection, newest, by=subject.user_id)
        await ledger.soft_delete(connection, newest.id, by=subject.user_id)
    return await whole(services, subject, newest.id, deleted=True)


@router.get("/{meeting_id}/recording", responses=shapes.says(shapes.Live))
async def get_live_recording(meeting_id: str, services: Of, subject: Asker) -> View:
    """The open recording's live state."""
    async with services.database.transaction() as connection:
        meeting = await meeting_for(connection, subject, meeting_id, Verb.SEE_MEETING)
        recording = await ledger.open_recording(connection, meeting.id)
    if recording is None:
        raise NotFound("This meeting is not being recorded.")
    tape = await services.layouts.tape(recording)
    return catalog.live_view(tape.recording, tape, datetime.now(UTC))


@router.get("/{meeting_id}/recordings", responses=shapes.says(shapes.MeetingRecordings))
async def list_meeting_recordings(
    request: Request, response: Response, meeting_id: str, services: Of, subject: Asker, status: Statuses = None, limit: Limit = 50, offset: Offset = 0
) -> View:
    """The meeting's recordings that one may view, the newest first."""
    names = subjects_of(subject)
    async with services.database.transaction() as connection:
        meeting = await meeting_for(connection, subject, meeting_id, Verb.SEE_MEETING)
        wanted = access.Wanted(meeting_id=meeting.id, statuses=statuses(status))
        found = await access.list_recordings(connection, subject.tenant, names, wanted, limit=limit, offset=offset)
        total = await access.count_recordings(connection, subject.tenant, names, wanted)
        views = await short_views(connection, found)
    link_offsets(request, response, offset=offset, limit=limit, total=total)
    return {"recordings": views, **counted(total), "limit": limit, "offset": offset}
