"""What tests of the ledger need again and again: a meeting, a recording, a chunk."""

from hashlib import sha256
from uuid import UUID

from uuid_utils.compat import uuid7

from roomtape.db import chunks, ledger
from roomtape.db.database import Connection
from roomtape.db.rows import Meeting, NewChunk, Recording

TENANT = "default"


async def a_meeting(connection: Connection, *, tenant: str = TENANT, room: str = "", host: str | None = "host") -> Meeting:
    meeting_id = uuid7()
    return await ledger.create_meeting(connection, tenant, meeting_id, room or f"room-{meeting_id}", host_id=host)


async def a_recording(connection: Connection, meeting: Meeting | None = None, *, tenant: str = TENANT, owner: str = "owner", title: str = "") -> Recording:
    meeting = meeting or await a_meeting(connection, tenant=tenant)
    recording = await ledger.create_recording(connection, tenant, uuid7(), meeting.id, owner_id=owner, prefix="p/", source="segments", wishes={"title": title})
    await chunks.upsert_track(connection, recording.id, "1")
    return recording


def a_chunk(recording_id: UUID, index: int, body: bytes = b"media", *, track: str = "1", parsed: bool = False) -> NewChunk:
    digest = sha256(body).hexdigest()
    return NewChunk(
        recording_id=recording_id, track_id=track, index=index, size_bytes=len(body), sha256=digest, key=f"chunks/{index}-{digest[:8]}", parsed=parsed
    )
