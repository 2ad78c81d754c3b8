"""All SQL about meetings and recordings. The ledger is the truth; files are only bytes.

Every function takes the connection of the caller's transaction first; every change of state writes its event in that transaction.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from psycopg import sql
from psycopg.types.json import Jsonb

from roomtape.core.errors import Conflict
from roomtape.core.lifecycle import OPEN, TAKING, Status, sources_of
from roomtape.db.access import refresh_acl
from roomtape.db.database import Connection, found, many, one, scalar
from roomtape.db.outbox import write_event
from roomtape.db.rows import Json, Meeting, Participant, Pause, Recording, row_of

_OPEN = [str(status) for status in OPEN]
_TAKING = [str(status) for status in TAKING]
_EVENTS = {
    Status.RECORDING: "recording.started",
    Status.PAUSED: "recording.paused",
    Status.STOPPED: "recording.stopped",
    Status.PROCESSING: "recording.processing",
    Status.COMPLETED: "recording.completed",
    Status.FAILED: "recording.failed",
}
_STAMPS = {
    Status.RECORDING: "started_at",
    Status.STOPPED: "stopped_at",
    Status.PROCESSING: "complete_requested_at",
    Status.COMPLETED: "completed_at",
    Status.FAILED: "completed_at",
}
_JSON = frozenset({"options", "warnings", "error", "metadata", "analysis"})

_CREATE_MEETING = """
    INSERT INTO meetings (id, tenant_id, room_code, title, host_id, source, metadata)
    VALUES (%(id)s, %(tenant)s, %(room_code)s, %(title)s, %(host_id)s, %(source)s, %(metadata)s)
    ON CONFLICT DO NOTHING RETURNING *
"""
_MEETINGS = """
    FROM meetings m
    WHERE m.tenant_id = %(tenant)s
      AND (%(user_id)s::text IS NULL OR m.host_id = %(user_id)s
           OR EXISTS (SELECT 1 FROM participants p WHERE p.meeting_id = m.id AND p.user_id = %(user_id)s))
"""
_LIST_MEETINGS = f"SELECT m.* {_MEETINGS} ORDER BY m.created_at DESC, m.id DESC LIMIT %(limit)s OFFSET %(offset)s"
_COUNT_MEETINGS = f"SELECT count(*) FROM (SELECT 1 {_MEETINGS} LIMIT 10001) AS counted"
_PUT_PARTICIPANT = """
    INSERT INTO participants (meeting_id, tenant_id, user_id, full_name, role)
    SELECT id, tenant_id, %(user_id)s, %(full_name)s, %(role)s FROM meetings WHERE id = %(meeting_id)s
    ON CONFLICT (meeting_id, user_id) DO UPDATE SET full_name = excluded.full_name, role = excluded.role, left_at = NULL
    RETURNING *
"""
_DUE = "(purging_at IS NOT NULL OR (deleted_at < now() - make_interval(secs => %(trash_days)s * 86400) AND NOT legal_hold))"
_NEWEST_TAKEABLE = """
    SELECT * FROM recordings
    WHERE meeting_id = %(meeting_id)s AND status = ANY(%(taking)s) AND complete_requested_at IS NULL AND deleted_at IS NULL
    ORDER BY created_at DESC, id DESC LIMIT 1
