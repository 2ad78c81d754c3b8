"""Finds what somebody asks for, if they may: every door looks things up through here."""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from roomtape.core.access import MeetingFacts, RecordingFacts, Role, Standing, Subject, Verb, Visibility, authorise
from roomtape.core.errors import BadInput, Forbidden, NotFound, NotSignedIn
from roomtape.db import access, ledger
from roomtape.db.database import Connection
from roomtape.db.rows import Meeting, Recording


def acting_for(subject: Subject, user_id: str | None) -> Subject:
    """The subject as the user a request names: services act for users, everyone else only for themselves; an admin may name anyone."""
    if user_id is None or user_id == subject.user_id or subject.standing is Standing.ADMIN:
        return subject
    if subject.standing is Standing.SERVICE:
        return replace(subject, user_id=user_id)
    if subject.standing is Standing.ANONYMOUS:
        raise NotSignedIn
    raise Forbidden("You may not act for another user.", code="other_user")


def named_user(subject: Subject, user_id: str | None) -> str:
    """Whom something shall belong to: the named user, else the one who asks. BadInput when a program names nobody."""
    name = user_id or subject.user_id
    if name is None:
        raise BadInput("Name the user: `userId`, or the header Roomtape-User.", code="user_wanted")
    return name


def subjects_of(subject: Subject) -> list[str]:
    """How the access table knows the one who asks."""
    found = ["public"]
    if subject.user_id is not None:  # a service that names nobody is nobody of the tenant
        found += [f"tenant:{subject.tenant}", f"user:{subject.user_id}"]
    if subject.standing is Standing.ADMIN:
        found.append(access.ADMIN)
    found += [f"host-of:{name}" for name, role in subject.meetings.items() if role in {Role.HOST, Role.CO_HOST}]
    return found + [f"guest-of:{name}" for name, role in subject.meetings.items() if role is not Role.VIEWER]


async def facts_of(connection: Connection, subject: Subject, meeting: Meeting) -> MeetingFacts:
    """What of a meeting decides about rights."""
    role = await ledger.role_of(connection, meeting.id, subject.user_id) if subject.user_id else None
    return MeetingFacts(meeting.tenant_id, str(meeting.id), meeting.room_code, meeting.host_id, Role(role) if role else None)


async def meeting_for(connection: Connection, subject: Subject, name: UUID | str, verb: Verb) -> Meeting:
    """A meeting by id or room code for `verb`. NotFound, Forbidden, NotSignedIn."""
    if subject.standing is Standing.ANONYMOUS:
        raise NotSignedIn
    meeting = await ledger.find_meeting(connection, subject.tenant, name)
    if meeting is None:
        raise NotFound
    authorise(subject, verb, await facts_of(connection, subject, meeting))
    return meeting


async def recording_for(connection: Connection, subject: Subject, recording_id: UUID, verb: Verb, *, deleted: bool = False) -> tuple[Recording, Meeting]:
    """A recording for `verb`; one in the trash only with `deleted`. NotFound, Forbidden, NotSignedIn."""
    recording = await ledger.get_recording(connection, subject.tenant, recording_id)
    meeting = await ledger.find_meeting(connection, subject.tenant, recording.meeting_id) if recording else None
    if recording is None or meeting is None or (recording.deleted_at is not None and not deleted):
        if subject.standing is Standing.ANONYMOUS:
            raise NotSignedIn
        raise NotFound
    authorise(subject, verb, await recording_facts(connection, subject, recording, meeting))
    return recording, meeting


async def recording_facts(connection: Connection, subject: Subject, recording: Recording, meeting: Meeting) -> RecordingFacts:
    """What of a recording decides about rights."""
    shared = await _shared(connection, recording.id, [name for name in subjects_of(subject) if name.startswith("user:")])
    return RecordingFacts(
        await facts_of(connection, subject, meeting),
        recording.owner_id,
        Visibility(recording.visibility),
        shared=shared,
        deleted=recording.deleted_at is not None,
    )


async def _shared(connection: Connection, recording_id: UUID, names: Sequence[str]) -> bool:
    if not names:
        return False
    return bool(await access.permissions_of(connection, recording_id, names) & {"view", "download", "share"})


async def role_for_joining(connection: Connection, subject: Subject, meeting: Meeting, participant_id: str | None) -> None:
    """Uploading and completing: one's own tracks; hosts and admins any."""
    facts = await facts_of(connection, subject, meeting)
    authorise(subject, Verb.UPLOAD, facts)
    if participant_id is None or participant_id == subject.user_id:
        return
    try:
        authorise(subject, Verb.RECORD, facts)
    except Forbidden as wrong:
        raise Forbidden("You may send only your own tracks.", code="other_participant") from wrong
