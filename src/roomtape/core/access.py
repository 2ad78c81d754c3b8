"""Who may do what: one table, asked by every door through `authorise`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from roomtape.core.errors import Forbidden, NotFound, NotSignedIn
from roomtape.core.keys import DEFAULT_TENANT


class Role(StrEnum):
    """What a person is in a meeting."""

    HOST = "HOST"
    CO_HOST = "CO_HOST"
    PARTICIPANT = "PARTICIPANT"
    VIEWER = "VIEWER"


class Standing(StrEnum):
    """What the one who asks is in the installation."""

    ANONYMOUS = "anonymous"
    USER = "user"
    SERVICE = "service"  # an application that acts for the user it names
    ADMIN = "admin"


class Visibility(StrEnum):
    """Who may view a recording beside owner, host, co-hosts and those it is shared with."""

    PRIVATE = "private"
    PARTICIPANTS = "participants"
    TENANT = "tenant"
    PUBLIC = "public"


class Relation(StrEnum):
    """What a subject is to an object."""

    ADMIN = "admin"
    SERVICE = "service"
    OWNER = "owner"
    HOST = "host"
    CO_HOST = "co_host"
    PARTICIPANT = "participant"
    VIEWER = "viewer"
    SHARED = "shared"  # a row of the ACL table
    SIGNED_IN = "signed_in"  # anyone of the tenant who is signed in
    ANYONE = "anyone"


class Verb(StrEnum):
    """What can be done. The object is the installation, a meeting or a recording."""

    CREATE_MEETING = "create_meeting"
    SEE_MEETING = "see_meeting"
    EDIT_MEETING = "edit_meeting"
    PUT_PARTICIPANT = "put_participant"
    RECORD = "record"  # start, stop, pause, resume, discard
    UPLOAD = "upload"  # join an open recording, send and complete one's own tracks
    VIEW = "view"  # status, playback, HLS, download of what is made
    VIEW_ORIGINALS = "view_originals"  # the very bytes taken
    EDIT = "edit"
    DELETE = "delete"
    COMPLETE = "complete"  # close every track at once


_HOSTS = frozenset({Relation.ADMIN, Relation.HOST, Relation.CO_HOST})
_OWNERS = frozenset({Relation.ADMIN, Relation.OWNER, Relation.HOST})

ALLOWED: Mapping[Verb, frozenset[Relation]] = MappingProxyType(
    {
        Verb.CREATE_MEETING: frozenset({Relation.ADMIN, Relation.SERVICE, Relation.SIGNED_IN}),
        Verb.SEE_MEETING: _HOSTS | {Relation.SERVICE, Relation.PARTICIPANT, Relation.VIEWER},
        Verb.EDIT_MEETING: _HOSTS | {Relation.SERVICE},
        Verb.PUT_PARTICIPANT: _HOSTS | {Relation.SERVICE},
        Verb.RECORD: _HOSTS,
        Verb.UPLOAD: _HOSTS | {Relation.PARTICIPANT},
        Verb.VIEW: _OWNERS | {Relation.CO_HOST, Relation.SHARED},
        Verb.VIEW_ORIGINALS: _OWNERS,
        Verb.EDIT: _OWNERS | {Relation.CO_HOST},
        Verb.DELETE: _OWNERS,
        Verb.COMPLETE: _OWNERS | {Relation.CO_HOST, Relation.SERVICE},
    },
)

_BY_VISIBILITY: Mapping[Visibility, frozenset[Relation]] = MappingProxyType(
    {
        Visibility.PRIVATE: frozenset(),
        Visibility.PARTICIPANTS: frozenset({Relation.PARTICIPANT}),
        Visibility.TENANT: frozenset({Relation.PARTICIPANT, Relation.VIEWER, Relation.SIGNED_IN}),
        Visibility.PUBLIC: frozenset(Relation),
    },
)


@dataclass(frozen=True, slots=True)
class Subject:
    """The one who asks. `meetings`: roles a token of the host application states, by meeting id or room code; `key`: the API key, which may be revoked."""

    standing: Standing = Standing.ANONYMOUS
    user_id: str | None = None
    tenant: str = DEFAULT_TENANT
    name: str = ""
    meetings: Mapping[str, Role] = field(default_factory=dict)
    by_token: bool = False  # a JWT of the host application: makes only rooms that it names
    key: str | None = None

    @property
    def label(self) -> str:
        """How the ACL table and the idempotency store name the subject."""
        return f"{self.standing}:{self.user_id or ''}"


@dataclass(frozen=True, slots=True)
class MeetingFacts:
    """What of a meeting matters for rights; `role` is the stored role of the one who asks."""

    tenant: str
    meeting_id: str
    room_code: str | None
    host_id: str | None
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class RecordingFacts:
    """What of a recording matters for rights; `shared`: an ACL row names the one who asks, which ends in the trash."""

    meeting: MeetingFacts
    owner_id: str | None
    visibility: Visibility = Visibility.PRIVATE
    shared: bool = False
    deleted: bool = False


def role_in(subject: Subject, meeting: MeetingFacts) -> Role | None:
    """The role of the subject in a meeting: the token's word, else the stored role, else the host's chair: who is demoted is so at once."""
    stated = subject.meetings.get(meeting.meeting_id) or (subject.meetings.get(meeting.room_code) if meeting.room_code else None)
    if stated is not None:
        return stated
    if meeting.role is not None:
        return meeting.role
    return Role.HOST if subject.user_id is not None and subject.user_id == meeting.host_id else None


def relations(subject: Subject, about: MeetingFacts | RecordingFacts | None) -> frozenset[Relation]:
    """What the subject is to the object; nothing at all across tenants."""
    meeting = about.meeting if isinstance(about, RecordingFacts) else about
    if meeting is not None and meeting.tenant != subject.tenant:
        return frozenset({Relation.ANYONE}) if isinstance(about, RecordingFacts) and subject.standing is Standing.ANONYMOUS else frozenset()
    found = {Relation.ANYONE}
    if subject.standing is Standing.ADMIN:
        found.add(Relation.ADMIN)
    if subject.standing is Standing.SERVICE:
        found.add(Relation.SERVICE)
    if subject.user_id is not None:
        found.add(Relation.SIGNED_IN)
    if meeting is not None and subject.user_id is not None and (role := role_in(subject, meeting)):
        found.add(Relation(role.value.lower()))
    if isinstance(about, RecordingFacts) and subject.user_id is not None:
        if subject.user_id == about.owner_id:
            found.add(Relation.OWNER)
        if about.shared and not about.deleted:
            found.add(Relation.SHARED)
    return frozenset(found)


def may(subject: Subject, verb: Verb, about: MeetingFacts | RecordingFacts | None = None) -> bool:
    """Whether the table allows it."""
    held = relations(subject, about)
    if held & ALLOWED[verb]:
        return True
    return verb is Verb.VIEW and isinstance(about, RecordingFacts) and not about.deleted and bool(held & _BY_VISIBILITY[about.visibility])


def authorise(subject: Subject, verb: Verb, about: MeetingFacts | RecordingFacts | None = None) -> None:
    """Passes, or raises: NotSignedIn (nobody asks), NotFound (may not even know of it), Forbidden (knows it, may not)."""
    if may(subject, verb, about):
        return
    if subject.standing is Standing.ANONYMOUS:
        raise NotSignedIn
    if about is None:
        raise Forbidden
    knows = Verb.SEE_MEETING if isinstance(about, MeetingFacts) else Verb.VIEW
    meeting = about if isinstance(about, MeetingFacts) else about.meeting
    if may(subject, knows, about) or may(subject, Verb.SEE_MEETING, meeting):
        raise Forbidden
    raise NotFound