"""


async def create_meeting(
    connection: Connection,
    tenant: str,
    meeting_id: UUID,
    room_code: str,
    *,
    title: str = "",
    host_id: str | None = None,
    source: str | None = None,
    metadata: Json | None = None,
) -> Meeting:
    """A new meeting; its host becomes a participant with the role HOST. One with this id is a first try's, and the answer.

    Raises Conflict `room_code_taken` with `meeting_id`.
    """
    values = {"id": meeting_id, "tenant": tenant, "room_code": room_code, "title": title, "host_id": host_id, "source": source}
    made = await one(connection, Meeting, _CREATE_MEETING, **values, metadata=Jsonb(metadata or {}))
    if made is None:
        if (there := await find_meeting(connection, tenant, meeting_id)) is not None and there.id == meeting_id:
            return there
        taken = await find_meeting(connection, tenant, room_code)
        raise Conflict("A meeting with this room code exists.", code="room_code_taken", meeting_id=str(taken.id) if taken else None)
    if host_id is not None:
        await put_participant(connection, made.id, host_id, role="HOST")
    return made


async def find_meeting(connection: Connection, tenant: str, name: UUID | str) -> Meeting | None:
    """A meeting by its id or its room code, within the tenant. An id wins over a room code that looks like one."""
    try:
        meeting_id = name if isinstance(name, UUID) else UUID(name)
    except ValueError:
        meeting_id = None
    query = "SELECT * FROM meetings WHERE tenant_id = %(tenant)s AND (id = %(id)s OR room_code = %(room_code)s) ORDER BY id = %(id)s DESC NULLS LAST LIMIT 1"
    return await one(connection, Meeting, query, tenant=tenant, id=meeting_id, room_code=str(name))


async def list_meetings(connection: Connection, tenant: str, *, user_id: str | None = None, limit: int = 50, offset: int = 0) -> list[Meeting]:
    """The newest meetings first: all of the tenant, or with `user_id` those that the user hosts or takes part in."""
    return await many(connection, Meeting, _LIST_MEETINGS, tenant=tenant, user_id=user_id, limit=limit, offset=offset)


async def count_meetings(connection: Connection, tenant: str, *, user_id: str | None = None) -> int:
    """How many list_meetings would give in all, exact to 10,000 (10,001 = more)."""
    return int(await scalar(connection, _COUNT_MEETINGS, tenant=tenant, user_id=user_id))


async def meetings_by_id(connection: Connection, ids: Collection[UUID]) -> dict[UUID, Meeting]:
    """The meetings of a page of recordings."""
    return {made.id: made for made in await many(connection, Meeting, "SELECT * FROM meetings WHERE id = ANY(%(ids)s)", ids=list(ids))}


async def set_metadata(connection: Connection, tenant: str, meeting_id: UUID, metadata: Json) -> Meeting:
    """Replaces the meeting's free metadata."""
    query = "UPDATE meetings SET metadata = %(value)s WHERE tenant_id = %(tenant)s AND id = %(id)s RETURNING *"
    return found(await one(connection, Meeting, query, tenant=tenant, id=meeting_id, value=Jsonb(metadata)))


async def put_participant(connection: Connection, meeting_id: UUID, user_id: str, *, full_name: str = "", role: str = "PARTICIPANT") -> Participant:
    """Joins or updates a participant; who may see the meeting's recordings follows."""
    put = found(await one(connection, Participant, _PUT_PARTICIPANT, meeting_id=meeting_id, user_id=user_id, full_name=full_name, role=role))
    await _tell_running(connection, meeting_id, "participant.joined", {"user_id": user_id, "full_name": full_name, "role": role})
    await refresh_acl(connection, meeting_id=meeting_id)
    return put


async def leave_participant(connection: Connection, meeting_id: UUID, user_id: str) -> Participant:
    """Notes that a participant left; the role stays, what was seen may be seen again. Raises NotFound."""
    query = "UPDATE participants SET left_at = coalesce(left_at, now()) WHERE meeting_id = %(meeting_id)s AND user_id = %(user_id)s RETURNING *"
    left = found(await one(connection, Participant, query, meeting_id=meeting_id, user_id=user_id))
    await _tell_running(connection, meeting_id, "participant.left", {"user_id": user_id})
    return left


async def participants_of(connection: Connection, *meetings: UUID) -> list[Participant]:
    """All who ever were in these meetings, in the order of joining."""
    return await many(connection, Participant, "SELECT * FROM participants WHERE meeting_id = ANY(%(ids)s) ORDER BY joined_at, user_id", ids=list(meetings))


async def role_of(connection: Connection, meeting_id: UUID, user_id: str) -> str | None:
    """HOST, CO_HOST, PARTICIPANT, VIEWER, or None for a stranger."""
    query = "SELECT role FROM participants WHERE meeting_id = %(meeting_id)s AND user_id = %(user_id)s"
    role: str | None = await scalar(connection, query, meeting_id=meeting_id, user_id=user_id)
    return role


