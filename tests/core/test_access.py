"""The rights: one row per subject and verb, as docs/reference/access.md prints them."""

import pytest

from roomtape.core.access import (
    MeetingFacts,
    RecordingFacts,
    Role,
    Standing,
    Subject,
    Verb,
    Visibility,
    authorise,
    may,
)
from roomtape.core.errors import Forbidden, NotFound, NotSignedIn

MEETING = MeetingFacts("default", "m1", "room", host_id="host")
RECORDING = RecordingFacts(MEETING, owner_id="owner")
MEETING_VERBS = (Verb.SEE_MEETING, Verb.EDIT_MEETING, Verb.PUT_PARTICIPANT, Verb.RECORD, Verb.UPLOAD)
RECORDING_VERBS = (Verb.VIEW, Verb.VIEW_ORIGINALS, Verb.EDIT, Verb.DELETE, Verb.COMPLETE)

SUBJECTS: dict[str, tuple[Subject, Role | None]] = {
    "anonymous": (Subject(), None),
    "outsider": (Subject(Standing.USER, "outsider"), None),
    "viewer": (Subject(Standing.USER, "viewer"), Role.VIEWER),
    "participant": (Subject(Standing.USER, "guest"), Role.PARTICIPANT),
    "co_host": (Subject(Standing.USER, "second"), Role.CO_HOST),
    "host": (Subject(Standing.USER, "host"), None),
    "owner": (Subject(Standing.USER, "owner"), None),
    "token_host": (Subject(Standing.USER, "t", meetings={"room": Role.HOST}, by_token=True), None),
    "service": (Subject(Standing.SERVICE), None),
    "admin": (Subject(Standing.ADMIN, "boss"), None),
    "foreign_admin": (Subject(Standing.ADMIN, "boss", tenant="other"), None),
    "foreign_host": (Subject(Standing.USER, "host", tenant="other"), Role.HOST),
}

#                 SEE EDIT PUT RECORD UPLOAD | VIEW ORIGINALS EDIT DELETE COMPLETE
TABLE = {
    "anonymous": ".....|.....",
    "outsider": ".....|.....",
    "viewer": "x....|.....",
    "participant": "x...x|.....",
    "co_host": "xxxxx|x.x.x",
    "host": "xxxxx|xxxxx",
    "owner": ".....|xxxxx",
    "token_host": "xxxxx|xxxxx",
    "service": "xxx..|....x",
    "admin": "xxxxx|xxxxx",
    "foreign_admin": ".....|.....",
    "foreign_host": ".....|.....",
}


def about(role: Role | None, **more: object) -> RecordingFacts:
    return RecordingFacts(MeetingFacts("default", "m1", "room", "host", role), "owner", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "verb"), [(name, verb) for name in SUBJECTS for verb in (*MEETING_VERBS, *RECORDING_VERBS)])
def test_the_table_of_rights(name: str, verb: Verb) -> None:
    subject, role = SUBJECTS[name]
    facts = about(role)
    row = TABLE[name].replace("|", "")[(*MEETING_VERBS, *RECORDING_VERBS).index(verb)]
    assert may(subject, verb, facts if verb in RECORDING_VERBS else facts.meeting) is (row == "x")


def test_nobody_is_asked_to_sign_in() -> None:
    with pytest.raises(NotSignedIn):
        authorise(Subject(), Verb.VIEW, RECORDING)


@pytest.mark.parametrize("verb", RECORDING_VERBS)
@pytest.mark.parametrize("name", ["outsider", "foreign_admin", "foreign_host"])
def test_what_one_may_not_see_is_not_there(name: str, verb: Verb) -> None:
    with pytest.raises(NotFound):
        authorise(SUBJECTS[name][0], verb, RECORDING)


def test_what_one_may_see_but_not_do_is_forbidden() -> None:
    subject, role = SUBJECTS["co_host"]
    with pytest.raises(Forbidden):
        authorise(subject, Verb.DELETE, about(role))
    subject, role = SUBJECTS["participant"]
    with pytest.raises(Forbidden):
        authorise(subject, Verb.RECORD, about(role).meeting)


@pytest.mark.parametrize(
    ("visibility", "seen_by"),
    [
        (Visibility.PRIVATE, set()),
        (Visibility.PARTICIPANTS, {"participant"}),
        (Visibility.TENANT, {"participant", "viewer", "outsider"}),
        (Visibility.PUBLIC, {"participant", "viewer", "outsider", "anonymous"}),
    ],
)
def test_visibility_opens_to_whom_it_names(visibility: Visibility, seen_by: set[str]) -> None:
    for name in ("anonymous", "outsider", "viewer", "participant"):
        subject, role = SUBJECTS[name]
        assert may(subject, Verb.VIEW, about(role, visibility=visibility)) is (name in seen_by)
        assert not may(subject, Verb.VIEW_ORIGINALS, about(role, visibility=visibility))


def test_a_share_lets_view_and_no_more() -> None:
    subject = SUBJECTS["outsider"][0]
    shared = about(None, shared=True)
    assert may(subject, Verb.VIEW, shared)
    assert not any(may(subject, verb, shared) for verb in RECORDING_VERBS if verb is not Verb.VIEW)


def test_everybody_signed_in_may_make_a_meeting() -> None:
    assert may(Subject(Standing.USER, "u"), Verb.CREATE_MEETING)
    assert may(Subject(Standing.SERVICE), Verb.CREATE_MEETING)
    with pytest.raises(NotSignedIn):
        authorise(Subject(), Verb.CREATE_MEETING)
