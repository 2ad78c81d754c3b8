"""Segmented upload: the browser's way in. Answers are camelCase, as its clients have them."""

import asyncio
import time
from collections.abc import AsyncIterable, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from roomtape.capture import control
from roomtape.capture.segments import Said
from roomtape.core.access import Standing, Subject, Verb, authorise, may
from roomtape.core.errors import BadInput, Conflict, Forbidden, NotFound, NotSignedIn, TooLarge
from roomtape.core.keys import user_part
from roomtape.core.lifecycle import OPEN
from roomtape.core.model import Source
from roomtape.db import chunks, ledger
from roomtape.db.database import Connection
from roomtape.db.rows import Meeting, Recording
from roomtape.library.catalog import warned
from roomtape.library.doorkeeper import acting_for, facts_of, meeting_for, named_user, recording_facts, role_for_joining
from roomtape.web import shapes
from roomtape.web.form import FIELDS_BYTES, Form
from roomtape.web.idempotency import Named, Naming
from roomtape.web.identity import Asker
from roomtape.web.meetings import made_by
from roomtape.web.route import Route
from roomtape.web.schemas import CompleteAsked, MeetingAsked, SegmentAsked, StartSegmented
from roomtape.web.services import Of, Services

router = APIRouter(tags=["segmented upload"], route_class=Route)

View = dict[str, Any]
_SCHEMA = SegmentAsked.model_json_schema(ref_template="#/components/schemas/{model}")
_NAMES = _SCHEMA["properties"]
UPLOAD: View = {
    "parameters": [{"name": name, "in": "query", "required": False, "schema": schema} for name, schema in _NAMES.items()],
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {**_NAMES, "file": {"type": "string", "format": "binary"}},
                    "required": [*_SCHEMA["required"], "file"],
                    "additionalProperties": False,
                }
            },
        },
    },
}