async def create_recording(
    connection: Connection,
    tenant: str,
    recording_id: UUID,
    meeting_id: UUID,
    *,
    owner_id: str,
    prefix: str,
    source: str,
    wishes: Mapping[str, Any] | None = None,
) -> Recording:
    """A new recording, `pending`. `wishes` are further columns: title, layout, strategy, options, ….

    One with this id is a first try's, and the answer. Raises Conflict `already_recording` with `recording_id` while the meeting has an open one: the
    partial unique index decides, not a look before.
    """
    values = {
        "id": recording_id,
        "tenant_id": tenant,
        "meeting_id": meeting_id,
        "owner_id": owner_id,
        "prefix": prefix,
        "source": source,
        **_columns(wishes or {}),
    }
    query = sql.SQL("INSERT INTO recordings ({}) VALUES ({}) ON CONFLICT DO NOTHING RETURNING *").format(
        sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(map(sql.Placeholder, values))
    )
    for _ in range(3):  # the open one may end between our insert and our look
        async with connection.cursor(row_factory=row_of(Recording)) as cursor:
            made = await (await cursor.execute(query, values)).fetchone()
        if made is not None:
            await refresh_acl(connection, recording_id=made.id)
            return made
        if (there := await get_recording(connection, tenant, recording_id)) is not None:
            return there
        if (running := await open_recording(connection, meeting_id)) is not None:
            raise Conflict("This meeting is being recorded already.", code="already_recording", recording_id=str(running.id), source=running.source)
    raise Conflict("This meeting's recording is just changing; try again.", code="already_recording")


async def get_recording(connection: Connection, tenant: str, recording_id: UUID) -> Recording | None:
    """A recording of the tenant, deleted ones too (`deleted_at`)."""
    return await one(connection, Recording, "SELECT * FROM recordings WHERE tenant_id = %(tenant)s AND id = %(id)s", tenant=tenant, id=recording_id)


async def find_recording(connection: Connection, recording_id: UUID) -> Recording | None:
    """A recording of any tenant: for our own work, never for a door."""
    return await one(connection, Recording, "SELECT * FROM recordings WHERE id = %(id)s", id=recording_id)


async def lock_recording(connection: Connection, recording_id: UUID) -> Recording:
    """The recording with its row held until the transaction ends. Raises NotFound."""
    return found(await one(connection, Recording, "SELECT * FROM recordings WHERE id = %(id)s FOR NO KEY UPDATE", id=recording_id))


async def open_recording(connection: Connection, meeting_id: UUID) -> Recording | None:
    """The meeting's recording that is pending, recording or paused."""
    query = "SELECT * FROM recordings WHERE meeting_id = %(id)s AND status = ANY(%(open)s)"
    return await one(connection, Recording, query, id=meeting_id, open=_OPEN)


async def newest_recording(connection: Connection, meeting_id: UUID, *, deleted: bool = False) -> Recording | None:
    """The newest recording, whose status makes the meeting's state; `deleted`: even one in the trash, so that discarding twice does not reach for the one before."""
    query = "SELECT * FROM recordings WHERE meeting_id = %(id)s AND (deleted_at IS NULL OR %(deleted)s) ORDER BY created_at DESC, id DESC LIMIT 1"
    return await one(connection, Recording, query, id=meeting_id, deleted=deleted)


async def newest_recordings(connection: Connection, meetings: Collection[UUID]) -> dict[UUID, Recording]:
    """The newest recording of each meeting of a page, the trash left out."""
    query = """
        SELECT DISTINCT ON (meeting_id) * FROM recordings WHERE meeting_id = ANY(%(ids)s) AND deleted_at IS NULL
        ORDER BY meeting_id, created_at DESC, id DESC
    """
    return {made.meeting_id: made for made in await many(connection, Recording, query, ids=list(meetings))}


async def newest_takeable_recording(connection: Connection, meeting_id: UUID) -> Recording | None:
    """The newest recording that complete-recording has not closed: where segments without `recordingId` go."""
    return await one(connection, Recording, _NEWEST_TAKEABLE, meeting_id=meeting_id, taking=_TAKING)


