"""Names of stored objects, built from our own ids only; never a client's file name."""

import re
from hashlib import sha256
from uuid import UUID

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OURS = re.compile(rf"(?:{_PLAIN.pattern}/){{1,2}}{_UUID}/({_UUID})/(?:chunks/{_PLAIN.pattern}/[0-9]{{10}}|artifacts/[a-z0-9_]+)-[0-9a-f]{{32}}")
DEFAULT_TENANT = "default"


def user_part(user_id: str) -> str:
    """A user id as keys have it: itself where it is harmless, else `u-` and 32 hex digits of its sha256."""
    return user_id if _PLAIN.fullmatch(user_id) else "u-" + sha256(user_id.encode()).hexdigest()[:32]


def meeting_prefix(tenant: str, user_id: str, meeting_id: UUID) -> str:
    """`{userId}/{meetingId}/`; tenants other than `default` stand before it."""
    before = "" if tenant == DEFAULT_TENANT else user_part(tenant) + "/"
    return f"{before}{user_part(user_id)}/{meeting_id}/"


def chunk_key(prefix: str, recording_id: UUID, track: str, index: int, digest: str, upload: str) -> str:
    """The object of one segment as one upload brought it; `upload`: 12 hex digits of its own.

    No two uploads share an object, so one without a row can be removed for good: nobody is about to name it.
    """
    return f"{prefix}{recording_id}/chunks/{user_part(track)}/{index:010d}-{digest[:20]}{upload}"


def artifact_key(prefix: str, recording_id: UUID, kind: str, recipe: str) -> str:
    """The object of an artifact made by `recipe` (a digest of everything that goes in)."""
    return f"{prefix}{recording_id}/artifacts/{kind}-{recipe[:32]}"


def recording_of(key: str) -> UUID | None:
    """Whose object it is, of a key of exactly the form that chunk_key and artifact_key give; None: it is nobody's of ours, and not ours to touch."""
    found = _OURS.fullmatch(key)
    return UUID(found[1]) if found else None