@router.get("/clock", responses=shapes.says(shapes.Clock))
async def get_clock() -> View:
    """The server's clock: recorders measure their offset by it."""
    return {"now_us": time.time_ns() // 1000}


@router.post("/meetings/start-recording", status_code=201, responses=shapes.says(shapes.SegmentedStarted, 200, 201))
async def start_segmented_recording(asked: StartSegmented, services: Of, subject: Asker, naming: Named) -> JSONResponse:
    """Makes or finds the meeting and starts recording it; a second browser joins the open recording (200)."""
    subject = acting_for(subject, asked.user_id)
    user = named_user(subject, asked.user_id)
    async with services.database.transaction() as connection:
        meeting = await _meeting(connection, subject, asked, user, naming)
        recording, fresh = await _open(connection, services, subject, meeting, asked, user, naming)
        await _own_track(connection, subject, meeting, recording, asked.track_id, asked.participant_id)
        what = {"participant_id": asked.participant_id or user, "kind": asked.kind, "source": asked.source, "mime_type": asked.mime_type}
        first = "1" if fresh else None  # also for a second try: what a first one made and joined at once
        track = await control.join(connection, recording, asked.track_id or first, **what)
    body = {
        "meetingId": str(meeting.id),
        "recordingId": str(recording.id),
        "trackId": track.id,
        "prefix": f"{user_part(recording.owner_id)}/{meeting.id}/",
        "state": recording.status.value,
    }
    return JSONResponse(body, status_code=201 if fresh else 200)


async def _meeting(connection: Connection, subject: Subject, asked: StartSegmented, user: str, naming: Naming) -> Meeting:
    if asked.meeting_id is None or await ledger.find_meeting(connection, subject.tenant, asked.meeting_id) is None:
        try:
            return await made_by(connection, subject, MeetingAsked(room_code=asked.meeting_id, title=asked.title, host_id=user), naming)
        except Conflict as raced:  # two browsers come first
            if asked.meeting_id is None or raced.code != "room_code_taken":
                raise
    return await meeting_for(connection, subject, asked.meeting_id, Verb.SEE_MEETING)


async def _open(
    connection: Connection, services: Services, subject: Subject, meeting: Meeting, asked: StartSegmented, user: str, naming: Naming
) -> tuple[Recording, bool]:
    name = naming.id_of("recording")
    running = await ledger.open_recording(connection, meeting.id)
    if running is not None:
        return _joinable(running), running.id == name
    authorise(subject, Verb.RECORD, await facts_of(connection, subject, meeting))
    try:
        async with connection.transaction():
            wishes = {"title": asked.title}
            made = await control.start(connection, meeting, name, owner_id=user, source=Source.SEGMENTS, default=services.settings.source, wishes=wishes)
    except Conflict as raced:
        running = await ledger.open_recording(connection, meeting.id)
        if raced.code != "already_recording" or running is None:
            raise
        return _joinable(running), False
    return made, True


def _joinable(running: Recording) -> Recording:
    if running.source != Source.SEGMENTS:
        raise Conflict("This meeting is being recorded from another source.", code="already_recording", recording_id=str(running.id))
    return running


@router.post("/meetings/upload-segment", status_code=201, openapi_extra=UPLOAD, responses=shapes.says(shapes.TakenSegment, 200, 201))
async def upload_segment(request: Request, services: Of, subject: Asker) -> JSONResponse:
    """Takes one segment: the raw body with the names in the query, or a form with `file`."""
    if subject.standing is Standing.ANONYMOUS:
        raise NotSignedIn  # before a byte of theirs is kept
    _too_large(request, services)
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        return await _take(services, subject, _asked(dict(request.query_params)), request.stream())
    form = Form(kind, request.stream())
    limit, reserve = services.settings.max_segment_bytes, services.settings.reserve_bytes
    upload = await services.store.intake.take(_welcome(request, services, subject, form), limit=limit, reserve=reserve)  # fields may come after the file
    try:
        if not form.has_file:
            raise BadInput("The form has no `file`.", code="file_wanted")
        fields = {"mimeType": form.file_type, **request.query_params, **form.fields}
        if "mime_type" in fields:
            del fields["mimeType"]
        return await _take(services, subject, _asked(fields), _pieces(upload.path))
    finally:
        await asyncio.to_thread(upload.close)


async def _welcome(request: Request, services: Services, subject: Subject, form: Form) -> AsyncIterable[bytes]:
    """The file of a form; where the meeting is named before it, nothing of a stranger's is kept."""
    asked = False
    async for piece in form.file():
        if not asked:
            asked, said = True, {**form.fields, **request.query_params}
            if name := said.get("meetingId") or said.get("meeting_id"):
                async with services.database.transaction() as connection:
                    await meeting_for(connection, subject, str(name), Verb.SEE_MEETING)
        yield piece


def _too_large(request: Request, services: Services) -> None:
    stated = request.headers.get("content-length", "")
    limit = services.settings.max_segment_bytes
    form = request.headers.get("content-type", "").lower().startswith("multipart/form-data")
    if stated.isdigit() and int(stated) > limit + (FIELDS_BYTES if form else 0):
        raise TooLarge(f"The segment is larger than the {limit} bytes that are taken here (ROOMTAPE_MAX_SEGMENT_BYTES).", limit_bytes=limit)


def _asked(fields: Mapping[str, Any]) -> SegmentAsked:
    try:
        return SegmentAsked.model_validate(fields)
    except ValidationError as wrong:
        errors = [{"field": ".".join(map(str, error["loc"])), "message": error["msg"]} for error in wrong.errors()]
        names = "; ".join(f"{error['field']}: {error['message']}" for error in errors[:5])
        raise BadInput(f"The segment is not understood: {names}.", errors=errors) from None


async def _pieces(path: Path) -> AsyncIterable[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, 1 << 20):
            yield piece
    finally:
        file.close()


async def _take(services: Services, subject: Subject, asked: SegmentAsked, body: AsyncIterable[bytes]) -> JSONResponse:
    async with services.database.transaction() as connection:
        meeting = await meeting_for(connection, subject, asked.meeting_id, Verb.SEE_MEETING)
        recording = await takeable(connection, meeting, asked.recording_id)
        await _own_track(connection, subject, meeting, recording, asked.track_id, asked.participant_id)
    said = Said(
        track_id=asked.track_id,
        index=asked.segment_index,
        started_us=asked.started_at,
        duration_ms=asked.duration_ms,
        clock_offset_us=asked.clock_offset_us,
        sha256=asked.sha256,
        mime_type=asked.mime_type,
        participant_id=asked.participant_id or subject.user_id,
        kind=asked.kind,
        source=asked.source,
    )

    async def still(connection: Connection) -> None:
        """Rights are those of the moment in which the segment is committed, not of that in which it began to come."""
        now = await meeting_for(connection, subject, meeting.id, Verb.SEE_MEETING)
        await _own_track(connection, subject, now, recording, asked.track_id, asked.participant_id)

    chunk, fresh = await services.segments.take(recording, said, body, still)
    if fresh:
        services.layouts.note(recording)
    view: View = {
        "trackId": chunk.track_id,
        "segmentIndex": chunk.index,
        "sha256": chunk.sha256,
        "sizeBytes": chunk.size_bytes,
        "state": chunk.state.value,
        **warned(chunk),
    }
    return JSONResponse(view, status_code=201 if fresh else 200)


async def takeable(connection: Connection, meeting: Meeting, recording_id: str | None) -> Recording:
    """The recording that is named, else the newest one that complete-recording has not closed."""
    if recording_id is None:
        newest = await ledger.newest_takeable_recording(connection, meeting.id)
        if newest is None:
            raise Conflict("This meeting has no open recording: start one.", code="no_open_recording")
        return newest
    try:
        found = await ledger.get_recording(connection, meeting.tenant_id, UUID(recording_id))
    except ValueError:
        found = None
    if found is None or found.meeting_id != meeting.id or found.deleted_at is not None:
        raise NotFound
    return found


async def _own_track(
    connection: Connection, subject: Subject, meeting: Meeting, recording: Recording, track_id: str | None, participant_id: str | None
) -> None:
    """Whether the subject may send this track: its own, or any for hosts. Forbidden, Conflict `track_taken`."""
    track = next((track for track in await chunks.tracks_of(connection, recording.id) if track.id == track_id), None)
    owner = track.participant_id if track is not None else None
    for whose in dict.fromkeys((owner or participant_id, participant_id)):
        await role_for_joining(connection, subject, meeting, whose)
    if owner is not None and participant_id is not None and owner != participant_id:
        raise Conflict("This track belongs to another participant: take a trackId of your own.", code="track_taken")


@router.post("/meetings/complete-recording", status_code=202, responses=shapes.says(shapes.Completing, 202))
async def complete_recording(asked: CompleteAsked, services: Of, subject: Asker) -> View:
    """Closes a track, or the whole recording, and has it processed; again: the same job."""
    async with services.database.transaction() as connection:
        meeting = await _meeting_to_complete(connection, subject, asked.meeting_id)
        recording = await _to_complete(connection, meeting, asked.recording_id)
        await _may_complete(connection, subject, meeting, recording, asked.track_id)
        if recording.status in OPEN and await _may_complete_all(connection, subject, meeting, recording):
            recording = await control.stop(connection, recording, by=subject.user_id)  # who may only send leaves the others recording
    closing = control.Closing(asked.track_id, asked.last_segment_index, asked.last_segment_indexes or {}, asked.allow_gaps)
    async with services.database.transaction() as connection:
        done = await control.complete(connection, services.queue, recording, closing)
    return {"jobId": done.job_id, "state": done.status.value}


async def _meeting_to_complete(connection: Connection, subject: Subject, name: str) -> Meeting:
    """The meeting, if the subject may see it, or owns its newest recording without being a participant."""
    try:
        return await meeting_for(connection, subject, name, Verb.SEE_MEETING)
    except NotFound:
        meeting = await ledger.find_meeting(connection, subject.tenant, name)
        newest = await ledger.newest_recording(connection, meeting.id) if meeting else None
        if meeting is None or newest is None or subject.user_id is None or newest.owner_id != subject.user_id:
            raise
        return meeting


async def _to_complete(connection: Connection, meeting: Meeting, recording_id: str | None) -> Recording:
    if recording_id is not None:
        return await takeable(connection, meeting, recording_id)
    newest = await ledger.newest_takeable_recording(connection, meeting.id) or await ledger.newest_recording(connection, meeting.id)
    if newest is None:
        raise Conflict("This meeting has no open recording: start one.", code="no_open_recording")
    return newest


async def _may_complete(connection: Connection, subject: Subject, meeting: Meeting, recording: Recording, track_id: str | None) -> None:
    if track_id is not None:
        await _own_track(connection, subject, meeting, recording, track_id, None)
    elif not await _may_complete_all(connection, subject, meeting, recording):
        raise Forbidden("You may complete only your own tracks: name one with `trackId`.")


async def _may_complete_all(connection: Connection, subject: Subject, meeting: Meeting, recording: Recording) -> bool:
    return may(subject, Verb.COMPLETE, await recording_facts(connection, subject, recording, meeting))