async def move(
    connection: Connection, recording_id: UUID, target: Status, *, why: str = "", by: str | None = None, fields: Mapping[str, Any] | None = None
) -> Recording:
    """Moves a recording to `target` with its time stamp, `fields` (columns) and its event; repeating gives the same answer and writes nothing.

    Stopping what is past being stopped is such a repetition. Raises NotFound, and Conflict `not_possible` with `state`.
    """
    held = await lock_recording(connection, recording_id)
    if held.status is target or (target in {Status.STOPPED, Status.PROCESSING} and held.status not in sources_of(target) and held.status not in OPEN):
        return held
    if held.status not in sources_of(target):
        raise Conflict(f"A recording that is {held.status} cannot become {target}.", code="not_possible", state=str(held.status))
    values = {**_columns(fields or {}), "status": str(target)}
    stamp = _STAMPS.get(target)
    query = sql.SQL("UPDATE recordings SET {} WHERE id = {} AND status = {} RETURNING *").format(
        sql.SQL(", ").join(
            [sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in values]
            + ([sql.SQL("{0} = coalesce({0}, now())").format(sql.Identifier(stamp))] if stamp and stamp not in values else [])
        ),
        sql.Placeholder("_id"),
        sql.Placeholder("_from"),
    )
    async with connection.cursor(row_factory=row_of(Recording)) as cursor:
        moved = found(await (await cursor.execute(query, {**values, "_id": recording_id, "_from": str(held.status)})).fetchone())
    await _keep_pauses(connection, recording_id, target, by)
    resumed = target is Status.RECORDING and held.status is Status.PAUSED
    data: Json = {"status": str(target), "title": moved.title} | ({"why": why} if why else {}) | ({"error": moved.error} if moved.error else {})
    return replace(moved, event_seq=await write_event(connection, recording_id, "recording.resumed" if resumed else _EVENTS[target], data))


async def stop(connection: Connection, recording_id: UUID, *, why: str = "", by: str | None = None) -> Recording:
    """Ends a capture, whoever asks for it: what is there plays at once, and an event says so. Repeating it gives the same answer."""
    held = await lock_recording(connection, recording_id)
    stopped = await move(connection, recording_id, Status.STOPPED, why=why, by=by)
    if held.status in OPEN and stopped.bytes:
        await write_event(connection, recording_id, "recording.playable", {"status": stopped.status.value})
    return stopped


async def pauses_of(connection: Connection, recording_id: UUID) -> list[Pause]:
    """When the recording was paused; `to_at` is None while it is."""
    return await many(connection, Pause, "SELECT * FROM pauses WHERE recording_id = %(id)s ORDER BY from_at", id=recording_id)


async def set_fields(connection: Connection, recording_id: UUID, fields: Mapping[str, Any]) -> Recording:
    """Sets columns that are no state: title, visibility, expires_at, warnings, measured values, job_id, …. Access follows `visibility` and `owner_id`.

    Raises Conflict `purging` for a legal hold that comes too late.
    """
    if not fields or "status" in fields:
        raise ValueError("state moves by move() only")
    if "legal_hold" in fields:
        _refuse_purging(await lock_recording(connection, recording_id))
    query = sql.SQL("UPDATE recordings SET {} WHERE id = {} RETURNING *").format(
        sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in fields), sql.Placeholder("_id")
    )
    async with connection.cursor(row_factory=row_of(Recording)) as cursor:
        changed = found(await (await cursor.execute(query, {**_columns(fields), "_id": recording_id})).fetchone())
    if fields.keys() & {"visibility", "owner_id"}:
        await refresh_acl(connection, recording_id=recording_id)
    return changed


async def note_duration(connection: Connection, recording_id: UUID, duration_us: int) -> None:
    """What lists say of a recording that goes on; of a completed one its file is measured, and nothing else counts."""
    query = "UPDATE recordings SET duration_us = %s WHERE id = %s AND completed_at IS NULL"
    await connection.execute(query, [duration_us, recording_id])


async def set_health(connection: Connection, recording_id: UUID, health: str) -> None:
    """Notes what the media says, with an event when it changed."""
    query = "UPDATE recordings SET health = %(health)s WHERE id = %(id)s AND health <> %(health)s RETURNING health"
    if await scalar(connection, query, id=recording_id, health=health) is not None:
        await write_event(connection, recording_id, "recording.health", {"health": health})


async def soft_delete(connection: Connection, recording_id: UUID, *, by: str | None = None) -> Recording:
    """Puts a recording into the trash; again: the same answer. Raises Conflict `legal_hold` or `still_recording`."""
    held = await lock_recording(connection, recording_id)
    if held.deleted_at is not None:
        return held
    if held.legal_hold:
        raise Conflict("The recording is under legal hold.", code="legal_hold")
    if held.status in OPEN:
        raise Conflict("The recording is still running: stop it first.", code="still_recording", state=str(held.status))
    deleted = found(await one(connection, Recording, "UPDATE recordings SET deleted_at = now() WHERE id = %(id)s RETURNING *", id=recording_id))
    return replace(deleted, event_seq=await write_event(connection, recording_id, "recording.deleted", {"by": by}))


async def restore(connection: Connection, recording_id: UUID) -> Recording:
    """Takes a recording out of the trash; one that is not in it: the same answer. Raises Conflict `purging` when its bytes are going already."""
    held = await lock_recording(connection, recording_id)
    _refuse_purging(held)
    if held.deleted_at is None:
        return held
    restored = found(await one(connection, Recording, "UPDATE recordings SET deleted_at = NULL WHERE id = %(id)s RETURNING *", id=recording_id))
    return replace(restored, event_seq=await write_event(connection, recording_id, "recording.restored"))


async def to_purge(connection: Connection, *, trash_days: float, limit: int = 50) -> list[Recording]:
    """Recordings whose time in the trash is over (see begin_purge), and those whose purge was cut short."""
    query = f"SELECT * FROM recordings WHERE {_DUE} ORDER BY deleted_at LIMIT %(limit)s"
    return await many(connection, Recording, query, trash_days=trash_days, limit=limit)


async def begin_purge(connection: Connection, recording_id: UUID, *, trash_days: float) -> bool:
    """Says that a recording's bytes go from now on. False when it is not due: less than `trash_days` in the trash by the database's clock, restored, or under hold."""
    query = f"UPDATE recordings SET purging_at = coalesce(purging_at, now()) WHERE id = %(id)s AND {_DUE} RETURNING true"
    return bool(await scalar(connection, query, id=recording_id, trash_days=trash_days))


async def purge(connection: Connection, recording_id: UUID) -> bool:
    """Removes the rows of a recording whose objects are gone and keeps its id, by which late objects of it are known; False when no purge had begun."""
    query = """
        WITH gone AS (DELETE FROM recordings WHERE id = %(id)s AND purging_at IS NOT NULL RETURNING id)
        INSERT INTO purged (recording_id) SELECT id FROM gone ON CONFLICT DO NOTHING RETURNING true
    """
    return bool(await scalar(connection, query, id=recording_id))


async def running_recordings(connection: Connection, statuses: Sequence[Status], *, limit: int = 1000) -> list[Recording]:
    """Recordings of all tenants in these states, the longest silent first: for health, reconciliation and the planner."""
    query = "SELECT * FROM recordings WHERE status = ANY(%(statuses)s) AND deleted_at IS NULL ORDER BY last_byte_at NULLS FIRST LIMIT %(limit)s"
    return await many(connection, Recording, query, statuses=[str(status) for status in statuses], limit=limit)


async def count_by_status(connection: Connection) -> dict[str, int]:
    """How many recordings of all tenants are in each state, the trash left out."""
    cursor = await connection.execute("SELECT status, count(*) FROM recordings WHERE deleted_at IS NULL GROUP BY status")
    found = {status: int(count) for status, count in await cursor.fetchall()}
    return {status.value: found.get(status.value, 0) for status in Status}


def _refuse_purging(recording: Recording) -> None:
    if recording.purging_at is not None:
        raise Conflict("The recording is being removed for good: its time in the trash is over.", code="purging")


async def _keep_pauses(connection: Connection, recording_id: UUID, target: Status, by: str | None) -> None:
    if target is Status.PAUSED:
        await connection.execute("INSERT INTO pauses (recording_id, tenant_id, by) SELECT id, tenant_id, %s FROM recordings WHERE id = %s", [by, recording_id])
    else:
        await connection.execute("UPDATE pauses SET to_at = now() WHERE recording_id = %s AND to_at IS NULL", [recording_id])


async def _tell_running(connection: Connection, meeting_id: UUID, kind: str, data: Json) -> None:
    running = await open_recording(connection, meeting_id)
    if running is not None:
        await write_event(connection, running.id, kind, data)


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: Jsonb(value) if name in _JSON and value is not None else value for name, value in fields.items()}
